"""One finding's part of the predictions, laid out for the compiled kernels: positives and negatives apart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cxrlt_ray.evaluation.compiled import njit
from cxrlt_ray.selection.kernels import COMPILED, TILE

HARD, HARD_PER_POSITIVE = 2048, 16  # negatives that the coarse bound counts in full: so many, and so many a positive


class Finding(NamedTuple):
    """One finding's scores and the running sum of an ensemble; all but the first three and `low` change.

    Of the negatives the first `hard` have the highest mean score: the first bound counts only these as they are,
    the others by the least that any member gives them.
    """

    positives: np.ndarray  # float32 [M, P], P > 0
    negatives: np.ndarray  # float32 [M, N]
    hard: int
    low: np.ndarray  # [M] each member's lowest score
    steps: np.ndarray  # uint16 [M, N] negatives less `low` in steps
    least: np.ndarray  # uint16 [N - hard] their minimum over members
    total_pos: np.ndarray  # [P] the running sum
    total_neg: np.ndarray  # [N]
    whole_pos: np.ndarray  # [P] the same less `base`, in steps
    whole_neg: np.ndarray  # uint16 [N], rounded down
    sixteenths: np.ndarray  # int32 [N] the same in 16ths of a step
    scale: np.ndarray  # [3]: the least base of the running sum, steps a unit now, and at first
    rest: np.ndarray  # uint32 or uint64: the negatives behind `hard` by coarse bucket
    counts: np.ndarray  # all by fine bucket
    sums: np.ndarray  # uint16 [TILE]
    fine_sums: np.ndarray  # int32 [TILE]
    thresholds: np.ndarray  # int32 [P] a candidate's positives in steps, rounded up
    candidate_pos: np.ndarray  # [P] a candidate's sum
    candidate_neg: np.ndarray  # [N]


def prepare(predictions: np.ndarray, targets: np.ndarray, c: int) -> Finding:
    """Finding c's part of predictions [M, N, C] and targets [N, C]; images without its label are left out."""
    scores = predictions[:, :, c]
    positives = _gathered(scores, np.flatnonzero(targets[:, c] == 1))
    members, total = positives.shape
    rows, hard = _hardest_first(scores, np.flatnonzero(targets[:, c] == 0), total)
    negatives, images = _gathered(scores, rows), rows.size
    bits = min(max(int(images + total - 1).bit_length() - 3, 4), 13)  # about 8 images a coarse bucket, one a fine one
    count = np.uint32 if images + total < 1 << 16 else np.uint64  # small ones stay in the cache
    return Finding(
        positives,
        negatives,
        hard,
        np.empty(members),
        np.empty((members, images), np.uint16),
        np.empty(images - hard, np.uint16),
        np.empty(total),
        np.empty(images),
        np.empty(total),
        np.empty(images, np.uint16),
        np.empty(images, np.int32),
        np.empty(3),
        np.empty((1 << bits) + 1, count),
        np.empty((8 << bits) + 1, count),
        np.empty(TILE, np.uint16),
        np.empty(TILE, np.int32),
        np.empty(total, np.int32),
        np.empty(total),
        np.empty(images),
    )


def _hardest_first(scores: np.ndarray, rows: np.ndarray, positives: int) -> tuple[np.ndarray, int]:
    """Negatives' rows with those of the highest scores (the mean of some members') first, and how many those are."""
    hard = HARD + HARD_PER_POSITIVE * positives
    if 2 * hard > rows.size:
        return rows, rows.size
    some = scores[:: max(1, len(scores) // 8)]
    mean = _gathered(some, rows).sum(axis=0, dtype=np.float32)
    front = mean >= np.partition(mean, rows.size - hard)[rows.size - hard]
    return np.concatenate((rows[front], rows[~front])), int(front.sum())


@njit(**COMPILED)
def _gathered(scores, rows):  # type: ignore[no-untyped-def]
    """Some rows of scores [M, N], side by side."""
    some = np.empty((scores.shape[0], rows.size), np.float32)
    for m in range(scores.shape[0]):
        for n in range(rows.size):
            some[m, n] = scores[m, rows[n]]
    return some
