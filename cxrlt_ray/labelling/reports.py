"""Reports, wherever they are: MIMIC's tree of sNNN.txt, a table with a column of text, a manifest.

They are read in pieces of PIECE reports, so that memory stays flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PIECE = 1000  # reports that are read at a time


@dataclass(frozen=True)
class Report:
    """A study's report.

    study_id: as the input writes it. text: as it was written. cells: where `text` is joined of several columns of a
    table, the name of each and where its own text begins in `text` and ends.
    """

    study_id: str
    subject_id: str | None
    text: str
    cells: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class Reports:
    """Reports to read once. count: how many. id_column: what the ids are called. notes: what was read otherwise."""

    count: int
    id_column: str
    pieces: Iterator[list[Report]]
    notes: tuple[str, ...] = ()


def read_reports(path: str, id_column: str | None = None, text_columns: Sequence[str] | None = None) -> Reports:
    """The reports at `path`: a folder with MIMIC's tree, a text file, or a table.

    id_column: of a table, default study_id. text_columns: default text, report or findings and impression.
    Raises UsageError where there are none.
    """
    raise NotImplementedError
