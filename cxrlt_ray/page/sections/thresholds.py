"""Thresholds: what calling images by each of them finds and costs, and what acting on probabilities is worth."""

from __future__ import annotations

from collections.abc import Sequence

from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.critical import critical_findings
from cxrlt_ray.page import charts, probability_charts
from cxrlt_ray.page.charts import Mark
from cxrlt_ray.page.facts import Facts, StoredEnsemble, public
from cxrlt_ray.page.parts import Column, Figure, Part, Table, Texts
from cxrlt_ray.page.probability_files import (
    StoredDecisions,
    StoredOperation,
    read_calibration,
    read_operations,
)
from cxrlt_ray.page.records import Interval, SectionFacts
from cxrlt_ray.page.reproduction import ensemble_command
from cxrlt_ray.page.sections.registry import register_section

CROSSED = "cross_fitted"


class ThresholdRow(SectionFacts):
    """A finding's threshold by an aim, and what it does. false_alarms: in 1,000 images. note: why it misses its aim."""

    finding: str
    aim: str
    threshold: float | None
    positives: int
    sensitivity: Interval
    fpr: Interval
    precision: Interval
    f1: Interval
    false_alarms: Interval
    note: str = ""


class Benefit(SectionFacts):
    """At a probability from which on one acts: net benefit by the scores and on all images, gain over the best of all
    and none; in true positives an image.
    """

    probability: float
    net_benefit: Interval
    act_on_all: float | None
    gain: Interval


class DecisionRow(SectionFacts):
    """A finding's decision curve; useful: the probabilities at which the gain's interval is above 0, in words."""

    finding: str
    prevalence: float | None
    useful: str
    points: tuple[Benefit, ...]


class Thresholds(SectionFacts):
    """Thresholds by finding and aim, and decision curves, the most frequent finding first."""

    about: str
    rows: tuple[ThresholdRow, ...] = ()
    decisions: tuple[DecisionRow, ...] = ()
    how: str = ""


def gather(facts: Facts) -> Thresholds | str:
    """What thresholds.csv and calibration.json say of the scored split; else of cross-fitted validation images."""
    if facts.ensemble is None:
        return "No ensemble has been made yet: thresholds are chosen for its scores."
    store, command = facts.ensemble.store, _command(facts, facts.ensemble)
    operations = read_operations(store)
    calibration = read_calibration(store) if facts.ensemble.record.calibration else None
    sets = calibration.sets if calibration else {}
    if not operations and not sets:
        return f"No threshold has been chosen yet: {command}"
    names = [facts.run.task.scored_split, CROSSED]
    shown = next((one for one in names if one in sets or any(row.set == one for row in operations)), CROSSED)
    rows = [_row(row) for row in operations if row.set == shown]
    decisions = [_decision(curve) for curve in (sets[shown].decisions if shown in sets else ())]
    lacking = "" if rows else "Thresholds by a stated aim"
    lacking = lacking if decisions else f"{lacking} and decision curves".removeprefix(" and ").capitalize()
    return Thresholds(
        about=_about(shown, bool(facts.ensemble.record.calibration)),
        rows=tuple(sorted(rows, key=lambda row: -row.positives)),
        decisions=tuple(sorted(decisions, key=lambda row: -(row.prevalence or 0.0))),
        how="" if rows and decisions else f"{lacking} come of: {command}",
    )


def _command(facts: Facts, ensemble: StoredEnsemble) -> str:
    """What chooses thresholds for this ensemble: of critical findings, where the task has any."""
    try:
        critical_findings(facts.findings)
        aim = "critical=0.05"
    except UsageError:
        aim = "sensitivity=0.9"
    return ensemble_command(facts.run, ensemble, "--calibrate", "--thresholds", "f1", aim)


def _about(shown: str, calibrated: bool) -> str:
    where = "validation images, each by a threshold chosen without its subject (cross-fitted)"
    scores = "calibrated scores" if calibrated else "scores as they are, not calibrated"
    return f"On {where if shown == CROSSED else f'{shown} images'}; thresholds are of {scores}."


def _row(row: StoredOperation) -> ThresholdRow:
    content = row.model_dump(include=set(ThresholdRow.model_fields) - {"note"})
    return ThresholdRow.model_validate({**content, "note": public(row.note)})


