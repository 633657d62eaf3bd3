"""Average precision exactly as scikit-learn defines it, ties included, and greedy selection on it; compiled.

Only a positive's score is a threshold at which recall moves, so the positives are sorted (P log P) and
each negative finds its place among them by bisection (N log P): no candidate's N scores are sorted.
An ensemble's score is the AP of the float64 running sum of its members in order of addition.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

EQUAL = 1e-12  # scores nearer than this are equal; the first member, the shortest prefix wins


@njit(cache=True, nogil=True)
def average_precision(scores, positive):  # type: ignore[no-untyped-def]
    """AP of `scores` float64 [N] for `positive` bool [N]; nan without a positive."""
    thresholds = np.sort(scores[positive])
    total = thresholds.size
    if total == 0:
        return np.nan
    above = np.zeros(total, np.int64)  # negatives by the highest positive they reach
    for n in range(scores.size):
        if positive[n]:
            continue
        low, left, score = 0, total, scores[n]
        if score < thresholds[0]:
            continue
        while left > 1:  # no branch to mispredict: twice as fast as the textbook's bisection
            half = left // 2
            low += half * (thresholds[low + half - 1] <= score)
            left -= half
        above[low + (thresholds[low] <= score) - 1] += 1
    result, false, k = 0.0, 0, total - 1
    while k >= 0:
        first = k
        while first > 0 and thresholds[first - 1] == thresholds[k]:
            first -= 1
        for place in range(first, k + 1):
            false += above[place]
        true = total - first
        result += (k - first + 1) / total * (true / (true + false))
        k = first - 1
    return result


@njit(cache=True, nogil=True)
def _first_best(values):  # type: ignore[no-untyped-def]
    best = -np.inf
    for value in values:
        if value > best:  # nan never is
            best = value
    for k in range(values.size):
        if values[k] >= best - EQUAL:
            return k
    return 0


@njit(cache=True, nogil=True)
def _greedy_one(scores, positive, rounds):  # type: ignore[no-untyped-def]
    """Greedy selection with replacement for one finding: how often each of scores [M, n] stands in the best prefix."""
    members, images = scores.shape
    total, candidate = np.zeros(images), np.empty(images)
    values, reached, picked = np.empty(members), np.empty(rounds), np.empty(rounds, np.int64)
    for step in range(rounds):
        for m in range(members):
            for n in range(images):
                candidate[n] = total[n] + scores[m, n]
            values[m] = average_precision(candidate, positive)
        picked[step] = _first_best(values)
        reached[step] = values[picked[step]]
        for n in range(images):
            total[n] += scores[picked[step], n]
    counts = np.zeros(members)
    for step in range(_first_best(reached) + 1):
        counts[picked[step]] += 1
    return counts


@njit(cache=True, parallel=True, nogil=True)
def _greedy_each(scores, targets, rounds):  # type: ignore[no-untyped-def]
    findings, members, _ = scores.shape
    counts = np.zeros((findings, members))
    for c in prange(findings):
        rows = np.flatnonzero(targets[c] >= 0)
        positive = targets[c][rows] == 1
        if positive.any():
            counts[c] = _greedy_one(scores[c][:, rows], positive, rounds)
    return counts


def greedy_each(predictions: np.ndarray, targets: np.ndarray, rounds: int) -> np.ndarray:
    """Counts float64 [M, C] for each finding by itself; zero where it has no positive. Findings in parallel."""
    return _greedy_each(*_by_finding(predictions, targets), rounds).T


@njit(cache=True, nogil=True)
def _precisions_of(total, scores, targets, ap):  # type: ignore[no-untyped-def]
    """Fill ap [M] with the AP of total [N] plus each of scores [M, N] for one finding's targets [N]."""
    rows = np.flatnonzero(targets >= 0)
    positive = targets[rows] == 1
    candidate = np.empty(rows.size)
    for m in range(scores.shape[0]):
        for n in range(rows.size):
            candidate[n] = total[rows[n]] + scores[m, rows[n]]
        ap[m] = average_precision(candidate, positive)


@njit(cache=True, nogil=True)
def _precisions_in_turn(total, scores, targets, ap):  # type: ignore[no-untyped-def]
    for c in range(scores.shape[0]):
        _precisions_of(total[c], scores[c], targets[c], ap[c])


@njit(cache=True, parallel=True, nogil=True)
def _precisions_in_parallel(total, scores, targets, ap):  # type: ignore[no-untyped-def]
    for c in prange(scores.shape[0]):
        _precisions_of(total[c], scores[c], targets[c], ap[c])


def _precisions(total: np.ndarray, scores: np.ndarray, targets: np.ndarray, ap: np.ndarray) -> None:
    """Fill ap [C, M] with the AP of total [C, N] plus each member of scores [C, M, N]."""
    # waking threads costs up to 3 ms on a busy machine, as much as 500,000 scores
    fill = _precisions_in_turn if scores.size < 500_000 else _precisions_in_parallel
    fill(total, scores, targets, ap)


def precisions(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP float64 [M, C] of every member for every finding; nan where a finding has no positive."""
    scores, columns = _by_finding(predictions, targets)
    ap = np.empty(scores.shape[:2])
    _precisions(np.zeros(columns.shape), scores, columns, ap)
    return ap.T


def greedy_together(predictions: np.ndarray, targets: np.ndarray, rounds: int) -> np.ndarray:
    """Counts float64 [M] of one ensemble for all findings, chosen on macro mAP."""
    scored = (targets == 1).any(axis=0)
    members = len(predictions)
    if not scored.any():
        return np.ones(members)
    scores, columns = _by_finding(predictions[:, :, scored], targets[:, scored])
    total, ap = np.zeros(columns.shape), np.empty(scores.shape[:2])
    picked, reached = [], []
    for _ in range(rounds):
        _precisions(total, scores, columns, ap)
        values = ap.mean(axis=0)
        picked.append(_first_best(values))
        reached.append(values[picked[-1]])
        total += scores[:, picked[-1]]
    best = _first_best(np.array(reached))
    return np.bincount(picked[: best + 1], minlength=members).astype(float)


def _by_finding(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Contiguous float32 [C, M, N] and int8 [C, N]."""
    return np.ascontiguousarray(predictions.transpose(2, 0, 1)), np.ascontiguousarray(targets.T)
