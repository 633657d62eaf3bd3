"""An ensemble's scores as probabilities and as decisions: calibrated, judged, and called positive by thresholds.

All is fitted to the cross-fitted validation scores, not to those of the images that the weights were chosen on: new
images are scored as the former are. What is reported of validation is cross-fitted once more; holdout and test images
were seen by nothing here.

calibration.json    of each set of images: log loss, Brier, ECE, reliability and decision curves, before and after
thresholds.csv      a row a finding, aim and set of images
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.splits import assign_folds
from cxrlt_ray.ensembling.compare import CROSS_FITTED, ScoredSplit, System
from cxrlt_ray.ensembling.pool import Pool
from cxrlt_ray.ensembling.request import EnsembleRequest
from cxrlt_ray.evaluation import given_thresholds
from cxrlt_ray.evaluation.calibration import Calibration, calibrate
from cxrlt_ray.evaluation.calibration_change import CalibrationChange, CurveChange, calibration_change, curve_changes
from cxrlt_ray.evaluation.decisions import DecisionCurve, decision_curve
from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.evaluation.thresholds import Operation, Threshold, choose_thresholds, operation
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.finite import finite

VERSION = 1  # of calibration.json
FOLDS = 5
RATES = ("sensitivity", "fpr", "precision", "f1", "false_alarms")
CALIBRATION_FILE, THRESHOLDS_FILE = "calibration.json", given_thresholds.FILE


@dataclass(frozen=True)
class Calibrated:
    """What calibration does to one set of images; decisions: of the calibrated scores, of findings with positives."""

    change: CalibrationChange
    curves: tuple[CurveChange, ...]
    decisions: tuple[DecisionCurve, ...]


@dataclass(frozen=True)
class Probabilities:
    """What was asked for: a calibration, thresholds, or both.

    findings: [C]. calibration: None where not asked for. calibrated: by set of images (CROSS_FITTED, a split).
    thresholds: of calibrated scores where there is a calibration. operations: by split, what each threshold does there.
    """

    findings: tuple[str, ...]
    calibration: Calibration | None
    calibrated: dict[str, Calibrated]
    thresholds: tuple[Threshold, ...]
    operations: dict[str, tuple[Operation, ...]]

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Scores [N, C] of the findings as they are given out: calibrated, where there is a calibration."""
        return scores if self.calibration is None else self.calibration.apply(scores, self.findings)

    def applied(self, scored: ScoredSplit, columns: list[int]) -> ScoredSplit:
        """A split with the last system's scores as they are given out; columns: where the findings stand in them."""
        last = scored.scores[-1]
        if last is None or self.calibration is None:
            return scored
        given = last.copy()
        given[:, columns] = self.apply(last[:, columns])
        return replace(scored, scores=[*scored.scores[:-1], given])


@dataclass(frozen=True)
class _Labelled:
    """A set of images with labels: targets int8 [N, C], scores [N, C] before and after, subjects [N]."""

    targets: np.ndarray
    before: np.ndarray
    after: np.ndarray
    groups: np.ndarray


def probabilities(
    request: EnsembleRequest,
    pool: Pool,
    system: System,
    findings: tuple[str, ...],
    splits: Mapping[str, ScoredSplit],
) -> Probabilities:
    """What the request asks of the system's scores of `findings`, which are among the pool's.

    Raises UsageError where an aim is for critical findings and none is among them.
    """
    critical = request.critical_among(findings)
    columns = [pool.findings.index(name) for name in findings]
    targets, crossed = pool.targets[:, columns], system.crossed[0][:, columns]
    calibration, given = None, crossed
    folds = min(FOLDS, len(np.unique(pool.groups)))
    fold = assign_folds(targets, pool.groups, folds, request.seed)
    if request.calibrate:
        fitted = calibrate(targets, crossed, pool.groups, findings, folds=folds, seed=request.seed)
        calibration, given, fold = fitted.calibration, fitted.calibrated, fitted.fold
    made = Probabilities(findings, calibration, {}, (), {})
    sets = {CROSS_FITTED: _Labelled(targets, crossed, given, pool.groups)}
    for name, split in splits.items():
        last, labels = split.scores[-1], split.images.targets(findings)
        if last is not None and (labels == 1).any():
            before, subjects = last[:, columns], split.images.table["subject_id"].to_numpy()
            sets[name] = _Labelled(labels, before, made.apply(before), subjects)
    chosen = choose_thresholds(
        targets, given, pool.groups, findings, request.aims, fold, critical, request.rounds, request.seed
    )
    others = {name: images for name, images in sets.items() if name != CROSS_FITTED}
    return replace(
        made,
        calibrated={name: _judged(images, findings, request) for name, images in sets.items() if calibration},
        thresholds=chosen,
        operations={
            name: tuple(_operated(images, findings.index(one.finding), one.value, request) for one in chosen)
            for name, images in others.items()
        },
    )


def thresholds_table(made: Probabilities) -> pd.DataFrame:
    """thresholds.csv: finding, aim, threshold, note, images' set, counts, and each of RATES with its interval."""
    rows = []
    for k, one in enumerate(made.thresholds):
        by_set = {CROSS_FITTED: one.crossed, **{name: done[k] for name, done in made.operations.items()}}
        for name, done in by_set.items():
            row = {"finding": one.finding, "aim": str(one.aim), "threshold": one.value, "note": one.note, "set": name}
            row |= {"images": done.images, "positives": done.positives}
            for rate in RATES:
                estimate: Estimate = getattr(done, rate)
                key = "false_alarms_per_1000" if rate == "false_alarms" else rate
                row |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
            rows.append(row)
    return pd.DataFrame(rows)


def write_probabilities(store: Store, made: Probabilities) -> list[str]:
    """Leave what was made, and return the files' names."""
    files = []
    if made.calibration is not None:
        sets = {name: asdict(calibrated) for name, calibrated in made.calibrated.items()}
        store.write_json(CALIBRATION_FILE, finite({"version": VERSION, "sets": sets}))
        files.append(CALIBRATION_FILE)
    if made.thresholds:
        store.write(THRESHOLDS_FILE, thresholds_table(made).to_csv(index=False).encode())
        files.append(THRESHOLDS_FILE)
    return files


def _judged(images: _Labelled, findings: tuple[str, ...], request: EnsembleRequest) -> Calibrated:
    known = np.isfinite(images.before).all(axis=1)
    targets, before, after, groups = (
        part[known] for part in (images.targets, images.before, images.after, images.groups)
    )
    common = (groups, findings, request.rounds, request.seed)
    decisions = tuple(
        decision_curve(targets[:, c], after[:, c], groups, name, rounds=request.rounds, seed=request.seed)
        for c, name in enumerate(findings)
        if (targets[:, c] == 1).any()
    )
    change = calibration_change(targets, before, after, *common)
    return Calibrated(change, curve_changes(targets, before, after, *common), decisions)


def _operated(images: _Labelled, c: int, value: float, request: EnsembleRequest) -> Operation:
    """What finding c's threshold does on a set of images; those without a score are left out."""
    scores = images.after[:, c]
    targets = np.where(np.isnan(scores), -1, images.targets[:, c])
    return operation(targets, scores >= value, images.groups, request.rounds, request.seed)
