"""Pixels of any type to 8-bit gray.

8-bit pixels stay as they are. Deeper ones are spread over 0..255 by the range that they use, since 10- and 12-bit
radiographs come in 16-bit files. A few burned-in or hot pixels, or a border at one value, do not count for that range:
they would leave the anatomy a dozen gray levels. Of 1,019 chest X-rays (NIH), the rule leaves out a pixel of none.
"""

from __future__ import annotations

import numpy as np

TAIL = 2  # percent of the pixels at each end that may lie outside of the range
SAMPLE = 2**18  # pixels that the percentiles are taken from
RARE = 1e-4  # a gray level that a smaller share of the pixels has is not counted
FEW_LEVELS = 32  # a window or a stated range that leaves fewer is no use; NIH's chest X-rays have 144 to 256
FLOAT_RANGES = (1, 255, 65535)  # that floating-point pixels are stored in
ROUND_OFF = 1e-4  # beyond such a range, as a share of it
DEEP = np.arange(2**16, dtype=np.uint16)


def gray(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Pixels [H, W] or [H, W, channels BGR(A)] as uint8 gray [H, W], and what was converted ('', 'colour', '16 bit').

    Raises ValueError for floating-point pixels of an unknown range.
    """
    import cv2

    colour = values.ndim == 3 and values.shape[2] > 1
    if colour:
        if values.dtype not in (np.uint8, np.uint16):
            values = values.astype(np.float32)
        values = cv2.cvtColor(values, cv2.COLOR_BGRA2GRAY if values.shape[2] == 4 else cv2.COLOR_BGR2GRAY)
    values = values.reshape(values.shape[:2])
    if values.dtype == np.uint8:
        return values, "colour" if colour else ""
    if values.dtype.kind == "f":
        return _from_float(values), "float"
    return stretched(values), f"{8 * values.dtype.itemsize} bit"


def stretched(values: np.ndarray) -> np.ndarray:
    """`values` as uint8, their `value_range` spread over 0..255."""
    return to_8_bit(values, *value_range(values))


def to_8_bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`values` as uint8: low..high to 0..255, what lies beyond clipped."""
    if values.dtype == np.uint16 and values.size > DEEP.size:  # each level once, instead of each pixel
        return to_8_bit(DEEP, low, high)[values]
    scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1e-9))
    return scaled.round().clip(0, 255).astype(np.uint8)


def value_range(values: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest of `values` that are no outliers.

    An outlier is farther from the middle 96 % than these are wide. The middle is that of the values between minimum and
    maximum: a border, a saturated background or a label at one value do not count for it, however large they are.
    """
    low, high = float(values.min()), float(values.max())
    sample = values.ravel()[:: max(1, values.size // SAMPLE)]
    between = sample[(sample > low) & (sample < high)]
    if not between.size:
        return low, high
    first, last = np.percentile(between, (TAIL, 100 - TAIL))
    fences = 2 * first - last, 2 * last - first
    if first == last or (fences[0] <= low and high <= fences[1]):
        return low, high
    inside = values[(values >= fences[0]) & (values <= fences[1])]
    return float(inside.min()), float(inside.max())


def levels(image: np.ndarray) -> int:
    """How many gray levels uint8 pixels of any shape have, rare ones left out."""
    return int((_histogram(image) > RARE * image.size).sum())


def share_of_levels(image: np.ndarray, count: int) -> float:
    """The share of uint8 pixels that have one of the `count` most frequent gray levels."""
    return float(np.sort(_histogram(image))[-count:].sum() / image.size)


def spread(image: np.ndarray, share: float) -> tuple[int, int]:
    """The gray levels between which the middle `share` of uint8 pixels lies."""
    cumulated = np.cumsum(_histogram(image)) / image.size
    outside = (1 - share) / 2
    return int(np.searchsorted(cumulated, outside, "right")), int(np.searchsorted(cumulated, 1 - outside))


def clearer(stated: np.ndarray, used: np.ndarray) -> bool:
    """Whether pixels scaled by the range that they use show what the range that a file states hides (uint8 both)."""
    few = levels(stated)
    return few < FEW_LEVELS and levels(used) >= 2 * few


def _histogram(image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.calcHist([np.ascontiguousarray(image).reshape(-1, 1)], [0], None, [256], [0, 256]).ravel()


def _from_float(values: np.ndarray) -> np.ndarray:
    """Floating-point pixels as uint8, by the first of FLOAT_RANGES that holds them."""
    low, high = float(values.min()), float(values.max())
    full = next((full for full in FLOAT_RANGES if high <= full * (1 + ROUND_OFF)), None)
    if full is None or not low >= -ROUND_OFF * full:
        raise ValueError(
            f"pixels of type {values.dtype} from {low:g} to {high:g}: known ranges are 0 to 1, 0 to 255 and 0 to 65535"
        )
    used = stretched(values)
    if full == FLOAT_RANGES[-1]:
        return used
    stated = to_8_bit(values, 0, full)
    return used if clearer(stated, used) else stated
