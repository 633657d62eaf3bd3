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
DENYING_LIST = {"or", "nor"}  # "no opacity, nodule or density suspicious for a mass"
# what a radiologist says of what is there, and seldom of what is not
PRESENT = {"small", "tiny", "trace", "minimal", "mild", "moderate", "stable", "unchanged", "persistent", "chronic"}
DENIED_DOUBT = 3  # words at most from a denial to the doubt that it denies


class Place(NamedTuple):
    """A trigger in a sentence: words begin to end (exclusive)."""

    begin: int
    end: int
    means: str
    before: bool  # it acts on mentions after it
    after: bool
    reach: int


def longest(places: Sequence[Place]) -> list[Place]:
    """Triggers that do not lie within a longer one that acts the same way or is no trigger, by their places."""
    kept = [place for place in places if not any(_hides(other, place) for other in places)]
    return sorted(place for place in kept if place.means != "pass")


def _hides(longer: Place, place: Place) -> bool:
    within = longer.begin <= place.begin and place.end <= longer.end and longer[:2] != place[:2]
    same_way = (longer.before and place.before) or (longer.after and place.after)
    return within and (same_way or longer.means == "pass" or place.means == "end")


def ends_of_denials(places: Sequence[Place], mentions: Sequence[Match], text: Words) -> list[Place]:
    """Where a comma begins a statement of what is there: "no pneumothorax, small right effusion". places: `longest`'s.

    What is denied stands between the denial and the comma, a word of PRESENT behind it; and no "or" or "and" goes on
    with the list until the next denial: "no pneumothorax, small effusion or edema" denies all three.
    """
    begins = [k for k, word in enumerate(text.words) if text.after_comma[k] and word in PRESENT]
    denials = [place for place in places if place.means == "negative" and place.before] if begins else []
    ends = []
    for k in begins:
        denied = any(d.end <= m.begin and m.end <= k for d in denials for m in mentions)
        until = min((d.begin for d in denials if d.begin > k), default=len(text.words))
        if until < len(text.words) and text.words[until - 1] in LIST_WORDS:
            until -= 1  # "and no ..."
        if denied and not LIST_WORDS.intersection(text.words[k:until]):
            ends.append(Place(k, k, "end", before=False, after=False, reach=0))
    return ends


def nearest(mention: Match, places: Sequence[Place], text: Words) -> Place | None:
    """The trigger that decides on a mention; None where there is none.

    places: those of `longest` and of `ends_of_denials`, sorted. Of two at the same distance a denial prevails over what
    is of no concern to this image. "No opacity suspicious for pneumonia" denies it.
    """
    best, least = None, (1_000, False)
    for place in places:
        if place.means == "end":
            continue
        if mention.gaps and any(place.begin < end and begin < place.end for begin, end in mention.gaps):
            return place
        distance = _distance(mention, place, text)
        if distance is None or distance > place.reach or _ended(mention, place, places, text):
            continue
        key = (distance, place.means != "negative")
        if key < least:
            best, least = place, key
    return _denying(best, places, text) if best is not None and best.means == "uncertain" else best


def _ended(mention: Match, place: Place, places: Sequence[Place], text: Words) -> bool:
    """Whether another statement begins between a mention and a trigger.

    Words say so that open one; or a comma or "and" behind a verb that denies what stands before it, of which the
    trigger is a part: "the right pneumothorax has resolved, the left one persists".
    """
    begin, end = min(mention.end, place.end), max(mention.begin, place.begin)
    if begin < end and any(p.means == "end" and begin <= p.begin and p.end <= end for p in places):
        return True
    verbs = (p for p in places if p.means == "negative" and not p.before and p[:2] != place[:2])
    return mention.begin >= place.end and any(
        verb.begin <= place.begin
        and place.end <= verb.end <= mention.begin
        and (any(text.after_comma[verb.end : mention.begin + 1]) or "and" in text.words[verb.end : mention.begin])
        for verb in verbs
    )


def _denying(doubt: Place, places: Sequence[Place], text: Words) -> Place:
    """What denies the words of doubt that stand before a mention; else they themselves."""
    for place in reversed(places):
        if place.end <= doubt.begin and place.before:
            commas = [k for k in range(place.end, doubt.begin + 1) if text.after_comma[k]]
            listed = DENYING_LIST.intersection(text.words[max([place.end, *commas]) : doubt.begin])
            near = not commas and doubt.begin - place.end <= DENIED_DOUBT
            return place if place.means == "negative" and (near or listed) else doubt
    return doubt


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
