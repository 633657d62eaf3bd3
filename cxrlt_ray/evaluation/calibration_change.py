"""What calibration changes on one set of images: log loss, Brier score and ECE before and after, with intervals.

Intervals are 95 %, by bootstrap of subjects (evaluation/estimate.py): for the value to expect of another sample of so
many images. That of ECE is for the biased value, which other samples of this size would show too; `ece_by_chance` says
how much of it calibrated scores would have. Changes are paired: after less before, in the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.evaluation.reliability import (
    BINS,
    BrierParts,
    ReliabilityBin,
    bins_of,
    brier_parts,
    calibration_error,
    log_losses,
    reliability_curve,
    squared_errors,
)

LOG_LOSS, BRIER, ECE = MEASURES = ("log_loss", "brier", "ece")
POSITIVES = "positives"
Draws = dict[str, np.ndarray]


@dataclass(frozen=True)
class Quality:
    """How good probabilities are, of a finding or as the mean over findings.

    log_loss, brier, ece: with intervals; ece in 15 bins of equal mass. ece_by_chance, ece_debiased: as reliability.Ece
    has them. ece_equal_width: in 15 bins of equal width. brier_parts: None of a mean.
    """

    log_loss: Estimate
    brier: Estimate
    ece: Estimate
    ece_by_chance: float
    ece_debiased: float
    ece_equal_width: float
    brier_parts: BrierParts | None = None


@dataclass(frozen=True)
class Change:
    """Scores before and after, and each of MEASURES after less before."""

    before: Quality
    after: Quality
    differences: dict[str, Estimate]


@dataclass(frozen=True)
class CalibrationChange:
    """What calibration changes. mean: over the findings with positives. findings: of every finding, by name."""

    images: int
    subjects: int
    mean: Change
    findings: dict[str, Change]


@dataclass(frozen=True)
class CurveChange:
    """A finding's reliability curves before and after."""

    finding: str
    before: tuple[ReliabilityBin, ...]
    after: tuple[ReliabilityBin, ...]


def calibration_change(
    targets: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray,
    findings: Sequence[str],
    rounds: int = 1000,
    seed: int = 0,
) -> CalibrationChange:
    """Compare scores `before` and `after` calibration, both float [N, C] in [0, 1].

    targets: int8 [N, C], 1, 0 or -1 (not labelled). groups: [N] subjects, drawn whole in each of `rounds`. Raises
    ValueError where shapes differ.
    """
    targets = np.asarray(targets)
    if not targets.shape == np.shape(before) == np.shape(after) or len(findings) != targets.shape[1]:
        raise ValueError(f"targets {targets.shape} and scores must all be [images, findings]")
    subject = metrics.numbered(groups)
    drawn = np.concatenate(metrics.draws(int(subject.max()) + 1, rounds, seed), axis=1).T[:rounds].astype(np.float32)
    sample = Sample.of(targets, groups)
    names = range(len(findings))
    draws = [[_drawn(targets[:, c], scores[:, c], subject, drawn) for c in names] for scores in (before, after)]
    values = [[_values(targets[:, c], scores[:, c]) for c in names] for scores in (before, after)]
    changes = {
        name: _change([side[c] for side in values], [side[c] for side in draws], sample.part([c]))
        for c, name in enumerate(findings)
    }
    scored = np.flatnonzero((targets == 1).any(axis=0)).tolist()
    mean = _change(
        [_mean_values([side[c] for c in scored]) for side in values],
        [_mean_draws([side[c] for c in scored], rounds) for side in draws],
        sample.part(scored),
    )
    return CalibrationChange(len(targets), sample.subjects, mean, changes)


def curve_changes(
    targets: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray,
    findings: Sequence[str],
    rounds: int = 1000,
    seed: int = 0,
) -> tuple[CurveChange, ...]:
    """The reliability curves of each finding; arguments as of `calibration_change`."""
    return tuple(
        CurveChange(
            name,
            *(reliability_curve(targets[:, c], s[:, c], groups, rounds=rounds, seed=seed) for s in (before, after)),
        )
        for c, name in enumerate(findings)
    )


@dataclass(frozen=True)
class _Values:
    """The numbers of a Quality, without intervals."""

    of: dict[str, float]
    by_chance: float
    debiased: float
    equal_width: float
    parts: BrierParts | None


def _values(targets: np.ndarray, scores: np.ndarray) -> _Values:
    ece, parts = calibration_error(targets, scores), brier_parts(targets, scores)
    loss = metrics.macro(log_losses(targets, scores))
    of = {LOG_LOSS: loss, BRIER: parts.score, ECE: ece.value}
    width = calibration_error(targets, scores, equal_mass=False).value
    return _Values(of, ece.by_chance, ece.debiased, width, parts)


def _mean_values(findings: Sequence[_Values]) -> _Values:
    def mean(values: list[float]) -> float:
        return metrics.macro(np.array(values, float))

    of = {name: mean([f.of[name] for f in findings]) for name in MEASURES}
    chance, debiased, width = (
        mean([getattr(f, name) for f in findings]) for name in ("by_chance", "debiased", "equal_width")
    )
    return _Values(of, chance, debiased, width, None)


def _mean_draws(findings: Sequence[Draws], rounds: int) -> Draws:
    if not findings:
        return {name: np.full(rounds, np.nan) for name in MEASURES}
    # a finding stands in a draw's mean as in that of all images: where it has positives
    absent = np.stack([f[POSITIVES] for f in findings]) == 0
    return {name: metrics.means(np.where(absent, np.nan, [f[name] for f in findings])) for name in MEASURES}


def _drawn(targets: np.ndarray, scores: np.ndarray, subject: np.ndarray, drawn: np.ndarray) -> Draws:
    """Each of MEASURES [R], and POSITIVES, of one finding where subjects count by `drawn` [R, G].

    ECE is in the bins of all images.
    """
    rows = np.flatnonzero((targets >= 0) & ~np.isnan(np.asarray(scores, float)))
    targets, scores, subject = targets[rows], np.asarray(scores, float)[rows], subject[rows]
    table = np.zeros((drawn.shape[1], BINS + 4), np.float32)
    np.add.at(table, (subject, bins_of(scores, BINS, True)), scores - targets)
    columns = (log_losses(targets, scores), squared_errors(targets, scores), targets == 1, np.ones(len(scores)))
    table[:, BINS:] = np.column_stack([np.bincount(subject, column, drawn.shape[1]) for column in columns])
    sums = (drawn @ table).astype(float)
    gap, (loss, error, positives, images) = np.abs(sums[:, :BINS]).sum(axis=1), sums[:, BINS:].T
    images = np.where(images > 0, images, np.nan)
    return {LOG_LOSS: loss / images, BRIER: error / images, ECE: gap / images, POSITIVES: positives}


def _change(values: Sequence[_Values], draws: Sequence[Draws], sample: Sample) -> Change:
    before, after = (_quality(one, drawn, sample) for one, drawn in zip(values, draws, strict=True))
    differences = {
        name: Estimate.of_difference(values[1].of[name] - values[0].of[name], draws[1][name] - draws[0][name], sample)
        for name in MEASURES
    }
    return Change(before, after, differences)


def _quality(values: _Values, draws: Draws, sample: Sample) -> Quality:
    loss = Estimate.of_difference(values.of[LOG_LOSS], draws[LOG_LOSS], sample)  # it has no upper bound
    brier, ece = (Estimate.of_score(values.of[name], draws[name], sample) for name in (BRIER, ECE))
    return Quality(loss, brier, ece, values.by_chance, values.debiased, values.equal_width, values.parts)
