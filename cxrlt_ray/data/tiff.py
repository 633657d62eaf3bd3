"""TIFF files to pixels: what OpenCV leaves to be done."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
WIDTH, HEIGHT, BITS, PHOTOMETRIC = 256, 257, 258, 262
WHITE_IS_ZERO = 0


def read_tags(content: bytes) -> dict[int, Any]:
    """The first image's tags. Raises ValueError where they cannot be read."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    stream = io.BytesIO(content)
    try:
        tags = ImageFileDirectory_v2(stream.read(16 if b"+" in content[:4] else 8))
        stream.seek(tags.next)
        tags.load(stream)
        return dict(tags)
    except Exception as error:  # Pillow's readers raise anything for a broken file
        raise ValueError(str(error)) from None


def needs_pillow(tags: dict[int, Any]) -> bool:
    """Whether the pixels are of 2 or 4 bits, which OpenCV takes for a palette."""
    return tags.get(BITS) in ((2,), (4,))


def needs_inversion(tags: dict[int, Any], values: np.ndarray) -> bool:
    """Whether bright is low in decoded `values`: OpenCV inverts those of up to 8 bits only."""
    return tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and values.dtype.itemsize > 1
