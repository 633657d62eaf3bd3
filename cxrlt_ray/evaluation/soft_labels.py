"""Scores that promise the right number of positives: calibrated by finding, or cut at the labelled prevalence.

Asymmetric losses and class weights raise scores: the sum of a finding's raw probabilities may be several times its
positives. `fitted` learns a monotone map for each finding on predictions of images that were not trained on;
`class_aware` cuts scores so that the share of positives is a given prevalence; `prevalence_ratio` says how far the sum
of scores is off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation.estimate import LEVEL, Estimate
from cxrlt_ray.evaluation.metrics import numbered

SMALLEST = 1e-6  # of a probability: its logit is finite
LEAST_SLOPE = 0.05  # of a map: it never turns an order round
# standard deviations of a finding's slope and level about those that all findings share: with n positives a level is
# drawn to the shared one by about 1 / (1 + n)
SLOPE_SPREAD, LEVEL_SPREAD = 0.5, 1.0
FOLDS = 5  # of subjects, for what is said of the maps themselves
DRAWS = 100  # bootstrap draws at a time


@dataclass(frozen=True)
class Maps:
    """A map sigmoid(slope x logit(p) + level) a finding: slope > 0 and level, float64 [C]."""

    slope: np.ndarray
    level: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated probabilities float64 [N, C] of scores [N, C] in [0, 1]; nan stays. Order is kept."""
        from scipy.special import expit

        return np.asarray(expit(self.slope * _logit(scores) + self.level))


def fitted(scores: np.ndarray, targets: np.ndarray) -> Maps:
    """The maps of scores [N, C] in [0, 1] that fit targets [N, C]: 1, 0, or -1 (not labelled). nan scores are left out.

    Platt 1999's logistic map, with a normal prior about the one map that fits all findings together (about the identity
    where nothing is labelled): a finding with one positive, or none, gets nearly that.
    """
    logits, targets = _logit(scores), np.asarray(targets)
    known = (targets >= 0) & ~np.isnan(logits)
    slope, level = _fit(logits[known], targets[known], 1.0, 0.0)
    maps = np.array([_fit(logits[k, c], targets[k, c], slope, level) for c, k in enumerate(known.T)]).reshape(-1, 2)
    return Maps(maps[:, 0], maps[:, 1])


def _fit(logits: np.ndarray, targets: np.ndarray, slope: float, level: float) -> tuple[float, float]:
    """Slope and level of greatest posterior density for one set of cells [n]; (slope, level): the prior's centre.

    The level is taken at the mean logit, where it does not depend on the slope.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    if not len(logits):
        return slope, level
    middle, positive = float(logits.mean()), (targets == 1).astype(float)
    centred, prior = logits - middle, np.array([slope, level + slope * middle])
    spread = np.array([SLOPE_SPREAD, LEVEL_SPREAD])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * centred + parameters[1]
        off = (parameters - prior) / spread
        miss = expit(z) - positive
        value = float((np.logaddexp(0, z) - positive * z).sum() + off @ off / 2)
        return value, np.array([miss @ centred, miss.sum()]) + off / spread

    bounds = [(LEAST_SLOPE, None), (None, None)]
    best = minimize(loss, prior, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-8}).x
    return float(best[0]), float(best[1] - best[0] * middle)


def cross_fitted(
    scores: np.ndarray, targets: np.ndarray, groups: np.ndarray, folds: int = FOLDS, seed: int = 0
) -> np.ndarray:
    """Scores [N, C] calibrated by maps that were fitted without the image's subject: what the maps are worth.

    groups: subjects [N], divided into `folds` at random; as few as there are subjects.
    """
    subject = numbered(groups)
    count = int(subject.max()) + 1
    part = (np.random.default_rng(seed).permutation(count) % max(min(folds, count), 1))[subject]
    calibrated = np.full(np.shape(scores), np.nan)
    for fold in np.unique(part):
        rows = part == fold
        calibrated[rows] = fitted(scores[~rows], targets[~rows])(scores[rows])
    return calibrated


def class_aware(scores: np.ndarray, shares: np.ndarray, keep: float) -> np.ndarray:
    """Hard labels float64 [N, C], 1, 0 or nan, of scores [N, C]; nan where there is no score.

    Class-distribution-aware thresholds (Xie et al. 2023, arXiv 2305.02795, CAP): of a finding's n scores the highest
    keep x share x n are 1, the lowest keep x (1 - share) x n are 0, and the middle is left out. shares: the labelled
    prevalence [C]; a finding whose prevalence is not known gets no label. keep: in (0, 1].
    """
    scores = np.asarray(scores, float)
    labels = np.full(scores.shape, np.nan)
    for c, share in enumerate(shares):
        rows = np.flatnonzero(~np.isnan(scores[:, c]))
        if np.isnan(share) or not len(rows):
            continue
        order = rows[np.argsort(scores[rows, c], kind="stable")]
        positives, negatives = (round(keep * part * len(rows)) for part in (share, 1 - share))
        labels[order[:negatives], c] = 0
        labels[order[len(order) - min(positives, len(order) - negatives) :], c] = 1
    return labels


def prevalence_ratio(
    targets: np.ndarray, scores: np.ndarray, groups: np.ndarray, rounds: int = 1000, seed: int = 0
) -> list[Estimate]:
    """For each finding the sum of scores over the positives, on labelled cells [N, C], with its 95 % interval.

    The interval is the percentiles of `rounds` bootstrap draws of subjects, groups [N]; nan without a positive. A draw
    without one counts as infinite.
    """
    subject = numbered(groups)
    known = (np.asarray(targets) >= 0) & ~np.isnan(scores)
    sums = np.zeros((2, int(subject.max(initial=0)) + 1, known.shape[1]))
    np.add.at(sums[0], subject, np.where(known, np.nan_to_num(scores), 0))
    np.add.at(sums[1], subject, known & (np.asarray(targets) == 1))
    random, (expected, positives) = np.random.default_rng(seed), sums.sum(axis=1)
    draws = []
    for start in range(0, rounds, DRAWS):
        many = min(DRAWS, rounds - start)
        times = random.multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), size=many)
        ours, theirs = (times @ part for part in sums)
        draws.append(np.where(theirs > 0, ours / np.maximum(theirs, 1), np.inf))
    ends = np.quantile(np.concatenate(draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="nearest")
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    return [
        Estimate(float(expected[c] / positives[c]), float(ends[0, c]), float(ends[1, c])) if positives[c] else nothing
        for c in range(known.shape[1])
    ]


def _logit(scores: np.ndarray) -> np.ndarray:
    from scipy.special import logit

    return np.asarray(logit(np.clip(np.asarray(scores, float), SMALLEST, 1 - SMALLEST)))
