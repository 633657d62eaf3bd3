"""The findings: AP, AUROC, F1 and FNR with intervals, prevalence, curves, and the long tail by its parts."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.data.tasks import GROUPS
from cxrlt_ray.evaluation.scores import METRICS, SUMMARY, Scores
from cxrlt_ray.page import charts
from cxrlt_ray.page.facts import Facts, ScoredImages
from cxrlt_ray.page.parts import Column, Figure, Part, Table, Texts
from cxrlt_ray.page.records import Interval, SectionFacts
from cxrlt_ray.page.sections.registry import register_section
from cxrlt_ray.storage.finite import finite

MEAN_OF = {"mauroc": "auroc", "macro_f1": "f1", "fnr": "fnr", "ece": "ece", "ece_challenge": "ece_challenge"}
POINTS = 48  # of a precision-recall curve as it is drawn
SCORED_ON = {
    "cross_fitted": "validation images, by weights that were chosen without their subjects (cross-fitted)",
    "optimistic": "the validation images by which it was chosen: these scores are optimistic",
}

BEFORE_CALIBRATION = ", before calibration: at 0.5, and as probabilities, the calibrated scores differ"


class FindingRow(SectionFacts):
    """A finding. group: head, medium or tail by training labels. fnr: at 0.5. curve: (recall, precision) points."""

    finding: str
    group: str
    positives: int
    labelled: int
    prevalence: float | None
    ap: Interval
    auroc: Interval
    f1: Interval
    fnr: Interval
    curve: tuple[tuple[float, float], ...] = ()


class MeanRow(SectionFacts):
    """A macro or micro score over findings."""

    score: str
    value: Interval
    findings: int


class Findings(SectionFacts):
    """Scores by finding, the most frequent first."""

    about: str
    images: int
    subjects: int
    rows: tuple[FindingRow, ...]
    means: tuple[MeanRow, ...]
    without_positives: str = ""


def gather(facts: Facts) -> Findings | str:
    """Scores of the labelled images that tell most."""
    images, scores = facts.honest, facts.scores
    if images is None or scores is None:
        return (
            "No labelled image has been scored yet: a trial must finish, or the data has no validation or test labels."
        )
    order = np.argsort(-scores.per_finding["positives"], kind="stable")
    rows = tuple(_row(scores, images, int(c)) for c in order)
    lacking = scores.without_positives
    without = f"Without a positive here, and so in no mean: {', '.join(lacking)}." if lacking else ""
    return Findings(
        about=f"{images.system} on {scores.images:,} {scored_on(facts, images)}.",
        images=scores.images,
        subjects=scores.subjects,
        rows=rows,
        means=_means(scores),
        without_positives=without,
    )


def scored_on(facts: Facts, images: ScoredImages) -> str:
    """What images these are, in words; of an ensemble that is calibrated, whether these scores are."""
    raw = images.where == "cross_fitted" and facts.ensemble is not None and facts.ensemble.record.calibration
    return SCORED_ON.get(images.where, f"{images.where} images") + (BEFORE_CALIBRATION if raw else "")


def _row(scores: Scores, images: ScoredImages, c: int) -> FindingRow:
    values = scores.per_finding
    intervals = {name: _interval(*(float(values[name + end][c]) for end in ("", "_low", "_high"))) for name in METRICS}
    return FindingRow(
        finding=scores.findings[c],
        group=scores.groups[c] or "asked for by text",
        positives=int(values["positives"][c]),
        labelled=int(values["labelled"][c]),
        prevalence=finite(float(values["prevalence"][c])),
        curve=precision_recall(images.targets[:, c], images.probabilities[:, c]),
        **intervals,
    )


def _counted(scores: Scores, key: str) -> int:
    """How many findings a score is of: those of a mean that have a value; of a micro score those with a label."""
    values = scores.per_finding[MEAN_OF.get(key, "ap")]
    known = scores.per_finding["labelled"] > 0 if key.startswith("micro") else ~np.isnan(values)
    return int(known[np.array(scores.groups) == key].sum() if key in GROUPS else known.sum())


def _interval(value: float, low: float, high: float) -> Interval:
    return Interval.model_validate(finite({"value": value, "low": low, "high": high}))


def _means(scores: Scores) -> tuple[MeanRow, ...]:
    rows = []
    for key, label in {**SUMMARY, **{group: f"mAP, {group}" for group in GROUPS}}.items():
        if key not in scores.scores:
            continue
        low, high = scores.intervals.get(key, (np.nan, np.nan))
        if key not in GROUPS or key in scores.groups:
            value = _interval(float(scores.scores[key]), float(low), float(high))
            rows.append(MeanRow(score=label, value=value, findings=_counted(scores, key)))
    return tuple(rows)


def precision_recall(targets: np.ndarray, scores: np.ndarray, points: int = POINTS) -> tuple[tuple[float, float], ...]:
    """Points (recall, precision) of the curve of a finding, in order of recall, at most about `points` of them.

    targets: [N], 1, 0 or -1 (left out). () without a positive. Of a longer curve those points are kept that are
    nearest to evenly spaced recalls: all of them are on it (scikit-learn's precision_recall_curve).
    """
    from sklearn.metrics import precision_recall_curve

    known = targets >= 0
    if not (targets[known] == 1).any():
        return ()
    precision, recall, _ = precision_recall_curve(targets[known] == 1, scores[known])
    precision, recall = precision[::-1], recall[::-1]
    if len(recall) > points:
        kept = np.unique(np.searchsorted(recall, np.linspace(0, 1, points)).clip(0, len(recall) - 1))
        precision, recall = precision[kept], recall[kept]
    return tuple((round(float(r), 4), round(float(p), 4)) for r, p in zip(recall, precision, strict=True))


@register_section("findings", "Findings", order=30, facts=Findings, gather=gather)
def findings(facts: Findings) -> list[Part]:
    """Means, the table of findings, their AP drawn, and their curves."""
    means = [
        Column("score", "score"),
        Column("value", "value", "score_interval"),
        Column("findings", "findings", "count"),
    ]
    parts: list[Part] = [Texts(["about"]), Table("In all, and of head, medium and tail", "means", means)]
    columns = [
        Column("finding", "finding"),
        Column("group", "group", help="head: above 10 % of training labels; medium: 1 to 10 %; tail: below 1 %"),
        Column("positives", "positives", "count"),
        Column("prevalence", "prevalence", "percent"),
        Column("AP", "ap", "score_interval", "average precision"),
        Column("AUROC", "auroc", "score_interval"),
        Column("F1", "f1", "score_interval", "at a threshold of 0.5"),
        Column("FNR", "fnr", "score_interval", "false-negative rate at 0.5: the share of positives that are missed"),
    ]
    note = "In brackets 95 % intervals, resampled by subject; [–] where too few subjects are positive."
    parts.append(Table("By finding", "rows", columns, filtered=True, facet="group", note=note))
    parts.append(Texts(["without_positives"]))
    known = [row for row in facts.rows if row.ap.value is not None]
    if known:
        parts += [_average_precision(known), _curves(known)]
    return parts


def _average_precision(rows: list[FindingRow]) -> Figure:
    kinds = list(dict.fromkeys(row.group for row in rows))
    marks = [
        (row.finding, [charts.Mark(row.ap.value or 0.0, row.ap.low, row.ap.high, kinds.index(row.group), row.group)])
        for row in rows
    ]
    words = f"{len(rows)} findings, the most frequent above; AP from {min(r.ap.value or 0 for r in rows):.3f} to " + (
        f"{max(r.ap.value or 0 for r in rows):.3f}"
    )
    drawing = charts.intervals("Average precision by finding", words, marks, kinds, "AP", named=True)
    note = "The most frequent finding stands first: the tail is at the bottom. The table above holds the values."
    return Figure("Average precision along the tail", [drawing], note)


def _curves(rows: list[FindingRow]) -> Figure:
    drawings = []
    for row in rows:
        words = f"AP {row.ap.value:.3f}; chance would be {row.prevalence or 0:.3f}"
        drawings.append(charts.precision_recall(row.finding, words, row.curve, row.prevalence or 0.0))
    note = "Precision (up) over recall (right), each from 0 to 1; dashed: chance, which is the prevalence."
    return Figure("Precision and recall", drawings, note, captions=tuple(row.finding for row in rows))
