"""Images that decode and are likely no radiographs. They still train: people are told how many there are."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.data import gray_levels

TINY = 16  # pixels: a shorter edge below
STRIP = 4  # times the shorter edge: a longer edge above
SAME = 4  # gray levels: 99 % of a blank image's pixels differ by that at most
FEW = 16  # gray levels that hold nearly all of a mask or a drawing, in a JPEG too; of a radiograph, half at most
DARK = 8  # gray level: a blank image below is black

SUSPECTS = {
    "tiny": f"an edge below {TINY} px",
    "strip": f"one edge above {STRIP} times the other",
    "black": "nearly all pixels black",
    "blank": "nearly all pixels of one gray",
    "flat": f"nearly all pixels of {FEW} gray levels, such as a mask",
}
BLANK = ("black", "blank", "flat")  # all alike, and no one's duplicates


def suspect(image: np.ndarray) -> str:
    """The first of SUSPECTS that a decoded uint8 image [H, W] is, or ''.

    >>> suspect(np.zeros((1, 1), np.uint8)), suspect(np.zeros((100, 80), np.uint8))
    ('tiny', 'black')
    """
    short, long = sorted(image.shape)
    if short < TINY:
        return "tiny"
    if long > STRIP * short:
        return "strip"
    low, high = gray_levels.spread(image, 0.99)
    if high - low <= SAME:
        return "black" if high < DARK else "blank"
    return "flat" if gray_levels.share_of_levels(image, FEW) > 0.95 else ""
