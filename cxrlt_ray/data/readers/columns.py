"""CSV columns -> ids, views, ages and labels, with the row named where a cell is wrong.

Parsing is pyarrow's (377,110 rows x 51 columns in about a second). Only the empty cell is missing:
"NaN" is a value, so that a label column with it differs from one that is not filled in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv, fs

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import cell, heads, private_detail
from cxrlt_ray.storage import Store

VIEW_NAMES = {
    "PA": "PA",
    "POSTERO-ANTERIOR": "PA",
    "POSTEROANTERIOR": "PA",
    "AP": "AP",
    "ANTERO-POSTERIOR": "AP",
    "ANTEROPOSTERIOR": "AP",
    "LATERAL": "LATERAL",
    "L": "LATERAL",
    "LEFT LATERAL": "LATERAL",
    "LL": "LATERAL",
    "RL": "LATERAL",
    "XTABLE LATERAL": "LATERAL",
    "": "UNKNOWN",
    "UNKNOWN": "UNKNOWN",
}
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


@dataclass(frozen=True)
class Sheet:
    """A CSV file in memory. file: its name for messages."""

    file: str
    table: pa.Table

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
        """`text`, with a problem noted for the first empty cell."""
        cells = self.text(name)
        empty = np.flatnonzero(cells == "")
        if len(empty):
            problems.append(f"{self.file}: column '{name}' is empty in {row_of(empty[0])}{and_more(len(empty) - 1)}.")
        return cells

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

    def findings(self, names: tuple[str, ...], problems: list[str]) -> dict[str, pd.api.extensions.ExtensionArray]:
        """Columns of labels 0, 1 or empty as Int8, with a problem noted for each column that holds another value."""
        columns = {}
        for name in names:
            labels = self.labels(name)
            if labels.bad:
                problems.append(f"{self.file}: column '{name}', {labels.first_bad()}: a label is 1, 0 or empty.")
            columns[name] = labels.nullable()
        return columns

    def chexpert_labels(self, name: str, uncertain: str, problems: list[str]) -> pd.api.extensions.ExtensionArray:
        """A column of CheXpert's labeller as Int8: 1, 0, -1 (as `uncertain` says), empty (not mentioned: 0)."""
        labels = self.labels(name, (0, 1, UNCERTAIN))
        if labels.bad:
            problems.append(f"{self.file}: column '{name}', {labels.first_bad()}: a label is 1, 0, -1 or empty.")
        codes = np.where(labels.codes == NO_LABEL, 0, labels.codes)
        return Labels(np.where(codes == UNCERTAIN, UNCERTAIN_MEANS[uncertain], codes), ()).nullable()


@dataclass(frozen=True)
class Labels:
    """codes: int8 [N], the value, or NO_LABEL, or BAD_LABEL. bad: the first value that is no label, if any."""

    codes: np.ndarray
    bad: tuple[Any, ...]

    @property
    def known(self) -> np.ndarray:
        """Where there is a label: bool [N]."""
        return self.codes > NO_LABEL

    def first_bad(self) -> str:
        """'row 3 (line 4) holds 0.5', or that it holds text, which is not quoted: it may be a report's."""
        rows = np.flatnonzero(self.codes == BAD_LABEL)
        return f"{row_of(rows[0])} holds {cell(self.bad[0])}{and_more(len(rows) - 1)}"

    def nullable(self) -> pd.api.extensions.ExtensionArray:
        """As pandas Int8; cells without a label are null."""
        return pd.arrays.IntegerArray(np.where(self.known, self.codes, 0).astype(np.int8), ~self.known)


def read_sheet(
    folder: Store, name: str, text: tuple[str, ...] = (), only: tuple[str, ...] | None = None, multiline: bool = False
) -> Sheet:
    """A CSV file (.gz is unpacked). text: columns to keep as written. only: columns to read, where they exist.

    multiline: a quoted cell may hold line breaks.
    Raises CxrltError, naming the file, if it cannot be read or repeats a column.
    """
    options = csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), null_values=[""])
    parsing = csv.ParseOptions(newlines_in_values=multiline)

    def parsed(threads: bool) -> pa.Table:
        filesystem, root = fs.FileSystem.from_uri(folder.uri)
        with filesystem.open_input_stream(f"{root}/{name}") as stream:
            return csv.read_csv(stream, csv.ReadOptions(use_threads=threads), parsing, options)

    try:
        try:
            table = parsed(threads=True)
        except pa.ArrowInvalid:
            table = parsed(threads=False)  # slower, and says in which row
    except (OSError, pa.ArrowException) as error:
        raise CxrltError(f"{folder.uri}/{name} cannot be read as CSV: {reason_of(error)}.") from None
    table = table.rename_columns([column.strip() for column in table.column_names])
    twice = sorted({column for column in table.column_names if table.column_names.count(column) > 1})
    if twice:
        raise CxrltError(f"{folder.uri}/{name} has column {quoted(twice)} twice: rename or remove one.")
    if only is not None:
        table = table.select([column for column in only if column in table.column_names])
    return Sheet(name, table)


def reason_of(error: Exception) -> str:
    """Pyarrow's message, without the row or the cell that it quotes."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    shortened = re.sub(r"(, got \d+): .*|(: invalid value).*", r"\1\2", reason)
    return shortened if shortened == reason else shortened + private_detail(reason)


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


def views(*cells: pd.Series) -> pd.Series:
    """PA, AP, LATERAL, OTHER or UNKNOWN, from the first of several columns of text that is not empty or unknown."""
    view = pd.Series("UNKNOWN", index=cells[0].index, dtype="str")
    for column in reversed(cells):
        meaning = {cell: VIEW_NAMES.get(cell.strip().upper(), "OTHER") for cell in column.unique()}
        meanings = column.map(meaning)
        view = meanings.where(meanings != "UNKNOWN", view)
    return view.astype("str")


def sexes(cells: pd.Series) -> pd.Series:
    """M, F or null, from M, male, F, Female ..."""
    return cells.map({cell: _SEXES.get(cell.upper()) for cell in cells.unique()}).astype("str")


def ages(cells: pd.Series) -> pd.Series:
    """Years as float32, from 58, 58.0, 058Y, 013M, 020D; null where unknown or beyond MAX_AGE."""
    parts = cells.str.extract(r"^(\d+(?:\.\d+)?)\s*([YMWDymwd]?)$")
    per_year = parts[1].fillna("").str.upper().map({"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}).astype(float)
    years = pd.to_numeric(parts[0]).astype(float) / per_year
    return years.where(years <= MAX_AGE).astype("float32")


def whole_ids(cells: pd.Series) -> pd.Series:
    """Ids without the '.0' that a column of numbers with gaps gets when it is written."""
    return cells.str.removesuffix(".0")


def study_ids(cells: pd.Series) -> pd.Series:
    """MIMIC's study ids with their leading s, whether it is written or not."""
    return "s" + whole_ids(cells).str.removeprefix("s")


_SEXES = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F"}


def _meaning(value: Any, allowed: tuple[int, ...]) -> int:
    if value is None or (isinstance(value, str) and not value.strip()):
        return NO_LABEL
    try:
        number = float(value)
    except (TypeError, ValueError):
        return BAD_LABEL
    return int(number) if number in allowed else BAD_LABEL
