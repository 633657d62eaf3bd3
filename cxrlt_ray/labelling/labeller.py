"""The rule-based labeller, a pure function: `label(text, rules) -> {finding: (value, spans)}`.

    sections -> sentences -> phrases (one pass over the words for all of them) -> context -> labels -> closure

A sentence's mentions do not depend on the rest of the report: equal sentences are read once (a cache a set of rules).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from cxrlt_ray.labelling.closure import NORMAL, closed, is_normal, stronger
from cxrlt_ray.labelling.context import Place, ends_of_denials, longest, nearest
from cxrlt_ray.labelling.labels import FOREIGN, LAST
from cxrlt_ray.labelling.language import is_foreign
from cxrlt_ray.labelling.phrases import Match, Matcher, Words, words_of
from cxrlt_ray.labelling.rules import NEGATIVE, POSITIVE, UNCERTAIN, Rules, Trigger
from cxrlt_ray.labelling.sections import Section, sections, whole
from cxrlt_ray.labelling.sentences import sentences

CACHED = 100_000  # sentences that are kept
VALUES = {"positive": POSITIVE, "uncertain": UNCERTAIN, "negative": NEGATIVE, "blank": None}
QUALIFYING = ("negative", "uncertain", "blank")
ORDINARY = "ordinary"


class Span(NamedTuple):
    """A mention in a report: text[begin:end], its value (None: no statement on this image), and why."""

    finding: str
    value: int | None
    section: str
    sentence: int
    begin: int
    end: int
    phrase: str
    trigger: str
    rank: int = 1


@dataclass(frozen=True)
class Reading:
    """What a report says. labels: of the findings asked for. spans: all mentions. source: what was read."""

    labels: dict[str, int]
    spans: tuple[Span, ...]
    source: str


class _Entry(NamedTuple):
    """What a phrase is of: a finding (PHRASE, EXCLUDED, STATEMENT), a group of other abnormalities, or a trigger."""

    kind: int
    owner: str
    phrase: str
    trigger: Trigger | None = None


PHRASE, EXCLUDED, STATEMENT, OTHER, TRIGGER = range(5)


class Labeller:
    """Rules made ready: their phrases in one matcher, and the sentences read so far."""

    def __init__(self, rules: Rules, cached: int = CACHED) -> None:
        self.rules = rules
        self._entries = list(_entries(rules))
        self._matcher = Matcher([entry.phrase for entry in self._entries])
        self._ordinary = Matcher(rules.context.ordinary)
        self._cache: dict[str, tuple[Span, ...]] = {}
        self._cached = cached

    def read(self, text: str) -> Reading:
        """What a report says of the findings asked for; nothing where it is not in English."""
        if is_foreign(text):
            return Reading({}, (), FOREIGN)
        parts, source = sections(text)
        spans = tuple(self._spans(text, parts))
        if source == LAST and not spans:
            parts, source = whole(text)
            spans = tuple(self._spans(text, parts))
        return self._reading(spans, source)

    def mentions(self, sentence: str) -> tuple[Span, ...]:
        """The mentions in a sentence, by their places in it."""
        if not self._cached:
            return tuple(self._mentions(sentence))
        known = self._cache.get(sentence)
        if known is None:
            if len(self._cache) >= self._cached:
                self._cache.clear()
            known = self._cache[sentence] = tuple(self._mentions(sentence))
        return known

    def qualifiers(self, sentence: str) -> frozenset[str]:
        """What words in a sentence make of whatever it may mention: of QUALIFYING, or ORDINARY."""
        words = words_of(sentence)
        triggers = (self._entries[match.number].trigger for match in self._matcher.matches(words))
        means = {trigger.means for trigger in triggers if trigger is not None and trigger.means in QUALIFYING}
        return frozenset(means | {ORDINARY for _ in self._ordinary.matches(words)})

    def _spans(self, text: str, parts: Iterable[Section]) -> Iterator[Span]:
        number = 0
        for part in parts:
            for begin, end in sentences(text, part.begin, part.end):
                number += 1
                for finding, value, _, _, first, last, phrase, trigger, _ in self.mentions(text[begin:end]):
                    place = begin + first, begin + last
                    yield Span(finding, value, part.name, number, *place, phrase, trigger, part.rank)

    def _mentions(self, sentence: str) -> Iterator[Span]:
        words = words_of(sentence)
        places: list[Place] = []
        mentions: list[tuple[Match, _Entry]] = []
        excluded: list[tuple[Match, _Entry]] = []
        for match in self._matcher.matches(words):
            entry = self._entries[match.number]
            if entry.trigger is not None:
                places.append(_place(match, entry.trigger))
            else:
                (excluded if entry.kind == EXCLUDED else mentions).append((match, entry))
        if not mentions:
            return
        places = longest(places)
        places = sorted([*places, *ends_of_denials(places, [match for match, _ in mentions], words)])
        for match, entry in _outermost(mentions, excluded):
            place = nearest(match, _acting(entry, match, places), words)
            value = _value(entry, place)
            begin, end = words.spans[match.begin][0], words.spans[match.end - 1][1]
            yield Span(entry.owner, value, "", 0, begin, end, entry.phrase, _words(sentence, words, place))

    def _reading(self, spans: tuple[Span, ...], source: str) -> Reading:
        said: dict[str, tuple[int, int]] = {}  # finding or group -> rank of its section, value
        for span in spans:
            if span.value is None:
                continue
            rank, value = said.get(span.finding, (span.rank, None))
            if span.rank < rank:
                rank, value = span.rank, None
            if span.rank == rank:
                said[span.finding] = rank, stronger(value, span.value)  # type: ignore[assignment]
        groups = {name for name in said if name.startswith("(")}
        labels = {name: value for name, (_, value) in said.items() if name not in groups and name != NORMAL}
        labels_closed = closed(labels, self.rules)
        values = {name: value for name, (value, _) in labels_closed.items()}
        if said:
            blocked_by = [name[1:-1] for name in groups if said[name][1] != NEGATIVE]
            values[NORMAL] = int(is_normal(values, blocked_by, self.rules))
        spans += tuple(_implied(labels_closed, spans))
        return Reading({name: values[name] for name in self.rules.names if name in values}, spans, source)


def label(text: str, rules: Rules) -> dict[str, tuple[int, tuple[Span, ...]]]:
    """The findings that a report mentions: 1, 0 or -1 (uncertain), and the places that say so."""
    reading = _labeller(rules).read(text)
    return {
        name: (value, tuple(span for span in reading.spans if span.finding == name and span.value == value))
        for name, value in reading.labels.items()
    }


@lru_cache(maxsize=4)
def _labeller(rules: Rules) -> Labeller:
    return Labeller(rules)


def _entries(rules: Rules) -> Iterator[_Entry]:
    for rule in rules.every:
        name = rule.finding
        yield from (_Entry(PHRASE, name, phrase) for phrase in rule.phrases)
        yield from (_Entry(EXCLUDED, name, phrase) for phrase in rule.excluded)
        yield from (_Entry(STATEMENT, name, phrase) for phrase in rule.normal)
        for group, phrases in rule.others.items():
            yield from (_Entry(OTHER, f"({group})", phrase) for phrase in phrases)
    for name, trigger in rules.context.triggers.items():
        yield from (_Entry(TRIGGER, name, phrase, trigger) for phrase in trigger.phrases)


def _place(match: Match, trigger: Trigger) -> Place:
    before, after = trigger.position in ("before", "both"), trigger.position in ("after", "both")
    return Place(match.begin, match.end, trigger.means, before, after, trigger.reach)


def _outermost(
    mentions: list[tuple[Match, _Entry]], excluded: list[tuple[Match, _Entry]]
) -> Iterator[tuple[Match, _Entry]]:
    """Mentions that lie neither within an excluded phrase nor within another mention of the same finding."""
    for k, (match, entry) in enumerate(mentions):
        shadows = [other for other, e in excluded if e.owner == entry.owner]
        if any(o.begin <= match.begin and match.end <= o.end for o in shadows):
            continue
        longer = (
            (o.begin <= match.begin and match.end <= o.end) and (o.end - o.begin > match.end - match.begin or j < k)
            for j, (o, e) in enumerate(mentions)
            if e.owner == entry.owner and j != k
        )
        if not any(longer):
            yield match, entry


def _words(sentence: str, words: Words, place: Place | None) -> str:
    """A trigger as the sentence has it."""
    return sentence[words.spans[place.begin][0] : words.spans[place.end - 1][1]] if place else ""


def _acting(entry: _Entry, match: Match, places: Sequence[Place]) -> Sequence[Place]:
    """Triggers without those that are a statement's own last words: "heart size is within normal limits"."""
    if entry.kind != STATEMENT:
        return places
    return [place for place in places if not (place.means == "negative" and place.begin < match.end <= place.end)]


def _value(entry: _Entry, place: Place | None) -> int | None:
    if entry.kind == STATEMENT:  # it denies, unless it is denied or of no concern itself
        return None if place is not None and place.means in ("negative", "blank") else NEGATIVE
    return POSITIVE if place is None else VALUES[place.means]


def _implied(labels: dict[str, tuple[int, str]], spans: tuple[Span, ...]) -> Iterator[Span]:
    """The mentions of what implies a finding, as its own."""
    for name, (value, cause) in labels.items():
        if cause:
            for span in spans:
                if span.finding == cause and span.value == value:
                    yield span._replace(finding=name, phrase=f"{cause}: {span.phrase}")
