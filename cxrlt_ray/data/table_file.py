"""A table in whatever file a person has it -> columns in memory, and what was read otherwise than as plain UTF-8 CSV.

CSV with comma, semicolon, tab or | (as the header has them; Excel's `sep=;` line counts), in UTF-8, UTF-16 or
cp1252, packed or not, a zip that holds one, .xlsx, .parquet: told by the content, not by the name. Parsing is
pyarrow's: 200,000 rows of 23 columns in plain UTF-8 take 0.5 s. What is beyond doubt is read and remarked on; the rest
is refused.

An empty cell is null in columns of numbers, "" in those of text; so are NaN, NA, null and None (MISSING), which
programs write for it.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from cxrlt_ray.data import workbook
from cxrlt_ray.data.column_names import renamed, tidy
from cxrlt_ray.data.encodings import UTF8, as_utf8
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import heads, private_detail, unzipped
from cxrlt_ray.storage import Store

MISSING = ("", "NaN", "nan", "NA", "N/A", "#N/A", "n/a", "<NA>", "null", "NULL", "None", "NONE")
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|"}
DECIMAL_COMMAS = (";", "\t")  # separators beside which a comma in a number can only be its decimal point
SEP_LINE = re.compile(rb'"?sep=(.)"?[^\S\r\n]*(\r\n|\n|\r)', re.IGNORECASE)
DECIMAL, THOUSANDS = r"^\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*$", r"^\s*[-+]?[1-9]\d{0,2}(,\d{3})+\s*$"
CUT_OFF = " A separator stands in a cell without quotes, or the file is cut off."
HEAD = 1 << 16  # bytes in which the header and some rows stand
SAMPLE = 20
OTHER_FILES = {
    b"<": "it is a page of HTML or XML, not a table (downloaded without signing in?)",
    b"version https://git-lfs": "it is a pointer of Git LFS, not the table itself: run git lfs pull",
    b"{": "it is JSON, not a table: save it as CSV",
    b"%PDF": "it is a PDF, not a table: save it as CSV",
    workbook.OLD_EXCEL: "it is an Excel file of before 2007 (.xls): save it as .xlsx or 'CSV UTF-8'",
}


@dataclass(frozen=True)
class TableFile:
    """table: its columns by tidy names. remarks: what was read otherwise than as it stands, a phrase each."""

    table: pa.Table
    remarks: tuple[str, ...]


def read_table_file(
    folder: Store, name: str, text: Sequence[str] = (), known: Iterable[str] = (), only: Sequence[str] | None = None
) -> TableFile:
    """The table in the file `name`.

    text: columns to keep as written. known: names that a column of another case or with other blanks takes.
    only: columns to read, where they exist. Raises CxrltError, naming the file, where it cannot be read, or repeats
    a column.
    """
    where = f"{folder.uri.rstrip('/')}/{name}"
    return parsed_table(folder.read(name), where, text, known, only)


def parsed_table(
    content: bytes, where: str, text: Sequence[str] = (), known: Iterable[str] = (), only: Sequence[str] | None = None
) -> TableFile:
    """As `read_table_file`, of a file's bytes. where: its name for messages."""
    names = [*text, *known, *(only or ())]
    remarks: list[str] = []
    try:
        content = _unpacked(content, remarks)
        if content.startswith(b"PAR1"):
            table = _named(pq.read_table(io.BytesIO(content)), where, names, remarks)
        else:
            table = _from_text(content, where, text, names, remarks)
    except (ValueError, RuntimeError, OSError, EOFError, pa.ArrowException, zipfile.BadZipFile) as error:
        reason = reason_of(error)
        hint = CUT_OFF if ": Expected " in reason else ""
        raise CxrltError(f"{where} cannot be read as a table: {reason}.{hint}") from None
    if only is not None:
        table = table.select([column for column in only if column in table.column_names])
    table = _without_blanks(table, remarks)
    return TableFile(table, tuple(remarks))


