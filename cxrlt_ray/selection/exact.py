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

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numba import njit

EQUAL = 1e-12  # scores nearer than this are equal; the first member, the shortest prefix wins
TOP = 65535  # the largest 16-bit score
SLACK = 1e-11  # a bound's own rounding, and EQUAL
NEVER = 1e-9  # of a 16-bit step: far above the rounding of float64, so that "certain" is
FEW = 32  # positives of one bucket that are sorted by insertion
HARD, HARD_EACH = 2048, 16  # negatives that the first bound counts in full: so many, and so many for a positive
POSITIVE, LOWER = np.int64(1 << 32), np.int64((1 << 32) - 1)  # one positive in a count; the negatives of a count
TINY = 1e-300  # keeps 0 / 0 at 0
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
    for score in negatives:
        bucket = _bucket(min(max(score, low), high), low, scale)
        reached, left = first[bucket], first[bucket + 1] - first[bucket]
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
def _first_best(values):  # type: ignore[no-untyped-def]
    best = -np.inf
    for value in values:
        if value > best:  # nan never is
            best = value
    for k in range(values.size):
        if values[k] >= best - EQUAL:
            return k
    return 0


@njit(**COMPILED)
def _gathered(predictions, column, rows):  # type: ignore[no-untyped-def]
    """Scores float32 [M, rows] of one finding, side by side."""
    scores = np.empty((predictions.shape[0], rows.size), np.float32)
    for m in range(predictions.shape[0]):
        for n in range(rows.size):
            scores[m, n] = predictions[m, rows[n], column]
    return scores


def _hardest_first(negatives: np.ndarray, found: int) -> tuple[np.ndarray, int]:
    """Negatives [M, N] with those of the highest mean score in front, and how many those are."""
    images = negatives.shape[1]
    hard = HARD + HARD_EACH * found
    if 2 * hard > images:
        return negatives, images
    mean = negatives.sum(axis=0, dtype=np.float32)
    front = mean >= np.partition(mean, images - hard)[images - hard]
    order = np.concatenate((np.flatnonzero(front), np.flatnonzero(~front)))
    return negatives.take(order, axis=1), int(front.sum())


@njit(**COMPILED)
def _stepped(positives, negatives):  # type: ignore[no-untyped-def]
    """The lowest score of each member, the step that 16 bits need, and the negatives in whole steps, rounded down."""
    members, images = negatives.shape
    low, widest = np.empty(members), 0.0
    for m in range(members):
        least, most = positives[m, 0], positives[m, 0]
        for score in positives[m]:
            least, most = min(least, score), max(most, score)
        for score in negatives[m]:
            least, most = min(least, score), max(most, score)
        low[m] = least
        widest = max(widest, np.float64(most) - np.float64(least))
    per_step = TOP / widest if widest > 0 else 0.0
    steps = np.empty((members, images), np.uint16)
    for m in range(members):
        for n in range(images):
            steps[m, n] = np.uint16(max((negatives[m, n] - low[m]) * per_step - NEVER, 0.0))
    return low, per_step, steps


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


@njit(**COMPILED, fastmath={"reassoc", "contract"})
def _bound(thresholds, shift, counts):  # type: ignore[no-untyped-def]
    """An upper bound of AP from negatives by bucket, `counts` (overwritten), and positives int32 [P] in steps.

    Negatives are counted in the lower 32 bits and positives in the upper, so that one pass sums both from above.
    Positives of one bucket are taken as tied: that is never less. No branch depends on the data.
    """
    up, right = np.uint64((1 << shift) - 1), np.uint64(shift)
    for threshold in thresholds:
        counts[(np.uint64(threshold) + up) >> right] += POSITIVE
    running = np.int64(0)
    for bucket in range(counts.size - 1, -1, -1):
        running += counts[bucket]
        counts[bucket] = running
    result, found = 0.0, thresholds.size
    if 8 * found < counts.size:
        for threshold in thresholds:
            here = counts[(np.uint64(threshold) + up) >> right]
            result += (here >> 32) / np.float64((here >> 32) + (here & LOWER))
    else:
        for bucket in range(counts.size - 1):
            true, more = counts[bucket] >> 32, counts[bucket + 1] >> 32
            result += (true - more) * (true / (np.float64(true + (counts[bucket] & LOWER)) + TINY))
        true = counts[counts.size - 1] >> 32  # above every negative
        result += true
    return result / found


