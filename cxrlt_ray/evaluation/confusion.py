"""What labels are worth beside a reference: counts, precision, recall, F1, Cohen's kappa and PABAK, by finding.

gold, labels: int8 [N, C], 1, 0 or -1 (left out). Rows may be weighted: of a sample that was drawn with known
probabilities, weights of 1 / probability estimate the counts of all (Horvitz & Thompson 1952).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample

RATES = ("precision", "recall", "f1", "kappa", "pabak")
BOUNDED = ("precision", "recall", "f1")  # in [0, 1]; kappa and PABAK in [-1, 1]


@dataclass(frozen=True)
class Rates:
    """A labeller's rates. of_finding: rate -> float [C], nan where there is none. macro, pooled: rate -> estimate."""

    of_finding: dict[str, np.ndarray]
    intervals: dict[str, list[Estimate]]
    macro: dict[str, Estimate]
    pooled: dict[str, Estimate]


def counts(gold: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """True positives, false positives, false negatives and true negatives of each row and finding, float [4, N, C].

    weights: float [N], 1 each without it.
    """
    known, true, said = (gold >= 0) & (labels >= 0), gold == 1, labels == 1
    kinds = np.stack([known & true & said, known & ~true & said, known & true & ~said, known & ~true & ~said])
    return kinds * (1.0 if weights is None else np.asarray(weights, float)[None, :, None])


def rates(table: np.ndarray) -> dict[str, np.ndarray]:
    """The RATES of counts [4, ...], each [...]; nan where a rate has no value.

    Precision: nothing is affirmed; recall and F1: there is no positive; kappa: chance agreement is complete.
    Kappa: (p - e) / (1 - e) with p observed and e chance agreement (Cohen 1960); PABAK: 2 p - 1 (Byrt et al. 1993).
    """
    tp, fp, fn, tn = np.asarray(table, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = tp + fp + fn + tn
        agreed = (tp + tn) / total
        chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / total**2
        values = {
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "f1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
            "kappa": np.where(1 - chance > 1e-12, (agreed - chance) / (1 - chance), np.nan),
            "pabak": 2 * agreed - 1,
        }
    return values


def resampled(table: np.ndarray, subjects: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """Counts [4, C, rounds] of [4, N, C] when whole subjects [N] are drawn with replacement; one seed, one draw."""
    subject = metrics.numbered(subjects)
    by_subject = np.zeros((4, subject.max() + 1, table.shape[2]))
    for kind, total in zip(table, by_subject, strict=True):
        np.add.at(total, subject, kind)
    blocks = [block.T @ by_subject for block in metrics.draws(subject.max() + 1, rounds, seed)]
    return np.concatenate(blocks, axis=1)[:, :rounds].transpose(0, 2, 1)


@dataclass(frozen=True)
class Resampled:
    """Counts of one labeller [4, N, C], their draws [4, C, R], and which findings stand in the mean, bool [C]."""

    table: np.ndarray
    draws: np.ndarray
    in_mean: np.ndarray
    subjects: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray, subjects: np.ndarray, in_mean: np.ndarray, rounds: int, seed: int) -> Resampled:
        return cls(table, resampled(table, subjects, rounds, seed), in_mean, subjects)

    def sample(self, rate: str) -> Sample:
        """What a rate rests on: the subjects with an affirmed label for precision, with a positive for the others."""
        tp, fp, fn, _ = self.table
        return Sample.of(((tp + (fp if rate == "precision" else fn)) > 0).astype(np.int8), self.subjects)

    def mean(self, table: np.ndarray, rate: str) -> np.ndarray:
        """The plain mean of a rate over the findings of the mean, of counts [4, C, ...].

        Precision of a finding that is never affirmed counts 0, as scikit-learn has it.
        """
        values = rates(table)[rate][self.in_mean]
        if rate == "precision":
            positives = (table[0] + table[2])[self.in_mean]
            values = np.where(np.isnan(values) & (positives > 0), 0.0, values)
        return metrics.means(values if values.ndim > 1 else values[:, None])

    def rates(self) -> Rates:
        """The rates with their intervals."""
        whole, macro, pooled, intervals = self.table.sum(axis=1), {}, {}, {}
        by_finding, drawn = rates(whole), rates(self.draws)
        of_all, drawn_of_all = rates(whole.sum(axis=1)), rates(self.draws.sum(axis=1))
        for rate in RATES:
            sample = self.sample(rate)
            macro[rate] = _estimate(
                rate, float(self.mean(whole, rate)[0]), self.mean(self.draws, rate), sample.part(self.in_mean)
            )
            pooled[rate] = _estimate(rate, float(of_all[rate]), drawn_of_all[rate], sample)
            intervals[rate] = [
                _estimate(rate, float(by_finding[rate][c]), drawn[rate][c], sample.part([c]))
                for c in range(whole.shape[1])
            ]
        return Rates(by_finding, intervals, macro, pooled)


def differences(first: Resampled, second: Resampled) -> dict[tuple[str, str], Estimate]:
    """(macro or pooled, rate) -> the first's rate less the second's; both of the same rows, draws and findings."""
    result = {}
    for rate in RATES:
        one, other = first.sample(rate), second.sample(rate)
        sample = Sample(np.minimum(one.positives, other.positives), one.subjects)
        whole = [float(system.mean(system.table.sum(axis=1), rate)[0]) for system in (first, second)]
        drawn = [system.mean(system.draws, rate) for system in (first, second)]
        result["macro", rate] = _difference(whole, drawn, sample.part(first.in_mean))
        whole = [float(rates(system.table.sum(axis=(1, 2)))[rate]) for system in (first, second)]
        drawn = [rates(system.draws.sum(axis=1))[rate] for system in (first, second)]
        result["pooled", rate] = _difference(whole, drawn, sample)
    return result


def _difference(values: list[float], draws: list[np.ndarray], sample: Sample) -> Estimate:
    return Estimate.of_difference(values[0] - values[1], draws[0] - draws[1], sample)


def _estimate(rate: str, value: float, draws: np.ndarray, sample: Sample) -> Estimate:
    """The interval of a rate; that of kappa and PABAK, from -1 to 1, is made on their scale brought to [0, 1]."""
    draws = draws[~np.isnan(draws)]
    if rate in BOUNDED:
        return Estimate.of_score(value, draws, sample)
    scaled = Estimate.of_score((value + 1) / 2, (draws + 1) / 2, sample)
    return Estimate(value, 2 * scaled.low - 1, 2 * scaled.high - 1)
