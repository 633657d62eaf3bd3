"""Compiled: average precision exactly as scikit-learn defines it, upper bounds of it, and greedy selection by both.

An ensemble's score is the AP of the float64 running sum of its members in order of addition. Greedy needs the
best candidate of each round, not every candidate's AP, so a candidate is first judged by upper bounds:

    coarse bound -> fine bound -> exact AP          (the candidate of the highest value is judged next,
                                                     until none could still reach the best exact AP)

A bound comes from counts. Scores are held as 16-bit integers, rounded down, so that a candidate's sum is an
integer addition (32 at a time on a wide CPU) and its negatives fall into buckets by plain increments. A negative
counts as above a positive only where that is certain; missing some can but raise precision, so the AP of the
counts is never below the true one. At 39,293 images a coarse bound takes about 20 us, an exact AP 80 to 190 us,
scikit-learn's 9 ms.

All functions that call one another stand in this file: numba's cache on disk notices a change of a function's own file
only, and would go on with the old code of a function inlined from another. `finding` is a finding.Finding throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cxrlt_ray.evaluation.compiled import njit

EQUAL = 1e-12  # scores nearer than this are equal; the first member, the shortest prefix wins
TOP = 65535  # the largest 16-bit score
SLACK = 1e-11  # a bound's own rounding, and EQUAL
NEVER = 1e-9  # of a 16-bit step: far above the rounding of float64, so that "certain" is
FEW = 32  # positives of one bucket that are sorted by insertion
LESS = 1 - 2.0**-20  # float32's rounding of a few operations, on the safe side
TINY = 1e-300  # keeps 0 / 0 at 0
TILE = 2048  # scores added at once; they stay in the first cache
COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**COMPILED)
def bucket_of(score, low, scale):  # type: ignore[no-untyped-def]
    """The bucket of a score >= low. It never falls where the score rises, whatever is rounded."""
    return np.int64((score - low) * scale) if scale > 0 else np.int64(0)


@njit(**COMPILED)
def sort_positives(positives, bits, first, ordered):  # type: ignore[no-untyped-def]
    """Fill `ordered` [P] with the positives, sorted, and `first` with each bucket's first index; returns the scale."""
    buckets = 1 << bits
    low, high = positives[0], positives[0]
    for score in positives:
        low, high = min(low, score), max(high, score)
    scale = (buckets - 1) / (high - low)
    if not 0 < scale < np.inf:  # all equal, or a range that float64 cannot divide by: one bucket
        scale = 0.0
    first[:] = 0
    for score in positives:
        first[bucket_of(score, low, scale) + 2] += 1
    fullest = np.int32(0)
    for bucket in range(2, buckets + 1):
        fullest = max(fullest, first[bucket])
        first[bucket] += first[bucket - 1]
    fullest = max(fullest, first[buckets + 1])
    for score in positives:  # first[b + 1] runs from the first index of b to that of b + 1
        bucket = bucket_of(score, low, scale)
        ordered[first[bucket + 1]] = score
        first[bucket + 1] += 1
    if fullest > FEW:
        ordered.sort()
    else:
        for index in range(1, ordered.size):  # buckets are in order: nothing moves far
            score, k = ordered[index], index
            while k > 0 and ordered[k - 1] > score:
                ordered[k] = ordered[k - 1]
                k -= 1
            ordered[k] = score
    return scale


@njit(**COMPILED)
def ap_of(positives, negatives):  # type: ignore[no-untyped-def]
    """AP of float64 scores [P] and [N], P > 0.

    Only a positive's score is a threshold at which recall moves: each negative finds, through a table of
    buckets and a bisection inside its bucket, how many positives it reaches. Nothing of size N is sorted.
    """
    total = positives.size
    bits = 4
    while bits < 16 and ((1 << bits) < 32 * total) and ((1 << bits) < total + negatives.size):
        bits += 1
    first, ordered = np.empty((1 << bits) + 2, np.int32), np.empty(total + 2)
    scale = sort_positives(positives, bits, first, ordered[:total])
    ordered[total:] = np.inf
    low, high = ordered[0], ordered[total - 1]
    reaching = np.zeros(total + 1, np.int64)  # negatives by how many positives they reach
    start, buckets = 0, np.empty(TILE, np.int32)
    while start < negatives.size:
        stop = min(start + TILE, negatives.size)
        part = negatives[start:stop]
        for n in range(stop - start):  # two loops: the first is vectorised
            buckets[n] = bucket_of(min(max(part[n], low), high), low, scale)
        for n in range(stop - start):
            bucket, score = np.uint64(buckets[n]), part[n]
            reached, left = first[bucket], first[bucket + np.uint64(1)] - first[bucket]
            if left <= 2:  # no branch to mispredict
                reached += ((left > 0) & (ordered[reached] <= score)) + ((left > 1) & (ordered[reached + 1] <= score))
            else:
                while left > 0:
                    half = (left + 1) // 2
                    if ordered[reached + half - 1] <= score:
                        reached += half
                        left -= half
                    else:
                        left = half - 1
            reaching[reached] += 1
        start = stop
    result, false, k = 0.0, 0, total
    while k > 0:
        start = k - 1
        while start > 0 and ordered[start - 1] == ordered[k - 1]:
            start -= 1
        for index in range(start, k):
            false += reaching[index + 1]
        true = total - start
        result += (k - start) / total * (true / (true + false))
        k = start
    return result


