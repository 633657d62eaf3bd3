"""What an inspection of image files has shown, as lines for people: printed by `python -m cxrlt_ray.cohort --images`.

Images are named by file and row, and by path only where CXRLT_RAY_SHOW_IDS=1 allows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cxrlt_ray.data.duplicates import BITS, NEAR
from cxrlt_ray.data.inspection import MISSING
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.suspects import SUSPECTS
from cxrlt_ray.privacy import private_detail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

NAMED = 10  # images or pairs of a kind


def print_inspection(manifest: Manifest, images: pd.DataFrame, origins: pd.DataFrame, console: Console) -> list[str]:
    """Print which images cannot be decoded and which are suspect; returns the reasons to refuse the data.

    images: as `inspect_images` returns them. origins: the file and row that name each image.
    """
    from cxrlt_ray.data.shards import MAX_BAD

    # what follows in parentheses is a library's message, which may name a patient
    reasons = images["reason"].str.partition(" (")[0]
    bad = reasons[~reasons.isin(["", MISSING])]
    missing, suspects = int((reasons == MISSING).sum()), images["suspect"][images["suspect"] != ""]
    absent = f", {missing:,} not on disk" if missing else ""
    counts = f"{len(bad):,} cannot be decoded, {len(suspects):,} suspect"
    lines = [f"{counted(len(images), 'image')} looked at{absent}: {counts}"]
    for reason, rows in bad.groupby(bad, sort=False).groups.items():
        lines.append(f"  {len(rows):,} cannot be decoded, {reason}: {_named(rows, manifest, origins)}")
    for kind in (kind for kind in SUSPECTS if (suspects == kind).any()):
        rows = suspects.index[suspects == kind]
        lines.append(f"  {len(rows):,} suspect, {kind} ({SUSPECTS[kind]}): {_named(rows, manifest, origins)}")
    if len(suspects):
        lines.append("  Suspect images train like others: take the rows out of the table where they should not.")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if len(bad) <= MAX_BAD * len(images):
        return []
    share = f"more than the allowed share {MAX_BAD:g} (--max-bad)"
    return [f"{len(bad):,} of {counted(len(images), 'image')} cannot be decoded, {share}."]


def print_duplicates(
    manifest: Manifest, pairs: Mapping[tuple[str, str], np.ndarray], origins: pd.DataFrame, console: Console
) -> None:
    """Print how many images of each two splits are near-duplicates, and the first of them.

    pairs: as `pairs_across_splits` returns them.
    """
    total = sum(map(len, pairs.values()))
    lines = [f"{counted(total, 'pair')} of near-duplicates across splits (at most {NEAR} of {BITS} bits differ)"]
    for (first, second), rows in pairs.items():
        if not len(rows):
            continue
        own, others = (len(np.unique(column)) for column in rows.T)
        lines.append(f"  {first} and {second}: {counted(len(rows), 'pair')}, {counted(own, 'image')} with {others:,}")
        for a, b in rows[:NAMED]:
            lines.append(f"    {_name(a, manifest, origins)} and {_name(b, manifest, origins)}")
        if len(rows) > NAMED:
            lines.append("    ...")
    if total:
        lines.append("  The same picture under two subjects leaks: leave one out, or give both one subject_id.")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _named(rows: pd.Index, manifest: Manifest, origins: pd.DataFrame) -> str:
    """'labels.csv row 1, labels.csv row 5 ...': the first NAMED."""
    names = ", ".join(_name(row, manifest, origins) for row in rows[:NAMED])
    return names + (" ..." if len(rows) > NAMED else "")


def _name(row: int, manifest: Manifest, origins: pd.DataFrame) -> str:
    origin = origins.loc[row]
    return f"{origin['file']} row {origin['row']}{private_detail(manifest.table.at[row, 'path'])}"
