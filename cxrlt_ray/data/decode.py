"""Bytes of an image file to gray pixels: JPEG, PNG, TIFF and the other formats of OpenCV, and DICOM.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its edge where that suffices for the size asked for: libjpeg then
transforms fewer coefficients, 3.1 to 3.5 times as fast as torchvision's way, at 51 to 53 dB of the whole
image averaged down (benchmarks/prepare.py). What remains is area interpolation.

Files are not trusted: an image's size is read from its header first, and one of more than MAX_PIXELS is refused before
a decoder allocates memory for it. A JPEG or PNG is whole where its own structure says so, whatever follows its end.
"""

from __future__ import annotations

import io
import warnings

import numpy as np

from cxrlt_ray.data import gray_levels, jpeg, tiff
from cxrlt_ray.data.dicom import is_dicom, read_dicom
from cxrlt_ray.data.disguises import named
from cxrlt_ray.data.limits import MAX_BYTES, MAX_PIXELS, check_size

GRAINY = 0.25  # bytes a pixel (MIMIC-CXR-JPG: 0.18); where grain is to be averaged, a reduced decode needs a spare 2
REDUCTIONS = (8, 4, 2)
PNG = b"\x89PNG"
NO_IMAGE = "not an image that OpenCV decodes"


def decode(content: bytes, edge: int = 0, inverted: bool = False) -> tuple[np.ndarray, str]:
    """An encoded image as uint8 gray [H, W], and what was converted ('', 'colour', '16 bit', 'float', 'inverted').

    edge: the longest edge in pixels it will be resized to; 0 keeps every pixel. inverted: bright is low, as in
    an image that was exported from MONOCHROME1 (DICOM and TIFF files say so themselves).
    Raises ValueError saying why it cannot be decoded.
    """
    if not content:
        raise ValueError("empty file")
    if is_dicom(content):
        image, converted = read_dicom(content, MAX_BYTES)
    elif content.startswith(jpeg.START):
        image, converted = _jpeg(content, edge)
    elif content.startswith(tiff.SIGNATURES):
        image, converted = _tiff(content)
    else:
        if content.startswith(PNG):
            _check_png(content)
        check_size(*stated_size(content))
        image, converted = gray_levels.gray(_decoded(content))
    if inverted:
        return ~image, "inverted"
    return image, converted


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W] to [size, size]: area interpolation down, linear up."""
    import cv2

    if image.shape == (size, size):
        return image
    down = min(image.shape) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if down else cv2.INTER_LINEAR)


def reduction(height: int, width: int, length: int, edge: int) -> int:
    """By how much (1, 2, 4, 8) a JPEG of `length` bytes may be reduced in decoding, to be resized to `edge` pixels."""
    if not edge:
        return 1
    spare = 2 if length > GRAINY * height * width else 1
    return next((by for by in REDUCTIONS if min(height, width) // by >= edge * spare), 1)


def _jpeg(content: bytes, edge: int) -> tuple[np.ndarray, str]:
    structure = jpeg.read_structure(content)
    height, width, channels = structure.height, structure.width, structure.channels
    check_size(*((height, width) if height and width else stated_size(content)))
    by = reduction(height, width, structure.length, edge) if channels in (1, 3) else 1
    if by == 1:
        image, converted = gray_levels.gray(_decoded(content))
    else:
        image, converted = _decoded(content, by), "colour" if channels == 3 else ""
    if jpeg.is_cut_short(content, structure, image, by):
        raise ValueError(jpeg.TRUNCATED)
    return image, converted


def _tiff(content: bytes) -> tuple[np.ndarray, str]:
    try:
        tags = tiff.read_tags(content)
        height, width = int(tags[tiff.HEIGHT]), int(tags[tiff.WIDTH])
    except (ValueError, KeyError, TypeError):
        raise ValueError(NO_IMAGE) from None
    check_size(height, width)
    values = _by_pillow(content) if tiff.needs_pillow(tags) else _decoded(content)
    image, converted = gray_levels.gray(values)
    if tiff.needs_inversion(tags, values):
        return ~image, "inverted"
    return image, converted


def _decoded(content: bytes, by: int = 1) -> np.ndarray:
    """OpenCV's pixels, any type and channels; where `by` is 2, 4 or 8, gray ones at 1/`by` of the edge."""
    import cv2

    flags = cv2.IMREAD_UNCHANGED
    if by > 1:
        # as it is stored, like Pillow and torchvision: radiographs have no orientation in EXIF
        flags = getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{by}") | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(NO_IMAGE)
    return image


def _by_pillow(content: bytes) -> np.ndarray:
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    except Exception:  # Pillow's readers raise anything for a broken file
        raise ValueError(NO_IMAGE) from None


def _check_png(content: bytes) -> None:
    """Follow the chunks of a PNG to its end. Raises ValueError where the file ends first."""
    position, kind = 8, b""
    while kind != b"IEND":
        kind = content[position + 4 : position + 8]
        position += 12 + int.from_bytes(content[position : position + 4], "big")
        if position > len(content):
            raise ValueError(jpeg.TRUNCATED)


def stated_size(content: bytes) -> tuple[int, int]:
    """Height and width that the header of an image file states. Raises ValueError where there is none."""
    if content.startswith(PNG):
        return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its bound is a third lower
            width, height = Image.open(io.BytesIO(content)).size
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels in all") from None
    except Exception:  # Pillow's readers raise anything for a broken file
        raise ValueError(named(content) or NO_IMAGE) from None
    return height, width
