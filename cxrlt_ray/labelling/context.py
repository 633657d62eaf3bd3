"""What the words around a mention say of it: denied, uncertain, of no concern to this image, or there.

In the way of ConText (Harkema et al. 2009): triggers act on the mentions before or after them as far as their scope
goes, which ends at the sentence's end, at words that open another statement ("but"), or after the trigger's reach. Of
the triggers in whose scope a mention lies, the nearest wins; of a trigger within a longer one, the longer. A trigger
that reaches into the gap of a mention's phrase ("heart is not enlarged") is the nearest of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cxrlt_ray.labelling.phrases import Match, Words

LIST_WORDS = {"and", "or", "nor"}


class Place(NamedTuple):
    """A trigger in a sentence: words begin to end (exclusive)."""

    begin: int
    end: int
    means: str
    before: bool  # it acts on mentions after it
    after: bool
    reach: int


def longest(places: Sequence[Place]) -> list[Place]:
    """Triggers that do not lie within a longer one, by their places; of two at one place both."""
    kept: list[Place] = []
    for place in sorted(places, key=lambda p: (p.begin, -p.end)):
        if not kept or place.end > kept[-1].end or place[:2] == kept[-1][:2]:
            kept.append(place)
    return [place for place in kept if place.means != "pass"]


def nearest(mention: Match, places: Sequence[Place], text: Words) -> Place | None:
    """The trigger that decides on a mention; None where there is none. places: as `longest` gives them.

    Of two at the same distance one that says something of this image.
    """
    best, least = None, (1_000, False)
    for place in places:
        if place.means == "end":
            continue
        if any(place.begin < end and begin < place.end for begin, end in mention.gaps):
            return place
        distance = _distance(mention, place, text)
        if distance is None or distance > place.reach or (distance, place.means == "blank") >= least:
            continue
        begin, end = min(mention.end, place.end), max(mention.begin, place.begin)
        if not any(p.means == "end" and begin <= p.begin and p.end <= end for p in places):
            best, least = place, (distance, place.means == "blank")
    return best


def _distance(mention: Match, place: Place, text: Words) -> int | None:
    """Words between a mention and a trigger that may act on it; None where it does not."""
    if place.before and place.end <= mention.begin:
        return mention.begin - place.end
    if place.after and place.begin >= mention.end:
        commas = [k for k in range(mention.end, place.begin + 1) if text.after_comma[k]]
        # "A, B and C are not seen" is of all of them, "A, C is not seen" of C
        if not commas or LIST_WORDS.intersection(text.words[commas[-1] - 1 : place.begin]):
            return place.begin - mention.end
    return None