def header(folder: Store, name: str, known: Iterable[str] = ()) -> list[str]:
    """Column names of a table in a text file, from its first bytes only; [] where there is no such file.

    known: as of `read_table_file`.
    """
    if not folder.exists(name):
        return []
    filesystem, path = folder.opened(name)
    with filesystem.open_input_stream(path) as stream:
        head = stream.read(HEAD)
    if len(head) == HEAD and b"\0" not in head:  # it may end within a letter
        head = head[: head.rfind(b"\n") + 1] or head
    try:
        head, _ = as_utf8(head)
    except ValueError:  # in doubt: reading the table says so
        head = head.decode(UTF8, "replace").encode()
    rest, separator = _separator(head)
    return _final_names([tidy(cell) for cell in next(iter(_records(rest, separator)), [])], known)


def reason_of(error: Exception) -> str:
    """An error's message, without the row or the cell that pyarrow quotes."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    shortened = re.sub(r"(, got \d+): .*|(: invalid value).*", r"\1\2", reason)
    return shortened if shortened == reason else shortened + private_detail(reason)


def _unpacked(content: bytes, remarks: list[str]) -> bytes:
    """The bytes of the table itself: of gzip, of a zip's one table, of a workbook as CSV."""
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    if not content.startswith(b"PK"):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if not workbook.is_workbook(archive):
            return packed_table(archive)
    content, remark = workbook.as_csv(content)
    remarks += [remark] if remark else []
    return content


def packed_table(archive: zipfile.ZipFile) -> bytes:
    """The one CSV in a zip, in memory. Raises ValueError for another number of them, or for a bomb."""
    # macOS puts a shadow of each file beside it
    names = [name for name in archive.namelist() if name.lower().endswith(".csv") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise ValueError(f"the archive holds {len(names)} CSV files, not one")
    return unzipped(archive, names[0])


def _from_text(content: bytes, where: str, text: Sequence[str], names: list[str], remarks: list[str]) -> pa.Table:
    start = content[:HEAD].lstrip(b"\xef\xbb\xbf \t\r\n")
    for mark, reason in OTHER_FILES.items():
        if start.startswith(mark):
            raise ValueError(reason)
    data, encoding = as_utf8(content)
    if encoding != UTF8:
        remarks.append(f"encoding {encoding}")
    data, separator = _separator(data)
    if separator != ",":
        remarks.append(f"separator {SEPARATORS[separator]}")
    head = next(iter(_records(data[:HEAD], separator)), [])
    if not any(head):
        raise ValueError("it is empty" if not data.strip() else "it has no header")
    # columns are kept as written by the names that they have in the file
    final = _final_names([tidy(cell) for cell in head], names)
    kept = [cell for cell, name in zip(head, final, strict=True) if name in text]
    table = _parsed(data, separator, kept)
    if separator in DECIMAL_COMMAS:
        table = _with_decimal_points(table, kept, remarks)
    return _named(table, where, names, remarks)


def _separator(data: bytes) -> tuple[bytes, str]:
    """`data` from its header on, and what separates its cells: what parts its first rows into equally many."""
    data = data.lstrip(b"\r\n") if data[:1] in (b"\r", b"\n") else data
    if (line := SEP_LINE.match(data[:HEAD])) and line[1].decode() in SEPARATORS:
        return data[line.end() :], line[1].decode()

    def fitness(separator: str) -> tuple[bool, int]:
        widths = [len(record) for record in _records(data[:HEAD], separator)]
        return len(set(widths)) == 1 and widths[0] > 1, widths[0] if widths else 0

    return data, max(SEPARATORS, key=fitness)  # the first of equals, which is the comma


def _records(head: bytes, separator: str) -> list[list[str]]:
    """The cells of the first rows, whole ones only."""
    lines = io.StringIO(head.decode(UTF8, "replace"), newline="")
    records = []
    try:
        for record in csv.reader(lines, delimiter=separator):
            if record:
                records.append(record)
            if len(records) > SAMPLE:
                break
    except csv.Error:
        pass
    cut = len(head) >= HEAD and len(records) <= SAMPLE
    return records[:-1] if cut and len(records) > 1 else records[:SAMPLE]


def _parsed(data: bytes, separator: str, text: Sequence[str]) -> pa.Table:
    """The columns as pyarrow infers them; `text` as written. Raises ArrowInvalid with the row that does not fit."""
    options = arrow_csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), null_values=list(MISSING))
    # a quoted cell may hold line breaks: without quotes the blocks are parsed side by side
    parsing = arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=b'"' in data)

    def parsed(data: bytes, threads: bool) -> pa.Table:
        return arrow_csv.read_csv(pa.BufferReader(data), arrow_csv.ReadOptions(use_threads=threads), parsing, options)

    try:
        return parsed(data, threads=True)
    except pa.ArrowInvalid:
        if (evened := _without_empty_ends(data, separator)) is not None:
            return parsed(evened, threads=True)
        return parsed(data, threads=False)  # slower, and says in which row


