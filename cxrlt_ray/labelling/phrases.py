"""The small grammar in which rule files name things, and a matcher for all phrases of all rules at once.

    pleural effusion        these words in a row, in any case, joined by blanks, hyphens, slashes or line ends
    opaci*                  a word that begins so (3 letters at least)
    (right|left lower)      one of these
    [small|tiny]            one of these, or nothing
    heart ... enlarged      up to GAP words in between, without a comma; ...6 is up to 6 (at most LONGEST_GAP)

A phrase is a set of word sequences, and all of them form one trie: matching looks at each word once and goes on only
where a sequence goes on, so that no phrase can explode. 1,500 phrases take 0.1 ms a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cxrlt_ray.errors import UsageError

GAP, LONGEST_GAP, GAPS = 4, 10, 2  # words of a gap, at most; gaps of a phrase
LENGTH, FORMS = 400, 3000  # letters of a phrase; word sequences that it stands for
STEM = 3
_TOKEN = re.compile(r"\.\.\.\d*|[()|\[\]]|[^\s()|\[\]]+")
_WORD = re.compile(r"\w+\*?")
_TEXT = re.compile(r"\w+|,")

Sequence_ = tuple[str | int, ...]  # words, stems with their *, and gaps as their numbers of words


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


def sequences(phrase: str) -> list[Sequence_]:
    """All word sequences that a phrase stands for.

    >>> sequences("[small] (pleural|left) effusion*")[:2]
    [('small', 'pleural', 'effusion*'), ('small', 'left', 'effusion*')]

    Raises UsageError, with the phrase, for what is not in the grammar or stands for more than FORMS sequences.
    """
    if len(phrase) > LENGTH:
        raise UsageError(f"a phrase of {len(phrase):,} letters ('{phrase[:40]} ...'): at most {LENGTH}; split it.")
    if phrase.count("...") > GAPS:
        raise UsageError(f"phrase '{phrase}' has more than {GAPS} gaps: split it.")
    tokens = _TOKEN.findall(phrase)
    alternatives, end = _alternatives(phrase, tokens, 0)
    if end < len(tokens):
        raise UsageError(f"phrase '{phrase}': '{tokens[end]}' opens nothing.")
    for form in alternatives:
        if not form or isinstance(form[0], int) or isinstance(form[-1], int):
            raise UsageError(f"phrase '{phrase}' may be empty, or begins or ends with a gap: give a word there.")
    return list(dict.fromkeys(alternatives))


def _alternatives(phrase: str, tokens: list[str], at: int) -> tuple[list[Sequence_], int]:
    """The sequences from `at` to the bracket that closes there, or the end."""
    done: list[Sequence_] = []
    forms: list[Sequence_] = [()]
    while at < len(tokens) and tokens[at] not in ")]":
        token = tokens[at]
        at += 1
        if token == "|":
            done, forms = done + forms, [()]
            continue
        if token in "([":
            inner, at = _alternatives(phrase, tokens, at)
            if at == len(tokens) or tokens[at] != {"(": ")", "[": "]"}[token]:
                raise UsageError(f"phrase '{phrase}': a bracket '{token}' is not closed.")
            at += 1
            choices = [*inner, ()] if token == "[" else inner
        else:
            choices = [_atoms(phrase, token)]
        if len(forms) * len(choices) + len(done) > FORMS:
            raise UsageError(f"phrase '{phrase}' stands for more than {FORMS:,} word sequences: split it.")
        forms = [form + choice for form in forms for choice in choices]
    return done + forms, at


def _atoms(phrase: str, token: str) -> Sequence_:
    """The words of a token without blanks: `air-fluid` is two."""
    if token.startswith("..."):
        words = int(token[3:] or GAP)
        if not 1 <= words <= LONGEST_GAP:
            raise UsageError(f"phrase '{phrase}': a gap has 1 to {LONGEST_GAP} words, not {words}.")
        return (words,)
    atoms = tuple(word.lower() for word in _WORD.findall(token))
    if "-".join(atoms) != re.sub(r"[/'-]+", "-", token.lower()):
        raise UsageError(f"phrase '{phrase}': '{token}' is no word; there are words, stem*, (a|b), [a], ... and ...6.")
    if any(atom.endswith("*") and len(atom) <= STEM for atom in atoms):
        raise UsageError(f"phrase '{phrase}': a stem has {STEM} letters at least, not '{token}'.")
    return atoms


@dataclass
class _Node:
    next: dict[str, _Node] = field(default_factory=dict)
    gaps: dict[int, _Node] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)


class Matcher:
    """Where phrases stand in a sentence; phrase k is `phrases[k]`."""

    def __init__(self, phrases: Sequence[str]) -> None:
        self._root = _Node()
        self._atoms: dict[str, tuple[str, ...]] = {}  # of a word of the text, as they were looked up
        self._starts: dict[str, tuple[_Node, ...]] = {}
        forms = {phrase: sequences(phrase) for phrase in dict.fromkeys(phrases)}
        for number, phrase in enumerate(phrases):
            for form in forms[phrase]:
                self._add(form, number)
        used = {atom for form in forms.values() for one in form for atom in one if isinstance(atom, str)}
        self._words = {atom for atom in used if not atom.endswith("*")}
        self._stems = {atom for atom in used if atom.endswith("*")}
        self._lengths = sorted({len(stem) - 1 for stem in self._stems})

    def matches(self, text: Words) -> list[Match]:
        """Every place of every phrase, those within others too."""
        words = text.words
        starts = self._starts
        found: list[Match] = []
        for k, word in enumerate(words):
            nodes = starts.get(word)
            if nodes is None:
                nodes = self._look_up(word)
            for node in nodes:
                self._follow(node, k, text, found)
        return found

    def knows(self, word: str) -> bool:
        """Whether a word (in small letters) stands in any phrase."""
        if word not in self._starts:
            self._look_up(word)
        return bool(self._atoms[word])

    def _add(self, form: Iterable[str | int], number: int) -> None:
        node = self._root
        for atom in form:
            node = node.gaps.setdefault(atom, _Node()) if isinstance(atom, int) else node.next.setdefault(atom, _Node())
        node.ends.append(number)

    def _look_up(self, word: str) -> tuple[_Node, ...]:
        atoms = [word] if word in self._words else []
        atoms += [stem for n in self._lengths if n <= len(word) and (stem := word[:n] + "*") in self._stems]
        if len(self._starts) > 200_000:  # words that are typed wrong have no end
            self._starts.clear()
            self._atoms.clear()
        self._atoms[word] = tuple(atoms)
        self._starts[word] = tuple(self._root.next[atom] for atom in atoms if atom in self._root.next)
        return self._starts[word]

    def _follow(self, node: _Node, begin: int, text: Words, found: list[Match]) -> None:
        """Add the matches that begin with the word `begin`, which led to `node`."""
        words, count = text.words, len(text.words)
        open_: list[tuple[_Node, int, tuple[tuple[int, int], ...]]] = [(node, begin + 1, ())]
        while open_:
            node, at, gaps = open_.pop()
            for number in node.ends:
                found.append(Match(begin, at, number, gaps))
            if at == count:
                continue
            if node.next:
                word = words[at]
                if word not in self._atoms:
                    self._look_up(word)
                for atom in self._atoms[word]:
                    if atom in node.next:
                        open_.append((node.next[atom], at + 1, gaps))
            for most, behind in node.gaps.items():
                for skipped in range(min(most, count - at - 1) + 1):
                    if text.after_comma[at + skipped]:
                        break
                    # behind a gap a word follows: its node is reached from `behind` as any other
                    gap = ((at, at + skipped),) if skipped else ()
                    open_.append((behind, at + skipped, gaps + gap))