def _decision(curve: StoredDecisions) -> DecisionRow:
    points = tuple(Benefit(**dict(point)) for point in curve.points)
    return DecisionRow(finding=curve.finding, prevalence=curve.prevalence, useful=_useful(points), points=points)


def _useful(points: Sequence[Benefit]) -> str:
    """The stretches of probabilities, as shown, at which the gain is surely above 0: "0.01 to 0.05, 0.2"."""
    stretches: list[list[float]] = [[]]
    for point in points:
        if point.gain.low is not None and point.gain.low > 0:
            stretches[-1].append(point.probability)
        else:
            stretches.append([])
    ends = [(stretch[0], stretch[-1]) for stretch in stretches if stretch]
    return ", ".join(f"{a:g} to {b:g}" if b > a else f"{a:g}" for a, b in ends) or "none shown"


@register_section("thresholds", "Thresholds", order=55, facts=Thresholds, gather=gather)
def thresholds(facts: Thresholds) -> list[Part]:
    """The table of thresholds, what they find against what they cost, and decision curves."""
    parts: list[Part] = [Texts(["about", "how"])]
    if facts.rows:
        columns = [Column("finding", "finding"), Column("aim", "aim"), Column("threshold", "threshold", "number")]
        columns.append(Column("positives", "positives", "count"))
        columns.append(Column("sensitivity", "sensitivity", "score_interval", "the share of positives that are called"))
        columns.append(Column("FPR", "fpr", "score_interval", "the share of negatives that are called"))
        columns.append(Column("precision", "precision", "score_interval"))
        columns.append(Column("F1", "f1", "score_interval"))
        columns.append(Column("false alarms", "false_alarms", "number", "in 1,000 images"))
        columns.append(Column("note", "note"))
        note = "False alarms are counted in 1,000 images. In brackets 95 % intervals, resampled by subject."
        table = Table("By finding and aim", "rows", columns, filtered=True, facet="aim", note=note)
        parts += [table, _scatter(facts.rows)]
    if facts.decisions:
        parts.append(_curves(facts.decisions))
    return parts


def _scatter(rows: Sequence[ThresholdRow]) -> Figure:
    aims = list(dict.fromkeys(row.aim for row in rows))
    dots = [
        charts.Dot(row.finding, row.false_alarms.value, row.sensitivity.value, aims.index(row.aim), len(rows) <= 12)
        for row in rows
        if row.false_alarms.value is not None and row.sensitivity.value is not None
    ]
    words = f"{len(dots)} thresholds, by {', '.join(aims)}; the table above holds the values"
    axes = ("false alarms in 1,000 images", "sensitivity")
    series = [(aim, k) for k, aim in enumerate(aims)]
    drawing = charts.scatter("Sensitivity against false alarms", words, dots, *axes, series=series)
    return Figure("What thresholds find, and what they cost", [drawing] if dots else [], "Each dot is a finding.")


def _curves(rows: Sequence[DecisionRow]) -> Figure:
    drawings = []
    for row in rows:
        scores = [
            (p.probability, Mark(p.net_benefit.value, p.net_benefit.low, p.net_benefit.high))
            for p in row.points
            if p.net_benefit.value is not None
        ]
        on_all = [(p.probability, p.act_on_all) for p in row.points if p.act_on_all is not None]
        words = f"better than acting on all or on none from a probability of {row.useful}"
        drawings.append(probability_charts.decision(row.finding, words, scores, on_all))
    note = "Net benefit (up, in true positives an image) over the probability from which on one acts (right, "
    note += (
        "logarithmic), after Vickers & Elkin 2006. Blue: by the scores, with 95 % intervals; dashed: acting on all; "
    )
    note += "the line at 0: on none. The points are in the JSON file."
    columns = [Column("finding", "finding"), Column("prevalence", "prevalence", "percent")]
    columns.append(Column("worth acting on from", "useful", help="probabilities at which the gain is surely above 0"))
    table = Table("Decision curves", "decisions", columns, folded=True)
    return Figure("Decision curves", drawings, note, table, tuple(row.finding for row in rows))
