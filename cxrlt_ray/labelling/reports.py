"""Reports, wherever they are: MIMIC's tree of sNNN.txt, a table with a column of text, a manifest.

They come in pieces of PIECE studies, which `Reports.read` turns into text: of a tree a piece holds paths, so that the
files may be read elsewhere and memory stays flat; a Parquet file is read as it is needed, any other table at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from cxrlt_ray.data.encodings import as_text
from cxrlt_ray.data.readers.ids import lossy_problem, whole_ids
from cxrlt_ray.data.table_file import read_table_file
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.labels import STUDY, SUBJECT
from cxrlt_ray.privacy import below, heads, private_detail, unfit
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 1000
TEXTS = (("text",), ("report",), ("report_text",), ("Report",), ("findings", "impression"), ("impression",))
MIMIC_NAME = re.compile(r"s\d+")
MIMIC_SUBJECT = re.compile(r"p(\d{3,})")


@dataclass(frozen=True)
class Report:
    """A study's report.

    study_id: as the input writes it. text: as it was written; "" where it could not be read. cells: where `text` is
    joined of several columns of a table, the name of each and where its own text begins in `text` and ends.
    """

    study_id: str
    subject_id: str | None
    text: str
    cells: tuple[tuple[str, int, int], ...] = ()

    def cell_at(self, place: int) -> tuple[str, int]:
        """The column whose text holds the character `place` of `text`, and where that text begins; ("", 0) of none."""
        return next(((name, begin) for name, begin, end in self.cells if begin <= place < end), ("", 0))


@dataclass(frozen=True)
class File:
    """A report that is still to be read from a file below the root."""

    study_id: str
    subject_id: str | None
    path: str


Piece = Sequence[Report | File]


@dataclass
class Reports:
    """Reports to read once.

    count: rows or files. id_column: what the studies' ids are called. pieces: to be given to `read`, here or in another
    process. notes: what was read otherwise than it stands; complete after the last piece.
    """

    count: int
    id_column: str
    pieces: Iterator[Piece]
    root: Store
    notes: list[str] = field(default_factory=list)

    def read(self, piece: Piece) -> list[Report]:
        """The texts of a piece; a file that is no text is an empty report."""
        return [part if isinstance(part, Report) else _opened(self.root, part) for part in piece]

    def of(self, studies: Collection[str]) -> Iterator[Report]:
        """The reports of some studies; files of others are not read."""
        for piece in self.pieces:
            yield from self.read([part for part in piece if part.study_id in studies])

    def opener(self) -> Reports:
        """What reads their pieces in another process."""
        return Reports(self.count, self.id_column, iter(()), self.root)

    def __iter__(self) -> Iterator[Report]:
        """Every report."""
        for piece in self.pieces:
            yield from self.read(piece)


def read_reports(path: str, id_column: str | None = None, text_columns: Sequence[str] | None = None) -> Reports:
    """The reports at `path`: a folder with MIMIC's tree, a text file, or a table.

    id_column: of a table, default study_id. text_columns: default the first of TEXTS that are there.
    Raises UsageError where there are none, CxrltError where a study has two different reports.
    """
    store = Store(path)
    if store.local is not None and store.local.is_dir():
        return _tree(store)
    store, name = Store.holding(path)
    if not store.exists(name):
        if "://" in path and Store(path).list():
            return _tree(Store(path))
        raise UsageError(
            f"no reports at {path}: give a folder with MIMIC's sNNN.txt files, or a table with their text."
        )
    if name.lower().endswith(".txt") and not _is_table(store, name):
        return Reports(1, STUDY, iter([[File(name[:-4], None, name)]]), store)
    return _table(store, name, id_column, text_columns)


def _pieces(reports: Iterable[Report | File]) -> Iterator[Piece]:
    rest = iter(reports)
    while piece := list(islice(rest, PIECE)):
        yield piece


def _row(index: int) -> str:
    """A row for a message; not its line, as a cell's text may have several."""
    return f"row {index + 1}"


