"""What commands print: sentences and tables for people, JSON lines for machines (`--json`), or little (`--quiet`).

    forms.py      the three forms
    counting.py   how far a long work is
    tables.py     a table whose rows are kept as records, too; imports rich
    values.py     numbers, arrays and records as JSON holds them

A command prints as any program does: what goes to `print` is a note. Three things have a meaning of their own:

    output.result("Left in out.csv.", paths=["out.csv"], images=120)     what the command came to: its last lines
    output.row("ended_trials", {"trial": "T0003", "score": 0.31}, text)  a record, and the line that shows it
    table.add_record({"finding": name, "ap": ap}, name, short(ap))       the same in a table (tables.py)

docs/machine.md has the events of `--json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from cxrlt_ray.output.counting import Counter
from cxrlt_ray.output.forms import LINE_SECONDS, Form, Json, Quiet, Text

__all__ = ["Form", "Json", "Quiet", "Text", "console", "counter", "current", "error", "result", "row", "using"]

_forms: list[Form] = [Text()]


def current() -> Form:
    """The form in which this process prints."""
    return _forms[-1]


@contextmanager
def using(form: Form) -> Iterator[Form]:
    """Print in this form until the block ends."""
    _forms.append(form)
    try:
        with form.installed():
            yield form
    finally:
        _forms.pop()


def result(text: str, paths: Sequence[str] = (), exit_code: int = 0, brief: str = "", **values: object) -> None:
    """What a command came to.

    text: lines for people. paths: of what it left. brief: the lines of `--quiet`, where not the text. values: for
    machines, such as scores and counts.
    """
    current().result(text, brief or text, {"exit_code": exit_code, "paths": list(paths), **values})


def row(table: str, record: Mapping[str, object], text: str) -> None:
    """A record of `table`, and the line that shows it."""
    current().row(table, record, text)


def error(sentence: str, exit_code: int, prefix: str = "error: ") -> None:
    """Why a command ends: on stderr for people, as an event for machines."""
    current().error(sentence, exit_code, prefix)


def counter(
    noun: str,
    total: int,
    say: Callable[[str], object] | None = None,
    text: Callable[[Counter], str] | None = None,
) -> Counter:
    """Counts a long work of `total` parts, and shows how far it is; for `with`.

    say: who hears its lines instead of whoever reads the command's output. text: the line, where not the usual one.
    """
    show = current().shown if say is None else partial(_say_line, say)
    return Counter(noun, total, show, text=text)


def _say_line(say: Callable[[str], object], counter: Counter) -> None:
    if not counter.closed and counter.due(LINE_SECONDS):
        say(counter.line)


def console(width: int = 120) -> Any:
    """A rich console; into a file or a pipe it is as wide as our widest table, not 80 columns.

    Names are printed as they are: a finding may be called [red]x, which is markup, or :x:, which is an emoji.
    """
    return current().console(width)
