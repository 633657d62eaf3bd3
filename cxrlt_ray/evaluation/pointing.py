"""Attention maps measured against boxes: the pointing game and the intersection over union.

A map is float [H, W] over the whole image at any grid. Boxes are float [K, 4], x0, y0, x1, y1 as fractions of the
image's width and height from its upper left corner; where several overlap, their union counts.
"""

from __future__ import annotations

import numpy as np


def pointing_game(attention: np.ndarray, boxes: np.ndarray) -> float:
    """Whether the cell with the largest value has its centre in a box: 1 or 0 (Zhang et al. 2018, without tolerance).

    Of several cells with that value the share: a flat map scores what chance would. The mean over images is a finding's
    pointing accuracy. Raises ValueError for a map or boxes that are none.

    >>> pointing_game(np.array([[0.1, 0.9], [0.2, 0.3]]), np.array([[0.5, 0.0, 1.0, 0.5]]))
    1.0
    """
    _check(attention, boxes)
    rows, columns = np.nonzero(attention == attention.max())
    x, y = (columns + 0.5) / attention.shape[1], (rows + 0.5) / attention.shape[0]
    return float(_inside(x, y, boxes).mean())


def intersection_over_union(attention: np.ndarray, boxes: np.ndarray, threshold: float = 0.5) -> float:
    """The area of cells with at least `threshold` that lies in boxes, over the area of both together: 0 to 1.

    Areas are exact: a box may cut a cell. Raises ValueError for a map or boxes that are none.

    >>> intersection_over_union(np.array([[0.1, 0.9], [0.2, 0.3]]), np.array([[0.5, 0.0, 1.0, 1.0]]))
    0.5
    """
    _check(attention, boxes)
    covered, bright = coverage(attention.shape, boxes), attention >= threshold
    shared = covered[bright].sum()
    return float(shared / (bright.sum() + covered.sum() - shared))


def coverage(shape: tuple[int, ...], boxes: np.ndarray) -> np.ndarray:
    """The share of each cell of a grid [H, W] that the union of boxes covers, float [H, W] in 0..1."""
    height, width = shape
    x = np.unique(np.concatenate([np.arange(width + 1) / width, boxes[:, [0, 2]].ravel()]))
    y = np.unique(np.concatenate([np.arange(height + 1) / height, boxes[:, [1, 3]].ravel()]))
    middle_x, middle_y = (x[:-1] + x[1:]) / 2, (y[:-1] + y[1:]) / 2
    area = np.diff(y)[:, None] * np.diff(x) * _inside(middle_x[None, :], middle_y[:, None], boxes)
    cells = np.zeros((height, width))
    row = np.minimum((middle_y * height).astype(int), height - 1)
    column = np.minimum((middle_x * width).astype(int), width - 1)
    np.add.at(cells, (row[:, None], column[None, :]), area)
    return cells * height * width


def _inside(x: np.ndarray, y: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether points lie in any box."""
    inside = np.zeros(np.broadcast(x, y).shape, bool)
    for x0, y0, x1, y1 in boxes:
        inside |= (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)
    return inside


def _check(attention: np.ndarray, boxes: np.ndarray) -> None:
    if attention.ndim != 2 or not attention.size or not np.isfinite(attention).all():
        raise ValueError(f"an attention map is finite and of shape [H, W], not {attention.shape} or with nan")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise ValueError(f"boxes are of shape [K, 4] with K at least 1, not {boxes.shape}")
    x0, y0, x1, y1 = boxes.T
    if not ((x0 >= 0) & (y0 >= 0) & (x1 <= 1) & (y1 <= 1) & (x0 < x1) & (y0 < y1)).all():
        raise ValueError("a box is x0 < x1 and y0 < y1 as fractions of the image, 0 to 1")