def _tree(root: Store) -> Reports:
    """Every sNNN.txt below a folder, by name; without one, every .txt."""
    from pyarrow.fs import FileSelector, FileType

    filesystem, base = root.opened("")
    listed = filesystem.get_file_info(FileSelector(base, recursive=True))
    paths = sorted(
        info.path[len(base) :].strip("/")
        for info in listed
        if info.type == FileType.File and info.path.lower().endswith(".txt")
    )
    named = [path for path in paths if MIMIC_NAME.fullmatch(PurePosixPath(path).stem)]
    if not paths:
        raise UsageError(f"{root.uri} holds no .txt file: give a folder with MIMIC's sNNN.txt files, or a table.")
    files = [_file(path) for path in named or paths]
    notes: list[str] = []
    if named and len(named) < len(paths):
        notes.append(
            f"{len(paths) - len(named):,} other .txt files are not named as MIMIC's reports (sNNN.txt): left out."
        )
    kept = _without_repeated_files(root, files, notes)
    return Reports(len(kept), STUDY, _pieces(kept), root, notes)


def _file(path: str) -> File:
    parts = PurePosixPath(path)
    subject = MIMIC_SUBJECT.fullmatch(parts.parent.name)
    return File(parts.stem, subject[1] if subject else None, path)


def _without_repeated_files(root: Store, files: list[File], notes: list[str]) -> list[File]:
    first: dict[str, File] = {}
    for file in files:
        known = first.setdefault(file.study_id, file)
        if known is not file and root.read(known.path) != root.read(file.path):
            raise CxrltError(
                f"{root.uri}: two files of one name hold different reports"
                f"{private_detail(f'{known.path}, {file.path}')}: keep one report a study, or rename one."
            )
    if len(first) < len(files):
        notes.append(f"{len(files) - len(first):,} files repeat a report word for word: read once.")
    return list(first.values())


def _opened(root: Store, file: File) -> Report:
    """The report in a file; empty where it is no text, or a link leads out of the root."""
    try:
        if root.local is not None:
            below(str(root.local), file.path)
        text = _in_lines(as_text(root.read(file.path)))
    except ValueError:
        text = ""
    return Report(file.study_id, file.subject_id, text)


def _in_lines(text: str) -> str:
    """A text whose lines end in carriage returns alone, as of old Macs, with line feeds instead: places stay."""
    return text.replace("\r", "\n") if "\r" in text and "\n" not in text else text


def _is_table(store: Store, name: str) -> bool:
    """Whether a .txt is a table: its first line names a column of text."""
    first = store.read(name)[:2000].splitlines()[:1]
    return bool(first) and any(names[0].encode() in re.split(rb"[,;\t|]", first[0]) for names in TEXTS)


def _table(store: Store, name: str, id_column: str | None, text_columns: Sequence[str] | None) -> Reports:
    notes: list[str] = []
    known = {STUDY, SUBJECT, *(column for names in TEXTS for column in names)}
    if name.lower().endswith((".parquet", ".pq")):
        count, root, columns, tables = _parquet(store, name)
    else:
        as_written = [column for column in (id_column or STUDY, SUBJECT, *(text_columns or ())) if column]
        as_written += [column for names in TEXTS for column in names]
        read = read_table_file(store, name, text=as_written, known=known)
        notes += [f"{name} is read with {', '.join(read.remarks)}."] if read.remarks else []
        count, root, columns, tables = read.table.num_rows, store, read.table.column_names, iter([read.table])
    key = id_column or STUDY
    texts = tuple(text_columns) if text_columns else next((t for t in TEXTS if set(t) <= set(columns)), None)
    if missing := [column for column in (key, *(texts or ("text",))) if column not in columns]:
        option = "--id-column" if missing[0] == key else "--text-column"
        raise UsageError(f"{name} has no column '{missing[0]}' ({option} names another): it has {heads(columns)}.")
    assert texts is not None
    reports = _checked(_rows(tables, name, key, texts), name, key, notes)
    return Reports(count, key, _pieces(reports), root, notes)


