"""Decision curves: what acting on a finding's probabilities is worth (Vickers & Elkin 2006).

Who acts on an image from the probability p on says that a missed positive is as bad as (1 - p) / p false alarms. In
such terms the net benefit of acting is TP / n - FP / n * p / (1 - p), in true positives an image; of acting on every
image it is prevalence - (1 - prevalence) p / (1 - p), of acting on none 0. Probabilities must be calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation import confusion
from cxrlt_ray.evaluation.estimate import Estimate, Sample

POINTS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class DecisionPoint:
    """At one threshold probability: net benefit of the scores, of acting on all, and of the scores over the best of all
    and none, with intervals.
    """

    probability: float
    net_benefit: Estimate
    act_on_all: float
    gain: Estimate


@dataclass(frozen=True)
class DecisionCurve:
    """A finding's decision curve, threshold probabilities ascending."""

    finding: str
    prevalence: float
    points: tuple[DecisionPoint, ...]


def decision_curve(
    targets: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    finding: str = "",
    points: Sequence[float] = POINTS,
    rounds: int = 1000,
    seed: int = 0,
) -> DecisionCurve:
    """The decision curve of one finding; at each of `points`, in (0, 1).

    targets: int8 [N], 1, 0 or -1 (not labelled). scores: float [N], calibrated. groups: [N] subjects, drawn whole.
    """
    scores, at = np.asarray(scores, np.float64), np.asarray(points, float)
    labels = np.where(np.isnan(scores), -1, np.asarray(targets))[:, None]
    images, positives = int((labels >= 0).sum()), int((labels == 1).sum())
    calls = (scores[:, None] >= at).astype(np.int8)
    table = confusion.counts(np.repeat(labels, len(at), axis=1), calls)  # [4, N, T]
    value, on_all = _benefits(table.sum(axis=1), at)
    values, on_all_drawn = _benefits(confusion.resampled(table, groups, rounds, seed), at[:, None])
    gain, gains = value - np.maximum(on_all, 0), values - np.maximum(on_all_drawn, 0)
    sample = Sample.of(labels, groups)

    def estimate(of: np.ndarray, drawn: np.ndarray, t: int) -> Estimate:
        return Estimate.of_difference(float(of[t]), drawn[t], sample)  # it may be below 0, as differences

    measured = (
        DecisionPoint(float(p), estimate(value, values, t), float(on_all[t]), estimate(gain, gains, t))
        for t, p in enumerate(at)
    )
    return DecisionCurve(finding, positives / images if images else float("nan"), tuple(measured))


def _benefits(counts: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Net benefit of the calls, and of acting on all, of counts [4, T, ...] at probabilities p [T, ...]."""
    hit, false, missed, true = counts
    odds = p / (1 - p)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = counts.sum(axis=0)
        return np.asarray((hit - odds * false) / total), np.asarray((hit + missed - odds * (false + true)) / total)
