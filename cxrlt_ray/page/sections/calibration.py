"""Calibration: whether scores are probabilities, before and after they were calibrated, by finding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxrlt_ray.evaluation.calibration import Calibration
from cxrlt_ray.evaluation.calibration_change import MEASURES, Change, Quality, calibration_change
from cxrlt_ray.evaluation.reliability import reliability_curve
from cxrlt_ray.page import probability_charts
from cxrlt_ray.page.charts import Mark
from cxrlt_ray.page.facts import Facts, ScoredImages, StoredEnsemble
from cxrlt_ray.page.parts import Column, Figure, Part, Table, Texts
from cxrlt_ray.page.probability_files import StoredBin, StoredChange, StoredQuality, StoredSet, read_calibration
from cxrlt_ray.page.records import Interval, SectionFacts
from cxrlt_ray.page.reproduction import ensemble_command
from cxrlt_ray.page.sections.findings import SCORED_ON
from cxrlt_ray.page.sections.registry import register_section
from cxrlt_ray.page.sections.summary import SETS

MOST = 20_000  # images that are judged where nothing was computed before: 40 findings of them take seconds
NAMES = {"log_loss": "log loss", "brier": "Brier", "ece": "ECE"}
BEFORE, AFTER = "before", "after"
LEFT_AS_IT_IS = "To make the scores probabilities, and to see what that changes: {}"
RAW = "Its scores are not calibrated."
WITHOUT_FILE = "The ensemble is calibrated, but calibration.json, which says what that changed, is not there."


class Goodness(SectionFacts):
    """How good probabilities are. ece_by_chance: what calibrated scores would have on as many images."""

    log_loss: Interval
    brier: Interval
    ece: Interval
    ece_by_chance: float | None


class Point(SectionFacts):
    """A bin of a reliability diagram: the mean score of its images and their rate of positives."""

    score: float
    rate: Interval
    images: int


class CalibrationRow(SectionFacts):
    """A finding, or a mean. method: its map; own: the share of it that is the finding's own, the rest is pooled.

    after, change (of each measure, after less before): None where the scores are not calibrated.
    """

    name: str
    method: str = ""
    own: float | None = None
    note: str = ""
    before: Goodness
    after: Goodness | None = None
    change: dict[str, Interval] | None = None
    curve_before: tuple[Point, ...] = ()
    curve_after: tuple[Point, ...] = ()


class CalibrationFacts(SectionFacts):
    """Reliability by finding, the most frequent first; means: over findings, a row a set of images."""

    about: str
    calibrated: bool
    means: tuple[CalibrationRow, ...]
    rows: tuple[CalibrationRow, ...]
    left: str = ""
    how: str = ""


def gather(facts: Facts) -> CalibrationFacts | str:
    """What calibration.json says; else how reliable the ensemble's scores are as they are."""
    if facts.ensemble is None:
        return "No ensemble has been made yet: its scores are what is calibrated."
    kept = facts.ensemble.record.calibration
    stored = read_calibration(facts.ensemble.store) if kept else None
    if kept and stored and stored.sets:
        return _calibrated(facts, kept, stored.sets)
    images = facts.images(facts.run.task.scored_split) or facts.images("cross_fitted")
    if images is None:
        return "The ensemble has scored no labelled image that it was not chosen on."
    return _as_it_is(facts, images, facts.ensemble)


def _calibrated(facts: Facts, kept: Calibration, sets: dict[str, StoredSet]) -> CalibrationFacts:
    shown = facts.run.task.scored_split if facts.run.task.scored_split in sets else next(iter(sets))
    curves = {curve.finding: curve for curve in sets[shown].curves}
    rows = []
    for name, change in sets[shown].change.findings.items():
        own, curve = kept.findings.get(name), curves.get(name)
        row = _changed(name, change).model_copy(
            update={
                "method": own.method if own else "",
                "own": own.own if own and own.method != "none" else None,
                "note": own.left if own else "",
                "curve_before": _points(curve.before) if curve else (),
                "curve_after": _points(curve.after) if curve else (),
            }
        )
        rows.append(row)
    left = [f"{row.name} ({row.note})" for row in rows if row.note]
    means = [
        _changed(f"{SETS.get(name, name)}, {of.change.images:,} images", of.change.mean) for name, of in sets.items()
    ]
    text = f"By finding: {_where(shown)}. A calibration is fitted to cross-fitted validation scores; here it is judged "
    return CalibrationFacts(
        about=text + "on subjects that neither fitted a map nor chose its method.",
        calibrated=True,
        means=tuple(means),
        rows=_ordered(rows),
        left=f"Left as they are: {', '.join(left)}." if left else "",
    )