def _parquet(store: Store, name: str) -> tuple[int, Store, list[str], Iterator[pa.Table]]:
    """Rows, the root of a manifest's paths, columns and the table in parts, which are read as they are needed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem, path = store.opened(name)
    try:
        file = pq.ParquetFile(filesystem.open_input_file(path))
    except (pa.ArrowException, OSError) as error:
        raise CxrltError(
            f"{store.uri}/{name} cannot be read as Parquet: {' '.join(str(error).split())[:200]}."
        ) from None
    metadata = json.loads((file.schema_arrow.metadata or {}).get(b"cxrlt_ray", b"{}"))
    tables = (pa.Table.from_batches([batch]) for batch in file.iter_batches(10 * PIECE))
    root = Store(metadata["root"]) if isinstance(metadata.get("root"), str) else store
    return file.metadata.num_rows, root, file.schema_arrow.names, tables


def _rows(
    tables: Iterable[pa.Table], name: str, key: str, texts: tuple[str, ...]
) -> Iterator[tuple[int, Report | File]]:
    """(row, report) of each row of a table in parts."""
    done = 0
    for table in tables:
        ids = whole_ids(table[key].to_pandas().astype("str").fillna(""))
        if problem := lossy_problem(name, key, ids):
            raise UsageError(problem)
        subjects = None
        if SUBJECT in table.column_names:
            subjects = whole_ids(table[SUBJECT].to_pandas().astype("str").fillna(""))
            if problem := lossy_problem(name, SUBJECT, subjects):
                raise UsageError(problem)
        columns = [table[column].to_pylist() for column in texts]
        for k, study in enumerate(ids):
            subject = (subjects.iloc[k] or None) if subjects is not None else None
            cells = [_in_lines(str(column[k] or "")) for column in columns]
            yield done + k, _of_cells(name, study, subject, texts, cells)
        done += table.num_rows


def _of_cells(name: str, study: str, subject: str | None, columns: tuple[str, ...], cells: list[str]) -> Report | File:
    if len(columns) == 1:
        cell = cells[0]
        if len(cell) < 300 and cell.lower().endswith(".txt") and not re.search(r"\s", cell):
            return File(study, subject, cell)
        if re.fullmatch(r"\S+\.(csv|gz)#\d+", cell):
            raise UsageError(f"{name}: its reports stand in rows of another table: label that table.")
        return Report(study, subject, cell)
    text, places = "", []
    for column, cell in zip(columns, cells, strict=True):
        if cell.strip():
            text += ("\n\n" if text else "") + f"{column.upper()}:\n"
            places.append((column, len(text), len(text) + len(cell)))
            text += cell
    return Report(study, subject, text, tuple(places))


def _checked(
    rows: Iterable[tuple[int, Report | File]], name: str, key: str, notes: list[str]
) -> Iterator[Report | File]:
    """The reports, each once. Raises where a study has no id, one that runs as a formula, or two different reports."""
    seen: dict[str, tuple[int, bytes]] = {}
    repeated = without_subject = 0
    for row, report in rows:
        if not report.study_id.strip():
            raise UsageError(f"{name}: {_row(row)} has no {key}: give every report the id of its study.")
        if unfit(report.study_id) or unfit(report.subject_id or ""):
            raise UsageError(f"{name}: {_row(row)} has an id that a spreadsheet would take for a formula: rename it.")
        content = report.path if isinstance(report, File) else report.text
        digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        first, known = seen.setdefault(report.study_id, (row, digest))
        if first != row:
            if known != digest:
                raise CxrltError(
                    f"{name}: {_row(first)} and {_row(row)} are of one study and hold different reports"
                    f"{private_detail(report.study_id)}: join their texts, or name another column by --id-column."
                )
            repeated += 1
            continue
        without_subject += report.subject_id is None
        yield report
    if repeated:
        notes.append(f"{name}: {repeated:,} rows repeat a study's report word for word: read once.")
    if 0 < without_subject < len(seen):
        notes.append(f"{name}: {without_subject:,} studies have no {SUBJECT}: it is left empty.")
