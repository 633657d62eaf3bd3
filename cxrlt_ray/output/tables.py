"""A table whose rows are kept as records beside the cells that show them; imported late, as rich is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Column, Table


class RecordTable(Table):
    """A table for people and machines.

    kind: names the table among the events of `--json`. records: a dict a row, of numbers as they were computed.
    """

    def __init__(self, kind: str, *heads: Column | str, **style: Any) -> None:
        super().__init__(*heads, **{"box": box.SIMPLE_HEAD, **style})
        self.kind = kind
        self.records: list[dict[str, object]] = []

    def add_record(self, record: Mapping[str, object], *cells: Any) -> None:
        """Add a row: its record, and the cells that show it."""
        self.records.append(dict(record))
        self.add_row(*cells)


class EventConsole(Console):
    """A console whose tables become rows and whose text becomes notes."""

    def __init__(self, emit_row: Callable[[str, Mapping[str, object]], None], stream: TextIO, width: int) -> None:
        super().__init__(file=stream, width=width, highlight=False, markup=False, emoji=False)
        self._emit_row, self._stream = emit_row, stream

    def print(self, *objects: Any, **options: Any) -> None:
        """Emit what a console would print."""
        for item in objects:
            if isinstance(item, RecordTable):
                for record in item.records:
                    self._emit_row(item.kind, record)
            elif isinstance(item, str):
                self._stream.write(f"{item}\n")
            else:
                super().print(item, **options)


def text_console(width: int) -> Console:
    """A console for people, on whatever stdout is."""
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=width)
