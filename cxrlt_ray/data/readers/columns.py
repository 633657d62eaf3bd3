"""A table's columns -> ids, paths, ages and labels, with the row named where a cell is wrong.

Reading is table_file.py's (377,110 rows x 51 columns in about a second), views are views.py's, lost ids ids.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxrlt_ray.data.paths import read_tidily
from cxrlt_ray.data.readers.ids import lossy_problem, whole_ids
from cxrlt_ray.data.readers.views import views
from cxrlt_ray.data.table_file import MISSING, read_table_file, reason_of
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import cell, heads
from cxrlt_ray.storage import Store

__all__ = [
    "Labels", "Sheet", "ages", "and_more", "counted", "quoted", "read_sheet", "reason_of", "row_of", "sexes",
    "study_ids", "views", "whole_ids",
]  # fmt: skip

SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "development": "development",
}
MAX_AGE = 120  # NIH's table has ages up to 414
NO_LABEL, BAD_LABEL = -2, -3
UNCERTAIN = -1
UNCERTAIN_MEANS = {"null": NO_LABEL, "zero": 0, "one": 1}
WORDS = {"true": 1, "yes": 1, "y": 1, "false": 0, "no": 0, "n": 0}
LABEL_WORDS = WORDS | dict.fromkeys(map(str.lower, MISSING), NO_LABEL)


@dataclass(frozen=True)
class Sheet:
    """A table in memory. file: its name for messages. notes: what was read otherwise than as it stands."""

    file: str
    table: pa.Table
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Column names in file order."""
        return self.table.column_names

    def need(self, *names: str) -> None:
        """Raise CxrltError, naming them, for columns that are missing."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise CxrltError(f"{self.file} has no column {quoted(missing)}; it has {heads(self.columns)}.")

    def text(self, name: str) -> pd.Series:
        """A column as strings without blanks at the ends; empty cells and a missing column: ""."""
        if name not in self.columns:
            return pd.Series("", index=range(self.table.num_rows), dtype="str")
        return self.table[name].cast(pa.string()).to_pandas().astype("str").fillna("").str.strip()

    def filled(self, name: str, problems: list[str]) -> pd.Series:
        """`text`, with a problem noted for the first empty cell; NaN, NA, null and None are empty."""
        cells = self.text(name)
        empty = np.flatnonzero(cells.isin(MISSING))
        if len(empty):
            problems.append(f"{self.file}: column '{name}' is empty in {row_of(empty[0])}{and_more(len(empty) - 1)}.")
        return cells

    def ids(self, name: str, problems: list[str]) -> pd.Series:
        """`filled` of ids: whole numbers without a point, with a problem noted where they have lost digits."""
        cells = self.filled(name, problems)
        if problem := lossy_problem(self.file, name, cells):
            problems.append(problem)
        return whole_ids(cells)

    def paths(self, name: str, problems: list[str], notes: list[str]) -> pd.Series:
        r"""`filled` of paths, with / for \ and without // and ./ (see paths.py), of which a note tells."""
        return read_tidily(self.filled(name, problems), self.file, notes)

    def labels(self, name: str, allowed: tuple[int, ...] = (0, 1)) -> Labels:
        """A column of labels."""
        column = self.table[name]
        if pa.types.is_null(column.type):
            return Labels(np.full(len(column), NO_LABEL, np.int8), ())
        encoded = column.combine_chunks().dictionary_encode()
        values = encoded.dictionary.to_pylist()
        meanings = np.array([*(_meaning(value, allowed) for value in values), NO_LABEL], np.int8)
        indices = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
        return Labels(
            meanings[indices], tuple(values[indices[row]] for row in np.flatnonzero(meanings[indices] == BAD_LABEL)[:1])
        )

    def in_words(self, name: str) -> bool:
        """Whether a column of labels has words for some: yes, no, true, false."""
        column = self.table[name]
        words = pa.array(list(WORDS))
        return pa.types.is_string(column.type) and bool(pc.any(pc.is_in(pc.utf8_lower(column), words)).as_py())

    def findings(
        self, names: tuple[str, ...], problems: list[str], uncertain: str | None = None
    ) -> dict[str, pd.api.extensions.ExtensionArray]:
        """Columns of labels 1, 0 or empty as Int8, with a problem noted for each column that holds another value.

        uncertain: what -1 becomes; without it -1 is no label.
        """
        allowed, said = ((0, 1), "1, 0 or empty") if uncertain is None else ((0, 1, UNCERTAIN), "1, 0, -1 or empty")
        columns = {}
        for name in names:
            labels = self.labels(name, allowed)
            if labels.bad:
                problems.append(f"{self.file}: column '{name}', {labels.first_bad()}: a label is {said}.")
            columns[name] = labels.certain(uncertain or "null").nullable()
        return columns

    def chexpert_labels(self, name: str, uncertain: str, problems: list[str]) -> pd.api.extensions.ExtensionArray:
        """A column of CheXpert's labeller as Int8: 1, 0, -1 (as `uncertain` says), empty (not mentioned: 0)."""
        labels = self.labels(name, (0, 1, UNCERTAIN))
        if labels.bad:
            problems.append(f"{self.file}: column '{name}', {labels.first_bad()}: a label is 1, 0, -1 or empty.")
        mentioned = Labels(np.where(labels.codes == NO_LABEL, 0, labels.codes), ())
        return mentioned.certain(uncertain).nullable()


