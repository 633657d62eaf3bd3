"""Scores of a part of the images, such as one group's, and how the scores of two parts differ.

Metrics, for each finding, where `metrics` does not say otherwise:

    ap        average precision at the part's own prevalence
    ap_even   average precision at one prevalence for all parts (prevalence.py)
    auroc
    fnr       the share of positives below a threshold that all parts share
    bias      the mean predicted probability less the share of positives ("calibration in the large"); 0 is best
    ece       expected calibration error; without an interval

AUROC, FNR and bias neither rise nor fall with the size of a part or with its prevalence: these are tested. AP rises
with prevalence and, from few positives, by chance (metrics.population_ap); ECE rises as a part gets smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import LEAST, LEVEL, Estimate, Sample
from cxrlt_ray.evaluation.prevalence import ap_at, ap_at_draws
from cxrlt_ray.evaluation.thresholds import best_f1

SCORES = ("ap", "ap_even", "auroc", "fnr")  # within 0 and 1
METRICS = (*SCORES, "bias")
TESTED = ("auroc", "fnr", "bias")
LEAST_SHARE = 0.5  # of the variance of a part if both were alike, below which its draws' own is not believed


@dataclass(frozen=True)
class Part:
    """Some of the images, measured.

    images, subjects: counts. positives, labelled: images by finding, [C]; positive_subjects, negative_subjects: [C].
    prevalence, ece: [C]. values: of METRICS [C]; draws: their values in draws of subjects [C, R]; nan where a finding
    has none.
    """

    images: int
    subjects: int
    positives: np.ndarray
    labelled: np.ndarray
    positive_subjects: np.ndarray
    negative_subjects: np.ndarray
    prevalence: np.ndarray
    ece: np.ndarray
    values: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]

    def sample(self, metric: str, findings: np.ndarray) -> Sample:
        """What an interval of a metric, or of its mean over `findings` (a mask [C]), rests on."""
        counts = self.positive_subjects
        if metric == "auroc":
            counts = np.minimum(counts, self.negative_subjects)
        return Sample(counts[findings], self.subjects)

    def mean(self, metric: str, findings: np.ndarray) -> float:
        """The mean of a metric over `findings`, a mask [C]; nan where none of them has it."""
        return metrics.macro(self.values[metric][findings])

    def mean_draws(self, metric: str, findings: np.ndarray) -> np.ndarray:
        """`mean` in each draw, [R]."""
        return metrics.means(self.draws[metric][findings])

    def estimate(self, metric: str, findings: np.ndarray) -> Estimate:
        """`mean` with its 95 % interval."""
        known = findings & ~np.isnan(self.values[metric])
        value, sample = self.mean(metric, known), self.sample(metric, known)
        draws = self.mean_draws(metric, known)
        of = Estimate.of_score if metric in SCORES else Estimate.of_difference
        return of(value, draws, sample)


@dataclass(frozen=True)
class Images:
    """N images of C findings, to be measured part by part in the same draws of subjects.

    targets: int8 [N, C], 1, 0 or -1 (not labelled). scores: probabilities [N, C]. subject: numbers from 0, [N].
    thresholds: [C], for FNR; nan: there is none. prevalence: [C], for ap_even. blocks: of metrics.draws, for `rounds`
    rounds.
    """

    targets: np.ndarray
    scores: np.ndarray
    subject: np.ndarray
    thresholds: np.ndarray
    prevalence: np.ndarray
    blocks: list[np.ndarray]
    rounds: int

    @classmethod
    def of(
        cls,
        targets: np.ndarray,
        scores: np.ndarray,
        subjects: np.ndarray,
        thresholds: np.ndarray,
        prevalence: np.ndarray | None = None,
        rounds: int = 1000,
        seed: int = 0,
    ) -> Images:
        """Images with the names of their subjects [N]. prevalence: these images' own unless given."""
        if targets.shape != scores.shape or len(subjects) != len(targets) or len(thresholds) != targets.shape[1]:
            raise ValueError(f"{targets.shape} targets do not fit {scores.shape} scores, subjects and thresholds")
        subject = metrics.numbered(subjects)
        blocks = metrics.draws(int(subject.max(initial=-1)) + 1, rounds, seed)
        own = shares(targets) if prevalence is None else prevalence
        return cls(targets, np.asarray(scores, np.float64), subject, np.asarray(thresholds), own, blocks, rounds)

    def part(self, rows: np.ndarray, with_ap: bool = True) -> Part:
        """The images of the mask `rows` [N], measured. with_ap: False leaves ap and ap_even nan, in half the time."""
        targets = np.where(rows[:, None], self.targets, -1)
        own, scores = targets[rows], self.scores[rows]
        values = metrics.per_finding(own, scores, ("ap", "auroc", "ece"))
        ap, auroc = next(metrics.drawn_scores(targets, [self.scores], self.subject, self.blocks, self.rounds))
        draws = {"ap": ap, "auroc": auroc} | self._rates(targets)
        ece = values.pop("ece")
        values |= {"fnr": _fnr(own, scores, self.thresholds), "bias": _bias(own, scores)}
        missing = np.full(len(self.prevalence), np.nan)
        values["ap_even"], draws["ap_even"] = missing, np.full((len(missing), self.rounds), np.nan)
        if with_ap:
            columns = zip(own.T, scores.T, self.prevalence, strict=True)
            values["ap_even"] = np.array([ap_at(*column) for column in columns])
            sizes = (self.blocks, self.rounds, self.prevalence)
            draws["ap_even"] = ap_at_draws(targets, self.scores, self.subject, *sizes)
        return Part(
            images=int(rows.sum()),
            subjects=len(np.unique(self.subject[rows])),
            positives=(own == 1).sum(axis=0),
            labelled=(own >= 0).sum(axis=0),
            positive_subjects=metrics.positive_subjects(own, self.subject[rows]),
            negative_subjects=metrics.positive_subjects(own == 0, self.subject[rows]),
            prevalence=shares(own),
            ece=ece,
            values=values,
            draws=draws,
        )

    def _rates(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        """FNR and bias in each draw, [C, R]: ratios of sums that subjects contribute to."""
        positive, known = targets == 1, targets >= 0
        called = positive & ~np.isnan(self.thresholds)
        terms = (called, called & (self.scores < self.thresholds), known, known * self.scores - positive)
        sums = np.zeros((len(terms), len(self.blocks[0]), targets.shape[1]))
        for total, term in zip(sums, terms, strict=True):
            np.add.at(total, self.subject, term)
        blocks = [np.einsum("sl,tsc->tcl", block.astype(np.float64), sums, optimize=True) for block in self.blocks]
        positives, missed, labelled, excess = np.concatenate(blocks, axis=2)[:, :, : self.rounds]
        return {"fnr": _ratio(missed, positives), "bias": _ratio(excess, labelled)}


@dataclass(frozen=True)
class Difference:
    """A score of one part less that of another, with its 95 % interval, and p that there is none; nan: not known."""

    estimate: Estimate
    p: float


def difference(one: Part, other: Part, metric: str, findings: np.ndarray) -> Difference:
    """Compare the mean of a metric over `findings`, a mask [C], in two parts: a two-sided t test.

    The standard error is that of the draws, in which subjects who are in both parts count. Where a part is so small
    that its draws hardly vary (no positive of six was missed), its variance is at least LEAST_SHARE of that of so many
    subjects if both parts were alike: of a binomial share, of AUROC for normal scores of one variance. Degrees of
    freedom are Welch's, of positive subjects less findings in either part, and fewer for a standard error that few
    draws tell: in the far tail, where corrected tests are decided, 100 normal draws would flag twice too often.
    """
    findings = findings & ~np.isnan(one.values[metric]) & ~np.isnan(other.values[metric])
    value = one.mean(metric, findings) - other.mean(metric, findings)
    degrees = [part.sample(metric, findings).degrees for part in (one, other)]
    if not findings.any() or min(degrees) < LEAST:
        return Difference(Estimate(value, np.nan, np.nan), np.nan)
    draws = [part.mean_draws(metric, findings) for part in (one, other)]
    own = np.array([np.nanvar(values) for values in draws])
    least = np.array([LEAST_SHARE * _variance_if_alike(part, one, other, metric, findings) for part in (one, other)])
    variances = np.maximum(own, least)
    error = float(np.sqrt(np.nanvar(draws[0] - draws[1]) + (variances - own).sum()))
    return _t_test(value, error, variances, np.array(degrees), len(draws[0]))


def _t_test(value: float, error: float, variances: np.ndarray, degrees: np.ndarray, rounds: int) -> Difference:
    from scipy.special import stdtr, stdtrit

    if error <= 0:
        return Difference(Estimate(value, np.nan, np.nan), np.nan)
    # a variance has the relative variance 2 / freedom: those of the sample and of the draws add up
    spread = float((variances**2 / degrees).sum() / variances.sum() ** 2) + 1 / max(rounds - 1, 1)
    freedom = 1 / spread
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Difference(Estimate(value, value - half, value + half), float(2 * stdtr(freedom, -abs(value) / error)))


def _variance_if_alike(part: Part, one: Part, other: Part, metric: str, findings: np.ndarray) -> float:
    """The sampling variance of a part's mean over findings where both parts have the value of both together."""
    positive, negative = part.positive_subjects[findings], part.negative_subjects[findings]
    if metric == "bias":
        rate = (one.positives + other.positives)[findings] / (one.labelled + other.labelled)[findings]
        variance = rate * (1 - rate) / np.maximum(part.subjects, 1)
    else:
        counts = np.array([p.positives[findings] for p in (one, other)], float)
        values = np.array([p.values[metric][findings] for p in (one, other)])
        value = (counts * values).sum(axis=0) / counts.sum(axis=0)
        variance = value * (1 - value) / positive if metric != "auroc" else _of_auroc(value, positive, negative)
    return float(variance.sum() / len(variance) ** 2)


def _of_auroc(value: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """The variance of AUROC of so many positives and negatives (Hanley & McNeil 1982, eq. 2), for normal scores.

    Of equal variances, two positives lie above a negative, and a positive above two negatives, with the probability
    that two normals of correlation 1/2 are below z, the quantile of AUROC: AUROC - 2 T(z, 1 / sqrt 3), T Owen's.
    """
    from scipy.special import ndtri, owens_t

    inside = np.clip(value, 1e-12, 1 - 1e-12)
    both = inside - 2 * owens_t(ndtri(inside), 1 / np.sqrt(3))
    spread = (positives + negatives - 2) * (both - inside**2)
    return (inside * (1 - inside) + spread) / (positives * negatives)


def shares(targets: np.ndarray) -> np.ndarray:
    """The share of positives among labelled images, float64 [C]; nan where none is labelled."""
    return _ratio((targets == 1).sum(axis=0), (targets >= 0).sum(axis=0))


def best_f1_thresholds(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The score from which on predicting a finding gives the largest F1, [C]; 0.5 where there is no positive.

    >>> best_f1_thresholds(np.array([[1], [1], [0], [0]]), np.array([[0.9], [0.6], [0.3], [0.1]])).tolist()
    [0.6]
    """
    return np.array([_best_f1_threshold(*column) for column in zip(targets.T, np.asarray(scores).T, strict=True)])


def _best_f1_threshold(targets: np.ndarray, scores: np.ndarray) -> float:
    rows = np.flatnonzero(targets >= 0)
    order = rows[np.argsort(-scores[rows], kind="stable")]
    positive = targets[order] == 1
    if not positive.any():
        return 0.5
    return float(scores[order][best_f1(positive, order, scores[order], 0.0) - 1])


def _fnr(targets: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    positive = (targets == 1) & ~np.isnan(thresholds)
    return _ratio((positive & (scores < thresholds)).sum(axis=0), positive.sum(axis=0))


def _bias(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    known = targets >= 0
    return _ratio((known * scores).sum(axis=0) - (targets == 1).sum(axis=0), known.sum(axis=0))


def _ratio(count: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, count / np.where(total > 0, total, 1), np.nan)
