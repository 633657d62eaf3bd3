"""Attention maps against boxes: by counting fine pixels, at any grid."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlt_ray.evaluation.pointing import coverage, intersection_over_union, pointing_game

RNG = np.random.default_rng(0)


def drawn_boxes(count: int) -> np.ndarray:
    low, high = RNG.integers(0, 50, (count, 2)), RNG.integers(51, 101, (count, 2))
    return np.concatenate([low, high], axis=1) / 100


def painted(boxes: np.ndarray, side: int) -> np.ndarray:
    """The union of boxes on side x side pixels, whose edges the boxes' are."""
    mask = np.zeros((side, side), bool)
    for x0, y0, x1, y1 in np.round(boxes * side).astype(int):
        mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("shape", [(4, 5), (10, 10), (25, 4)])
def test_areas_are_those_of_fine_pixels(count, shape):
    for _ in range(5):
        boxes, attention = drawn_boxes(count), RNG.random(shape)
        fine = painted(boxes, 100)
        cells = fine.reshape(shape[0], 100 // shape[0], shape[1], 100 // shape[1]).mean(axis=(1, 3))
        np.testing.assert_allclose(coverage(shape, boxes), cells, atol=1e-9)
        bright = np.kron(attention >= 0.6, np.ones((100 // shape[0], 100 // shape[1]), bool))
        expected = (fine & bright).sum() / (fine | bright).sum()
        assert intersection_over_union(attention, boxes, 0.6) == pytest.approx(expected)


def test_a_perfect_map_is_one_and_one_elsewhere_is_nothing():
    boxes = np.array([[0.25, 0.5, 0.75, 1.0]])
    attention = coverage((8, 8), boxes)
    assert (intersection_over_union(attention, boxes), pointing_game(attention, boxes)) == (1, 1)
    assert (intersection_over_union(1 - attention, boxes), pointing_game(1 - attention, boxes)) == (0, 0)
    assert intersection_over_union(attention - 1, boxes) == 0  # nothing is bright


def test_the_largest_value_points_whatever_the_grid_and_whichever_box():
    boxes = np.array([[0.0, 0.0, 0.3, 0.3], [0.6, 0.1, 0.9, 0.4]])
    attention = np.zeros((6, 12))
    for row, column, hit in ((1, 8, 1.0), (1, 5, 0.0), (0, 0, 1.0), (5, 9, 0.0)):
        attention[:] = 0
        attention[row, column] = 1e-9
        assert pointing_game(attention, boxes) == hit


def test_a_flat_map_points_as_chance_does():
    boxes = np.array([[0.0, 0.0, 0.5, 0.25]])
    assert pointing_game(np.full((16, 16), 0.4), boxes) == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("attention", "boxes", "message"),
    [
        (np.zeros((2, 2, 2)), [[0, 0, 1, 1]], "shape"),
        (np.full((2, 2), np.nan), [[0, 0, 1, 1]], "nan"),
        (np.zeros((0, 2)), [[0, 0, 1, 1]], "shape"),
        (np.zeros((2, 2)), [[0, 0, 120, 80]], "fractions of the image"),
        (np.zeros((2, 2)), [[0.5, 0, 0.2, 1]], "x0 < x1"),
        (np.zeros((2, 2)), [[0, 0, np.nan, 1]], "fractions"),
        (np.zeros((2, 2)), np.empty((0, 4)), "K at least 1"),
    ],
)
def test_what_is_no_map_or_box_is_told(attention, boxes, message):
    for measure in (pointing_game, intersection_over_union):
        with pytest.raises(ValueError, match=message):
            measure(attention, np.asarray(boxes, float))
