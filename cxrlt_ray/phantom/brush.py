"""What the phantom's chests are painted with: filled outlines, strokes, soft blobs and clouds on a gray canvas.

Gray is radiographic opacity: 0 is air, about 0.5 soft tissue, 1 metal; opacities of what lies behind one
another add up. Lengths and places are fractions of the image's edge, so that a picture is the same at any
size. Every stroke touches only the window around it: 20 to 50 microseconds each at 256 px.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

_SUBPIXEL = 4  # bits of the fraction of a pixel in OpenCV's drawing functions

Points = np.ndarray  # float [n, 2]: x, y as fractions of the edge, x to the right, y downwards


@dataclass
class Canvas:
    """A picture in the making: opacity float32 [size, size]. What is added to it is added `contrast` times.

    trace: where it is set, float32 [size, size] of the most that any stroke since then changed a pixel.
    """

    gray: np.ndarray
    contrast: float = 1.0
    trace: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Edge in pixels."""
        return self.gray.shape[0]


def blank(size: int, level: float) -> Canvas:
    """A canvas of one opacity."""
    return Canvas(np.full((size, size), level, np.float32))


def fill(canvas: Canvas, outline: Points, opacity: float, soft: float = 0.0, within: np.ndarray | None = None) -> None:
    """Add `opacity` inside a closed outline, its edge blurred over `soft`, only where the mask `within` is."""
    _add(canvas, [outline], None, opacity, soft, within)


def stroke(
    canvas: Canvas,
    lines: Sequence[Points],
    width: float,
    opacity: float,
    soft: float = 0.0,
    within: np.ndarray | None = None,
) -> None:
    """Add `opacity` along open lines; where lines of one call cross, it is added once."""
    # thinner than a pixel is drawn a pixel wide and fainter, as a detector would see it
    thin = min(1.0, width * canvas.size)
    _add(canvas, lines, width, opacity * thin, soft, within)


def cover(canvas: Canvas, outline: Points, level: float, soft: float = 0.0) -> None:
    """Raise the inside of an outline to at least `level`: tissue that displaces air."""
    window, mask = _mask(canvas.size, [outline], None, soft)
    part = canvas.gray[window]
    _change(canvas, window, mask * np.maximum(level - part, 0))


def mask_of(size: int, outline: Points, soft: float = 0.0) -> np.ndarray:
    """The inside of an outline as float32 [size, size], 1 inside, 0 outside."""
    window, mask = _mask(size, [outline], None, soft)
    whole = np.zeros((size, size), np.float32)
    whole[window] = mask
    return whole


def blob(
    canvas: Canvas,
    place: Sequence[float],
    radii: tuple[float, float],
    opacity: float,
    angle: float = 0.0,
    edge: float = 0.35,
    within: np.ndarray | None = None,
) -> None:
    """Add an ellipse whose rim fades over `edge` (share of its radius; 1: a fuzzy ball). Angle in radians."""
    window, mask = _ellipse(canvas.size, place, radii, angle, edge)
    _raise(canvas, window, mask, opacity, within)


def cloud(
    canvas: Canvas,
    place: Sequence[float],
    radii: tuple[float, float],
    opacity: float,
    rng: np.random.Generator,
    grain: float,
    within: np.ndarray | None = None,
) -> None:
    """Add an ill-defined patch: a fuzzy ellipse mottled in flecks of about `grain`."""
    window, mask = _ellipse(canvas.size, place, radii, 0.0, 0.7)
    count = int(np.clip(2 * max(radii) / grain, 2, 40))
    flecks = rng.random((count, count), np.float32)  # drawn whatever the window, so that sizes agree
    if not mask.size:
        return
    texture = cv2.resize(flecks, mask.shape[::-1], interpolation=cv2.INTER_CUBIC)
    mask = mask * np.clip(2.2 * texture - 0.3, 0, 1.5)
    _raise(canvas, window, mask, opacity, within)