@njit(**COMPILED)
def average_precision(scores, positive):  # type: ignore[no-untyped-def]
    """AP of `scores` float64 [N] for `positive` bool [N]; nan without a positive."""
    if not positive.any():
        return np.nan
    return ap_of(scores[positive], scores[~positive])


@njit(**COMPILED)
def foremost(values, ranks):  # type: ignore[no-untyped-def]
    """Of the highest values, equal to within EQUAL, the index of the lowest rank; the first of those."""
    best, chosen = -np.inf, 0
    for value in values:
        if value > best:  # nan never is
            best = value
    least = np.inf
    for k in range(values.size):
        if values[k] >= best - EQUAL and ranks[k] < least:
            chosen, least = k, ranks[k]
    return chosen


@njit(**COMPILED)
def count(whole, steps, shift, counts, sums):  # type: ignore[no-untyped-def]
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
def count_finely(sixteenths, scores, low, scale, shift, counts, sums):  # type: ignore[no-untyped-def]
    """As `count`, of sums in 16ths of a step: the negatives' `sixteenths` int32 [N] and a member's scores as they are.

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
def bound(thresholds, shift, counts):  # type: ignore[no-untyped-def]
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
    result, total = 0.0, thresholds.size
    if 8 * total < counts.size:
        for threshold in thresholds:
            both = counts[(np.uint64(threshold) + up) >> right]
            true = np.int32(both >> half)
            result += true / np.float64(true + np.int32(both & lower))
    else:
        for bucket in range(counts.size - 1):
            true, more = np.int32(counts[bucket] >> half), np.int32(counts[bucket + 1] >> half)
            reaching = np.float64(true + np.int32(counts[bucket] & lower))
            result += np.float64(true - more) * (np.float64(true) / (reaching + TINY))
        result += np.int32(counts[counts.size - 1] >> half)  # above every negative
    return result / total


@njit(**COMPILED)
def add(total, scores, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        out[n] = total[n] + scores[n]


@njit(**COMPILED)
def span(scores, least, most):  # type: ignore[no-untyped-def]
    for score in scores:
        least, most = min(least, score), max(most, score)
    return least, most


@njit(**COMPILED)
def round_down(scores, low, scale, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        out[n] = np.int32(max((scores[n] - low) * scale - NEVER, 0.0))


@njit(**COMPILED)
def round_up(total, scores, low, scale, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        out[n] = np.int32(total[n] + ((scores[n] - low) * scale + (1 + NEVER)))


@njit(**COMPILED)
def keep_least(steps, least):  # type: ignore[no-untyped-def]
    for n in range(least.size):
        least[n] = min(least[n], steps[n])


@njit(**COMPILED)
def halve(steps):  # type: ignore[no-untyped-def]
    for n in range(steps.size):
        steps[n] >>= np.uint16(1)


@njit(**COMPILED)
def reset(finding):  # type: ignore[no-untyped-def]
    """An empty ensemble: the sum 0, every score in steps of which the widest member needs TOP."""
    members, widest = finding.positives.shape[0], 0.0
    for m in range(members):
        first = finding.positives[m, 0]
        least, most = span(finding.positives[m], first, first)
        least, most = span(finding.negatives[m], least, most)
        finding.low[m] = least
        widest = max(widest, np.float64(most) - np.float64(least))
    steps = TOP / widest if widest > 0 else 0.0
    finding.scale[:] = (0.0, steps, steps)
    finding.least[:] = TOP
    for m in range(members):
        round_down(finding.negatives[m], finding.low[m], steps, finding.steps[m])
        keep_least(finding.steps[m, finding.hard :], finding.least)
    finding.total_pos[:] = 0
    finding.total_neg[:] = 0


@njit(**COMPILED)
def shift_of(buckets):  # type: ignore[no-untyped-def]
    """By how many bits a bucket is wider than a step, from the length of its counts."""
    shift = 16
    while buckets > 2:
        buckets = (buckets + 1) >> 1
        shift -= 1
    return shift


@njit(**COMPILED)
def begin(finding):  # type: ignore[no-untyped-def]
    """Make ready to judge candidates: the running sum in steps, of twice the width as often as it outgrows 16 bits."""
    base, scale, steps = finding.scale
    _, most = span(finding.total_pos, base, base)
    _, most = span(finding.total_neg, base, most)
    while np.floor((most - base) * scale) + np.floor(TOP * (scale / steps) if steps > 0 else 0.0) > TOP:
        scale *= 0.5
        halve(finding.least)
        for m in range(finding.steps.shape[0]):
            halve(finding.steps[m])
    finding.scale[1] = scale
    round_down(finding.total_neg, base, 16 * scale, finding.sixteenths)
    for n in range(finding.whole_neg.size):
        finding.whole_neg[n] = finding.sixteenths[n] >> 4
    for p in range(finding.total_pos.size):
        finding.whole_pos[p] = (finding.total_pos[p] - base) * scale
    finding.rest[:] = 0
    behind = finding.whole_neg[finding.hard :]
    count(behind, finding.least, shift_of(finding.rest.size), finding.rest, finding.sums)


@njit(**COMPILED)
def judge(finding, m, stage):  # type: ignore[no-untyped-def]
    """AP of the running sum and member m: a coarse upper bound, a fine one, or exactly, by `stage` 0, 1, 2."""
    if stage == 2:
        add(finding.total_pos, finding.positives[m], finding.candidate_pos)
        add(finding.total_neg, finding.negatives[m], finding.candidate_neg)
        return ap_of(finding.candidate_pos, finding.candidate_neg)
    whole, hard = finding.whole_neg, finding.hard
    round_up(finding.whole_pos, finding.positives[m], finding.low[m], finding.scale[1], finding.thresholds)
    if stage == 0:
        shift, counts = shift_of(finding.rest.size), finding.counts[: finding.rest.size]
        counts[:] = finding.rest
        count(whole[:hard], finding.steps[m, :hard], shift, counts, finding.sums)
    else:
        shift, counts = shift_of(finding.counts.size), finding.counts
        counts[:] = 0
        scale = finding.scale[1]
        if 1e-30 < scale < 1e30:
            scores, low = finding.negatives[m], finding.low[m]
            count_finely(finding.sixteenths, scores, low, scale, shift + 4, counts, finding.fine_sums)
        else:  # beyond float32
            count(whole, finding.steps[m], shift, counts, finding.sums)
    return bound(finding.thresholds, shift, counts)


@njit(**COMPILED)
def take(finding, m):  # type: ignore[no-untyped-def]
    """Add member m to the running sum."""
    add(finding.total_pos, finding.positives[m], finding.total_pos)
    add(finding.total_neg, finding.negatives[m], finding.total_neg)
    finding.scale[0] += finding.low[m]


@njit(**COMPILED)
def follow(finding, ranks, picked, reached):  # type: ignore[no-untyped-def]
    """Greedy selection for one finding among members of ranks [M] > 0: each round's pick [R], and the AP it reached."""
    stage, value, exact = np.empty(ranks.size, np.int64), np.empty(ranks.size), np.empty(ranks.size)
    reset(finding)
    for turn in range(picked.size):
        begin(finding)
        stage[:], exact[:], best = 1, -np.inf, -np.inf
        for m in range(ranks.size):
            value[m] = judge(finding, m, 0) if ranks[m] > 0 else -np.inf
        while True:
            m = np.argmax(value)  # type: ignore[assignment]
            if value[m] == -np.inf or value[m] < best - SLACK:
                break
            judged = judge(finding, m, stage[m])
            if stage[m] == 2:
                exact[m], value[m] = judged, -np.inf
                best = max(best, judged)
            else:
                value[m] = min(value[m], judged)
            stage[m] += 1
        picked[turn] = foremost(exact, ranks)
        reached[turn] = exact[picked[turn]]
        take(finding, picked[turn])


