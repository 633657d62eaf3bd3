"""Answers on disk: Parquet parts, and journals to which each answer is added as it comes.

A journal is one process's (NAME.jsonl). An answer is in it, by one write of a line, before the next request takes its
place: when the process is killed, by -9 too, what is lost are the requests that were under way. A journal that is full,
closed or left by a dead process becomes a part of the same name, written whole, and is removed after that; in between
the answers are there twice, which does no harm. (A crash of the machine may cost the seconds that its disk lags.)

The cache holds keys (hashes), labels and places in the text, no text; with --cot the model's reasoning, which may
repeat some. Its folder is its owner's alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import private_dir
from cxrlt_ray.storage import Store, local
from cxrlt_ray.storage.messages import FULL, explained

if TYPE_CHECKING:
    import pyarrow as pa

JOURNAL, PART = ".jsonl", ".parquet"
JOURNAL_LINES = 100_000  # after which a journal becomes a part
FAILED = "failed"  # as a label: no usable reply


@dataclass(frozen=True)
class Answer:
    """What a question came to.

    key: as of `prompt.key`, 32 bytes. label: of prompt.LABELS, or FAILED with a reason. begin, end: the quote's place
    in the text, or -1. tokens: of all its requests. seconds: of the last.
    """

    key: bytes
    label: str
    begin: int = -1
    end: int = -1
    reason: str = ""
    reasoning: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"bytes": pa.binary(32), "str": pa.string(), "int": pa.int32(), "float": pa.float32()}
    return pa.schema([(field.name, kinds[str(field.type)]) for field in fields(Answer)])


class Journal:
    """The file to which one process adds its answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = -1
        self._lines = 0
        self._path = folder

    def add(self, answer: Answer) -> None:
        """Add an answer, whole. Raises CxrltError where the disk does not take it."""
        with explained(f"{self.folder} cannot be written"):
            if self._file < 0:
                self._open()
            row = vars(answer) | {"key": answer.key.hex()}
            line = (json.dumps(row, separators=(",", ":")) + "\n").encode()
            if os.write(self._file, line) < len(line):
                raise CxrltError(f"{self.folder} cannot be written: {FULL}.")
        self._lines += 1
        if self._lines >= JOURNAL_LINES:
            self.close()

    def close(self) -> None:
        """Make the journal a part."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            _make_part(self.folder, self._path.name)

    def _open(self) -> None:
        name = f"{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}{JOURNAL}"
        self._path = private_dir(self.folder) / name
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        self._lines = 0


class Answers:
    """All answers of a cache, looked up by key. Of two with one key, the one with a label counts, then the later."""

    def __init__(self, table: pa.Table) -> None:
        keys = _keys(_content(chunk) for chunk in table["key"].chunks)
        is_failed = np.asarray(table["label"]) == FAILED
        self._order = np.lexsort((np.arange(len(keys)), ~is_failed, keys))
        self._table, self._sorted, self._is_failed = table, keys[self._order], is_failed

    def known(self, keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Which keys have a label, and which have failed, bool [N] each."""
        rows = self._rows(keys)
        there = rows >= 0
        failed = np.zeros(len(rows), bool)
        failed[there] = self._is_failed[rows[there]]
        return there & ~failed, failed

    def get(self, keys: Sequence[bytes]) -> list[Answer | None]:
        """The answers to `keys`, None where there is none."""
        rows = self._rows(keys)
        present = iter(self._table.take(rows[rows >= 0]).to_pylist())
        return [Answer(**next(present)) if row >= 0 else None for row in rows]

    def _rows(self, keys: Sequence[bytes]) -> np.ndarray:
        """The rows of answers to `keys`, int [N]; -1 where there is none."""
        asked = _keys(keys)
        if not len(self._sorted):
            return np.full(len(asked), -1)
        last = np.searchsorted(self._sorted, asked, side="right") - 1
        return np.where((last >= 0) & (self._sorted[last] == asked), self._order[last], -1)


def _keys(keys: Iterable[bytes | memoryview]) -> np.ndarray:
    """Keys of 32 bytes, one or many a piece, as an array that sorts by bytes."""
    return np.frombuffer(b"".join(keys), "S32")


def _content(keys: pa.FixedSizeBinaryArray) -> memoryview:
    """The bytes of an Arrow array of keys."""
    return memoryview(keys.buffers()[1])[32 * keys.offset : 32 * (keys.offset + len(keys))]


def read_answers(folder: Path) -> Answers:
    """All that the cache in `folder` holds, journals of processes that still write included."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _close_abandoned(folder)
    store, tables = Store(str(folder)), []
    for name in store.list():
        if name.endswith(PART):
            with explained(f"{folder}/{name} cannot be read"), store.fetched(name) as path:
                tables.append(_part(pq, path, folder))
        elif name.endswith(JOURNAL):
            tables.append(pa.Table.from_pylist(list(_lines(folder / name)), _schema()))
    return Answers(pa.concat_tables(tables) if tables else _schema().empty_table())


def _part(parquet: Any, path: Path, folder: Path) -> pa.Table:
    import pyarrow as pa

    try:
        return parquet.read_table(path, columns=_schema().names).cast(_schema())
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        where = f"{folder}/{path.name}"
        raise CxrltError(f"{where} is no part of a cache of answers: remove it, or name another --cache.") from error


def _close_abandoned(folder: Path) -> None:
    """Make parts of the journals of processes of this machine that have ended."""
    for name in Store(str(folder)).list():
        machine, _, process = name.rpartition("-")[0].rpartition("-")
        own = name.endswith(JOURNAL) and machine == os.uname().nodename and process.isdigit()
        if own and not local.is_alive(int(process)):
            _make_part(folder, name)


def _make_part(folder: Path, journal: str) -> None:
    """Write a journal's answers as a part, then remove it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(_lines(folder / journal)), _schema())
    with Store(str(folder)).place(journal.removesuffix(JOURNAL) + PART) as path:
        pq.write_table(table, path)
    (folder / journal).unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The answers in a journal; a line that was cut by a full disk is none."""
    names = {field.name for field in fields(Answer)}
    with explained(f"{path} cannot be read"), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and set(row) == names:
                yield row | {"key": bytes.fromhex(row["key"])}
