"""Whether a report is in English, which alone the rules read: by its commonest words."""

from __future__ import annotations

import re

FEWEST = 8  # words without which a report is taken as English
SHARE = 0.12  # of English or the rules' own words, at least
_WORDS = re.compile(r"[^\W\d_]+")
_COMMON = """
    the of and is are was were with without there has have been in at to for on an as by from this that which may be no
    not or again seen noted right left normal stable unchanged lung lungs heart chest size small mild moderate large
    within limits clear bilateral acute evidence findings impression since prior study
"""
# the commonest words of the languages in which chest X-rays are published, without those that English has
_COMMON_ELSEWHERE = """
    el la los las de del sin con una se y al derrame imagen hallazgos torax tórax da dos das sem com uma não sinais e na
    le les des du et sans avec une est pas au dans der das und ist nicht kein keine mit im von zu ohne il lo gli di
    senza non nel della een het van geen met op og av ikke och inte på
"""
_ENGLISH, _OTHERS = frozenset(_COMMON.split()), frozenset(_COMMON_ELSEWHERE.split())


def is_foreign(text: str) -> bool:
    """Whether a text is in another language than English.

    >>> is_foreign("Sin derrame pleural ni consolidacion. La silueta cardiaca es de tamano normal.")
    True
    >>> is_foreign("No effusion.")
    False
    """
    words = [word.lower() for word in _WORDS.findall(text[:5000])]
    if len(words) < FEWEST:
        return sum(not word.isascii() for word in words) > len(words) / 2
    english = sum(word in _ENGLISH for word in words)
    others = sum(word in _OTHERS for word in words)
    strange = english < SHARE * len(words) and sum(not word.isascii() for word in words) > len(words) / 4
    return others > english or strange
