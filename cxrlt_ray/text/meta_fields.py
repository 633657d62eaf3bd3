"""Meta fields of reports: dates, names, numbers, headers. Which there are is data: meta_fields.yaml, or a user's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import field_validator

from cxrlt_ray.config import PACKAGE, Config, read_yaml, validate
from cxrlt_ray.labelling.sections import Part, parts

FILE = PACKAGE / "text" / "meta_fields.yaml"


class MetaField(Config):
    """A kind of meta field.

    patterns: regular expressions of what it looks like. headings: names of parts (small letters) that it is, with their
    text. mask: what stands in its place; "" removes it.
    """

    name: str
    patterns: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    mask: str = ""

    @field_validator("patterns")
    @classmethod
    def _compiled(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression ({error})") from None
            if compiled.match(""):
                raise ValueError(f"'{pattern}' matches nothing at all: give what must stand there")
        return patterns


class MetaFields(Config):
    """A file of them."""

    fields: tuple[MetaField, ...]


@dataclass(frozen=True)
class MetaSpan:
    """text[begin:end] of a report is the meta field number `field` of a list of them."""

    begin: int
    end: int
    field: int


def load_meta_fields(path: str | Path | None = None) -> tuple[MetaField, ...]:
    """The meta fields of a file (default: the package's). Raises UsageError, with every mistake, for a wrong file."""
    path = Path(path) if path is not None else FILE
    return validate(MetaFields, read_yaml(path), path).fields


def meta_spans(text: str, fields: Sequence[MetaField]) -> tuple[MetaSpan, ...]:
    """The meta fields in a report, in order and without overlap: what begins first prevails, of equals the longest."""
    spans: list[MetaSpan] = []
    end = 0
    for span in sorted(_matches(text, fields), key=lambda span: (span.begin, -span.end, span.field)):
        if span.end > end:
            spans.append(MetaSpan(max(span.begin, end), span.end, span.field))
            end = span.end
    return tuple(spans)


def masked(text: str, begin: int, end: int, spans: Sequence[MetaSpan], mask: Callable[[int], str | None]) -> str:
    """text[begin:end] in one line, with `mask(field)` in the place of each meta field; None leaves it as it is.

    >>> masked("Compared to ___, no change.", 0, 27, [MetaSpan(12, 15, 0)], lambda field: "[DATE]")
    'Compared to [DATE], no change.'
    """
    pieces, start = [], begin
    for span in spans:
        if span.end <= start or span.begin >= end or (word := mask(span.field)) is None:
            continue
        pieces += [text[start : max(span.begin, start)], word]
        start = min(span.end, end)
    return " ".join("".join([*pieces, text[start:end]]).split())


def _matches(text: str, fields: Sequence[MetaField]) -> Iterator[MetaSpan]:
    divided: list[Part] | None = None
    for number, field in enumerate(fields):
        for pattern in field.patterns:
            yield from (MetaSpan(*match.span(), number) for match in re.finditer(pattern, text) if match[0])
        if field.headings:
            divided = parts(text) if divided is None else divided
            for part in divided:
                if part.heading < part.begin and " ".join(part.name.lower().split()) in field.headings:
                    yield MetaSpan(part.heading, part.end, number)
