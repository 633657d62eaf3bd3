"""A split of a labelled cohort on the console: sizes, and how evenly each finding is spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxrlt_ray.labelling.labels import STUDY, SUBJECT
from cxrlt_ray.labelling.splitting import IMAGE, SPLIT, SPLITS, Divided

if TYPE_CHECKING:
    from rich.table import Table


def sizes_table(divided: Divided) -> Table:
    """Subjects, studies and perhaps images of each split."""
    from rich import box
    from rich.table import Column, Table

    table = divided.table
    kinds = {"subjects": SUBJECT, "studies": STUDY} | ({"images": IMAGE} if IMAGE in table else {})
    shown = Table("split", *(Column(kind, justify="right") for kind in (*kinds, "%")), box=box.SIMPLE_HEAD)
    for split in SPLITS:
        part = table[table[SPLIT] == split]
        counts = [f"{part[column].nunique():,}" for column in kinds.values()]
        shown.add_row(split, *counts, f"{100 * len(part) / len(table):.1f}")
    return shown


def findings_table(divided: Divided) -> Table:
    """Positives of each finding in each split."""
    from rich import box
    from rich.table import Column, Table

    table = divided.table
    shown = Table(
        Column("positives", no_wrap=True), *(Column(split, justify="right") for split in SPLITS), box=box.SIMPLE_HEAD
    )
    for finding in divided.findings:
        counts = [int((table.loc[table[SPLIT] == split, finding] == 1).sum()) for split in SPLITS]
        shown.add_row(finding, *(f"{count:,}" for count in counts))
    return shown
