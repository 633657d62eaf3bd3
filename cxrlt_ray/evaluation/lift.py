"""Lift: how many times the average precision of chance a ranking has; it judges findings that are asked for by text.

Chance scores a finding's prevalence, so that a plain mean of AP over findings of 12 % and .1 % is that of the first.
The mean logarithm of lift gives each finding the same say, and halving one is made up by doubling another.
"""

from __future__ import annotations

import numpy as np

from cxrlt_ray.evaluation import metrics


def prevalences(targets: np.ndarray) -> np.ndarray:
    """The share of positives among labelled images, float64 [C]; nan where there is no positive, or nothing else.

    targets: int8 [N, C], 1, 0 or -1 (not labelled).
    """
    positives, labelled = (targets == 1).sum(axis=0), (targets >= 0).sum(axis=0)
    known = (positives > 0) & (positives < labelled)
    return np.where(known, positives / np.maximum(labelled, 1), np.nan)


def lifts(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AP / prevalence float64 [C], above 1 where better than chance; nan where `prevalences` is. scores: [N, C].

    >>> lifts(np.array([[1], [0], [0], [0]]), np.array([[0.9], [0.3], [0.2], [0.1]]))
    array([4.])
    """
    return metrics.per_finding(targets, scores, ("ap",))["ap"] / prevalences(targets)


def mean_log_lift(targets: np.ndarray, scores: np.ndarray) -> float:
    """The mean natural logarithm of lift over findings that have one, 0 for chance; nan where none has."""
    return metrics.macro(np.log(lifts(targets, scores)))
