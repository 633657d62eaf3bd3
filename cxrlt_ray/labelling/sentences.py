"""A section's text -> its sentences, by their places.

A sentence ends at . ! ? and ; where a blank, a capital or the end follows, at a blank line, and before an enumeration's
next item (`2.`, `b)`, `-` at the begin of a line). A line that merely wraps goes on. Abbreviations and decimal numbers
end none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST = 120  # words; a longer one is text without points, and is cut
_ITEM = r"(?:\d{1,2}[.)]|[a-z]\)|[-*•])"
_ENDS = re.compile(
    r"[.!?]+(?=\s|[A-Z]|\)|$)(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bvs\.)(?<!\bapprox\.)(?<!\be\.g\.)(?<!\bi\.e\.)"
    r"|;"
    r"|\n[^\S\n]*(?=\n)"  # a blank line
    rf"|\n(?=[^\S\n]*{_ITEM}[^\S\n])"  # the next item begins a line
)
_WORDS = re.compile(r"\S+")


def sentences(text: str, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Where each sentence of text[begin:end] begins and ends in `text`, without blanks around it."""
    end = len(text) if end is None else end
    start = begin
    for stop in _ENDS.finditer(text, begin, end):
        if stop.end() < end or stop.end() > start:
            yield from _stripped(text, start, stop.end())
            start = stop.end()
    yield from _stripped(text, start, end)


def _stripped(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The place without blanks around it, in pieces of LONGEST words; none where there is no letter."""
    piece = text[begin:end]
    if not any(letter.isalpha() for letter in piece):
        return
    begin, end = begin + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
    if end - begin > 2 * LONGEST:
        words = list(_WORDS.finditer(text, begin, end))
        for k in range(0, len(words), LONGEST):
            yield words[k].start(), words[min(k + LONGEST, len(words)) - 1].end()
        return
    yield begin, end
