"""Tables of labels brought to the same studies and findings, and how uncertain and blank cells count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from cxrlt_ray.data.column_names import is_no_finding
from cxrlt_ray.data.readers.columns import Sheet, counted
from cxrlt_ray.data.readers.ids import whole_ids
from cxrlt_ray.data.table_file import TableFile, read_table_file
from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.labels import STUDY, SUBJECT, LabelTable, labels_in
from cxrlt_ray.privacy import heads
from cxrlt_ray.storage import Store

WEIGHT = "inclusion_probability"  # a column of a hand-labelled sample: the chance that a study had to be in it
ID_COLUMNS = (STUDY, "report_id")
MEANS = {"null": -1, "zero": 0, "one": 1}


@dataclass(frozen=True)
class Treatment:
    """What uncertain (-1) and blank cells count as: zero, one or null (left out); of the labellers and of the gold."""

    uncertain: str = "zero"
    blank: str = "zero"
    gold_uncertain: str = "null"
    gold_blank: str = "null"

    def of_labeller(self, table: pd.DataFrame) -> np.ndarray:
        """A labeller's labels as int8 [N, C]: 1, 0 or -1 (left out)."""
        return as_codes(table, self.uncertain, self.blank)

    def of_gold(self, table: pd.DataFrame) -> np.ndarray:
        """The reference's labels as int8 [N, C]: 1, 0 or -1 (left out)."""
        return as_codes(table, self.gold_uncertain, self.gold_blank)

    @property
    def lines(self) -> list[str]:
        """What was done, for a person to read."""
        said = {"null": "is left out", "zero": "counts as 0", "one": "counts as 1"}
        return [
            f"Labellers: uncertain (-1) {said[self.uncertain]}, blank {said[self.blank]}.",
            f"Gold: uncertain (-1) {said[self.gold_uncertain]}, blank {said[self.gold_blank]}.",
        ]


@dataclass(frozen=True)
class Matched:
    """Labels of the same N studies and C findings.

    gold, tables: Int8 by study id, as read. subjects: [N], the studies themselves where no table has_subjects.
    weights: [N], where the gold is a weighted sample. notes: what was left out or read otherwise.
    """

    gold: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    subjects: np.ndarray
    has_subjects: bool
    weights: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings that all tables label."""
        return tuple(self.gold.columns)


def as_codes(table: pd.DataFrame, uncertain: str, blank: str) -> np.ndarray:
    """Labels 1, 0, -1 or null -> int8 [N, C], 1, 0 or -1 (left out).

    >>> as_codes(pd.DataFrame({"Mass": pd.array([1, -1, None], "Int8")}), "one", "null").ravel().tolist()
    [1, 1, -1]
    """
    empty = table.isna().to_numpy()
    values = table.fillna(0).to_numpy(np.int8)
    return np.where(empty, MEANS[blank], np.where(values == -1, MEANS[uncertain], values)).astype(np.int8)


def match(
    gold_path: str, paths: Sequence[str], findings: Sequence[str] | None = None, id_column: str | None = None,
    where: str | None = None,
) -> Matched:  # fmt: skip
    """The gold and the labels of `paths`, of the studies and findings that they share. The gold may be one of them.

    findings: those to compare; all that are shared without it. where: COLUMN=VALUE, the gold's rows to take.
    Raises UsageError where they share no study or no finding, or an asked finding is missing in one of them.
    """
    notes: list[str] = []
    names = named(paths)
    files = {path: _file(path, id_column) for path in (gold_path, *paths)}
    shared = shared_findings(files, findings, notes, id_column)
    tables = {path: label_table(path, files[path], shared, id_column) for path in (gold_path, *paths)}
    for path, table in tables.items():
        notes += [f"{path}: {note}" for note in table.notes]
    gold = tables[gold_path]
    rows = _rows_where(files[gold_path], gold_path, where)
    frame = gold.table[rows]
    tables = {path: _with_ids_as(table, frame.index, path, notes) for path, table in tables.items() if path in names}
    common = frame.index[np.logical_and.reduce([frame.index.isin(table.table.index) for table in tables.values()])]
    if not len(common):
        raise UsageError(f"{gold_path} and {', '.join(paths)} share no study: are they of the same reports?")
    if len(common) < len(frame):
        lacking = len(frame) - len(common)
        notes.append(f"Studies of {gold_path} that another table lacks, and left out: {lacking:,} of {len(frame):,}.")
    weights = _weights(files[gold_path], gold_path, gold.table.index)
    subjects = _subjects([gold, *tables.values()], common, notes)
    return Matched(
        frame.loc[common],
        {names[path]: table.table.loc[common] for path, table in tables.items()},
        subjects,
        any(table.subjects is not None for table in (gold, *tables.values())),
        None if weights is None else weights.loc[common].to_numpy(),
        notes,
    )


def named(paths: Sequence[str]) -> dict[str, str]:
    """A short name of each table: its file's, with its folder where two are called alike."""
    stems = [PurePosixPath(path).name.split(".")[0] for path in paths]
    parents = [PurePosixPath(path).parent.name for path in paths]
    full = [f"{parent}/{stem}" if stems.count(stem) > 1 else stem for stem, parent in zip(stems, parents, strict=True)]
    if len(set(full)) < len(full):
        raise UsageError(f"two tables are called {max(full, key=full.count)}: rename one, or give one of them only.")
    return dict(zip(paths, full, strict=True))


