"""How far probabilities are from what they say: log loss, Brier score, expected calibration error, reliability curves.

ECE is biased upwards: rates in bins differ from probabilities by chance, so that perfectly calibrated scores have an
ECE above 0, the higher the fewer images there are. `Ece.by_chance` is what calibrated scores would be expected to show
here. `Ece.debiased` takes off what chance adds, if not all of it: of 500 calibrated images .054 becomes .033.
targets: int8 [N], 1, 0 or -1 (not labelled). scores: float [N] in [0, 1], nan where there is none. Both are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample

BINS = 15  # of ECE, as in evaluation/metrics.py
CURVE_BINS = 10
NEAREST = float(np.finfo(np.float32).eps)  # to 0 and 1, for log loss: predictions are stored in float32


@dataclass(frozen=True)
class BrierParts:
    """Brier score = miscalibration - discrimination + uncertainty, exactly (CORP: Dimitriadis, Gneiting & Jordan 2021).

    miscalibration: what isotonic regression of the labels on the scores would take off. discrimination: by how much
    that is better than the prevalence for all. uncertainty: the score of the prevalence for all.
    """

    score: float
    miscalibration: float
    discrimination: float
    uncertainty: float


@dataclass(frozen=True)
class Ece:
    """Expected calibration error, mean |rate - mean score| over images' bins, in [0, 1].

    by_chance: its expectation if the scores were calibrated, binomial. debiased: 2 ECE less the mean ECE of rates drawn
    again around those seen (folded normal), not below 0.
    """

    value: float
    by_chance: float
    debiased: float


@dataclass(frozen=True)
class ReliabilityBin:
    """A bin: mean score, rate of positives with its interval, images, positives."""

    score: float
    rate: Estimate
    images: int
    positives: int


def log_losses(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """-ln of the probability given to the label, float64 [N]; nan where label or score is not known."""
    p = np.clip(np.asarray(scores, np.float64), NEAREST, 1 - NEAREST)
    losses = np.where(np.asarray(targets) == 1, -np.log(p), -np.log1p(-p))
    return np.where(np.asarray(targets) >= 0, losses, np.nan)


def squared_errors(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(score - label) ** 2, float64 [N]; nan where label or score is not known."""
    errors = (np.asarray(scores, np.float64) - np.asarray(targets)) ** 2
    return np.where(np.asarray(targets) >= 0, errors, np.nan)


def log_loss(targets: np.ndarray, scores: np.ndarray) -> float:
    """The mean of `log_losses`; nan where nothing is labelled."""
    return metrics.macro(log_losses(targets, scores))


def brier(targets: np.ndarray, scores: np.ndarray) -> float:
    """The Brier score (Brier 1950), the mean of `squared_errors`; nan where nothing is labelled."""
    return metrics.macro(squared_errors(targets, scores))


def brier_parts(targets: np.ndarray, scores: np.ndarray) -> BrierParts:
    """The Brier score and its parts; nan where nothing is labelled."""
    from sklearn.isotonic import IsotonicRegression

    labels, scores = known(targets, scores)
    if not len(labels):
        return BrierParts(*[float("nan")] * 4)
    recalibrated = IsotonicRegression().fit(scores, labels).predict(scores)
    score, best, flat = (float(np.mean((p - labels) ** 2)) for p in (scores, recalibrated, labels.mean()))
    return BrierParts(score, score - best, flat - best, flat)


def bins_of(scores: np.ndarray, bins: int, equal_mass: bool) -> np.ndarray:
    """The bin of each of scores [N] in [0, 1], int64 [N]: of equal width, or with equal numbers of images.

    Equal scores share a bin; a bin of equal mass may then be larger, and others empty.
    """
    if not equal_mass:
        return np.clip((scores * bins).astype(int), 0, bins - 1)
    ordered = np.sort(scores)
    first = np.searchsorted(ordered, scores, side="left")
    return first * bins // max(len(scores), 1)


