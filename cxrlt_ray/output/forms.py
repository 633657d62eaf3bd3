"""The forms of output: text, quiet and JSON.

Whatever a library or a forgotten `print` writes to stdout goes through the form as well: of a quiet command nothing of
it is seen, of a JSON one each line is a note. So stdout holds JSON lines alone.
"""

from __future__ import annotations

import datetime
import io
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol, TextIO, cast

from cxrlt_ray.output.counting import Counter, duration
from cxrlt_ray.output.values import plain

VERSION = 1  # of the events
LINE_SECONDS = 60.0  # between two lines of progress of one work, in a log
EVENT_SECONDS = 10.0  # and between two events


class Form(Protocol):
    """How a command's output is shown."""

    def installed(self) -> Any:
        """A context in which stdout is this form's."""

    def result(self, text: str, brief: str, values: Mapping[str, object]) -> None:
        """What the command came to."""

    def row(self, table: str, record: Mapping[str, object], text: str) -> None:
        """A record of a table, and the line that shows it."""

    def error(self, sentence: str, exit_code: int, prefix: str) -> None:
        """Why the command ends."""

    def shown(self, counter: Counter) -> None:
        """A long work has come further, or ended."""

    def console(self, width: int) -> Any:
        """A rich console that prints in this form."""


class Text:
    """For people: on a terminal long works have bars, in a log lines."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[int, Any] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stdout as it is."""
        yield

    def result(self, text: str, brief: str, values: Mapping[str, object]) -> None:
        """Print the text."""
        if text:
            print(text, flush=True)

    def row(self, table: str, record: Mapping[str, object], text: str) -> None:
        """Print the line."""
        print(text, flush=True)

    def error(self, sentence: str, exit_code: int, prefix: str) -> None:
        """Print the sentence on stderr."""
        print(f"{prefix}{sentence}", file=sys.stderr)

    def shown(self, counter: Counter) -> None:
        """Move the work's bar, or print a line where the last is LINE_SECONDS old."""
        if id(counter) in self._tasks or (not counter.closed and sys.stdout.isatty()):
            self._show_bar(counter)
        elif not counter.closed and counter.due(LINE_SECONDS) and (line := counter.line):
            print(line, flush=True)

    def console(self, width: int) -> Any:
        """A console on stdout."""
        from cxrlt_ray.output.tables import text_console

        return text_console(width)

    def _show_bar(self, counter: Counter) -> None:
        if self._bars is None:
            from rich import progress

            columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn("{task.description}"))
            time_left = progress.TextColumn("{task.fields[left]}")
            self._bars = progress.Progress(*columns, time_left, console=self.console(120), transient=True)
            self._bars.start()
        if id(counter) not in self._tasks:
            self._tasks[id(counter)] = self._bars.add_task(counter.noun, total=counter.total, left="")
        task = self._tasks[id(counter)]
        left = "" if counter.seconds_left is None else f"{duration(counter.seconds_left)} left"
        self._bars.update(task, completed=counter.done, total=counter.total, left=left)
        if counter.closed:
            self._bars.remove_task(self._tasks.pop(id(counter)))
            if not self._tasks:
                self._bars.stop()
                self._bars = None


class Quiet:
    """Errors, and what the command came to."""

    def __init__(self) -> None:
        self._stream = sys.stdout

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Nothing of stdout is seen."""
        with redirect_stdout(_Lines(lambda line: None)):
            yield

    def result(self, text: str, brief: str, values: Mapping[str, object]) -> None:
        """Print the brief text."""
        if brief:
            print(brief, file=self._stream, flush=True)

    def row(self, table: str, record: Mapping[str, object], text: str) -> None:
        """Nothing."""

    def error(self, sentence: str, exit_code: int, prefix: str) -> None:
        """Print the sentence on stderr."""
        print(f"{prefix}{sentence}", file=sys.stderr)

    def shown(self, counter: Counter) -> None:
        """Nothing."""

    def console(self, width: int) -> Any:
        """A console that nobody sees."""
        from cxrlt_ray.output.tables import text_console

        return text_console(width)


class Json:
    """One JSON object a line. The first is `begin`, the last `result` or `error`."""

    def __init__(self, command: str, version: str) -> None:
        self._stream, self._lock = sys.stdout, threading.Lock()
        self._lines = _Lines(self._note)
        self.ended = False
        self._emit("begin", {"schema": VERSION, "command": command, "cxrlt_ray": version})

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Lines on stdout become notes."""
        with redirect_stdout(self._lines):
            try:
                yield
            finally:
                self._lines.finish()

    def result(self, text: str, brief: str, values: Mapping[str, object]) -> None:
        """An event with the text, the paths and the values."""
        self._lines.finish()
        self._emit("result", {"text": text, **values})
        self.ended = True

    def row(self, table: str, record: Mapping[str, object], text: str) -> None:
        """An event with the record."""
        self._emit_row(table, record)

    def error(self, sentence: str, exit_code: int, prefix: str) -> None:
        """An event, and the sentence on stderr, where a log keeps it."""
        self._lines.finish()
        self._emit("error", {"sentence": sentence, "exit_code": exit_code})
        self.ended = True
        print(f"{prefix}{sentence}", file=sys.stderr)

    def shown(self, counter: Counter) -> None:
        """An event at most each EVENT_SECONDS, and one at the end."""
        if counter.closed or counter.due(EVENT_SECONDS):
            values = {"noun": counter.noun, "done": counter.done, "total": counter.total, "rate": counter.rate}
            self._emit("progress", {**values, "seconds_left": counter.seconds_left})

    def console(self, width: int) -> Any:
        """A console whose tables become rows."""
        from cxrlt_ray.output.tables import EventConsole

        return EventConsole(self._emit_row, cast(TextIO, self._lines), width)

    def _note(self, line: str) -> None:
        self._emit("note", {"text": line})

    def _emit_row(self, table: str, record: Mapping[str, object]) -> None:
        self._emit("row", {"table": table, "row": record})

    def _emit(self, event: str, values: Mapping[str, object]) -> None:
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps(plain({"event": event, "at": at, **values}), allow_nan=False)
        with self._lock:
            self._stream.write(f"{line}\n")
            self._stream.flush()


class _Lines(io.TextIOBase):
    """A stream that gives each whole line to `take`, without blank ones and without the spaces at its end."""

    encoding = "utf-8"

    def __init__(self, take: Any) -> None:
        self._take, self._rest, self._lock = take, "", threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._give(line)
        return len(text)

    def finish(self) -> None:
        """Give what stands without an end of line."""
        with self._lock:
            rest, self._rest = self._rest, ""
        self._give(rest)

    def _give(self, line: str) -> None:
        if line.strip():
            self._take(line.rstrip())
