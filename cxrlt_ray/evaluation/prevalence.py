"""Average precision as it would be at another prevalence, to compare groups and sites that differ in it.

Chance has the prevalence as its AP, so a group with more positives has a larger AP from the same ranking. With
negatives weighed so that positives are a share π of all, precision at a threshold is TPR π / (TPR π + FPR (1 - π))
(Siblini et al. 2020, "Master your metrics with calibration", eq. 3): it depends on the ranking alone.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cxrlt_ray.cluster.processors import available_processors
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.metrics import LANES


def weighted_ap(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """AP of one finding whose images count by `weights` >= 0, all [N]; nan without a positive of some weight."""
    positive, ends, weight = _in_order(targets, scores, weights)
    true, all_of = np.cumsum(weight * positive)[ends], np.cumsum(weight)[ends]
    if not len(true) or true[-1] <= 0:
        return float("nan")
    precision = true / np.where(all_of > 0, all_of, 1)
    return float(np.sum(np.diff(true, prepend=0) * precision) / true[-1])


def weighted_auroc(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """AUROC of one finding whose images count by `weights` >= 0, all [N]; nan where a class has no weight."""
    positive, ends, weight = _in_order(targets, scores, weights)
    true, false = np.cumsum(weight * positive)[ends], np.cumsum(weight * ~positive)[ends]
    if not len(true) or true[-1] <= 0 or false[-1] <= 0:
        return float("nan")
    return float(np.trapezoid(np.r_[0, true], np.r_[0, false]) / true[-1] / false[-1])


def to_prevalence(targets: np.ndarray, prevalence: float) -> np.ndarray:
    """Weights float64 [N] with which positives are the share `prevalence` of the labelled images; 0 of others.

    nan where there are no positives or no negatives.

    >>> to_prevalence(np.array([1, 0, 0, 0, -1]), 0.5).tolist()
    [2.0, 0.6666666666666666, 0.6666666666666666, 0.6666666666666666, 0.0]
    """
    positive, known = targets == 1, targets >= 0
    share = positive.sum() / known.sum() if known.any() else np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(positive, prevalence / share, (1 - prevalence) / (1 - share))
    return np.where(known, weights if 0 < share < 1 else np.nan, 0.0)


def ap_at(targets: np.ndarray, scores: np.ndarray, prevalence: float) -> float:
    """AP of one finding [N] at another prevalence in (0, 1); nan where a class is absent."""
    weights = to_prevalence(targets, prevalence)
    return float("nan") if np.isnan(weights).any() else weighted_ap(targets, scores, weights)


def ap_at_draws(
    targets: np.ndarray,
    scores: np.ndarray,
    subject: np.ndarray,
    blocks: list[np.ndarray],
    rounds: int,
    prevalence: np.ndarray,
) -> np.ndarray:
    """`ap_at` of each finding at `prevalence` [C] in draws of subjects, float64 [C, R]; nan where a class is absent.

    targets, scores: [N, C]. subject: numbers [N]. blocks: how often each is drawn, as of `metrics.draws`.
    """
    count = _compiled()
    with ThreadPoolExecutor(available_processors()) as threads:

        def of_finding(c: int) -> np.ndarray:
            column = metrics.sorted_images(targets[:, c], scores[:, c], subject)
            if not column[0].any() or not 0 < prevalence[c] < 1:
                return np.full(rounds, np.nan)
            odds = (1 - prevalence[c]) / prevalence[c]
            return np.concatenate([count(*column, block, odds) for block in blocks])[:rounds]

        return np.array(list(threads.map(of_finding, range(targets.shape[1])))).reshape(-1, rounds)


def _in_order(
    targets: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labelled images from the highest score down: positive, indices of the ends of ties, weight."""
    rows = np.flatnonzero(targets >= 0)
    order = rows[np.argsort(-scores[rows], kind="stable")]
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    return targets[order] == 1, ends, np.asarray(weights, float)[order]


@functools.cache
def _compiled() -> Any:
    """The count of LANES rounds; numba is imported only where it is wanted."""
    from cxrlt_ray.evaluation.compiled import njit

    @njit(cache=True, nogil=True, error_model="numpy")
    def resampled(positive, last, group, drawn, odds):  # type: ignore[no-untyped-def]
        """AP [LANES] of one finding whose images stand from the highest score down; odds: negatives to positives."""
        trues, falses = np.zeros(LANES), np.zeros(LANES)
        for n in range(positive.size):
            for k in range(LANES):
                if positive[n]:
                    trues[k] += drawn[group[n], k]
                else:
                    falses[k] += drawn[group[n], k]
        true, false, before, total = np.zeros(LANES), np.zeros(LANES), np.zeros(LANES), np.zeros(LANES)
        for n in range(positive.size):
            row = drawn[group[n]]
            if positive[n]:
                for k in range(LANES):
                    true[k] += row[k]
            else:
                for k in range(LANES):
                    false[k] += row[k]
            if last[n]:
                for k in range(LANES):
                    if true[k] > before[k] and falses[k] > 0:
                        alarms = odds * (false[k] / falses[k])
                        hits = true[k] / trues[k]
                        total[k] += (true[k] - before[k]) / trues[k] * hits / (hits + alarms)
                        before[k] = true[k]
        for k in range(LANES):
            if trues[k] == 0 or falses[k] == 0:
                total[k] = np.nan
        return total

    return resampled
