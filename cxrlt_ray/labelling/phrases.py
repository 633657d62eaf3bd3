"""The small grammar in which rule files name things, and a matcher for all phrases of all rules at once.

    pleural effusion        these words in a row, in any case, joined by blanks, hyphens, slashes or line ends
    opaci*                  a word that begins so (3 letters at least)
    (right|left lower)      one of these
    [small|tiny]            one of these, or nothing
    heart ... enlarged      up to GAP words in between, without a comma; ...6 is up to 6 (at most LONGEST_GAP)

All phrases form one automaton without loops (Thompson's construction; the grammar repeats nothing), so that none can
explode: its size is that of the phrases as they are written, and from a word of a text it is followed along at most
(LONGEST_GAP + 1) ** GAPS paths, each no longer than the longest phrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cxrlt_ray.errors import UsageError

GAP, LONGEST_GAP, GAPS = 4, 10, 2  # words of a gap, at most; gaps of a phrase
LENGTH = 500  # letters of a phrase
STEM = 3
REMEMBERED = 500_000  # steps by words of texts; typing errors have no end
_TOKEN = re.compile(r"\.\.\.\d*|[()|\[\]]|[^\s()|\[\]]+")
_WORD = re.compile(r"\w+\*?")
_TEXT = re.compile(r"\w+|,")
_CLOSING = {"(": ")", "[": "]"}


class Match(NamedTuple):
    """Words begin to end (exclusive) of a sentence are the phrase `number`; `gaps` are the ranges that it left open."""

    begin: int
    end: int
    number: int
    gaps: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Words:
    """A sentence's words in small letters, where they stand in it, and which follow a comma."""

    words: list[str]
    spans: list[tuple[int, int]]
    after_comma: list[bool]


def words_of(sentence: str) -> Words:
    """The words of a sentence: letters, digits and _ in a row."""
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    after_comma: list[bool] = []
    comma = False
    for token in _TEXT.finditer(sentence):
        word = token[0]
        if word == ",":
            comma = True
            continue
        words.append(word.lower())
        spans.append(token.span())
        after_comma.append(comma)
        comma = False
    return Words(words, spans, after_comma)


@dataclass(eq=False)
class _State:
    """next: where a word or stem leads. gaps: so many words may be left out before the state. skips: at no cost."""

    next: dict[str, list[_State]] = field(default_factory=dict)
    gaps: list[tuple[int, _State]] = field(default_factory=list)
    skips: list[_State] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def reached(self) -> Iterator[_State]:
        """The state itself and all that are reached at no cost."""
        known, waiting = {self}, [self]
        while waiting:
            yield (state := waiting.pop())
            for skipped in state.skips:
                if skipped not in known:
                    known.add(skipped)
                    waiting.append(skipped)


def _parsed(phrase: str) -> tuple[_State, _State]:
    """The states in which a phrase begins and ends. Raises UsageError for what is not in the grammar."""
    if len(phrase) > LENGTH:
        raise UsageError(f"a phrase of {len(phrase):,} letters ('{phrase[:40]} ...'): at most {LENGTH}; split it.")
    if phrase.count("...") > GAPS:
        raise UsageError(f"phrase '{phrase}' has more than {GAPS} gaps: split it.")
    tokens = _TOKEN.findall(phrase)
    begin = _State()
    end, at = _alternatives(phrase, tokens, 0, begin)
    if at < len(tokens):
        raise UsageError(f"phrase '{phrase}': a bracket '{tokens[at]}' closes nothing.")
    first = list(begin.reached())
    if end in first:
        raise UsageError(f"phrase '{phrase}' may stand for no word at all: give a word that must be there.")
    if any(state.gaps for state in first) or _ends_in_gap(begin, end):
        raise UsageError(f"phrase '{phrase}' begins or ends with a gap, or has two in a row: give a word there.")
    return begin, end


def _alternatives(phrase: str, tokens: list[str], at: int, begin: _State) -> tuple[_State, int]:
    """The state behind the alternatives that stand from tokens[at] to the closing bracket or the end, and its place."""
    end, now = _State(), begin
    while at < len(tokens) and tokens[at] not in ")]":
        token = tokens[at]
        at += 1
        if token == "|":
            now.skips.append(end)
            now = _State()
            begin.skips.append(now)
        elif token in _CLOSING:
            inner = _State()
            now.skips.append(inner)
            after, at = _alternatives(phrase, tokens, at, inner)
            if at == len(tokens) or tokens[at] != _CLOSING[token]:
                raise UsageError(f"phrase '{phrase}': a bracket '{token}' is not closed.")
            at += 1
            if token == "[":
                inner.skips.append(after)
            now = after
        elif token.startswith("..."):
            now.gaps.append((_gap(phrase, token), now := _State()))
        else:
            for word in _words(phrase, token):
                now.next.setdefault(word, []).append(now := _State())
    now.skips.append(end)
    return end, at


def _gap(phrase: str, token: str) -> int:
    words = int(token[3:] or GAP)
    if not 1 <= words <= LONGEST_GAP:
        raise UsageError(f"phrase '{phrase}': a gap has 1 to {LONGEST_GAP} words, not {words}.")
    return words


def _words(phrase: str, token: str) -> list[str]:
    """The words of a token without blanks: `air-fluid` is two."""
    words = [word.lower() for word in _WORD.findall(token)]
    if "-".join(words) != re.sub(r"[/'-]+", "-", token.lower()):
        raise UsageError(f"phrase '{phrase}': '{token}' is no word; there are words, stem*, (a|b), [a], ... and ...6.")
    if short := next((word for word in words if word.endswith("*") and len(word) <= STEM), None):
        raise UsageError(f"phrase '{phrase}': a stem has {STEM} letters at least, not '{short}'.")
    return words