def ellipse(place: Sequence[float], radii: tuple[float, float], angle: float = 0.0, count: int = 40) -> Points:
    """An ellipse's outline as points."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([place[0] + x * cos - y * sin, place[1] + x * sin + y * cos], axis=1)


def curve(*points: tuple[float, float], count: int = 24) -> Points:
    """A smooth line through the given points (a polynomial of their number in a common parameter)."""
    return _interpolation(len(points), count) @ np.asarray(points, float)


@functools.cache
def _interpolation(knots: int, count: int) -> np.ndarray:
    """The matrix [count, knots] from values at evenly spaced knots to the polynomial through them."""
    return np.vander(np.linspace(0, 1, count), knots) @ np.linalg.inv(np.vander(np.linspace(0, 1, knots), knots))


def soften(mask: np.ndarray, radius: float) -> np.ndarray:
    """`mask` blurred over `radius` pixels; a wide blur is done on a smaller copy, so that it costs no more."""
    factor = max(1, int(radius / 2))
    if factor == 1:
        return cv2.GaussianBlur(mask, (0, 0), max(radius, 0.1))
    small = (max(2, mask.shape[1] // factor), max(2, mask.shape[0] // factor))
    blurred = cv2.GaussianBlur(cv2.resize(mask, small, interpolation=cv2.INTER_AREA), (0, 0), radius / factor)
    return cv2.resize(blurred, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _add(
    canvas: Canvas,
    lines: Sequence[Points],
    width: float | None,
    opacity: float,
    soft: float,
    within: np.ndarray | None,
) -> None:
    window, mask = _mask(canvas.size, lines, width, soft)
    _raise(canvas, window, mask, opacity, within)


def _raise(
    canvas: Canvas, window: tuple[slice, slice], mask: np.ndarray, opacity: float, within: np.ndarray | None
) -> None:
    if within is not None:
        mask = mask * within[window]
    _change(canvas, window, mask * np.float32(opacity * canvas.contrast))


def _change(canvas: Canvas, window: tuple[slice, slice], change: np.ndarray) -> None:
    canvas.gray[window] += change
    if canvas.trace is not None:
        np.maximum(canvas.trace[window], np.abs(change), out=canvas.trace[window])


def _mask(
    size: int, lines: Sequence[Points], width: float | None, soft: float
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The window of the canvas around some lines, and in it their inside (or stroke) as float32 0 to 1."""
    margin = 2 + (width or 0) * size + 3 * soft * size
    everything = (lines[0] if len(lines) == 1 else np.concatenate(lines)) * size
    window = _window(size, everything.min(axis=0) - margin, everything.max(axis=0) + margin)
    shape = tuple(part.stop - part.start for part in window)
    mask = np.zeros(shape, np.uint8)
    if not mask.size:
        return window, mask.astype(np.float32)
    corner = np.array([window[1].start, window[0].start])
    fixed = np.round((everything - corner) * (1 << _SUBPIXEL)).astype(np.int32)
    ends = itertools.accumulate(len(line) for line in lines)
    fixed = [fixed[end - len(line) : end] for line, end in zip(lines, ends, strict=True)]
    if width is None:
        cv2.fillPoly(mask, fixed, 255, cv2.LINE_AA, _SUBPIXEL)
    else:
        cv2.polylines(mask, fixed, False, 255, max(1, round(width * size)), cv2.LINE_AA, _SUBPIXEL)
    if soft * size > 0.6:  # a narrower blur changes nothing that the grain would not hide
        mask = soften(mask, soft * size)
    return window, mask.astype(np.float32) * np.float32(1 / 255)


def _ellipse(
    size: int, place: Sequence[float], radii: tuple[float, float], angle: float, edge: float
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The window around an ellipse, and in it 1 well inside, 0 outside, a smooth step of width `edge` between."""
    centre = np.asarray(place, float) * size
    reach = max(radii) * (1 + edge) * size + 1
    window = _window(size, centre - reach, centre + reach)
    x = np.arange(window[1].start, window[1].stop, dtype=np.float32) - np.float32(centre[0])
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = (x * cos + y * sin) / np.float32(radii[0] * size)
    across = (y * cos - x * sin) / np.float32(radii[1] * size)
    step = np.clip((1 + edge - np.sqrt(along * along + across * across)) / (2 * edge), 0, 1)
    return window, step * step * (3 - 2 * step)


def _window(size: int, low: np.ndarray, high: np.ndarray) -> tuple[slice, slice]:
    x0, y0, x1, y1 = (min(max(int(v), 0), size) for v in (*low, high[0] + 1, high[1] + 1))
    return slice(y0, max(y0, y1)), slice(x0, max(x0, x1))
