"""From a teacher's scores to pseudo-labels, and what is known of how good they are.

Pure: arrays in, values out. `pseudo_labels` fills cells without a label; `lines_of` compares scores with labels: on
validation, where maps are cross-fitted, and on cells of other cohorts that have one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cxrlt_ray.data.teacher import Values
from cxrlt_ray.ensembling.teacher import Validation
from cxrlt_ray.evaluation import parts
from cxrlt_ray.evaluation import soft_labels as calibration
from cxrlt_ray.evaluation.metrics import per_finding, positive_subjects
from cxrlt_ray.evaluation.reliability import brier
from cxrlt_ray.runs.records import Record

VALIDATION = "validation"  # the name of its report


class FindingLine(BaseModel):
    """One finding of one set of cells; null where it is not known.

    positives, cells: labelled cells to compare with. labelled: their prevalence. ratio, low, high: the sum of
    calibrated scores over the positives, with its 95 % interval by subject; low alone where that has no upper end.
    brier, brier_raw: of calibrated and of raw scores. precision: of positives by thresholds. filled: cells without a
    label that got a pseudo-label; mean: of these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding: str
    positives: int
    cells: int
    labelled: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    ap: float | None = None
    brier: float | None = None
    brier_raw: float | None = None
    precision: float | None = None
    filled: int = 0
    mean: float | None = None


class CohortReport(BaseModel):
    """The findings of validation, or of a cohort. seen: a member was trained on the cohort's labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    images: int
    seen: bool = False
    findings: tuple[FindingLine, ...]


class PseudoReport(Record):
    """`KEY.json`: how good pseudo-labels are, as far as labels tell."""

    VERSION: ClassVar[int] = 1

    key: str
    provenance: str
    values: Values
    transductive: bool = False
    cohorts: tuple[CohortReport, ...] = Field(default=())


def maps_of(validation: Validation, folds: int) -> list[calibration.Maps]:
    """The maps of each fold's teacher, K, or the one without folds.

    Those of a fold's teacher are fitted on the out-of-fold scores of the other folds' subjects: no label by which the
    fold's student is judged is used.
    """
    rows = [validation.fold != fold for fold in range(folds)] or [np.ones(len(validation.fold), bool)]
    return [calibration.fitted(validation.scores[part], validation.targets[part]) for part in rows]


def calibrated_validation(validation: Validation, maps: list[calibration.Maps], seed: int = 0) -> np.ndarray:
    """Validation's scores [V, C] by maps that did not see their subject."""
    if len(maps) == 1:
        return calibration.cross_fitted(validation.scores, validation.targets, validation.subjects, seed=seed)
    calibrated = np.full(validation.scores.shape, np.nan)
    for fold, own in enumerate(maps):
        rows = validation.fold == fold
        calibrated[rows] = own(validation.scores[rows])
    return calibrated


def valued(scores: np.ndarray, values: Values, maps: calibration.Maps, shares: np.ndarray, keep: float) -> np.ndarray:
    """Pseudo-labels float64 [N, C] of one cohort's raw scores [N, C]: as they are, calibrated, or 1, 0 and nan."""
    if values == "raw":
        return scores
    return maps(scores) if values == "soft" else calibration.class_aware(scores, shares, keep)


def pseudo_labels(
    scores: np.ndarray,
    targets: np.ndarray,
    cohorts: dict[str, np.ndarray],
    values: Values,
    maps: list[calibration.Maps],
    shares: np.ndarray,
    keep: float,
) -> np.ndarray:
    """Pseudo-labels float64 [K, N, C] of the teachers' scores [K, N, C]; nan in every cell that has a label.

    targets: [N, C], -1 where a pseudo-label is wanted. cohorts: rows [N] by name: hard labels are made within each.
    shares: labelled prevalence [K, C].
    """
    filled = np.full(scores.shape, np.nan)
    for fold, (own, share) in enumerate(zip(maps, shares, strict=True)):
        for rows in cohorts.values():
            empty = np.where(targets[rows] < 0, scores[fold, rows], np.nan)
            filled[fold, rows] = valued(empty, values, own, share, keep)
    filled[:, targets >= 0] = np.nan  # whatever the values: a label is never touched
    return filled


def lines_of(
    findings: tuple[str, ...],
    targets: np.ndarray,
    raw: np.ndarray,
    calibrated: np.ndarray,
    hard: np.ndarray,
    groups: np.ndarray,
    rounds: int,
    seed: int,
    filled: np.ndarray | None = None,
) -> tuple[FindingLine, ...]:
    """A line a finding: labels [N, C] against raw, calibrated and hard scores of the same cells [N, C].

    The ratio is of calibrated scores. filled: pseudo-labels of the cells without a label, nan elsewhere.
    """
    known = (targets >= 0) & ~np.isnan(raw)
    told = np.where(known, targets, -1)
    ratios = calibration.prevalence_ratio(told, calibrated, groups, rounds, seed)
    aps = per_finding(told, np.nan_to_num(raw), ("ap",))["ap"]
    share = parts.shares(told)
    lines = []
    for c, finding in enumerate(findings):
        called = hard[known[:, c], c] == 1
        given = np.empty(0) if filled is None else filled[~np.isnan(filled[:, c]), c]
        lines.append(
            FindingLine(
                finding=finding,
                positives=int((told[:, c] == 1).sum()),
                cells=int(known[:, c].sum()),
                labelled=_number(share[c]),
                ratio=_number(ratios[c].value),
                low=_number(ratios[c].low),
                high=_number(ratios[c].high),
                ap=_number(aps[c]),
                brier=_number(brier(told[:, c], calibrated[:, c])),
                brier_raw=_number(brier(told[:, c], raw[:, c])),
                precision=_number((told[known[:, c], c] == 1)[called].mean()) if called.any() else None,
                filled=len(given),
                mean=_number(given.mean()) if len(given) else None,
            )
        )
    return tuple(lines)


def few_positives(validation: Validation, findings: tuple[str, ...]) -> list[str]:
    """Findings with fewer than 2 positive subjects in validation, whose maps are nearly the one of all findings."""
    counts = positive_subjects(validation.targets, validation.subjects)
    return [finding for finding, count in zip(findings, counts, strict=True) if count < 2]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
