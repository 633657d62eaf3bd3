"""Agreement of readers of a gold standard on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from cxrlt_ray import cli

if TYPE_CHECKING:
    from rich.table import Table


def readers_table(pairs: pd.DataFrame) -> Table:
    """`consensus.pairwise` as a table; findings that no reader affirms are left out."""
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    heads = ("labels", "both yes", "one yes", "kappa", "PABAK")
    columns = [Column(head, justify="right", no_wrap=True) for head in heads]
    table = RecordTable("readers", Column("finding", no_wrap=True), "readers", *columns, padding=(0, 1, 0, 0))
    for row in pairs[(pairs["both"] > 0) | (pairs["one"] > 0) | (pairs["finding"] == "All findings")].itertuples(
        index=False
    ):
        counts = (f"{row.labels:,}", f"{row.both:,}", f"{row.one:,}")
        table.add_record(row._asdict(), row.finding, row.pair, *counts, cli.short(row.kappa), cli.short(row.pabak))
    return table
