"""The space in which predictions are averaged: probability, logit or rank.

A rank is the share of the member's own validation images that score lower, interpolated, so that it
does not depend on which other images are scored with it.
"""

from __future__ import annotations

import numpy as np

SPACES = ("probability", "logit", "rank")
_NEAR = 1e-6  # probabilities are kept this far from 0 and 1 before the logit
_BEYOND = 100.0  # times what was cut off there, 1e-4 at most, is added to the logit: it ties no images


def into(space: str, predictions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Probabilities float32 [M, N, C] in `space`; `reference` [M, V, C]: the members' validation predictions."""
    if space == "probability":
        return predictions
    if space == "logit":
        logits = np.empty_like(predictions, np.float32)
        for m, member in enumerate(predictions):  # one by one: in float64 all would take several times their memory
            given = member.astype(np.float64)
            clipped = np.clip(given, _NEAR, 1 - _NEAR)
            logits[m] = np.log(clipped / (1 - clipped)) + _BEYOND * (given - clipped)
        return logits
    ranks = np.empty_like(predictions, np.float32)
    for m, c in np.ndindex(predictions.shape[0], predictions.shape[2]):
        ranks[m, :, c] = _rank(predictions[m, :, c], reference[m, :, c])
    return ranks


def out_of(space: str, combined: np.ndarray) -> np.ndarray:
    """Combined values [N, C] as scores in [0, 1].

    >>> out_of("logit", np.array([[0.0]]))
    array([[0.5]])
    """
    if space == "logit":
        return 1 / (1 + np.exp(-combined))
    return np.clip(combined, 0, 1)  # rounding of a weighted mean


def _rank(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    known, counts = np.unique(reference, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / len(reference)
    inner = (known > 0) & (known < 1)
    points = np.concatenate([[0.0], known[inner], [1.0]])
    return np.interp(values, points, np.concatenate([[0.0], middle[inner], [1.0]]))
