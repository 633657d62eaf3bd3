"""Masks in COCO's compressed run-length form, and the boxes of their parts.

The runs of 0 and of 1 alternate, 0 first, down the columns from the left. Each run from the fourth on is written as
its difference from the run two before. A number is written in groups of 5 bits, the lowest first, as the character 48 +
group, + 32 where another group follows; the highest bit of the last group is its sign.
Source: the format of COCO's API (`pycocotools.mask`), as its documentation and public readers describe it.
"""

from __future__ import annotations

import numpy as np


def decoded_mask(counts: str | list[int], height: int, width: int) -> np.ndarray:
    """A mask bool [height, width] from its runs. Raises ValueError where they do not fill it exactly.

    >>> decoded_mask("131", 1, 5).astype(int).tolist()
    [[0, 1, 1, 1, 0]]
    """
    runs = np.asarray(_runs(counts) if isinstance(counts, str) else counts, np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError("the runs do not fill the mask")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def parts_of(mask: np.ndarray) -> list[tuple[float, float, float, float]]:
    """The boxes (x, y, width, height) of a mask's connected parts, pixels that touch at a corner included."""
    import cv2

    if not mask.any():
        return []
    _, _, statistics, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask, np.uint8), connectivity=8)
    return [(float(x), float(y), float(width), float(height)) for x, y, width, height, _ in statistics[1:]]


def _runs(text: str) -> list[int]:
    """The runs that a string holds."""
    runs: list[int] = []
    number = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError("a character that no run is written with")
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    if shift:
        raise ValueError("the last run is cut off")
    return runs
