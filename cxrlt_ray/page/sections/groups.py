"""Groups: scores by sex, age, race, view and cohort, the gaps between groups, and the differences that stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup

from cxrlt_ray.data.age_bands import UNKNOWN
from cxrlt_ray.data.groups import OWN, group_columns
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.groups import MEAN, MIN_GROUP, Contrast, Gap, GroupReport, GroupScores, compare_groups
from cxrlt_ray.page import charts
from cxrlt_ray.page.facts import Facts, ScoredImages, numberless
from cxrlt_ray.page.parts import Column, Figure, Part, Table, Texts
from cxrlt_ray.page.records import Interval, SectionFacts
from cxrlt_ray.page.sections.findings import scored_on
from cxrlt_ray.page.sections.registry import register_section

ROUNDS = 100  # of bootstrap: of these the standard error alone is used
MOST = 4_000  # images that are compared: 5 columns of so many images of 40 findings take seconds
TITLES = {"ap": "AP", "ap_even": "AP, one prev.", "auroc": "AUROC", "fnr": "FNR", "bias": "bias"}
DRAWN = ("auroc", "fnr")


class GroupRow(SectionFacts):
    """A group's means over the findings that all groups of its column have. Unknown: too few for any finding."""

    by: str
    group: str
    images: int
    subjects: int
    ap: Interval = Interval()
    ap_even: Interval = Interval()
    auroc: Interval = Interval()
    fnr: Interval = Interval()
    bias: Interval = Interval()
    ece: float | None = None


class GapRow(SectionFacts):
    """The largest less the smallest group of a column; chance: the mean gap of groups alike."""

    by: str
    finding: str
    score: str
    largest: str
    smallest: str
    gap: Interval
    chance: float | None


class FlagRow(SectionFacts):
    """A difference that stands after correction: a group less `other`; p: corrected for all tests."""

    by: str
    group: str
    other: str
    finding: str
    score: str
    difference: Interval
    p: float
    worse: str


class Groups(SectionFacts):
    """Scores by group. gaps: of means over findings; gaps_by_finding: of each."""

    about: str
    verdict: str
    small: str = ""
    rows: tuple[GroupRow, ...]
    gaps: tuple[GapRow, ...] = ()
    gaps_by_finding: tuple[GapRow, ...] = ()
    flags: tuple[FlagRow, ...] = ()


def gather(facts: Facts) -> Groups | str:
    """Scores by group of the labelled images that tell most."""
    images, manifest = facts.honest, facts.manifest
    if images is None or manifest is None:
        return "No labelled image has been scored yet: there is nothing to compare groups by."
    part = images.some(MOST)
    columns = _columns(manifest, part)
    if not columns:
        return "The data names no groups: neither sex, age nor race, and one view and cohort alone (docs/groups.md)."
    inputs = (part.targets, part.probabilities, facts.findings, columns, part.subjects)
    report = compare_groups(*inputs, rounds=min(ROUNDS, facts.rounds))
    if not report.groups:
        return f"No group of {', '.join(columns)} has {MIN_GROUP} subjects: smaller ones are not shown."
    gaps = [_gap(gap, report) for gap in report.gaps]
    means = tuple(gap for gap, of in zip(gaps, report.gaps, strict=True) if of.finding == MEAN)
    return Groups(
        about=_about(facts, images, part, min(ROUNDS, facts.rounds)),
        verdict=_verdict(report),
        small=_small(report),
        rows=tuple(_row(group) for group in report.groups),
        gaps=means,
        gaps_by_finding=tuple(
            gap for gap, of in zip(gaps, report.gaps, strict=True) if of.finding != MEAN and of.metric in DRAWN
        ),
        flags=tuple(_flag(contrast, report) for contrast in report.flags),
    )


def _columns(manifest: Manifest, images: ScoredImages) -> dict[str, np.ndarray]:
    """The groups of the images by those of OWN that tell two known groups apart."""
    rows, columns = replace(manifest, table=images.table), {}
    for name in OWN:
        try:
            groups = group_columns(rows, [name])[name]
        except UsageError:  # as many values as a column of ids or measurements has
            continue
        if len(set(groups) - {UNKNOWN}) > 1:
            columns[name] = groups
    return columns


def _about(facts: Facts, images: ScoredImages, part: ScoredImages, rounds: int) -> str:
    text = f"{images.system} on {len(part.targets):,} {scored_on(facts, images)}"
    drawn = len(part.targets) < len(images.targets)
    if drawn:
        text += f", drawn by subject from {len(images.targets):,} so that this page does not keep you waiting"
    text += f". Intervals of {rounds} rounds."
    if facts.ensemble is not None and images.where == facts.run.task.scored_split:
        folder = f"STORAGE/{facts.run.name}/ensembles/{facts.ensemble.record.name}"
        what = "All images, more rounds" if drawn else "More rounds"
        text += f" {what} and each finding: python -m cxrlt_ray.evaluate {folder} --by sex,age,race,view,cohort"
    return text


