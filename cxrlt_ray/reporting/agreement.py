"""Agreement of labellers with a gold standard on the console, in the form of the paper's table 8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.evaluation.confusion import RATES, Rates
from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.evaluation.published import published_label_precision
from cxrlt_ray.labelling.agreement import Agreement

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TITLES = {"precision": "precision", "recall": "recall", "f1": "F1", "kappa": "kappa", "pabak": "PABAK"}


def show(console: Console, agreement: Agreement) -> None:
    """Print the precision of all labellers beside the paper's, each one's other rates, and the paired differences."""
    weighted = "; counts are weighted to all studies that the sample stands for" if agreement.weighted else ""
    console.print(f"{agreement.studies:,} studies of {counted(agreement.subjects, 'subject')}{weighted}")
    console.print(precision_table(agreement))
    for name, rates in agreement.rates.items():
        console.print(_rates_table(agreement, name, rates))
    if agreement.differences:
        console.print(_differences_table(agreement))
    for line in explained(agreement):
        console.print(line, soft_wrap=True)


def precision_table(agreement: Agreement) -> Table:
    """Table 8: finding, positives, precision of each labeller, and the paper's two where findings match."""
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    papers = {
        name: values
        for name, values in published_label_precision().items()
        if any(finding in values for finding in agreement.findings)
    }
    heads = [Column(name, justify="right") for name in ("positives", *agreement.rates, *papers)]
    table = RecordTable("precision", Column("precision", no_wrap=True), *heads, padding=(0, 1, 0, 0))
    for c, finding in enumerate(agreement.findings):
        own = {name: float(rates.of_finding["precision"][c]) for name, rates in agreement.rates.items()}
        published = {name: values.get(finding, np.nan) for name, values in papers.items()}
        cells = tuple(map(cli.short, (*own.values(), *published.values())))
        record = {"finding": finding, "positives": agreement.positives[c], "precision": own, "published": published}
        table.add_record(record, finding, f"{agreement.positives[c]:,}", *cells)
    means = {name: rates.macro["precision"] for name, rates in agreement.rates.items()}
    published = {name: float(np.mean(list(values.values()))) for name, values in papers.items()}
    count, positives = int(agreement.in_mean.sum()), int(agreement.positives.sum())
    cells = (*map(_cell, means.values()), *map(cli.short, published.values()))
    record = {"mean_of": count, "precision": means, "published": published}
    table.add_record(record, f"Mean of {counted(count, 'finding')}", "", *cells)
    pooled = {name: rates.pooled["precision"] for name, rates in agreement.rates.items()}
    cells = (*map(_cell, pooled.values()), *("-" for _ in papers))
    table.add_record({"pooled": True, "positives": positives, "precision": pooled}, "Pooled", f"{positives:,}", *cells)
    return table


def _rates_table(agreement: Agreement, name: str, rates: Rates) -> Table:
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    heads = [Column(TITLES[rate], justify="right", no_wrap=True) for rate in RATES]
    table = RecordTable("rates", Column(name, no_wrap=True), *heads, padding=0)
    for c, finding in enumerate(agreement.findings):
        values = {rate: float(rates.of_finding[rate][c]) for rate in RATES}
        table.add_record({"labels": name, "finding": finding, **values}, finding, *map(cli.short, values.values()))
    for title, estimates in (("Mean", rates.macro), ("Pooled", rates.pooled)):
        chosen = {rate: estimates[rate] for rate in RATES}
        table.add_record({"labels": name, title.lower(): True, **chosen}, title, *map(_cell, chosen.values()))
    return table


def _differences_table(agreement: Agreement) -> Table:
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    first = next(iter(agreement.rates))
    heads = [Column(scope, justify="right", no_wrap=True) for scope in ("mean", "pooled")]
    table = RecordTable("differences", Column(f"{first} less", no_wrap=True), *heads, padding=(0, 1, 0, 0))
    for name, gains in agreement.differences.items():
        for rate in RATES:
            means, pooled = gains["macro", rate], gains["pooled", rate]
            record = {"labels": first, "less": name, "rate": rate, "mean": means, "pooled": pooled}
            cells = (cli.gained(gain.value, gain.low, gain.high) for gain in (means, pooled))
            table.add_record(record, f"{name}, {TITLES[rate]}", *cells)
    return table


def explained(agreement: Agreement) -> list[str]:
    """What the figures are, in sentences."""
    left_out = [f for f, mean in zip(agreement.findings, agreement.in_mean, strict=True) if not mean]
    lines = [
        "Mean: the plain mean over findings, as in table 8; a precision of nothing affirmed counts 0 in it. Pooled: "
        "all findings' labels together. [ , ]: 95 % intervals, subjects resampled; differences are paired."
    ]
    if left_out:
        lines.append(f"With too few positives for the mean: {', '.join(left_out)}.")
    if any(finding in next(iter(published_label_precision().values())) for finding in agreement.findings):
        lines.append(
            "paper: Lin et al. 2025, table 8, on 406 hand-labelled studies of MIMIC-CXR: other reports than these, "
            "unless the gold is that set. Its mean is over its 26 findings."
        )
    return lines


def _cell(estimate: Estimate) -> str:
    return cli.ranged(estimate.value, estimate.low, estimate.high)