def shared_findings(
    files: dict[str, TableFile], asked: Sequence[str] | None, notes: list[str], id_column: str | None = None
) -> list[str]:
    """The findings that all tables have, in the first one's order. Raises UsageError where there are none."""
    columns = {
        path: [
            name
            for name in file.table.column_names
            if not is_no_finding(name) and name not in (WEIGHT, id_column or _id_of(file))
        ]
        for path, file in files.items()
    }
    for path, own in columns.items():
        if missing := [name for name in asked or () if name not in own]:
            raise UsageError(f"{path} has no finding '{missing[0]}'; it has {heads(own)}.")
    first, *others = columns.values()
    shared = [name for name in first if all(name in own for own in others)]
    if asked:
        return list(asked)
    if not shared:
        raise UsageError(
            f"{', '.join(files)} share no finding: columns must be called alike, such as Pleural Effusion."
        )
    alone = [name for name in ALL_FINDINGS if name not in shared and any(name in own for own in columns.values())]
    notes += [f"Findings that a table lacks, and left out: {', '.join(alone)}."] if alone else []
    return shared


def read_label_table(path: str, findings: Sequence[str] | None = None, id_column: str | None = None) -> LabelTable:
    """The labels of one table by study: `findings`, or all it has. Raises UsageError where it has none."""
    file = _file(path, id_column)
    notes: list[str] = []
    return label_table(path, file, shared_findings({path: file}, findings, notes, id_column), id_column)


def label_table(path: str, file: TableFile, findings: Sequence[str], id_column: str | None = None) -> LabelTable:
    """A table's labels of `findings`, by study."""
    key = id_column or _id_of(file)
    table = labels_in(file, path, key, findings)
    frame, subjects = table.table, table.subjects
    empty = np.asarray(frame.index.str.strip() == "") | np.asarray(frame.index.isna()) | (frame.index == "nan")
    if empty.any():
        raise CxrltError(f"{path}: column '{key}' is empty in {counted(int(empty.sum()), 'row')}: fill in the study.")
    return LabelTable(frame, subjects, key, table.notes)


def _file(path: str, id_column: str | None) -> TableFile:
    store, name = Store.holding(path)
    text = [column for column in (*ID_COLUMNS, SUBJECT, id_column) if column]
    file = read_table_file(store, name, text=text, known=ALL_FINDINGS)
    if (key := id_column or _id_of(file)) in text:
        return file
    return read_table_file(store, name, text=[*text, key], known=ALL_FINDINGS)  # ids under a name of its own


