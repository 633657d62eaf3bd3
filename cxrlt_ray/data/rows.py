"""The rows of a reader in the manifest's form, paths settled and checked; their faults are noted as sentences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import META
from cxrlt_ray.data.paths import settled
from cxrlt_ray.data.readers import Raw
from cxrlt_ray.data.readers.columns import and_more, counted
from cxrlt_ray.privacy import UNFIT, leading_out, private_detail, unfit
from cxrlt_ray.storage import Store


def with_settled_paths(raw: Raw) -> Raw:
    """A reader's rows with paths as the files are called (paths.py), so that all that reads images agrees."""
    if raw.table.empty:
        return raw
    paths, notes = settled(raw.table["path"].astype("str"), Store(raw.root), str(raw.table["file"].iloc[0]))
    return replace(raw, table=raw.table.assign(path=paths), notes=[*raw.notes, *notes])


def checked_rows(raw: Raw) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a reader in full, each image once, and their faults as sentences."""
    problems = list(dict.fromkeys(raw.problems))
    table = _complete(raw.table, raw.findings)
    _check_names(table, raw, problems)
    return _without_duplicates(table, problems), problems


def _check_names(table: pd.DataFrame, raw: Raw, problems: list[str]) -> None:
    """Note paths that leave the data, and names that would do harm in a table that is passed on."""
    checks = {
        f"a path leads out of {raw.root}: paths are relative to it and below it, and no file there has its name": (
            "path",
            leading_out(table["path"]),
        ),
        "an image's id begins with = + - or @, or has control characters: a spreadsheet would take it for a formula": (
            "image_id",
            table["image_id"].str.contains(UNFIT, regex=True),
        ),
    }
    for sentence, (column, wrong) in checks.items():
        if wrong.any():
            problems.append(f"{_origin(table[wrong].iloc[0], column)}{and_more(wrong.sum() - 1)}: {sentence}.")
    if wrong := [name for name in raw.findings if unfit(name)]:
        problems.append(
            f"finding {wrong[0]!r}{and_more(len(wrong) - 1, 'more finding')}: a name that begins with = + - or @, or "
            "has control characters, would be taken for a formula by a spreadsheet: rename the column."
        )


def _origin(row: pd.Series, column: str) -> str:
    """'labels.csv row 3', and the cell where that may be shown."""
    return f"{row['file']} row {row['row']}{private_detail(row[column])}"


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by subject, study and image, whatever their order in files."""
    return table.sort_values(["subject_id", "study_id", "image_id"], kind="stable", ignore_index=True)


def _complete(table: pd.DataFrame, findings: tuple[str, ...]) -> pd.DataFrame:
    """`table` with every column of META in its type, the rows' origin, and the findings."""
    columns = {}
    for name in META:
        kind = "float32" if name == "age" else "str"
        columns[name] = table[name].astype(kind) if name in table else pd.Series(np.nan, table.index, kind)
    return pd.DataFrame({**columns, **{name: table[name] for name in ("file", "row", *findings)}})


def _without_duplicates(table: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    repeated = table["image_id"].duplicated()
    if not repeated.any():
        return table
    second = table[repeated].iloc[0]
    first = table[table["image_id"] == second["image_id"]].iloc[0]
    problems.append(
        f"an image stands twice, in {_origin(first, 'image_id')} and in {second['file']} row {second['row']}"
        + (f" ({counted(repeated.sum() - 1, 'more repetition')})" if repeated.sum() > 1 else "")
        + ": each image may have one row."
    )
    return table[~repeated]


def check_leaks(table: pd.DataFrame, problems: list[str]) -> None:
    """Note subjects that have images in several splits."""
    pairs = table[["subject_id", "split"]].dropna().drop_duplicates()
    leaking = pairs.loc[pairs["subject_id"].duplicated(), "subject_id"].unique()
    if not len(leaking):
        return
    subject = sorted(leaking)[0]
    rows = table[table["subject_id"] == subject].dropna(subset="split").sort_values("split", kind="stable")
    problems.append(
        f"a subject{private_detail(subject)} stands in {rows['split'].nunique()} splits, "
        + " and ".join(
            f"{name} ({counted(len(part), 'image')}, {_origin(part.iloc[0], 'image_id')})"
            for name, part in rows.groupby("split", sort=True)
        )
        + (f", as do {counted(len(leaking) - 1, 'more subject')}" if len(leaking) > 1 else "")
        + ": put all images of a subject into one split."
    )
