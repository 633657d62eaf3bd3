"""Groups of patients and images by which scores are compared: sex, age band, race, view, cohort, or a table's columns.

What the readers know stands in the manifest. A table of one's own, by image, study or subject, adds columns (hospital,
scanner, insurance), or knows better than the manifest: its column of the same name counts. An empty cell is UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cxrlt_ray.data.age_bands import UNKNOWN, age_bands
from cxrlt_ray.data.given_labels import rows_of_studies
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.readers.columns import Sheet, ages, quoted, read_sheet, row_of, sexes, whole_ids
from cxrlt_ray.data.table_file import MISSING
from cxrlt_ray.errors import UsageError
from cxrlt_ray.privacy import heads, inert
from cxrlt_ray.storage import Store

OWN = ("sex", "age", "race", "view", "cohort")  # of the manifest
KEYS = ("image_id", "dicom_id", "study_id", "subject_id")
MOST_VALUES = 30  # more are no groups, but ids, dates or measurements
RACES = ("WHITE", "BLACK", "HISPANIC", "ASIAN", "AMERICAN INDIAN", "NATIVE HAWAIIAN")


def races(cells: pd.Series) -> pd.Series:
    """MIMIC's and others' races by their first word: 'WHITE - RUSSIAN' is WHITE; what is none of RACES stays.

    >>> races(pd.Series(["WHITE - RUSSIAN", "Black/African American", "OTHER"])).tolist()
    ['WHITE', 'BLACK', 'OTHER']
    """
    upper = cells.astype("str").str.upper()
    family = {cell: next((race for race in RACES if cell.startswith(race)), cell) for cell in upper.unique()}
    return upper.map(family)


def group_columns(images: Manifest, by: Sequence[str], table: str | None = None) -> dict[str, np.ndarray]:
    """The group of each of the images, str [N], under each name of `by`.

    table: a path or URI of a table with a column of KEYS and columns of groups. Raises UsageError for a name that is
    neither of OWN nor a column of the table, for a table without a key or with rows that contradict each other, and
    for a column with more than MOST_VALUES values.
    """
    sheet = None if table is None else _sheet(table)
    given = [] if sheet is None else [name for name in sheet.columns if name not in KEYS]
    if unknown := [name for name in by if name not in OWN and name not in given]:
        known = quoted(OWN) + (f" or of {sheet.file}: {heads(given)}" if sheet else "; --groups TABLE adds others")
        raise UsageError(f"--by {unknown[0]} is none of the columns {known}.")
    rows = None if sheet is None else _rows(sheet, images)
    columns = {}
    for name in by:
        cells = _of_table(sheet, name, rows) if sheet and rows is not None and name in given else _own(images, name)
        columns[name] = _groups(name, cells).to_numpy(object)
    return columns


def _own(images: Manifest, name: str) -> pd.Series:
    cells = images.cohorts if name == "cohort" else images.table[name]
    return cells.astype("str").where(cells.notna() & (cells.astype("str") != "UNKNOWN"), "")


def _groups(name: str, cells: pd.Series) -> pd.Series:
    """Cells as text, "" where null, as groups."""
    if name == "age" and (years := ages(cells.str.strip())).notna().any():
        return age_bands(years)
    if name == "sex" and (known := sexes(cells)).notna().any():
        return known.astype("object").where(known.notna(), UNKNOWN)
    empty = cells.isin(MISSING)
    plain = races(cells) if name == "race" else cells
    names = {cell: " ".join(inert(cell).split()) for cell in plain[~empty].unique()}
    if len(names) > MOST_VALUES:
        raise UsageError(
            f"--by {name} has {len(names):,} values, and groups are at most {MOST_VALUES}: give a column of bands or "
            "kinds with --groups TABLE."
        )
    return plain.map(names).where(~empty, UNKNOWN)


def _sheet(table: str) -> Sheet:
    store, name = Store.holding(table)
    sheet = read_sheet(store, name, text=KEYS, known=OWN)
    if not set(KEYS) & set(sheet.columns):
        raise UsageError(f"--groups {name} needs a column {', '.join(KEYS[:-1])} or {KEYS[-1]}.")
    return sheet


def _rows(sheet: Sheet, images: Manifest) -> np.ndarray:
    """The row of the table for each image [N], -1 where it has none."""
    key = next(name for name in KEYS if name in sheet.columns)
    ids = whole_ids(sheet.text(key))
    known = pd.Index(ids)
    if (again := ids.duplicated(keep=False)).any():
        _check_same(sheet, key, ids, again)
        known = pd.Index(ids.where(~ids.duplicated(), [f"\0{k}" for k in range(len(ids))]))
    if key == "study_id":
        rows = rows_of_studies(known, images.table["study_id"].fillna(""))
    else:
        column = "image_id" if key == "dicom_id" else key
        rows = known.get_indexer(pd.Index(images.table[column].astype("str")))
    if not (rows >= 0).any():
        raise UsageError(f"--groups {sheet.file} has none of the images by its {key}: is it of another cohort?")
    return rows


def _check_same(sheet: Sheet, key: str, ids: pd.Series, again: pd.Series) -> None:
    """Raise UsageError where rows of one id differ in a column that holds groups."""
    for name in (name for name in sheet.columns if name not in KEYS):
        values = sheet.text(name)[again]
        first = values.groupby(ids[again]).transform("first")
        if (differs := values != first).any():
            raise UsageError(
                f"--groups {sheet.file}: {row_of(int(differs.idxmax()))} contradicts an earlier row of the same {key} "
                f"in column {heads([name])}: give one row for each, or a table by image_id."
            )


def _of_table(sheet: Sheet, name: str, rows: np.ndarray) -> pd.Series:
    cells = sheet.text(name).to_numpy(object)
    return pd.Series(np.where(rows >= 0, cells[np.maximum(rows, 0)], ""), dtype="str")
