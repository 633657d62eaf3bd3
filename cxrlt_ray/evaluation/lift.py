"""Lift: how many times the average precision of chance a ranking has; it judges findings that are asked for by text.

Chance scores a finding's prevalence, so that a plain mean of AP over findings of 12 % and .1 % is that of the first.
The mean logarithm of lift gives each finding the same say, and halving one is made up by doubling another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample


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


@dataclass(frozen=True)
class LiftEstimates:
    """Lift with 95 % intervals by subject: of each finding [C], and the geometric mean over those that have one."""

    findings: tuple[Estimate, ...]
    mean: Estimate


def log_lift_draws(
    targets: np.ndarray, systems: Sequence[np.ndarray], groups: np.ndarray, rounds: int = 1000, seed: int = 0
) -> np.ndarray:
    """The logarithm of lift float64 [S, C, rounds] of systems' scores [N, C] in draws of subjects `groups` [N].

    AP and prevalence vary together; nan in a draw without positives.
    """
    constant = np.zeros(targets.shape)  # whose AP is the prevalence, in every draw
    *of_systems, chance = metrics.bootstrap_ap(targets, [*systems, constant], groups, rounds, seed)
    with np.errstate(divide="ignore"):
        draws = np.log(of_systems) - np.log(chance)
    draws[~np.isfinite(draws)] = np.nan
    return draws


def lift_estimates(
    targets: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    rounds: int = 1000,
    seed: int = 0,
    among: np.ndarray | None = None,
) -> LiftEstimates:
    """Lift as `lifts`, with its intervals. among: bool [C], the findings that the geometric mean is of; None: all.

    Intervals are value ± t standard errors on the logarithmic scale, where 0 is chance (Estimate.of_difference).
    """
    logs, sample = np.log(lifts(targets, scores)), Sample.of(targets, groups)
    draws = log_lift_draws(targets, [scores], groups, rounds, seed)[0]
    by_finding = (_exp(Estimate.of_difference(logs[c], draws[c], sample.part([c]))) for c in range(len(logs)))
    meant = ~np.isnan(logs) if among is None else ~np.isnan(logs) & among
    mean = Estimate.of_difference(metrics.macro(logs[meant]), metrics.means(draws[meant]), sample.part(meant))
    return LiftEstimates(tuple(by_finding), _exp(mean))


def _exp(estimate: Estimate) -> Estimate:
    return Estimate(*(float(np.exp(value)) for value in (estimate.value, estimate.low, estimate.high)))
