"""A report -> its texts: the whole, sections, sentences, and statements, by the labeller of the room `labelling`.

All are places in the report as it was written, so that its meta fields can be masked in any of them. Sections and
sentences are those that the labeller reads, which say what the image shows; INDICATION or HISTORY stand in the whole
text only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from cxrlt_ray.labelling.closure import stronger
from cxrlt_ray.labelling.labeller import Labeller, Span
from cxrlt_ray.labelling.labels import ALL, FOREIGN
from cxrlt_ray.labelling.sections import Section, sections, whole
from cxrlt_ray.labelling.sentences import sentences
from cxrlt_ray.text.meta_fields import MetaField, MetaSpan, masked, meta_spans


@dataclass(frozen=True)
class Sentence:
    """text[begin:end] of a report, in its section number `section`."""

    begin: int
    end: int
    section: int


@dataclass(frozen=True)
class Statement:
    """What the sentence number `sentence` says of a finding: 1 affirmed, 0 denied, -1 unsure."""

    sentence: int
    finding: str
    value: int


@dataclass(frozen=True)
class StudyTexts:
    """A report's texts. meta: its meta fields. foreign: it is in another language, and states nothing that is read.

    sections, sentences: without those that hold nothing but meta fields.
    """

    text: str
    sections: tuple[Section, ...]
    sentences: tuple[Sentence, ...]
    statements: tuple[Statement, ...]
    meta: tuple[MetaSpan, ...]
    fields: tuple[MetaField, ...]
    foreign: bool

    def masked(self, begin: int = 0, end: int | None = None) -> str:
        """text[begin:end] in one line, with all meta fields masked."""
        stop = len(self.text) if end is None else end
        return masked(self.text, begin, stop, self.meta, lambda field: self.fields[field].mask)


def study_texts(text: str, labeller: Labeller, fields: Sequence[MetaField]) -> StudyTexts:
    """The texts of a report. labeller: of the findings whose statements are wanted."""
    reading = labeller.read(text)
    divided = whole(text)[0] if reading.source == ALL else sections(text)[0]
    meta = meta_spans(text, fields)
    kept = tuple(section for section in divided if says_something(text, section.begin, section.end, meta))
    places = tuple(
        Sentence(begin, end, number)
        for number, section in enumerate(kept)
        for begin, end in sentences(text, section.begin, section.end)
        if says_something(text, begin, end, meta)
    )
    stated = _statements(reading.spans, places, labeller.rules.names)
    return StudyTexts(text, kept, places, stated, meta, tuple(fields), reading.source == FOREIGN)


def says_something(text: str, begin: int, end: int, meta: Sequence[MetaSpan]) -> bool:
    """Whether text[begin:end] has a letter outside of meta fields."""
    return any(letter.isalpha() for letter in masked(text, begin, end, meta, lambda field: ""))


def _statements(spans: Sequence[Span], places: Sequence[Sentence], names: Sequence[str]) -> tuple[Statement, ...]:
    """One a sentence and finding, of several mentions the strongest; with what a mention implies."""
    order = sorted(range(len(places)), key=lambda k: places[k].begin)
    begins = [places[k].begin for k in order]
    values: dict[tuple[int, str], int | None] = {}
    for span in spans:
        at = bisect_right(begins, span.begin) - 1
        if span.value is None or span.finding not in names or at < 0 or span.begin >= places[order[at]].end:
            continue
        key = order[at], span.finding
        values[key] = stronger(values.get(key), span.value)
    return tuple(Statement(k, name, value) for (k, name), value in sorted(values.items()) if value is not None)
