"""Readers: a data directory in somebody's format -> rows of the manifest. One file a format, found on its own.

    files.py     listing a directory or URI
    columns.py   a table's columns -> ids, paths, ages, labels; views.py and ids.py help it
    mimic.py     what the two CXR-LT releases share: the MIMIC-CXR-JPG tree and its side tables
    the others   a format each

To add one: a module here with `@register_reader(name, looks_for, recognise)` on its read function.
Readers are asked in the order of their names, bare images last, and the first that recognises the directory
reads it; no reader opens images. Paths are settled after it, by a few look-ups (data/paths.py). What a sheet or its
views say for the user (`Sheet.notes`, `remarks_on_views`) goes into the notes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from cxrlt_ray.data.two_labellings import TwoLabellings
from cxrlt_ray.errors import UsageError
from cxrlt_ray.storage import Store


@dataclass(frozen=True)
class Request:
    """What to read.

    data: the directory, absolute. task: its name. findings: those to read, None for all.
    uncertain: what CheXpert's -1 becomes: null, zero or one. labelled: False if labels may be missing.
    """

    data: Store
    task: str = "auto"
    findings: tuple[str, ...] | None = None
    uncertain: str = "null"
    labelled: bool = True


@dataclass
class Raw:
    """The rows of a data directory.

    table: META columns as far as known, `split` missing where the format has none, findings as Int8, and
    `file` and `row` (from 1), where each image is named. findings: those of the request that the source
    has, in its order. root: what `path` is relative to. notes: sentences for the user. problems: sentences
    on what is wrong with single rows, for which the data is refused. labellings: the data's own labels beside those
    that took their place.
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    root: str
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    labellings: TwoLabellings | None = None


Recognise = Callable[[Store, bool], str | None]
Read = Callable[[Request], Raw]


@dataclass(frozen=True)
class Reader:
    """A format. looks_for: its marks, as shown to the user. recognise(data, labelled): the mark it found, or None.

    findings: all that it can label, None where the data's own columns say.
    """

    name: str
    looks_for: str
    recognise: Recognise
    read: Read
    findings: tuple[str, ...] | None


_READERS: dict[str, Reader] = {}


def register_reader(
    name: str, looks_for: str, recognise: Recognise, findings: tuple[str, ...] | None = None
) -> Callable[[Read], Read]:
    """Make a read function known as format `name` to --format, to detection and to the tests of all readers."""

    def register(read: Read) -> Read:
        _READERS[name] = Reader(name, looks_for, recognise, read, findings)
        return read

    return register


def all_readers() -> dict[str, Reader]:
    """Every reader by name, in the order in which they are asked; imported on demand, for a quick --help."""
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{module}")
    # any release without a table at its top would pass for a directory of bare images
    return dict(sorted(_READERS.items(), key=lambda item: (item[0] == "images", item[0])))


def choose_reader(
    data: Store, format: str | None, labelled: bool, mend: str = "Name one with --format."
) -> tuple[Reader, str]:
    """The reader for `data` and, in words, how it was chosen.

    Raises UsageError, with how to `mend` it, where no reader recognises the data.
    """
    readers = all_readers()
    if format is not None:
        if format not in readers:
            raise UsageError(f"no format '{format}'; there are: {', '.join(readers)}.")
        return readers[format], "as --format says"
    for reader in readers.values():
        if evidence := reader.recognise(data, labelled):
            return reader, f"found {evidence}"
    formats = "; ".join(f"{reader.name}: {reader.looks_for}" for reader in readers.values())
    raise UsageError(f"{data.uri} holds no format that is known. Looked for {formats}. {mend}")