def _without_empty_ends(data: bytes, separator: str) -> bytes | None:
    """Rows cut to the header's cells, where they have only empty ones beyond it, as Excel leaves them; else None."""
    width, rows = 0, []
    try:
        for row in csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator):
            width = width or len(row)
            if row and (len(row) < width or any(cell.strip() for cell in row[width:])):
                return None
            rows += [row[:width]] if row else []
    except (csv.Error, UnicodeDecodeError):
        return None
    evened = io.StringIO()
    csv.writer(evened, delimiter=separator, lineterminator="\n").writerows(rows)
    return evened.getvalue().encode()


def _with_decimal_points(table: pa.Table, text: Sequence[str], remarks: list[str]) -> pa.Table:
    """Columns of numbers with decimal commas as float64; one that may be of thousands instead is left as text."""
    changed = 0
    for k, name in enumerate(table.column_names):
        column = table[k]
        if name in text or not pa.types.is_string(column.type):
            continue
        cells = column.filter(pc.invert(pc.is_in(column, pa.array(MISSING))))
        commas = cells.filter(pc.match_substring(cells, ","))
        if not len(commas) or not _all(commas, DECIMAL) or _all(commas, THOUSANDS):
            continue
        points = pc.utf8_trim_whitespace(pc.replace_substring(column, ",", "."))
        points = pc.if_else(pc.is_in(points, pa.array(MISSING)), None, points)
        try:
            table = table.set_column(k, name, points.cast(pa.float64()))
        except pa.ArrowInvalid:
            continue  # other text beside the numbers
        changed += 1
    if changed:
        remarks.append(f"decimal commas in {changed} column{'' if changed == 1 else 's'}")
    return table


def _all(cells: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(cells, pattern)).as_py())


def _named(table: pa.Table, where: str, known: list[str], remarks: list[str]) -> pa.Table:
    """Columns by tidy names, booleans as 1 and 0. Raises CxrltError where two have one name."""
    names = [tidy(name) for name in table.column_names]
    final = _final_names(names, known)
    remarks += [
        f"{heads([name])} taken as '{new}'" for name, new in zip(names, final, strict=True) if name and name != new
    ]
    if twice := sorted({name for name in final if final.count(name) > 1}):
        raise CxrltError(f"{where} has column {heads(twice, 5)} twice: rename or remove one.")
    columns = [column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column for column in table.columns]
    return pa.table(columns, names=final)


def _final_names(names: list[str], known: Iterable[str]) -> list[str]:
    """Tidy names as they stand in `known`; a column without a name as pandas calls it."""
    to_known = renamed(names, known)
    return [to_known.get(name, name) or f"Unnamed: {k}" for k, name in enumerate(names)]


def _without_blanks(table: pa.Table, remarks: list[str]) -> pa.Table:
    """`table` without columns that have neither a name nor a cell, and rows without a cell."""
    blank = [name for name in table.column_names if name.startswith("Unnamed: ") and _is_blank(table[name]).all()]
    table = table.drop_columns(blank)
    empty = np.arange(table.num_rows)
    for column in table.columns:  # few rows are left after the first column, which has ids
        empty = empty[_is_blank(column.take(pa.array(empty)))]
        if not len(empty):
            break
    if blank:
        remarks.append(f"{len(blank)} column{'s' * (len(blank) > 1)} without a name or a cell left out")
    if len(empty) and table.num_columns:
        remarks.append(f"{len(empty):,} row{'s' * (len(empty) > 1)} without a cell left out, and not counted as rows")
        kept = np.ones(table.num_rows, bool)
        kept[empty] = False
        table = table.filter(pa.array(kept))
    return table


def _is_blank(column: pa.ChunkedArray) -> np.ndarray:
    """Which cells are null or nothing but blanks, bool [N]."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
        return column.to_numpy()
    return column.is_null(nan_is_null=True).to_numpy()