def _as_it_is(facts: Facts, images: ScoredImages, ensemble: StoredEnsemble) -> CalibrationFacts:
    part = images.some(MOST)
    inputs = (part.subjects, facts.findings, facts.rounds)
    change = calibration_change(part.targets, part.probabilities, part.probabilities, *inputs)
    rows = []
    for c, finding in enumerate(facts.findings):
        curve = reliability_curve(part.targets[:, c], part.probabilities[:, c], part.subjects, rounds=facts.rounds)
        points = tuple(Point(score=b.score, rate=Interval.of(b.rate), images=b.images) for b in curve)
        rows.append(_plain(finding, change.findings[finding]).model_copy(update={"curve_before": points}))
    which = f", of {len(images.targets):,}, drawn by subject" if len(part.targets) < len(images.targets) else ""
    return CalibrationFacts(
        about=f"{images.system} on {len(part.targets):,} {_where(images.where)}{which}. "
        + (WITHOUT_FILE if ensemble.record.calibration else RAW),
        calibrated=False,
        means=(_plain("mean over findings with positives", change.mean),),
        rows=_ordered(rows),
        how=LEFT_AS_IT_IS.format(ensemble_command(facts.run, ensemble, "--calibrate")),
    )


def _where(name: str) -> str:
    return SCORED_ON.get(name, f"{name} images")


def _plain(name: str, change: Change) -> CalibrationRow:
    return CalibrationRow(name=name, before=_goodness(change.before))


def _changed(name: str, change: StoredChange) -> CalibrationRow:
    differences = {key: change.differences[key] for key in MEASURES}
    before, after = _goodness(change.before), _goodness(change.after)
    return CalibrationRow(name=name, before=before, after=after, change=differences)


def _goodness(quality: Quality | StoredQuality) -> Goodness:
    values = {key: getattr(quality, key) for key in MEASURES}
    intervals = {key: v if isinstance(v, Interval) else Interval.of(v) for key, v in values.items()}
    chance = quality.ece_by_chance
    return Goodness(**intervals, ece_by_chance=None if chance is None or np.isnan(chance) else chance)


def _points(bins: Sequence[StoredBin]) -> tuple[Point, ...]:
    return tuple(Point(score=b.score, rate=b.rate, images=b.images) for b in bins)


def _ordered(rows: Sequence[CalibrationRow]) -> tuple[CalibrationRow, ...]:
    """The finding of the highest rate of positives first."""

    def rate(row: CalibrationRow) -> float:
        images = sum(point.images for point in row.curve_before)
        return sum((p.rate.value or 0.0) * p.images for p in row.curve_before) / images if images else 0.0

    return tuple(sorted(rows, key=lambda row: -rate(row)))


@register_section("calibration", "Calibration", order=50, facts=CalibrationFacts, gather=gather)
def calibration(facts: CalibrationFacts) -> list[Part]:
    """Means, the table of findings, and reliability diagrams."""
    note = (
        "Log loss and Brier score: the lower the better. ECE (15 bins of equal numbers of images) is biased upwards: "
    )
    note += "by chance is what calibrated scores would have on as many images. In brackets 95 % intervals, by subject."
    parts: list[Part] = [Texts(["about", "how"])]
    parts.append(Table("In the mean over findings", "means", [Column("images", "name"), *_columns(facts)], note=note))
    columns = [Column("finding", "name")]
    if facts.calibrated:
        columns.append(Column("method", "method", help="none, temperature, platt, beta or isotonic"))
        columns.append(Column("own", "own", "percent", "the share of the map that is the finding's own; else pooled"))
    parts.append(Table("By finding", "rows", [*columns, *_columns(facts)], filtered=True))
    parts.append(Texts(["left"]))
    if curves := [row for row in facts.rows if row.curve_before]:
        parts.append(_diagrams(curves, facts.calibrated))
    return parts


def _columns(facts: CalibrationFacts) -> list[Column]:
    columns = []
    for key, name in NAMES.items():
        if facts.calibrated:
            columns.append(Column(f"{name}, before", f"before/{key}", "number"))
            columns.append(Column("after", f"after/{key}", "number", f"{name} after calibration"))
            columns.append(Column("change", f"change/{key}", "number", f"{name}, after less before, paired"))
        else:
            columns.append(Column(name, f"before/{key}", "number"))
    side = AFTER if facts.calibrated else BEFORE
    return [*columns, Column("by chance", f"{side}/ece_by_chance", "number", "the ECE of calibrated scores here")]


def _diagrams(rows: Sequence[CalibrationRow], calibrated: bool) -> Figure:
    drawings = []
    for row in rows:
        last = row.after if calibrated and row.after else row.before
        sides = [_marks(row.curve_before, BEFORE, 2), _marks(row.curve_after, AFTER, 0)]
        if not calibrated:
            sides = [_marks(row.curve_before, "scores", 0)]
        ece = "not known" if last.ece.value is None else f"{last.ece.value:.4f}"
        drawings.append(probability_charts.reliability(row.name, f"ECE {ece}", sides))
    note = "Rate of positives (up) over mean score (right), each from 0 to the largest, in bins of equal numbers of "
    note += "images; lines: 95 % intervals; dashed: probabilities that hold. "
    note += "Grey: before, blue: after. " if calibrated else ""
    note += "The points are in the JSON file as curve_before and curve_after."
    return Figure("Reliability", drawings, note, captions=tuple(row.name for row in rows))


def _marks(points: Sequence[Point], name: str, series: int) -> list[tuple[float, Mark]]:
    return [
        (p.score, Mark(p.rate.value, p.rate.low, p.rate.high, series, name)) for p in points if p.rate.value is not None
    ]
