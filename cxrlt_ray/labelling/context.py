"""What the words around a mention say of it: denied, uncertain, of no concern to this image, or there.

In the way of ConText (Harkema et al. 2009): triggers act on the mentions before or after them as far as their scope
goes, which ends at the sentence's end, at words that open another statement ("but"), or after the trigger's reach. Of
the triggers in whose scope a mention lies, the nearest wins; of a trigger within a longer one, the longer. A trigger
in the gap of a mention's phrase ("heart is not enlarged") is the nearest of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cxrlt_ray.labelling.phrases import Match

LIST_WORDS = {"and", "or", "nor"}


class Place(NamedTuple):
    """A trigger in a sentence: words begin to end (exclusive)."""

    begin: int
    end: int
    means: str
    before: bool  # it acts on mentions after it
    after: bool
    reach: int
    phrase: str


def longest(places: Sequence[Place]) -> list[Place]:
    """Triggers that do not lie within a longer one, by their places."""
    kept: list[Place] = []
    for place in sorted(places, key=lambda p: (p.begin, -p.end)):
        if not kept or place.end > kept[-1].end:
            kept.append(place)
    return kept


def nearest(mention: Match, places: Sequence[Place], after_comma: Sequence[bool]) -> Place | None:
    """The trigger that decides on a mention; None where there is none. places: as `longest` gives them."""
    best, least = None, 1_000
    for k, place in enumerate(places):
        if place.means == "end":
            continue
        if place.end <= mention.begin:
            distance = mention.begin - place.end if place.before else least
            between = places[k + 1 :]
            ended = any(p.means == "end" and p.end <= mention.begin for p in between)
        elif place.begin >= mention.end:
            distance = place.begin - mention.end if place.after else least
            ended = any(p.means == "end" and p.begin >= mention.end for p in places[:k])
        elif any(begin <= place.begin and place.end <= end for begin, end in mention.gaps):
            return place
        else:
            continue
        if distance < least and distance <= place.reach and not ended:
            best, least = place, distance
    return best