def calibration_error(targets: np.ndarray, scores: np.ndarray, bins: int = BINS, equal_mass: bool = True) -> Ece:
    """ECE in `bins` bins of equal mass (Nixon et al. 2019) or width (Naeini et al. 2015); nan where none is labelled.

    By chance: sum of w_b s_b sqrt(2 / pi), w_b a bin's share, s_b the standard error of its rate if the scores
    are true. Debiased as Kumar, Liang & Ma (2019) do for ECE, with the folded normal's mean in closed form.
    """
    labels, scores = known(targets, scores)
    if not len(labels):
        return Ece(*[float("nan")] * 3)
    where = bins_of(scores, bins, equal_mass)
    images = np.bincount(where, minlength=bins)
    used = images > 0

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(where, values, bins)[used]

    images = images[used]
    weights, rate = images / images.sum(), sums(labels) / images
    gap = np.abs(rate - sums(scores) / images)
    value = float(weights @ gap)
    chance = np.sqrt(sums(scores * (1 - scores))) / images
    again = float(weights @ _folded(gap, np.sqrt(rate * (1 - rate) / images)))
    return Ece(value, float(weights @ chance * np.sqrt(2 / np.pi)), max(2 * value - again, 0.0))


def reliability_curve(
    targets: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    bins: int = CURVE_BINS,
    equal_mass: bool = True,
    rounds: int = 1000,
    seed: int = 0,
) -> tuple[ReliabilityBin, ...]:
    """The bins that hold images, in ascending order of score; groups: [N] subjects, drawn whole in `rounds`.

    A rate's interval is Estimate's, with the subjects of the bin's rarer label; it is not known below 5 of them. Where
    a bin has one label only, it is the exact binomial bound for its number of subjects.
    """
    targets = np.asarray(targets)
    rows = (targets >= 0) & ~np.isnan(np.asarray(scores, float))
    labels, scores = known(targets, scores)
    if not len(labels):
        return ()
    subject = np.unique(metrics.numbered(groups)[rows], return_inverse=True)[1]
    where, people = bins_of(scores, bins, equal_mass), int(subject.max()) + 1
    table = np.zeros((people, 2 * bins))  # positives and images of each subject in each bin
    np.add.at(table, (subject, where), labels)
    np.add.at(table, (subject, bins + where), 1.0)
    drawn = np.concatenate([block.T @ table for block in metrics.draws(people, rounds, seed)])[:rounds]
    result = []
    for b in np.unique(where).tolist():
        inside = where == b
        rate = float(labels[inside].mean())
        with np.errstate(invalid="ignore"):
            rates = drawn[:, b] / drawn[:, bins + b]
        estimate = Estimate.of_score(rate, rates, _behind(labels[inside], subject[inside]))
        result.append(
            ReliabilityBin(float(scores[inside].mean()), estimate, int(inside.sum()), int(labels[inside].sum()))
        )
    return tuple(result)


def known(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels, 0.0 or 1.0, and scores, float64 [n], where both are known."""
    targets, scores = np.asarray(targets), np.asarray(scores, np.float64)
    rows = (targets >= 0) & ~np.isnan(scores)
    return (targets[rows] == 1).astype(float), scores[rows]


def _behind(labels: np.ndarray, subject: np.ndarray) -> Sample:
    """What a rate rests on: the subjects of its rarer label; all of them where there is one label only."""
    counts = [len(np.unique(subject[labels == label])) for label in (0, 1)]
    people = len(np.unique(subject))
    return Sample(np.array([min(counts) or people]), people)


def _folded(mean: np.ndarray, error: np.ndarray) -> np.ndarray:
    """The mean of |x|, x normal with `mean` [n] and standard deviation `error` [n]."""
    from scipy.special import ndtr

    z = np.minimum(mean / np.maximum(error, 1e-300), 40.0)  # beyond which the normal's other side is nothing
    return np.asarray(error * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + mean * (1 - 2 * ndtr(-z)))