def _verdict(report: GroupReport) -> str:
    if not report.tests:
        return "No difference could be tested: groups have too few positive or negative subjects."
    if not report.flags:
        return (
            f"No difference between groups stands, all {report.tests:,} tests counted. The intervals say how large one "
            "may be all the same."
        )
    return (
        f"{len(report.flags):,} of {report.tests:,} differences stand, all tests counted. They do not say why: groups "
        "may differ in how ill their patients are, in views, in how labels were made."
    )


def _small(report: GroupReport) -> str:
    parts = [f"{count:,} of {name}" for name, count in report.suppressed.items() if count]
    if not parts:
        return ""
    return f"Not shown, with fewer than {report.min_group} subjects: groups, {', '.join(parts)}."


def _row(scores: GroupScores) -> GroupRow:
    row = GroupRow(by=scores.by, group=numberless(scores.group), images=scores.images, subjects=scores.subjects)
    if (mean := scores.mean) is None:
        return row
    values = {metric: Interval.of(mean.scores[metric]) for metric in TITLES}
    return row.model_copy(update={**values, "ece": _known(mean.ece)})


def _gap(gap: Gap, report: GroupReport) -> GapRow:
    return GapRow(
        by=gap.by,
        finding=_finding(gap.finding, gap.by, report),
        score=TITLES[gap.metric],
        largest=numberless(gap.largest),
        smallest=numberless(gap.smallest),
        gap=Interval.of(gap.difference),
        chance=_known(gap.chance),
    )


def _flag(contrast: Contrast, report: GroupReport) -> FlagRow:
    return FlagRow(
        by=contrast.by,
        group=numberless(contrast.group),
        other=numberless(contrast.other or "the others"),
        finding=_finding(contrast.finding, contrast.by, report),
        score=TITLES[contrast.metric],
        difference=Interval.of(contrast.difference),
        p=contrast.corrected,
        worse=numberless(contrast.worse or ""),
    )


def _finding(name: str, by: str, report: GroupReport) -> str:
    return f"mean of {report.common[by]}" if name == MEAN else name


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


@register_section("groups", "Groups", order=60, facts=Groups, gather=gather)
def groups(facts: Groups) -> list[Part]:
    """Scores by group, drawn and as a table; gaps; flags."""
    parts: list[Part] = [Texts(["about", "verdict", "small"])]
    if facts.flags:
        columns = [Column("column", "by"), Column("group", "group"), Column("less", "other")]
        columns += [Column("finding", "finding"), Column("score", "score")]
        columns.append(Column("difference", "difference", "gain_interval"))
        columns.append(Column("p", "p", "number", "of no difference, corrected for all tests (Holm)"))
        parts.append(Table("Differences that stand", "flags", [*columns, Column("worse for", "worse")]))
    columns = [Column("group", "group"), Column("column", "by"), Column("images", "images", "count")]
    columns += [Column("subjects", "subjects", "count")]
    columns += [Column(TITLES[key], key, "gain_interval" if key == "bias" else "score_interval") for key in TITLES]
    note = (
        "Means over the findings that every group of the column has. AP rises with prevalence; AP, one prev. is as if "
    )
    note += "all groups had the same. FNR: at one threshold for all, that of the best F1 on these images. Bias: mean "
    note += "probability less rate of positives."
    columns.append(Column("ECE", "ece", "score", "rises as a group gets smaller"))
    table = Table("Scores by group", "rows", columns, facet="column", note=note)
    known = [row for row in facts.rows if row.auroc.value is not None]
    parts.append(Figure("AUROC and FNR by group", [_drawn(known)] if known else [], table=table))
    if facts.gaps:
        parts.append(_gaps("The largest gaps, of means over findings", "gaps"))
    if facts.gaps_by_finding:
        parts.append(_gaps("The largest gaps by finding", "gaps_by_finding", folded=True))
    return parts


def _gaps(caption: str, rows: str, folded: bool = False) -> Table:
    columns = [Column("finding", "finding"), Column("column", "by"), Column("score", "score")]
    columns += [Column("largest", "largest"), Column("smallest", "smallest"), Column("gap", "gap", "gain_interval")]
    columns.append(Column("by chance", "chance", "score", "the mean gap of groups of these sizes, were they alike"))
    return Table(caption, rows, columns, filtered=folded, facet="column", folded=folded)


def _drawn(rows: Sequence[GroupRow]) -> Markup:
    return charts.intervals(
        "AUROC and FNR by group",
        f"{len(rows)} groups; the table below holds the values",
        [(f"{row.by}: {row.group}", list(_marks(row))) for row in rows],
        [TITLES[key] for key in DRAWN],
        "mean over findings",
    )


def _marks(row: GroupRow) -> Iterator[charts.Mark]:
    for k, key in enumerate(DRAWN):
        of: Interval = getattr(row, key)
        if of.value is not None:
            yield charts.Mark(of.value, of.low, of.high, k, TITLES[key])
