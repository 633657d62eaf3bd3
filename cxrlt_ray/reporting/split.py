"""A split of a labelled cohort on the console: sizes, and how evenly each finding is spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxrlt_ray.labelling.labels import STUDY, SUBJECT
from cxrlt_ray.labelling.splitting import IMAGE, SPLIT, SPLITS, Divided

if TYPE_CHECKING:
    from rich.table import Table


def sizes_table(divided: Divided) -> Table:
    """Subjects, studies and perhaps images of each split."""
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    table = divided.table
    kinds = {"subjects": SUBJECT, "studies": STUDY} | ({"images": IMAGE} if IMAGE in table else {})
    shown = RecordTable("splits", "split", *(Column(kind, justify="right") for kind in (*kinds, "%")))
    for split in SPLITS:
        part = table[table[SPLIT] == split]
        counts = {kind: int(part[column].nunique()) for kind, column in kinds.items()}
        share = len(part) / len(table)
        cells = (f"{count:,}" for count in counts.values())
        shown.add_record({"split": split, **counts, "share": share}, split, *cells, f"{100 * share:.1f}")
    return shown


def findings_table(divided: Divided) -> Table:
    """Positives of each finding in each split."""
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    table = divided.table
    heads = (Column(split, justify="right") for split in SPLITS)
    shown = RecordTable("findings", Column("positives", no_wrap=True), *heads)
    for finding in divided.findings:
        counts = {split: int((table.loc[table[SPLIT] == split, finding] == 1).sum()) for split in SPLITS}
        cells = (f"{count:,}" for count in counts.values())
        shown.add_record({"finding": finding, "positives": counts}, finding, *cells)
    return shown
