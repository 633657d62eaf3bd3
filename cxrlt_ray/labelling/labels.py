"""The table of labels: a row a study, 1, 0, -1 (uncertain) or empty (not mentioned) a finding, as CheXpert writes them.

Beside it evidence.parquet: what in a report a label stands on, a row a mention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from cxrlt_ray.data.column_names import is_no_finding
from cxrlt_ray.data.table_file import TableFile, read_table_file
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.rules import UNCERTAIN
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

STUDY, SUBJECT, SOURCE = "study_id", "subject_id", "source"
EVIDENCE = "evidence.parquet"  # beside the labels
TO_LABEL = {"one": 1, "zero": 0, "null": None}
# of a report, what was read: column SOURCE
SECTIONS, LAST, ALL, NOTHING, FOREIGN = "sections", "last paragraph", "all", "none", "other language"


@dataclass(frozen=True)
class Evidence:
    """A mention. begin, end: characters in the original text (of `column`, where the text is of a table's columns)."""

    study_id: str
    finding: str
    value: int
    column: str
    section: str
    sentence: int
    begin: int
    end: int
    phrase: str
    trigger: str


@dataclass(frozen=True)
class StudyLabels:
    """A study's labels by finding; a finding that is not mentioned is not there. source: what was read."""

    study_id: str
    subject_id: str | None
    labels: dict[str, int]
    evidence: tuple[Evidence, ...]
    source: str


@dataclass(frozen=True)
class LabelTable:
    """table: Int8 by study id (text), a column a finding, null where not mentioned. subjects: by study, if known."""

    table: pd.DataFrame
    subjects: pd.Series | None
    id_column: str
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[str, ...]:
        """The names of the findings."""
        return tuple(self.table.columns)


def evidence_schema() -> pa.Schema:
    """Of evidence.parquet."""
    import pyarrow as pa

    kinds = {"value": pa.int8(), "sentence": pa.int32(), "begin": pa.int32(), "end": pa.int32()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in Evidence.__dataclass_fields__])


def label_schema(id_column: str, findings: Sequence[str]) -> pa.Schema:
    """Of labels on their way to the file."""
    import pyarrow as pa

    ids = [(id_column, pa.string()), (SUBJECT, pa.string())]
    return pa.schema([*ids, *((name, pa.int8()) for name in findings), (SOURCE, pa.string())])


def as_tables(
    studies: Sequence[StudyLabels], id_column: str, findings: Sequence[str], policies: Mapping[str, str]
) -> tuple[pa.Table, pa.Table]:
    """Labels under the findings' policies for uncertain, and their evidence, as Arrow tables."""
    import pyarrow as pa

    columns: dict[str, list[object]] = {id_column: [s.study_id for s in studies]}
    columns[SUBJECT] = [s.subject_id for s in studies]
    columns |= {name: [settled(s.labels.get(name), policies[name]) for s in studies] for name in findings}
    columns[SOURCE] = [s.source for s in studies]
    labels = pa.table(list(columns.values()), schema=label_schema(id_column, findings))
    rows = [piece for s in studies for piece in s.evidence]
    schema = evidence_schema()
    evidence = pa.table([[getattr(row, name) for row in rows] for name in schema.names], schema=schema)
    return labels, evidence


@contextmanager
def written(path: str, id_column: str, findings: Sequence[str]) -> Iterator[Callable[[pa.Table, pa.Table], None]]:
    """A function that writes labels and evidence, piece by piece, to the table `path` and EVIDENCE beside it.

    Both are whole when the block ends well, or not there. Raises CxrltError where they cannot be written.
    """
    import pyarrow.parquet as pq
    from pyarrow import csv

    store, name = Store.holding(path)
    options = csv.WriteOptions(quoting_style="needed")
    with store.place(name) as labels_path, store.place(EVIDENCE) as evidence_path, ExitStack() as files:
        labels_file = files.enter_context(
            csv.CSVWriter(labels_path, label_schema(id_column, findings), write_options=options)
        )
        evidence_file = files.enter_context(pq.ParquetWriter(evidence_path, evidence_schema()))

        def write(labels: pa.Table, evidence: pa.Table) -> None:
            labels_file.write(labels)
            evidence_file.write_table(evidence)

        yield write


def settled(value: int | None, policy: str) -> int | None:
    """A label under a policy for uncertain: keep, one, zero or null.

    >>> settled(-1, "one"), settled(-1, "null"), settled(0, "one"), settled(-1, "keep")
    (1, None, 0, -1)
    """
    return TO_LABEL[policy] if value == UNCERTAIN and policy != "keep" else value


def read_labels(path: str, id_column: str | None = None, findings: Sequence[str] | None = None) -> LabelTable:
    """A table of labels, of ours or any that has an id a study and columns of 1, 0, -1 or empty.

    id_column: default study_id, else the first column. findings: those to read (default: all but those of ids).
    Raises UsageError for a missing column, CxrltError where a study stands twice or a cell is no label.
    """
    store, name = Store.holding(path)
    file = read_table_file(store, name, text=tuple(c for c in (STUDY, SUBJECT, id_column) if c), known=findings or ())
    columns = file.table.column_names
    return labels_in(file, path, id_column or (STUDY if STUDY in columns else columns[0]), findings)


def labels_in(file: TableFile, path: str, key: str, findings: Sequence[str] | None = None) -> LabelTable:
    """As `read_labels`, of a table that is read. key: the column of the studies' ids, which was read as text."""
    columns = file.table.column_names
    if missing := [c for c in (key, *(findings or ())) if c not in columns]:
        raise UsageError(f"{path} has no column '{missing[0]}'.")
    frame = file.table.to_pandas()
    frame.index = pd.Index(frame.pop(key).astype("str"), name=key)
    if frame.index.has_duplicates:
        raise CxrltError(f"{path}: {frame.index.duplicated().sum():,} rows repeat a study: keep one row a study.")
    subjects = frame[SUBJECT].astype("str") if SUBJECT in frame else None
    names = list(findings) if findings is not None else [c for c in frame if not is_no_finding(c)]
    return LabelTable(_labels(frame[names], path), subjects, key, file.remarks)


def _labels(frame: pd.DataFrame, path: str) -> pd.DataFrame:
    for name in frame:
        cells = pd.to_numeric(frame[name], errors="coerce")
        wrong = (frame[name].notna() & (frame[name].astype("str") != "") & cells.isna()) | ~cells.isin([1, 0, -1]) & (
            cells.notna()
        )
        if wrong.any():
            raise CxrltError(f"{path}: column '{name}' holds {wrong.sum():,} cells that are none of 1, 0, -1 or empty.")
        frame = frame.assign(**{name: cells.astype("Int8")})
    return frame