@njit(**COMPILED)
def _sum(total, scores, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        out[n] = total[n] + scores[n]


@njit(**COMPILED)
def _largest(scores, least):  # type: ignore[no-untyped-def]
    for score in scores:
        least = max(least, score)
    return least


@njit(**COMPILED)
def _rounded_down(scores, low, scale, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        out[n] = np.uint16(max((scores[n] - low) * scale - NEVER, 0.0))


@njit(**COMPILED)
def _rounded_up(total, scores, low, scale, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        out[n] = np.int32(total[n] + ((scores[n] - low) * scale + (1 + NEVER)))


@njit(**COMPILED)
def _least(steps, least):  # type: ignore[no-untyped-def]
    for n in range(steps.size):
        least[n] = min(least[n], steps[n])


@njit(**COMPILED)
def _halve(steps):  # type: ignore[no-untyped-def]
    for n in range(steps.size):
        steps[n] >>= np.uint16(1)


@njit(**COMPILED)
def _greedy(positives, negatives, hard, allowed, rounds):  # type: ignore[no-untyped-def]
    """Greedy selection with replacement for one finding; counts float64 [B, M] of the best prefix of each bag.

    positives float32 [M, P > 0], negatives float32 [M, N], allowed bool [B, M]: the members of each bag.
    """
    members, found = positives.shape
    images = negatives.shape[1]
    low, per_step, finest = _stepped(positives, negatives)
    least_finest = np.full(images - hard, TOP, np.uint16)
    for m in range(members):
        _least(finest[m, hard:], least_finest)
    bits = 4
    while bits < 13 and (8 << bits) < images + found:
        bits += 1
    coarse, fine = 16 - bits, 13 - bits
    rest, counts = np.empty((65536 >> coarse) + 1, np.int64), np.empty((65536 >> fine) + 1, np.int64)
    few = counts[: rest.size]
    sums, thresholds = np.empty(TILE, np.uint16), np.empty(found, np.int32)
    whole, whole_pos = np.empty(images, np.uint16), np.empty(found)
    candidate_pos, candidate_neg = np.empty(found), np.empty(images)
    times = np.zeros(allowed.shape)
    stage, value, exact = np.empty(members, np.int64), np.empty(members), np.empty(members)
    picked, reached = np.empty(rounds, np.int64), np.empty(rounds)
    for bag in range(allowed.shape[0]):
        steps, least = finest.copy(), least_finest.copy()
        total_pos, total_neg = np.zeros(found), np.zeros(images)
        base, halvings = 0.0, 0
        for turn in range(rounds):
            most = _largest(total_neg, _largest(total_pos, base))
            while np.floor((most - base) * per_step * 0.5**halvings) + (TOP >> halvings) > TOP:
                halvings += 1
                _halve(least)
                for m in range(members):
                    _halve(steps[m])
            scale = per_step * 0.5**halvings
            _rounded_down(total_neg, base, scale, whole)
            for p in range(found):
                whole_pos[p] = (total_pos[p] - base) * scale
            rest[:] = 0
            _count(whole[hard:], least, coarse, rest, sums)
            for m in range(members):
                stage[m] = 0
                value[m] = np.inf if allowed[bag, m] else -np.inf
                exact[m] = -np.inf
            best = -np.inf
            while True:
                m = np.argmax(value)
                if value[m] == -np.inf or value[m] < best - SLACK:
                    break
                if stage[m] < 2:
                    _rounded_up(whole_pos, positives[m], low[m], scale, thresholds)
                if stage[m] == 0:
                    few[:] = rest
                    _count(whole[:hard], steps[m, :hard], coarse, few, sums)
                    value[m] = _bound(thresholds, coarse, few)
                elif stage[m] == 1:
                    counts[:] = 0
                    _count(whole, steps[m], fine, counts, sums)
                    value[m] = min(value[m], _bound(thresholds, fine, counts))
                else:
                    _sum(total_pos, positives[m], candidate_pos)
                    _sum(total_neg, negatives[m], candidate_neg)
                    exact[m] = _ap(candidate_pos, candidate_neg)
                    best = max(best, exact[m])
                    value[m] = -np.inf
                stage[m] += 1
            chosen = _first_best(exact)
            picked[turn], reached[turn] = chosen, exact[chosen]
            _sum(total_pos, positives[chosen], total_pos)
            _sum(total_neg, negatives[chosen], total_neg)
            base += low[chosen]
        for turn in range(_first_best(reached) + 1):
            times[bag, picked[turn]] += 1
    return times


@njit(**COMPILED)
def _aps(total_pos, total_neg, positives, negatives, out):  # type: ignore[no-untyped-def]
    """Fill out [M] with the AP of a running sum plus each member's scores [M, P] and [M, N]."""
    candidate_pos, candidate_neg = np.empty(total_pos.size), np.empty(total_neg.size)
    for m in range(out.size):
        _sum(total_pos, positives[m], candidate_pos)
        _sum(total_neg, negatives[m], candidate_neg)
        out[m] = _ap(candidate_pos, candidate_neg)


def greedy_each(predictions: np.ndarray, targets: np.ndarray, rounds: int) -> np.ndarray:
    """Counts float64 [M, C] for each finding by itself; zero where it has no positive. Findings in parallel."""
    members, _, findings = predictions.shape
    allowed, counts = np.ones((1, members), bool), np.zeros((members, findings))

    def one(c: int) -> None:
        positives, negatives = _sides(predictions, targets, c)
        negatives, hard = _hardest_first(negatives, positives.shape[1])
        counts[:, c] = _greedy(positives, negatives, hard, allowed, rounds)[0]

    _each(one, _by_work(targets), predictions.size)
    return counts


def precisions(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP float64 [M, C] of every member for every finding; nan where a finding has no positive."""
    ap = np.full((predictions.shape[0], predictions.shape[2]), np.nan)

    def one(c: int) -> None:
        positives, negatives = _sides(predictions, targets, c)
        out = np.empty(len(predictions))
        _aps(np.zeros(positives.shape[1]), np.zeros(negatives.shape[1]), positives, negatives, out)
        ap[:, c] = out

    _each(one, _by_work(targets), predictions.size)
    return ap


def greedy_together(predictions: np.ndarray, targets: np.ndarray, rounds: int) -> np.ndarray:
    """Counts float64 [M] of one ensemble for all findings, chosen on macro mAP."""
    members, scored = len(predictions), _by_work(targets)
    if not scored:
        return np.ones(members)
    sides = [_sides(predictions, targets, c) for c in scored]
    totals = [(np.zeros(p.shape[1]), np.zeros(n.shape[1])) for p, n in sides]
    ap = np.empty((len(scored), members))

    def judge(k: int) -> None:
        _aps(*totals[k], *sides[k], ap[k])

    picked, reached = [], []
    for _ in range(rounds):
        _each(judge, range(len(scored)), predictions.size)
        values = ap.mean(axis=0)
        picked.append(_first_best(values))
        reached.append(values[picked[-1]])
        for (total_pos, total_neg), (positives, negatives) in zip(totals, sides, strict=True):
            total_pos += positives[picked[-1]]
            total_neg += negatives[picked[-1]]
    best = _first_best(np.array(reached))
    return np.bincount(picked[: best + 1], minlength=members).astype(float)


def _sides(predictions: np.ndarray, targets: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Finding c's positives float32 [M, P] and negatives [M, N]; images without its label are left out."""
    return tuple(_gathered(predictions, c, np.flatnonzero(targets[:, c] == label)) for label in (1, 0))  # type: ignore[return-value]


def _by_work(targets: np.ndarray) -> list[int]:
    """Findings that have positives, the most work first."""
    positives = (targets == 1).sum(axis=0)
    return [int(c) for c in np.argsort(-positives, kind="stable") if positives[c]]


def _each(work: Callable[[int], None], items: Iterable[int], scores: int) -> None:
    """Do `work` for every item; on numba's number of threads where there are scores enough to be worth it."""
    threads = numba.get_num_threads()
    if threads == 1 or scores < SMALL:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:  # the compiled loops free the interpreter's lock
        list(pool.map(work, items))
