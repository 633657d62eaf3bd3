"""calibration.json and thresholds.csv of an ensemble as the page reads them: typed, unknown numbers None."""

from __future__ import annotations

import csv
import io
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cxrlt_ray.ensembling.probabilities import CALIBRATION_FILE, RATES, THRESHOLDS_FILE
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.page.records import Interval
from cxrlt_ray.storage import Store


class Stored(BaseModel):
    """Base of what is read; what the page does not show is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StoredQuality(Stored):
    """Of a finding's scores or of a mean: calibration_change.Quality."""

    log_loss: Interval
    brier: Interval
    ece: Interval
    ece_by_chance: float | None


class StoredChange(Stored):
    """calibration_change.Change."""

    before: StoredQuality
    after: StoredQuality
    differences: dict[str, Interval]


class StoredChanges(Stored):
    """calibration_change.CalibrationChange."""

    images: int
    subjects: int
    mean: StoredChange
    findings: dict[str, StoredChange]


class StoredBin(Stored):
    """reliability.ReliabilityBin."""

    score: float
    rate: Interval
    images: int
    positives: int


class StoredCurves(Stored):
    """calibration_change.CurveChange."""

    finding: str
    before: tuple[StoredBin, ...]
    after: tuple[StoredBin, ...]


class StoredPoint(Stored):
    """decisions.DecisionPoint."""

    probability: float
    net_benefit: Interval
    act_on_all: float | None
    gain: Interval


class StoredDecisions(Stored):
    """decisions.DecisionCurve."""

    finding: str
    prevalence: float | None
    points: tuple[StoredPoint, ...]


class StoredSet(Stored):
    """What calibration does to one set of images: ensembling.probabilities.Calibrated."""

    change: StoredChanges
    curves: tuple[StoredCurves, ...]
    decisions: tuple[StoredDecisions, ...]


class StoredCalibration(Stored):
    """calibration.json. sets: by name, cross_fitted or a split."""

    version: Literal[1]
    sets: dict[str, StoredSet]


class StoredOperation(Stored):
    """A row of thresholds.csv: a finding's threshold by an aim, and what it does on images of `set`."""

    finding: str
    aim: str
    threshold: float | None
    note: str
    set: str
    images: int
    positives: int
    sensitivity: Interval
    fpr: Interval
    precision: Interval
    f1: Interval
    false_alarms: Interval


def read_calibration(store: Store) -> StoredCalibration | None:
    """An ensemble's calibration.json; None where there is none. Raises CxrltError where it is damaged."""
    if not store.exists(CALIBRATION_FILE):
        return None
    try:
        return StoredCalibration.model_validate(store.read_json(CALIBRATION_FILE))
    except ValidationError:
        raise CxrltError(f"{CALIBRATION_FILE} is damaged, or of another version: make the ensemble anew.") from None


def read_operations(store: Store) -> tuple[StoredOperation, ...]:
    """The rows of an ensemble's thresholds.csv; () where there is none. Raises CxrltError where it is damaged."""
    if not store.exists(THRESHOLDS_FILE):
        return ()
    try:
        rows = csv.DictReader(io.StringIO(store.read(THRESHOLDS_FILE).decode("utf-8"), newline=""))
        return tuple(_operation(row) for row in rows)
    except (KeyError, TypeError, ValueError):  # pydantic's and Unicode's errors are ValueErrors
        raise CxrltError(f"{THRESHOLDS_FILE} is damaged, or of another version: make the ensemble anew.") from None


def _operation(row: dict[str, str]) -> StoredOperation:
    keys = {rate: "false_alarms_per_1000" if rate == "false_alarms" else rate for rate in RATES}
    rates = {
        rate: Interval(value=_number(row[key]), low=_number(row[f"{key}_low"]), high=_number(row[f"{key}_high"]))
        for rate, key in keys.items()
    }
    words = {key: row[key] for key in ("finding", "aim", "note", "set", "images", "positives")}
    return StoredOperation.model_validate({**words, "threshold": _number(row["threshold"]), **rates})


def _number(cell: str) -> float | None:
    number = float(cell) if cell else math.nan
    return number if math.isfinite(number) else None
