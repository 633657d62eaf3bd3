"""What a section shows: words, figures, tables and commands. Numbers are named by their place in the section's JSON.

A table does not hold its cells: it says where its rows are in report.json and which key of a row each column shows. The
page is drawn from the file's content, so that both cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

Kind = Literal[
    "text", "code", "count", "score", "gain", "percent", "number", "seconds", "bytes", "score_interval", "gain_interval"
]
NUMERIC = ("count", "score", "gain", "percent", "number", "seconds", "bytes", "score_interval", "gain_interval")


@dataclass(frozen=True)
class Column:
    """A column: its head, the path of its value in a row ("ap", "weights/3"), how it is written, what it means."""

    title: str
    path: str
    kind: Kind = "text"
    help: str = ""

    @property
    def numeric(self) -> bool:
        """Whether it is aligned to the right."""
        return self.kind in NUMERIC


@dataclass(frozen=True)
class Table:
    """The rows at path `rows` of the section's JSON.

    filtered: with a field to filter by words. facet: the title of a column by whose values rows can be chosen.
    folded: closed at first. note: below it.
    """

    caption: str
    rows: str
    columns: Sequence[Column]
    filtered: bool = False
    facet: str = ""
    folded: bool = False
    note: str = ""
    part: Literal["table"] = field(default="table", init=False)


@dataclass(frozen=True)
class Figure:
    """A drawing (several, with their captions, stand side by side and wrap), with the table of what is drawn."""

    title: str
    drawings: Sequence[Markup]
    note: str = ""
    table: Table | None = None
    captions: Sequence[str] = ()
    part: Literal["figure"] = field(default="figure", init=False)


@dataclass(frozen=True)
class Tile:
    """A number that stands out: the `path` of its value or interval, words above it and below it."""

    title: str
    path: str
    kind: Kind
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Tiles:
    """Numbers side by side."""

    tiles: Sequence[Tile]
    part: Literal["tiles"] = field(default="tiles", init=False)


@dataclass(frozen=True)
class Texts:
    """Sentences at the paths; an empty one is left out."""

    paths: Sequence[str]
    part: Literal["texts"] = field(default="texts", init=False)


@dataclass(frozen=True)
class Notices:
    """Notices {level: bad, warn, note or good; title; text} at path `rows`; those after the first `most` are folded."""

    rows: str
    most: int = 3
    part: Literal["notices"] = field(default="notices", init=False)


@dataclass(frozen=True)
class Commands:
    """Commands {what, command} at path `rows`; those after the first `most` are folded."""

    rows: str
    title: str = ""
    most: int = 9
    part: Literal["commands"] = field(default="commands", init=False)


@dataclass(frozen=True)
class Images:
    """Pictures side by side: each row of `rows` has a data URI at `image` and a caption at `caption`."""

    title: str
    rows: str
    image: str
    caption: str
    part: Literal["images"] = field(default="images", init=False)


@dataclass(frozen=True)
class Heading:
    """A heading within a section, and a sentence of explanation in the template's own words."""

    title: str
    text: str = ""
    part: Literal["heading"] = field(default="heading", init=False)


Part = Table | Figure | Tiles | Texts | Notices | Commands | Images | Heading
