"""What predictions are worth, per finding, as scikit-learn computes it, ties included; and bootstrap by subject.

targets: int8 [N, C], 1, 0 or -1 (not labelled: left out of that finding). scores: float [N, C] in [0, 1].
A finding that has no positive (or for AUROC no negative) has no value: nan, and stands in no mean. AP and
AUROC need one sort a finding; a bootstrap round reuses it and counts, N a finding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BINS = 15
Metric = Callable[[np.ndarray, np.ndarray], float]


def average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """AP of one finding, targets [N] and scores [N]: sum over thresholds of (R_k - R_k-1) P_k, as scikit-learn."""
    targets, scores = _known(targets, scores)
    if not targets.any():
        return float("nan")
    true, false = _counts(targets, scores)
    return float(np.sum(np.diff(true, prepend=0) / true[-1] * (true / (true + false))))


def auroc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of one finding by the trapezoid rule; nan where one class is absent."""
    targets, scores = _known(targets, scores)
    if not targets.any() or targets.all():
        return float("nan")
    true, false = _counts(targets, scores)
    return float(np.trapezoid(np.r_[0, true] / true[-1], np.r_[0, false] / false[-1]))


def f1(targets: np.ndarray, scores: np.ndarray) -> float:
    """F1 at 0.5 of one finding: 2 TP / (2 TP + FP + FN); nan without positives."""
    targets, scores = _known(targets, scores)
    if not targets.any():
        return float("nan")
    said = scores >= 0.5
    return float(2 * (said & targets).sum() / (said.sum() + targets.sum()))


def fnr(targets: np.ndarray, scores: np.ndarray) -> float:
    """False-negative rate at 0.5 of one finding; nan without positives."""
    targets, scores = _known(targets, scores)
    return float((scores[targets] < 0.5).mean()) if targets.any() else float("nan")


def ece(targets: np.ndarray, scores: np.ndarray) -> float:
    """Expected calibration error of one finding: |mean p - rate of positives| over 15 equal bins of p, weighted."""
    targets, scores = _known(targets, scores)
    return _binned(scores, targets.astype(float))


def ece_challenge(targets: np.ndarray, scores: np.ndarray) -> float:
    """The variant whose size fits the challenge's table (by simulation): |accuracy at 0.5 - mean p| in bins of p."""
    targets, scores = _known(targets, scores)
    return _binned(scores, ((scores >= 0.5) == targets).astype(float))


def _positives(targets: np.ndarray, scores: np.ndarray) -> float:
    return float((targets == 1).sum())


METRICS: dict[str, Metric] = {
    "ap": average_precision,
    "auroc": auroc,
    "f1": f1,
    "fnr": fnr,
    "ece": ece,
    "ece_challenge": ece_challenge,
    "positives": _positives,
}


def per_finding(
    targets: np.ndarray, scores: np.ndarray, which: Sequence[str] = tuple(METRICS)
) -> dict[str, np.ndarray]:
    """Each metric of `which` as float64 [C]. Raises ValueError where shapes differ or a score is not finite."""
    targets, scores = np.asarray(targets), np.asarray(scores, np.float64)
    if targets.shape != scores.shape or targets.ndim != 2:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} must both be [images, findings]")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    columns = range(targets.shape[1])
    return {name: np.array([METRICS[name](targets[:, c], scores[:, c]) for c in columns]) for name in which}


def macro(values: np.ndarray) -> float:
    """The mean over findings that have a value; nan where none has."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else float("nan")


def micro_f1(targets: np.ndarray, scores: np.ndarray) -> float:
    """F1 at 0.5 over all labelled entries together; nan without positives."""
    return f1(np.asarray(targets).ravel(), np.asarray(scores).ravel())


def by_rarity(values: np.ndarray, rarity: Sequence[str]) -> dict[str, float]:
    """The macro mean of head, medium and tail findings; `rarity` [C] as tasks.rarity gives it."""
    kinds = np.asarray(rarity)
    return {kind: macro(np.asarray(values)[kinds == kind]) for kind in ("head", "medium", "tail")}


def bootstrap_map(
    targets: np.ndarray,
    systems: Sequence[np.ndarray] | np.ndarray,
    groups: np.ndarray,
    rounds: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Macro mAP float64 [S, rounds] of S systems' scores [N, C] when whole groups are drawn with replacement.

    All systems see the same draws, so differences of rows are paired. A finding without a positive in a
    draw is left out of that draw's mean (Efron & Tibshirani 1993, ch. 6, by clusters).
    """
    _, group = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    drawn = _draws(int(group.max()) + 1, rounds, seed)
    result = np.empty((len(systems), rounds))
    for s, scores in enumerate(systems):
        ap = np.empty((rounds, targets.shape[1]))
        for c in range(targets.shape[1]):
            rows = np.flatnonzero(targets[:, c] >= 0)
            order = rows[np.argsort(-scores[rows, c], kind="stable")]
            ends = np.r_[np.diff(scores[order, c]) != 0, True]
            ap[:, c] = _compiled()(targets[order, c] == 1, ends, group[order], drawn)
        known = ~np.isnan(ap)
        result[s] = np.where(known, ap, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    return result


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of bootstrap values (percentile method), nan left out."""
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _known(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labelled rows: positive bool, scores float64."""
    targets, scores = np.asarray(targets), np.asarray(scores, np.float64)
    rows = targets >= 0
    return targets[rows] == 1, scores[rows]


def _counts(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at every distinct threshold, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    true = np.cumsum(positive[order])[ends]
    return true, ends + 1 - true


def _binned(scores: np.ndarray, outcome: np.ndarray) -> float:
    if not len(scores):
        return float("nan")
    place = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    gap = np.bincount(place, scores, BINS) - np.bincount(place, outcome, BINS)
    return float(np.abs(gap).sum() / len(scores))


def _draws(groups: int, rounds: int, seed: int) -> np.ndarray:
    """How often each group is drawn: uint16 [rounds, groups]."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [np.bincount(rng.integers(0, groups, groups), minlength=groups).astype(np.uint16) for _ in range(rounds)]
    )


@functools.cache
def _compiled() -> Any:
    """The loop over rounds; numba is imported only where it is wanted."""
    from numba import njit, prange

    @njit(cache=True, parallel=True)
    def weighted(positive, ends, group, drawn):  # type: ignore[no-untyped-def]
        result = np.empty(drawn.shape[0])
        for r in prange(drawn.shape[0]):
            total = 0
            for n in range(positive.size):
                if positive[n]:
                    total += drawn[r, group[n]]
            if total == 0:
                result[r] = np.nan
                continue
            true, seen, before, value = 0, 0, 0, 0.0
            for n in range(positive.size):
                times = drawn[r, group[n]]
                seen += times
                if positive[n]:
                    true += times
                if ends[n] and true > before:
                    value += (true - before) / total * (true / seen)
                    before = true
            result[r] = value
        return result

    return weighted
