"""Reports without a word of some findings: for models that are to know them by descriptions alone.

A sentence goes where a phrase of a finding's rules matches in it, whether the report affirms, denies or doubts it, and
whether or not an exception of the rules applies; so do the rules' statements that deny the finding. What names it in
its description, by which a model will be asked, counts as the rules' phrases do, and so does a user's own list
(naming.py): rules that label reports need not know every other word for a finding. All of the report
is searched, INDICATION and HISTORY too. A heading that names the finding goes with the part below it. What implies a
finding stays where its own words do not name it. A heading below which nothing is left goes too.

The phrases are searched in the text as one: where one stretches over the end of a sentence, and no sentence of its own
explains it, both sentences go. So no phrase matches in what is left, however it is divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.phrases import Matcher, words_of
from cxrlt_ray.labelling.rules import Rules
from cxrlt_ray.labelling.sections import parts
from cxrlt_ray.labelling.sentences import sentences
from cxrlt_ray.text.descriptions import Own, look_up, own_labels
from cxrlt_ray.text.naming import described_phrases, own_phrases


@dataclass(frozen=True)
class Scrubbed:
    """A text without what was removed. sentences: how many those were, apart from headings."""

    text: str
    sentences: int


@dataclass(frozen=True)
class _Unit:
    """A sentence of a text, or a heading, with which everything up to `until` goes."""

    begin: int
    end: int
    until: int
    heading: bool


class Scrubber:
    """The phrases of some findings, by their rules' names, made ready, and others given, in the rules' grammar.

    Raises UsageError where a finding has neither rules nor a description, and no other phrases are given.
    """

    def __init__(self, rules: Rules, findings: Sequence[str], phrases: Sequence[str] = ()) -> None:
        known = {rule.finding: rule for rule in rules.every}
        if not phrases:
            check_words(findings, rules)
        ruled = [known[name] for name in findings if name in known]
        of_rules = (p for rule in ruled for p in (*rule.phrases, *rule.normal))
        self._matcher = Matcher([*of_rules, *described_phrases(findings, rules), *phrases])

    def __call__(self, text: str) -> Scrubbed:
        """A report without the findings' sentences."""
        removed = 0
        while matched := self.matches(text):
            places, count = _removed(text, matched)
            removed += count
            ends = [0, *(end for _, end in places)]
            begins = [*(begin for begin, _ in places), len(text)]
            text = "".join(text[end:begin] for end, begin in zip(ends, begins, strict=True))
        return Scrubbed(text, removed)

    def matches(self, text: str) -> list[tuple[int, int]]:
        """Where a phrase matches, as places in the text."""
        words = words_of(text)
        return [(words.spans[m.begin][0], words.spans[m.end - 1][1]) for m in self._matcher.matches(words)]


def ruled_names(findings: Sequence[str], rules: Rules, own: Own = None) -> tuple[str, ...]:
    """The findings by the names that their rules have, in whatever spelling they are given; others as they are."""
    own_of = own_labels([rule.finding for rule in rules.every], findings, own)
    return tuple(dict.fromkeys(own_of.get(name, name) for name in findings))


def check_words(
    findings: Sequence[str], rules: Rules, own: Own = None, phrases: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Raise UsageError for a finding, by its rules' name, of which no word is known: no rules, description or list."""
    known = {rule.finding for rule in rules.every}
    described = look_up(findings, own)
    for name in findings:
        if name not in known and described[name] is None and not own_phrases([name], phrases, own):
            raise UsageError(
                f"there are no rules and no description for finding '{name}', by whose words reports are scrubbed: say "
                f"how reports name it by `sweep --scrub FILE` with a line `{name}: [...]`, or by --descriptions."
            )


def scrub(text: str, findings: Sequence[str], rules: Rules, phrases: Sequence[str] = ()) -> str:
    """A report without every sentence in which a phrase of the findings matches, or one of `phrases`."""
    return _scrubber(rules, tuple(findings), tuple(phrases))(text).text


@lru_cache(maxsize=4)
def _scrubber(rules: Rules, findings: tuple[str, ...], phrases: tuple[str, ...]) -> Scrubber:
    return Scrubber(rules, findings, phrases)


def _units(text: str) -> Iterator[_Unit]:
    for part in parts(text):
        if part.heading < part.begin:
            yield _Unit(part.heading, part.begin, part.end, True)
        for begin, end in sentences(text, part.begin, part.end):
            yield _Unit(begin, end, end, False)


def _removed(text: str, matched: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """The places to remove, in order and without overlap, and how many sentences they hold.

    Matches within one sentence come first: one that stretches over its end may be gone with them.
    """
    units = list(_units(text))
    touched = [[unit for unit in units if unit.begin < end and begin < unit.end] for begin, end in matched]
    within = [chosen for chosen in touched if len(chosen) == 1]
    # a heading between two sentences over which a phrase stretches is not about the finding
    across = [[unit for unit in chosen if not unit.heading] or chosen for chosen in touched]
    places = [(unit.begin, unit.until) for chosen in within or across for unit in chosen] or list(matched)
    gone = {unit for unit in units if any(begin <= unit.begin < end for begin, end in places)}
    for heading in (unit for unit in units if unit.heading):
        below = {unit for unit in units if heading.end <= unit.begin < heading.until}
        if below and below <= gone:
            places.append((heading.begin, heading.until))
    return _joined(places), sum(not unit.heading for unit in gone)


def _joined(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(places):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined
