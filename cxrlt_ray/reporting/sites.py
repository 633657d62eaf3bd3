"""Another site beside home, on the console and as a file: scores, drops, and what explains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from cxrlt_ray import cli
from cxrlt_ray.evaluation.groups import FEWEST, LEVEL, MEAN
from cxrlt_ray.evaluation.sites import Drop, Explained, SiteReport
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.finite import finite

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOTE = (
    "Differences are the site less home. AP's is split into what home's images would score at the site's prevalence, "
    "then with its views, and the rest; bias is the mean probability less the rate of positives. * AUROC differs, all "
    f"findings of the table counted (Holm, {LEVEL:g})."
)


def render(report: SiteReport) -> list[Table | str]:
    """A table of drops, one of what explains them, and which findings are in neither."""
    head = (
        f"{report.name}: {report.images[1]:,} images of {report.subjects[1]:,} subjects; home: {report.images[0]:,} of "
        f"{report.subjects[0]:,}"
    )
    parts: list[Table | str] = [head]
    if report.drops:
        parts += [_drops_table(report), _explained_table(report), NOTE]
    if report.left_out:
        parts.append(f"With fewer than {FEWEST} positive or negative subjects: {', '.join(report.left_out)}")
    if report.not_labelled:
        parts.append(f"Not labelled by {report.name}: {', '.join(report.not_labelled)}")
    return parts


def show(console: Console, report: SiteReport) -> None:
    """Print `render`."""
    for part in render(report):
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def as_json(report: SiteReport) -> dict[str, JsonValue]:
    """The report as JSON can hold it; nan is null."""
    content: dict[str, JsonValue] = finite(
        {
            "images": list(report.images),
            "subjects": list(report.subjects),
            "findings": report.frame().to_dict("records"),
            "left_out": list(report.left_out),
            "not_labelled": list(report.not_labelled),
        }
    )
    return content


def write(reports: Sequence[SiteReport], out: str) -> str:
    """Leave a row a site and finding beside the scores in `out`: its name with .sites.csv in place of .csv."""
    import pandas as pd

    store, name = Store.holding(out)
    name = f"{name.removesuffix('.csv')}.sites.csv"
    table = pd.concat([report.frame() for report in reports], ignore_index=True)
    store.write(name, table.to_csv(index=False).encode())
    return name


def _drops_table(report: SiteReport) -> Table:
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    heads = ("home", report.name, "AP: home", report.name, "difference", "AUROC: home", report.name, "difference")
    numbers = [Column(cli.shortened(head), justify="right", no_wrap=True) for head in heads]
    table = RecordTable("sites", Column("positives", no_wrap=True), *numbers, padding=(0, 1, 0, 0))
    for drop, row in zip(report.drops, report.frame().to_dict("records"), strict=True):
        cells = [f"{count:,}" for count in drop.positives]
        for metric in ("ap", "auroc"):
            cells += [_number(drop.home[metric].value), _number(drop.site[metric].value)]
            difference = drop.differences[metric]
            mark = "*" if metric == "auroc" and drop.flagged else ""
            cells.append(cli.gained(difference.value, difference.low, difference.high) + mark)
        table.add_record({str(key): value for key, value in row.items()}, _name(drop), *cells)
    return table


def _explained_table(report: SiteReport) -> Table:
    from rich import box
    from rich.table import Column, Table

    heads = ("prevalence", "AP: by prev.", "by views", "rest", "AUROC: by views", "bias: home", report.name, "by prev.")
    numbers = [Column(cli.shortened(head), justify="right", no_wrap=True) for head in heads]
    table = Table(Column("what explains it", no_wrap=True), *numbers, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for drop in report.drops:
        home, site = drop.prevalence
        shares = f"{100 * home:.2f} -> {100 * site:.2f} %"
        bias = [_change(scores["bias"].value) for scores in (drop.home, drop.site)]
        views = _change(drop.auroc.views)
        table.add_row(_name(drop), shares, *_parts(drop.ap), views, *bias, _change(drop.bias.prevalence))
    return table


def _parts(explained: Explained) -> list[str]:
    return [_change(value) for value in (explained.prevalence, explained.views, explained.rest)]


def _name(drop: Drop) -> str:
    return "mean of findings" if drop.finding == MEAN else drop.finding


def _change(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:+.3f}"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