def _ends_in_gap(begin: _State, end: _State) -> bool:
    """Whether a gap is followed by the end or another gap."""
    known, waiting = {begin}, [begin]
    while waiting:
        state = waiting.pop()
        following = [s for states in state.next.values() for s in states] + state.skips
        for _, behind in state.gaps:
            reached = list(behind.reached())
            if end in reached or any(s.gaps for s in reached):
                return True
            following.append(behind)
        waiting += (new := [s for s in dict.fromkeys(following) if s not in known])
        known.update(new)
    return False


def check_phrase(phrase: str) -> None:
    """Raise UsageError, with the phrase, where it is not in the grammar."""
    _parsed(phrase)


@dataclass(eq=False)
class _States:
    """States in which several phrases are at once. steps: where a word of a text leads, as far as it was asked."""

    states: frozenset[_State]
    ends: tuple[int, ...]
    gaps: tuple[tuple[int, _States], ...]
    steps: dict[str, _States | None] = field(default_factory=dict)


class Matcher:
    """Where phrases stand in a sentence; phrase k is `phrases[k]`.

    All phrases are followed at once, by sets of states that are made as texts need them (a lazy DFA): a word costs a
    look-up, whatever the number of phrases.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        root = _State()
        for number, phrase in enumerate(phrases):
            begin, end = _parsed(phrase)
            end.ends.append(number)
            root.skips.append(begin)
        used = _flattened(root)
        self._exact = {atom for atom in used if not atom.endswith("*")}
        self._stems = {atom[:-1] for atom in used if atom.endswith("*")}
        self._lengths = sorted({len(stem) for stem in self._stems})
        self._first = root
        self._forget()

    def matches(self, text: Words) -> list[Match]:
        """Every place of every phrase, those within others too."""
        if self._steps > REMEMBERED:
            self._forget()
        steps = self._root.steps
        found: list[Match] = []
        for k, word in enumerate(text.words):
            states = steps[word] if word in steps else self._step(self._root, word)
            if states is not None:
                self._follow(states, k, text, found)
        return found

    def _forget(self) -> None:
        self._known: dict[frozenset[_State], _States] = {}
        self._steps = 0
        self._root = self._together(frozenset([self._first]))

    def _together(self, states: frozenset[_State]) -> _States:
        if states not in self._known:
            behind: dict[int, set[_State]] = {}
            for state in states:
                for words, following in state.gaps:
                    behind.setdefault(words, set()).add(following)
            ends = tuple(sorted(number for state in states for number in state.ends))
            gaps = tuple((words, self._together(frozenset(behind[words]))) for words in sorted(behind))
            self._known[states] = _States(states, ends, gaps)
        return self._known[states]

    def _step(self, states: _States, word: str) -> _States | None:
        """Where a word leads from `states`; remembered."""
        atoms = [word] if word in self._exact else []
        atoms += [f"{word[:n]}*" for n in self._lengths if n <= len(word) and word[:n] in self._stems]
        reached = frozenset(s for atom in atoms for state in states.states for s in state.next.get(atom, ()))
        self._steps += 1
        states.steps[word] = self._together(reached) if reached else None
        return states.steps[word]

    def _follow(self, states: _States, begin: int, text: Words, found: list[Match]) -> None:
        """Add the matches that begin with the word `begin`, which led to `states`."""
        words, count = text.words, len(text.words)
        waiting: list[tuple[_States, int, tuple[tuple[int, int], ...]]] = [(states, begin + 1, ())]
        while waiting:
            now: _States | None
            now, at, gaps = waiting.pop()
            while now is not None:
                for number in now.ends:
                    found.append(Match(begin, at, number, gaps))
                if at == count:
                    break
                for most, behind in now.gaps:
                    waiting += _behind_gap(most, behind, at, gaps, text)
                word = words[at]
                now = now.steps[word] if word in now.steps else self._step(now, word)
                at += 1


def _behind_gap(
    most: int, behind: _States, at: int, gaps: tuple[tuple[int, int], ...], text: Words
) -> Iterator[tuple[_States, int, tuple[tuple[int, int], ...]]]:
    """Where matching goes on behind a gap of up to `most` words, which no comma crosses."""
    for left_out in range(min(most, len(text.words) - at - 1) + 1):
        if text.after_comma[at + left_out]:
            return
        yield behind, at + left_out, (*gaps, (at, at + left_out)) if left_out else gaps


def _flattened(root: _State) -> set[str]:
    """Give each state what it reaches at no cost; all words and stems in use."""
    used: set[str] = set()
    states, waiting = {root}, [root]
    while waiting:
        state = waiting.pop()
        following = [s for states in state.next.values() for s in states] + [s for _, s in state.gaps] + state.skips
        waiting += (new := [s for s in dict.fromkeys(following) if s not in states])
        states.update(new)
        used.update(state.next)
    merged = [(state, _merged(list(state.reached()))) for state in states]
    for state, whole in merged:
        state.next, state.gaps, state.ends, state.skips = whole.next, whole.gaps, whole.ends, []
    return used


def _merged(states: list[_State]) -> _State:
    """One state that leads wherever one of `states` does."""
    whole = _State()
    for state in states:
        for word, following in state.next.items():
            whole.next.setdefault(word, []).extend(following)
        whole.gaps += state.gaps
        whole.ends += state.ends
    return whole
