"""Average precision exactly as scikit-learn defines it, and greedy selection on it, compiled.

An ensemble's score is the AP of the float64 running sum of its members in order of addition. Greedy needs the
best candidate of each round, not every candidate's AP, so a candidate is first judged by upper bounds:

    coarse bound -> fine bound -> exact AP          (the candidate of the highest value is judged next,
                                                     until none could still reach the best exact AP)

A bound comes from counts. Scores are held as 16-bit integers, rounded down, so that a candidate's sum is an
integer addition (32 at a time on a wide CPU) and its negatives fall into buckets by plain increments. A negative
counts as above a positive only where that is certain; missing some can but raise precision, so the AP of the
counts is never below the true one. At 39,293 images a coarse bound takes about 20 us, an exact AP 80 to 190 us,
scikit-learn's 9 ms.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import njit
from numba.typed import List

EQUAL = 1e-12  # scores nearer than this are equal; the first member, the shortest prefix wins
TOP = 65535  # the largest 16-bit score
SLACK = 1e-11  # a bound's own rounding, and EQUAL
NEVER = 1e-9  # of a 16-bit step: far above the rounding of float64, so that "certain" is
FEW = 32  # positives of one bucket that are sorted by insertion
HARD, HARD_EACH = 2048, 16  # negatives that the first bound counts in full: so many, and so many for a positive
LESS = 1 - 2.0**-20  # float32's rounding of a few operations, on the safe side
TINY = 1e-300  # keeps 0 / 0 at 0
MIXED = 16  # ranks apart
TILE = 2048  # scores added at once; they stay in the first cache
SMALL = 500_000  # fewer scores than this are not worth waking threads for
COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**COMPILED)
def _bucket(score, low, scale):  # type: ignore[no-untyped-def]
    """The bucket of a score >= low. It never falls where the score rises, whatever is rounded."""
    return np.int64((score - low) * scale) if scale > 0 else np.int64(0)


@njit(**COMPILED)
def _place(positives, bits, first, placed):  # type: ignore[no-untyped-def]
    """Fill `placed` [P] with the positives, sorted, and `first` with each bucket's first place; returns the scale."""
    buckets = 1 << bits
    low, high = positives[0], positives[0]
    for score in positives:
        low, high = min(low, score), max(high, score)
    scale = (buckets - 1) / (high - low)
    if not 0 < scale < np.inf:  # all equal, or a range that float64 cannot divide by: one bucket
        scale = 0.0
    first[:] = 0
    for score in positives:
        first[_bucket(score, low, scale) + 2] += 1
    fullest = np.int32(0)
    for bucket in range(2, buckets + 1):
        fullest = max(fullest, first[bucket])
        first[bucket] += first[bucket - 1]
    fullest = max(fullest, first[buckets + 1])
    for score in positives:  # first[b + 1] runs from the first place of b to that of b + 1
        bucket = _bucket(score, low, scale)
        placed[first[bucket + 1]] = score
        first[bucket + 1] += 1
    if fullest > FEW:
        placed.sort()
    else:
        for at in range(1, placed.size):  # buckets are in order: nothing moves far
            score, k = placed[at], at
            while k > 0 and placed[k - 1] > score:
                placed[k] = placed[k - 1]
                k -= 1
            placed[k] = score
    return scale


@njit(**COMPILED)
def _ap(positives, negatives):  # type: ignore[no-untyped-def]
    """AP of float64 scores [P] and [N], P > 0.

    Only a positive's score is a threshold at which recall moves: each negative finds, through a table of
    buckets and a bisection inside its bucket, how many positives it reaches. Nothing of size N is sorted.
    """
    total = positives.size
    bits = 4
    while bits < 16 and ((1 << bits) < 32 * total) and ((1 << bits) < total + negatives.size):
        bits += 1
    first, placed = np.empty((1 << bits) + 2, np.int32), np.empty(total + 2)
    scale = _place(positives, bits, first, placed[:total])
    placed[total:] = np.inf
    low, high = placed[0], placed[total - 1]
    reaching = np.zeros(total + 1, np.int64)  # negatives by how many positives they reach
    start, buckets = 0, np.empty(TILE, np.int32)
    while start < negatives.size:
        stop = min(start + TILE, negatives.size)
        part = negatives[start:stop]
        for n in range(stop - start):  # two loops: the first is vectorised
            buckets[n] = _bucket(min(max(part[n], low), high), low, scale)
        for n in range(stop - start):
            bucket, score = np.uint64(buckets[n]), part[n]
            reached, left = first[bucket], first[bucket + np.uint64(1)] - first[bucket]
            if left <= 2:  # no branch to mispredict
                reached += ((left > 0) & (placed[reached] <= score)) + ((left > 1) & (placed[reached + 1] <= score))
            else:
                while left > 0:
                    half = (left + 1) // 2
                    if placed[reached + half - 1] <= score:
                        reached += half
                        left -= half
                    else:
                        left = half - 1
            reaching[reached] += 1
        start = stop
    result, false, k = 0.0, 0, total
    while k > 0:
        start = k - 1
        while start > 0 and placed[start - 1] == placed[k - 1]:
            start -= 1
        for place in range(start, k):
            false += reaching[place + 1]
        true = total - start
        result += (k - start) / total * (true / (true + false))
        k = start
    return result


@njit(**COMPILED)
def average_precision(scores, positive):  # type: ignore[no-untyped-def]
    """AP of `scores` float64 [N] for `positive` bool [N]; nan without a positive."""
    if not positive.any():
        return np.nan
    return _ap(scores[positive], scores[~positive])


@njit(**COMPILED)
def _foremost(values, places):  # type: ignore[no-untyped-def]
    """Of the highest values, equal to within EQUAL, the index of the lowest place; the first of those."""
    best, chosen = -np.inf, 0
    for value in values:
        if value > best:  # nan never is
            best = value
    least = np.inf
    for k in range(values.size):
        if values[k] >= best - EQUAL and places[k] < least:
            chosen, least = k, places[k]
    return chosen


@njit(**COMPILED)
def _gathered(scores, rows):  # type: ignore[no-untyped-def]
    """Some rows of scores [M, N], side by side."""
    some = np.empty((scores.shape[0], rows.size), np.float32)
    for m in range(scores.shape[0]):
        for n in range(rows.size):
            some[m, n] = scores[m, rows[n]]
    return some


def _hardest_first(scores: np.ndarray, rows: np.ndarray, found: int) -> tuple[np.ndarray, int]:
    """Negatives' rows with those of the highest scores (the mean of some members') in front, and how many those are."""
    hard = HARD + HARD_EACH * found
    if 2 * hard > rows.size:
        return rows, rows.size
    some = scores[:: max(1, len(scores) // 8)]
    mean = _gathered(some, rows).sum(axis=0, dtype=np.float32)
    front = mean >= np.partition(mean, rows.size - hard)[rows.size - hard]
    return np.concatenate((rows[front], rows[~front])), int(front.sum())


@njit(**COMPILED)
def _count(whole, steps, shift, counts, sums):  # type: ignore[no-untyped-def]
    """Add the negatives, whole + steps uint16 [N], to `counts` of buckets of 2^shift steps. sums: uint16 [TILE]."""
    start = 0
    while start < whole.size:
        stop = min(start + TILE, whole.size)
        left, right = whole[start:stop], steps[start:stop]
        for n in range(stop - start):  # two loops: the first is vectorised
            sums[n] = left[n] + right[n]
        for n in range(stop - start):
            counts[np.uint64(sums[n]) >> np.uint64(shift)] += 1
        start = stop


@njit(**COMPILED)
def _count_finely(sixteenths, scores, low, scale, shift, counts, sums):  # type: ignore[no-untyped-def]
    """As `_count`, of sums in 16ths of a step: the negatives' `sixteenths` int32 [N] and a member's scores as they are.

    float32 arithmetic is off by less than LESS of a score, and by less than its cutting off loses.
    """
    low, scale = np.float32(low), np.float32(16 * scale * LESS)
    start = 0
    while start < scores.size:
        stop = min(start + TILE, scores.size)
        left, right = sixteenths[start:stop], scores[start:stop]
        for n in range(stop - start):
            sums[n] = left[n] + np.int32((right[n] - low) * scale)
        for n in range(stop - start):
            counts[np.uint64(sums[n]) >> np.uint64(shift)] += 1
        start = stop


@njit(**COMPILED, fastmath={"reassoc", "contract"})
def _bound(thresholds, shift, counts):  # type: ignore[no-untyped-def]
    """An upper bound of AP from negatives by bucket, `counts` (overwritten), and positives int32 [P] in steps.

    Negatives are counted in the lower half of a count's bits and positives in the upper, so that one pass sums both
    from above. Positives of one bucket are taken as tied: that is never less. No branch depends on the data.
    """
    half = np.uint64(4 * counts.itemsize)
    positive, lower = np.uint64(1) << half, (np.uint64(1) << half) - np.uint64(1)
    up, right = np.uint64((1 << shift) - 1), np.uint64(shift)
    for threshold in thresholds:
        counts[(np.uint64(threshold) + up) >> right] += positive
    running = np.uint64(0)
    for bucket in range(counts.size - 1, -1, -1):
        running += counts[bucket]
        counts[bucket] = running
    result, found = 0.0, thresholds.size
    if 8 * found < counts.size:
        for threshold in thresholds:
            here = counts[(np.uint64(threshold) + up) >> right]
            true = np.int32(here >> half)
            result += true / np.float64(true + np.int32(here & lower))
    else:
        for bucket in range(counts.size - 1):
            true, more = np.int32(counts[bucket] >> half), np.int32(counts[bucket + 1] >> half)
            seen = np.float64(true + np.int32(counts[bucket] & lower))
            result += np.float64(true - more) * (np.float64(true) / (seen + TINY))
        result += np.int32(counts[counts.size - 1] >> half)  # above every negative
    return result / found


@njit(**COMPILED)
def _sum(total, scores, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        out[n] = total[n] + scores[n]


@njit(**COMPILED)
def _span(scores, least, most):  # type: ignore[no-untyped-def]
    for score in scores:
        least, most = min(least, score), max(most, score)
    return least, most


@njit(**COMPILED)
def _rounded_down(scores, low, scale, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        out[n] = np.int32(max((scores[n] - low) * scale - NEVER, 0.0))


@njit(**COMPILED)
def _rounded_up(total, scores, low, scale, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        out[n] = np.int32(total[n] + ((scores[n] - low) * scale + (1 + NEVER)))


@njit(**COMPILED)
def _least(steps, least):  # type: ignore[no-untyped-def]
    for n in range(least.size):
        least[n] = min(least[n], steps[n])


@njit(**COMPILED)
def _halve(steps):  # type: ignore[no-untyped-def]
    for n in range(steps.size):
        steps[n] >>= np.uint16(1)


class _Finding(NamedTuple):
    """One finding's scores and the running sum of an ensemble; all but the first three and `low` change.

    Of the negatives the first `hard` have the highest mean score: the first bound counts only these as they are,
    the others by the least that any member gives them.
    """

    positives: np.ndarray  # float32 [M, P], P > 0
    negatives: np.ndarray  # float32 [M, N]
    hard: int
    low: np.ndarray  # [M] each member's lowest score
    steps: np.ndarray  # uint16 [M, N] negatives less `low` in steps
    least: np.ndarray  # uint16 [N - hard] their minimum over members
    total_pos: np.ndarray  # [P] the running sum
    total_neg: np.ndarray  # [N]
    whole_pos: np.ndarray  # [P] the same less `base`, in steps
    whole_neg: np.ndarray  # uint16 [N], rounded down
    sixteenths: np.ndarray  # int32 [N] the same in 16ths of a step
    scale: np.ndarray  # [3]: the least base of the running sum, steps a unit now, and at first
    rest: np.ndarray  # uint32 or uint64: the negatives behind `hard` by coarse bucket
    counts: np.ndarray  # all by fine bucket
    sums: np.ndarray  # uint16 [TILE]
    fine_sums: np.ndarray  # int32 [TILE]
    thresholds: np.ndarray  # int32 [P] a candidate's positives in steps, rounded up
    candidate_pos: np.ndarray  # [P] a candidate's sum
    candidate_neg: np.ndarray  # [N]


def _finding(predictions: np.ndarray, targets: np.ndarray, c: int) -> _Finding:
    """Finding c's part of predictions [M, N, C]; images without its label are left out."""
    scores = predictions[:, :, c]
    positives = _gathered(scores, np.flatnonzero(targets[:, c] == 1))
    members, found = positives.shape
    rows, hard = _hardest_first(scores, np.flatnonzero(targets[:, c] == 0), found)
    negatives, images = _gathered(scores, rows), rows.size
    bits = min(max(int(images + found - 1).bit_length() - 3, 4), 13)  # about 8 images a coarse bucket, one a fine one
    count = np.uint32 if images + found < 1 << 16 else np.uint64  # small ones stay in the cache
    return _Finding(
        positives,
        negatives,
        hard,
        np.empty(members),
        np.empty((members, images), np.uint16),
        np.empty(images - hard, np.uint16),
        np.empty(found),
        np.empty(images),
        np.empty(found),
        np.empty(images, np.uint16),
        np.empty(images, np.int32),
        np.empty(3),
        np.empty((1 << bits) + 1, count),
        np.empty((8 << bits) + 1, count),
        np.empty(TILE, np.uint16),
        np.empty(TILE, np.int32),
        np.empty(found, np.int32),
        np.empty(found),
        np.empty(images),
    )


@njit(**COMPILED)
def _reset(finding):  # type: ignore[no-untyped-def]
    """An empty ensemble: the sum 0, every score in steps of which the widest member needs TOP."""
    members, widest = finding.positives.shape[0], 0.0
    for m in range(members):
        first = finding.positives[m, 0]
        least, most = _span(finding.positives[m], first, first)
        least, most = _span(finding.negatives[m], least, most)
        finding.low[m] = least
        widest = max(widest, np.float64(most) - np.float64(least))
    steps = TOP / widest if widest > 0 else 0.0
    finding.scale[:] = (0.0, steps, steps)
    finding.least[:] = TOP
    for m in range(members):
        _rounded_down(finding.negatives[m], finding.low[m], steps, finding.steps[m])
        _least(finding.steps[m, finding.hard :], finding.least)
    finding.total_pos[:] = 0
    finding.total_neg[:] = 0


@njit(**COMPILED)
def _shift(buckets):  # type: ignore[no-untyped-def]
    """By how many bits a bucket is wider than a step, from the length of its counts."""
    shift = 16
    while buckets > 2:
        buckets = (buckets + 1) >> 1
        shift -= 1
    return shift


@njit(**COMPILED)
def _begin(finding):  # type: ignore[no-untyped-def]
    """Make ready to judge candidates: the running sum in steps, of twice the width as often as it outgrows 16 bits."""
    base, scale, steps = finding.scale
    _, most = _span(finding.total_pos, base, base)
    _, most = _span(finding.total_neg, base, most)
    while np.floor((most - base) * scale) + np.floor(TOP * (scale / steps) if steps > 0 else 0.0) > TOP:
        scale *= 0.5
        _halve(finding.least)
        for m in range(finding.steps.shape[0]):
            _halve(finding.steps[m])
    finding.scale[1] = scale
    _rounded_down(finding.total_neg, base, 16 * scale, finding.sixteenths)
    for n in range(finding.whole_neg.size):
        finding.whole_neg[n] = finding.sixteenths[n] >> 4
    for p in range(finding.total_pos.size):
        finding.whole_pos[p] = (finding.total_pos[p] - base) * scale
    finding.rest[:] = 0
    behind = finding.whole_neg[finding.hard :]
    _count(behind, finding.least, _shift(finding.rest.size), finding.rest, finding.sums)


@njit(**COMPILED)
def _judge(finding, m, stage):  # type: ignore[no-untyped-def]
    """AP of the running sum and member m: a coarse upper bound, a fine one, or exactly, by `stage` 0, 1, 2."""
    if stage == 2:
        _sum(finding.total_pos, finding.positives[m], finding.candidate_pos)
        _sum(finding.total_neg, finding.negatives[m], finding.candidate_neg)
        return _ap(finding.candidate_pos, finding.candidate_neg)
    whole, hard = finding.whole_neg, finding.hard
    _rounded_up(finding.whole_pos, finding.positives[m], finding.low[m], finding.scale[1], finding.thresholds)
    if stage == 0:
        shift, counts = _shift(finding.rest.size), finding.counts[: finding.rest.size]
        counts[:] = finding.rest
        _count(whole[:hard], finding.steps[m, :hard], shift, counts, finding.sums)
    else:
        shift, counts = _shift(finding.counts.size), finding.counts
        counts[:] = 0
        scale = finding.scale[1]
        if 1e-30 < scale < 1e30:
            scores, low = finding.negatives[m], finding.low[m]
            _count_finely(finding.sixteenths, scores, low, scale, shift + 4, counts, finding.fine_sums)
        else:  # beyond float32
            _count(whole, finding.steps[m], shift, counts, finding.sums)
    return _bound(finding.thresholds, shift, counts)


@njit(**COMPILED)
def _take(finding, m):  # type: ignore[no-untyped-def]
    """Add member m to the running sum."""
    _sum(finding.total_pos, finding.positives[m], finding.total_pos)
    _sum(finding.total_neg, finding.negatives[m], finding.total_neg)
    finding.scale[0] += finding.low[m]


@njit(**COMPILED)
def _greedy(finding, bags, rounds):  # type: ignore[no-untyped-def]
    """Greedy selection with replacement for one finding, in each of `bags` (see greedy_each); counts float64 [B, M]."""
    counts, members = np.zeros(bags.shape), bags.shape[1]
    stage, value, exact = np.empty(members, np.int64), np.empty(members), np.empty(members)
    picked, reached = np.empty(rounds, np.int64), np.empty(rounds)
    for bag in range(bags.shape[0]):
        _reset(finding)
        for turn in range(rounds):
            _begin(finding)
            for m in range(members):
                stage[m], exact[m] = 0, -np.inf
                value[m] = np.inf if bags[bag, m] > 0 else -np.inf
            best = -np.inf
            while True:
                m = np.argmax(value)
                if value[m] == -np.inf or value[m] < best - SLACK:
                    break
                judged = _judge(finding, m, stage[m])
                if stage[m] == 2:
                    exact[m], value[m] = judged, -np.inf
                    best = max(best, judged)
                else:
                    value[m] = min(value[m], judged)
                stage[m] += 1
            picked[turn] = _foremost(exact, bags[bag])
            reached[turn] = exact[picked[turn]]
            _take(finding, picked[turn])
        for turn in range(_foremost(reached, np.zeros(rounds)) + 1):
            counts[bag, picked[turn]] += 1
    return counts


@njit(**COMPILED)
def _judge_all(finding, members, stage, out):  # type: ignore[no-untyped-def]
    for m in members:
        out[m] = _judge(finding, m, stage)


def greedy_each(predictions: np.ndarray, targets: np.ndarray, rounds: int, bags: np.ndarray) -> np.ndarray:
    """How often each member is chosen, float64 [B, M, C], for each finding by itself; 0 where no positive is.

    bags: int [B, M], one selection each: 0 for a member left out, else its place among equals, the lowest first.
    """
    bags = bags.astype(np.int64)
    counts = np.zeros((*bags.shape, targets.shape[1]))

    def one(c: int) -> None:
        counts[:, :, c] = _greedy(_finding(predictions, targets, c), bags, rounds)

    _each(one, _by_work(targets), predictions.size)
    return counts


@njit(**COMPILED)
def _reset_some(findings, some):  # type: ignore[no-untyped-def]
    for k in some:
        _reset(findings[k])


@njit(**COMPILED)
def _begin_some(findings, some):  # type: ignore[no-untyped-def]
    for k in some:
        _begin(findings[k])


@njit(**COMPILED)
def _judge_some(findings, some, members, stage, ap):  # type: ignore[no-untyped-def]
    for k in some:
        _judge_all(findings[k], members, stage, ap[k])


@njit(**COMPILED)
def _take_some(findings, some, m):  # type: ignore[no-untyped-def]
    for k in some:
        _take(findings[k], m)


def greedy_together(predictions: np.ndarray, targets: np.ndarray, rounds: int, bags: np.ndarray) -> np.ndarray:
    """As greedy_each, float64 [B, M], of one ensemble for all findings, chosen on macro mAP."""
    scored, size = _by_work(targets), predictions.size
    if not scored:
        return (bags > 0).astype(float)
    prepared: list[Any] = [None] * len(scored)

    def prepare(k: int) -> None:
        prepared[k] = _finding(predictions, targets, scored[k])

    _each(prepare, range(len(scored)), size)
    findings, every, counts = List(prepared), np.arange(len(scored)), np.zeros(bags.shape)
    picked, reached = np.empty(rounds, np.int64), np.empty(rounds)
    for bag, places in enumerate(bags.astype(np.int64)):
        _shared(_reset_some, findings, every, size)
        for turn in range(rounds):
            _shared(_begin_some, findings, every, size)
            picked[turn], reached[turn] = _best_together(findings, places, size)
            _shared(_take_some, findings, every, size, picked[turn])
        last = _foremost(reached, np.zeros(rounds))
        counts[bag] = np.bincount(picked[: last + 1], minlength=bags.shape[1])
    return counts


def _best_together(findings: Any, places: np.ndarray, size: int) -> tuple[int, float]:
    """The member of a bag that has the highest macro mAP with the running sums; and that mAP."""
    ap = np.full((len(findings), len(places)), -np.inf)  # upper bounds, at last exact
    every = np.arange(len(findings))
    _shared(_judge_some, findings, every, size, np.flatnonzero(places), 0, ap)
    bound, exact = ap.mean(axis=0), np.zeros(len(places), bool)
    first = bound.argmax()
    loose = ap[:, first].copy()
    _shared(_judge_some, findings, every, size, np.array([first]), 2, ap)
    bound[first] = best = ap[:, first].mean()
    exact[first] = True
    loosest = np.argsort(ap[:, first] - loose, kind="stable")  # these bounds have most to give: they may suffice
    for stage in (1, 2):
        able = np.flatnonzero((bound >= best - SLACK) & ~exact)
        for start in range(0, len(loosest), 8):
            if not able.size:
                break
            _shared(_judge_some, findings, loosest[start : start + 8], size, able, stage, ap)
            bound[able] = ap[:, able].mean(axis=0)
            able = able[bound[able] >= best - SLACK]
        if stage == 2:
            exact[able] = True
    value = np.where(exact, bound, -np.inf)
    chosen = int(_foremost(value, places))
    return chosen, float(value[chosen])


def precisions(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP float64 [M, C] of every member for every finding; nan where a finding has no positive."""
    ap = np.full((predictions.shape[0], predictions.shape[2]), np.nan)

    def one(c: int) -> None:
        finding, out = _finding(predictions, targets, c), np.empty(len(predictions))
        finding.total_pos[:], finding.total_neg[:] = 0, 0
        _judge_all(finding, np.arange(len(predictions)), 2, out)
        ap[:, c] = out

    _each(one, _by_work(targets), predictions.size)
    return ap


def precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP float64 [C] of one system's scores float64 [N, C]; nan where a finding has no positive."""
    ap = np.full(scores.shape[1], np.nan)

    def one(c: int) -> None:
        known = np.flatnonzero(targets[:, c] >= 0)
        ap[c] = average_precision(scores[known, c], targets[known, c] == 1)

    _each(one, _by_work(targets), scores.size)
    return ap


@njit(**COMPILED)
def _mix(scores, weights, rows, out):  # type: ignore[no-untyped-def]
    for m in range(weights.size):
        if weights[m] > 0:
            for n in range(rows.size):
                out[n] += scores[m, rows[n]] * weights[m]


def mixed(predictions: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Weighted means float64 [n, C] of some rows of predictions [M, N, C]; fast where each finding's lie together."""
    out = np.zeros((weights.shape[1], rows.size))

    def one(c: int) -> None:
        _mix(predictions[:, :, c], weights[:, c], rows, out[c])

    _each(one, range(len(out)), out.size * len(predictions))
    return out.T


def _by_work(targets: np.ndarray) -> list[int]:
    """Findings that have positives, the most work first."""
    positives = (targets == 1).sum(axis=0)
    return [int(c) for c in np.argsort(-positives, kind="stable") if positives[c]]


def _each(work: Callable[[Any], Any], items: Iterable[Any], scores: int) -> None:
    """Do `work` for every item; on numba's number of threads where there are scores enough to be worth it."""
    threads = numba.get_num_threads()
    if threads == 1 or scores < SMALL:
        for item in items:
            work(item)
    else:  # the compiled loops free the interpreter's lock
        list(_pool(os.getpid(), threads).map(work, items))


def _shared(work: Callable[..., Any], findings: Any, some: np.ndarray, scores: int, *arguments: Any) -> None:
    """Do compiled `work` for some of the findings, each thread its share of them at once."""
    threads = numba.get_num_threads()
    if threads == 1 or scores < SMALL:
        work(findings, some, *arguments)
    else:
        shares = [some[start::threads] for start in range(threads)]
        list(_pool(os.getpid(), threads).map(lambda share: work(findings, share, *arguments), shares))


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads made once; a forked process makes its own."""
    return ThreadPoolExecutor(threads)