@njit(**COMPILED)
def select(finding, bags, rounds):  # type: ignore[no-untyped-def]
    """Greedy selection for one finding, in each of `bags`: counts float64 [B, M], as greedy_each's."""
    counts = np.zeros(bags.shape)
    picked, reached = np.empty(rounds, np.int64), np.empty(rounds)
    for bag in range(bags.shape[0]):
        follow(finding, bags[bag], picked, reached)
        for turn in range(foremost(reached, np.zeros(rounds)) + 1):
            counts[bag, picked[turn]] += 1
    return counts


@njit(**COMPILED)
def judge_all(finding, members, stage, out):  # type: ignore[no-untyped-def]
    for m in members:
        out[m] = judge(finding, m, stage)


@njit(**COMPILED)
def reset_some(findings, some):  # type: ignore[no-untyped-def]
    for k in some:
        reset(findings[k])


@njit(**COMPILED)
def begin_some(findings, some):  # type: ignore[no-untyped-def]
    for k in some:
        begin(findings[k])


@njit(**COMPILED)
def judge_some(findings, some, members, stage, ap):  # type: ignore[no-untyped-def]
    for k in some:
        judge_all(findings[k], members, stage, ap[k])


@njit(**COMPILED)
def take_some(findings, some, m):  # type: ignore[no-untyped-def]
    for k in some:
        take(findings[k], m)