@dataclass(frozen=True)
class Labels:
    """codes: int8 [N], the value, or NO_LABEL, or BAD_LABEL. bad: the first value that is no label, if any."""

    codes: np.ndarray
    bad: tuple[Any, ...]

    @property
    def known(self) -> np.ndarray:
        """Where there is a label: bool [N]."""
        return self.codes > NO_LABEL

    def certain(self, uncertain: str) -> Labels:
        """With -1 as `uncertain` says: null, zero or one."""
        return Labels(np.where(self.codes == UNCERTAIN, UNCERTAIN_MEANS[uncertain], self.codes), self.bad)

    def first_bad(self) -> str:
        """'row 3 (line 4) holds 0.5', or that it holds text, which is not quoted: it may be a report's."""
        rows = np.flatnonzero(self.codes == BAD_LABEL)
        return f"{row_of(rows[0])} holds {cell(self.bad[0])}{and_more(len(rows) - 1)}"

    def nullable(self) -> pd.api.extensions.ExtensionArray:
        """As pandas Int8; cells without a label are null."""
        return pd.arrays.IntegerArray(np.where(self.known, self.codes, 0).astype(np.int8), ~self.known)


def read_sheet(
    folder: Store,
    name: str,
    text: tuple[str, ...] = (),
    only: tuple[str, ...] | None = None,
    known: tuple[str, ...] = (),
) -> Sheet:
    """A table in whatever file it is (see table_file.py). text: columns to keep as written.

    only: columns to read, where they exist. known: names of findings, which a column of another case takes, as those of
    `text` and `only` are. Raises CxrltError, naming the file, if it cannot be read or repeats a column.
    """
    file = read_table_file(folder, name, text, known, only)
    notes = (f"{name} is read with {', '.join(file.remarks)}.",) if file.remarks else ()
    return Sheet(name, file.table, notes)


def row_of(index: int) -> str:
    """A row for a message: the first is row 1, on line 2."""
    return f"row {index + 1} (line {index + 2})"


def and_more(count: int, noun: str = "more row") -> str:
    """' (and 3 more rows)' or nothing."""
    return f" (and {counted(count, noun)})" if count else ""


def counted(count: int, noun: str) -> str:
    """'1 image', '3,000 images'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def quoted(names: list[str] | tuple[str, ...]) -> str:
    """'a', 'b'."""
    return ", ".join(f"'{name}'" for name in names)


def sexes(cells: pd.Series) -> pd.Series:
    """M, F or null, from M, male, F, Female ..."""
    return cells.map({cell: _SEXES.get(cell.upper()) for cell in cells.unique()}).astype("str")


def ages(cells: pd.Series) -> pd.Series:
    """Years as float32, from 58, 58.0, 058Y, 013M, 020D; null where unknown or beyond MAX_AGE."""
    parts = cells.str.extract(r"^(\d+(?:\.\d+)?)\s*([YMWDymwd]?)$")
    per_year = parts[1].fillna("").str.upper().map({"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}).astype(float)
    years = pd.to_numeric(parts[0]).astype(float) / per_year
    return years.where(years <= MAX_AGE).astype("float32")


def study_ids(cells: pd.Series) -> pd.Series:
    """MIMIC's study ids with their leading s, whether it is written or not."""
    return "s" + whole_ids(cells).str.removeprefix("s")


_SEXES = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F"}


def _meaning(value: Any, allowed: tuple[int, ...]) -> int:
    if value is None or value != value:  # nan
        return NO_LABEL
    if isinstance(value, str) and (meaning := LABEL_WORDS.get(value.strip().lower())) is not None:
        return meaning
    try:
        number = float(value)
    except (TypeError, ValueError):
        return BAD_LABEL
    return int(number) if number in allowed else BAD_LABEL