def _id_of(file: TableFile) -> str:
    columns = file.table.column_names
    return next((name for name in ID_COLUMNS if name in columns), columns[0])


def _rows_where(file: TableFile, path: str, where: str | None) -> np.ndarray:
    """Which rows to take, bool [N], of COLUMN=VALUE."""
    if where is None:
        return np.ones(file.table.num_rows, bool)
    column, sign, value = where.partition("=")
    if not sign or column not in file.table.column_names:
        raise UsageError(f"--where is COLUMN=VALUE with a column of {path}, such as part=dev; not '{where}'.")
    rows = (Sheet(path, file.table).text(column) == value).to_numpy()
    if not rows.any():
        raise UsageError(f"--where {where}: no row of {path} holds that.")
    return rows


def _with_ids_as(table: LabelTable, gold: pd.Index, path: str, notes: list[str]) -> LabelTable:
    """The table with ids as the gold writes them, where only MIMIC's leading s or a point and 0 differs."""
    own = table.table.index
    if own.isin(gold).any():
        return table
    names = ids_as(own, gold)
    index = pd.Index([names.get(name, name) for name in own], name=own.name)
    if index.equals(own) or index.has_duplicates:
        return table
    notes.append(f"{path}: studies' ids are matched without their leading s or .0.")
    subjects = None if table.subjects is None else table.subjects.set_axis(index)
    return LabelTable(table.table.set_axis(index), subjects, table.id_column, table.notes)


def ids_as(own: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Ids of studies as the others write them, of those that are the same but for a leading s or a .0."""
    names = {_plain(name): name for name in others}
    return {name: names[_plain(name)] for name in own if _plain(name) in names}


def _plain(study: str) -> str:
    """A study's id without MIMIC's leading s or the .0 of a column of numbers."""
    return study.strip().removeprefix("s").removesuffix(".0")


def _weights(file: TableFile, path: str, index: pd.Index) -> pd.Series | None:
    """1 / inclusion probability by study, where the gold has it."""
    if WEIGHT not in file.table.column_names:
        return None
    chance = pd.to_numeric(Sheet(path, file.table).text(WEIGHT), errors="coerce").to_numpy()
    wrong = ~((chance > 0) & (chance <= 1))
    if wrong.any():
        raise CxrltError(
            f"{path}: column '{WEIGHT}' holds {counted(int(wrong.sum()), 'cell')} that are no probability above 0: "
            "take the column as gold merge wrote it, or leave the column out to weigh all studies alike."
        )
    return pd.Series(1 / chance, index)


def _subjects(tables: Sequence[LabelTable], studies: pd.Index, notes: list[str]) -> np.ndarray:
    """The subject of each study [N], of the first table that knows it; the study itself where none does."""
    known = [
        whole_ids(table.subjects.loc[studies].fillna("").str.strip()) for table in tables if table.subjects is not None
    ]
    if not known:
        notes.append("No table has a column subject_id: intervals are by study, and too narrow where patients repeat.")
        return studies.to_numpy(str)
    filled = pd.Series("", studies)
    for subjects in known:
        both = (filled != "") & (subjects != "") & ~subjects.isin(["nan"])
        if (filled[both] != subjects[both]).any():
            count = int((filled[both] != subjects[both]).sum())
            raise CxrltError(f"the tables name different subjects for one study, {count:,} times: they do not match.")
        filled = filled.where(filled != "", subjects)
    missing = ((filled == "") | (filled == "nan")).to_numpy()
    if missing.any():
        notes.append(f"Studies without a subject: {missing.sum():,}; each counts as a subject of its own.")
    return np.where(missing, "study " + studies.to_numpy(object), filled.to_numpy(object)).astype(str)
