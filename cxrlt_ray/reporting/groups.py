"""Scores by group on the console and as a file: a table a column, then what stands after correction."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue

from cxrlt_ray import cli
from cxrlt_ray.data.age_bands import UNKNOWN
from cxrlt_ray.evaluation.groups import FEWEST, LEVEL, MEAN, Contrast, Gap, GroupReport, GroupScores
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.finite import finite

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NAMES = {"ap": "AP", "ap_even": "AP, one prev.", "auroc": "AUROC", "fnr": "FNR", "bias": "bias"}
MOST_FLAGS = 12  # lines
CHOSEN_HERE = ", that of the best F1 on these images"
NOTE = (
    "Means over findings. AP rises with prevalence: 'one prev.' is AP at the prevalence of all these images. FNR: at "
    "one threshold a finding{thresholds}. bias: mean probability less rate of positives. 'by chance': the gap to "
    "expect of such groups if all were alike."
)


def render(report: GroupReport) -> list[Table | str]:
    """For each column the groups' mean scores and their gaps, then the differences that stand after correction."""
    parts: list[Table | str] = []
    means = [row for row in report.frame().to_dict("records") if row["finding"] == MEAN]
    for by in report.common:
        groups = [group for group in report.groups if group.by == by]
        if groups:
            parts += [_title(report, by), _table(report, by, groups, [row for row in means if row["by"] == by])]
        parts += _remarks(report, by, groups)
    parts.append(NOTE.format(thresholds=CHOSEN_HERE if report.chosen_here else ", as given by --thresholds"))
    parts += _flags(report)
    return parts


def show(console: Console, report: GroupReport) -> None:
    """Print `render`."""
    for part in render(report):
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def flags_of(report: GroupReport) -> list[dict[str, str | float | None]]:
    """The differences that stand, as records."""
    return [_flag_row(flag) for flag in report.flags]


def as_json(report: GroupReport) -> dict[str, JsonValue]:
    """The report as JSON can hold it; nan is null."""
    content: dict[str, JsonValue] = finite(
        {
            "tests": report.tests,
            "min_group": report.min_group,
            "thresholds_chosen_here": report.chosen_here,
            "thresholds": dict(zip(report.findings, report.thresholds, strict=True)),
            "findings_in_means": report.common,
            "not_shown": report.suppressed,
            "groups": report.frame().to_dict("records"),
            "gaps": [_gap_row(gap) for gap in report.gaps],
            "flags": flags_of(report),
        }
    )
    return content


def write(report: GroupReport, out: str) -> str:
    """Leave a row a group and finding beside the scores in `out`: its name with .groups.csv in place of .csv."""
    store, name = Store.holding(out)
    name = f"{name.removesuffix('.csv')}.groups.csv"
    store.write(name, report.frame().to_csv(index=False).encode())
    return name


def _title(report: GroupReport, by: str) -> str:
    return f"By {cli.shortened(by)}, means over {report.common[by]} of {len(report.findings)} findings"


def _table(report: GroupReport, by: str, groups: list[GroupScores], rows: Sequence[Mapping[Hashable, Any]]) -> Table:
    """The means of a column's groups. rows: their records."""
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    heads = ("images", "subjects", *NAMES.values(), "ECE")
    numbers = [Column(head, justify="right", no_wrap=True) for head in heads]
    table = RecordTable("by_group", Column(cli.shortened(by), no_wrap=True), *numbers, padding=(0, 1, 0, 0))
    for group, row in zip(groups, rows, strict=True):
        cells = (cli.shortened(group.group), f"{group.images:,}", f"{group.subjects:,}", *_cells(group))
        table.add_record({str(key): value for key, value in row.items()}, *cells)
    gaps = {gap.metric: gap for gap in report.gaps if gap.by == by and gap.finding == MEAN}
    if gaps:
        lines = {"largest gap": _gap, "  95 % interval": _interval, "  by chance": lambda gap: _number(gap.chance)}
        for label, cell in lines.items():
            table.add_row(label, "", "", *(cell(gaps[m]) if m in gaps else "" for m in NAMES))
    return table


def _cells(group: GroupScores) -> list[str]:
    if group.mean is None:
        return ["-"] * (len(NAMES) + 1)
    scores = [group.mean.scores[metric] for metric in NAMES]
    return [*(_signed(m, s.value) for m, s in zip(NAMES, scores, strict=True)), _number(group.mean.ece)]


def _signed(metric: str, value: float) -> str:
    return f"{value:+.3f}" if metric == "bias" and value == value else _number(value)


def _gap(gap: Gap) -> str:
    return _number(gap.difference.value)


def _interval(gap: Gap) -> str:
    low, high = gap.difference.low, gap.difference.high
    return f"{low:+.2f}, {high:+.2f}" if gap.difference.known else cli.TOO_FEW


def _remarks(report: GroupReport, by: str, groups: list[GroupScores]) -> list[str]:
    name, remarks = f"By {cli.shortened(by)}", []
    if count := report.suppressed[by]:
        few = f"{count} group{'s' if count > 1 else ''} of fewer than {report.min_group} subjects not shown"
        remarks.append(f"{name}: {few} (--min-group).")
    known = [group for group in groups if group.group != UNKNOWN]
    if len(known) < 2:
        what = "no group is known" if not known else "one group"
        remarks.append(f"{name}: {what}, nothing to compare.")
    elif not report.common[by]:
        remarks.append(
            f"{name}: no finding has {FEWEST} positive and {FEWEST} negative subjects in every group, so there are no "
            "means. The findings of each group: --out."
        )
    return remarks


def _flags(report: GroupReport) -> list[str]:
    if not report.tests:
        return ["No group has enough positive subjects to be compared."]
    tested = f"{report.tests:,} differences of AUROC, FNR and bias tested, corrected together (Holm, {LEVEL:g})"
    flags = report.flags
    if not flags:
        return [f"{tested}: none stands."]
    lines = [f"{tested}: {len(flags):,} stand{'s' if len(flags) == 1 else ''}."]
    lines += [f"  {_flag(flag)}" for flag in flags[:MOST_FLAGS]]
    if len(flags) > MOST_FLAGS:
        lines.append(f"  and {len(flags) - MOST_FLAGS:,} more: --out")
    return lines


def _flag(flag: Contrast) -> str:
    other = f"{flag.by} {flag.other}" if flag.other else "the others"
    ends = cli.gained(flag.difference.value, flag.difference.low, flag.difference.high)
    what = "mean of findings" if flag.finding == MEAN else flag.finding
    p = f"{flag.corrected:.4f}" if flag.corrected >= 0.0001 else "< .0001"
    worse = f"; worse for {flag.worse}" if flag.worse else ""
    return f"{what}: {NAMES[flag.metric]} of {flag.by} {flag.group} less {other} {ends}, p {p}{worse}"


def _gap_row(gap: Gap) -> dict[str, str | float]:
    ends = {"value": gap.difference.value, "low": gap.difference.low, "high": gap.difference.high}
    names = {"by": gap.by, "finding": gap.finding, "metric": gap.metric}
    return {**names, "largest": gap.largest, "smallest": gap.smallest, **ends, "chance": gap.chance}


def _flag_row(flag: Contrast) -> dict[str, str | float | None]:
    ends = {"value": flag.difference.value, "low": flag.difference.low, "high": flag.difference.high}
    names = {"by": flag.by, "group": flag.group, "other": flag.other, "finding": flag.finding, "metric": flag.metric}
    return {**names, **ends, "p": flag.p, "corrected": flag.corrected, "worse": flag.worse}


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
