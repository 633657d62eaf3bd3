"""Greedy forward selection with replacement (Caruana et al. 2004), for each finding by itself."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.registry import register_selector, within


@register_selector("greedy")
def greedy(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    rounds: int = 50,
    together: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Weights [M, C]: start from the best member, add the one that helps AP most, keep the best prefix of `rounds`.

    Shapes as in the package's docstring. Among members equal to within 1e-12 the first is taken, so the
    result needs no seed. A finding without positives gets equal weights; the tail guard replaces them.
    Raises UsageError for rounds below 1.

    >>> scores = np.array([[[0.9], [0.8], [0.2], [0.1]], [[0.1], [0.2], [0.8], [0.9]]])  # [2, 4, 1]
    >>> greedy(scores, np.array([[1], [1], [0], [0]]), np.arange(4), rounds=3).T
    array([[1., 0.]])
    """
    within("rounds", rounds, 1)
    return greedy_among(predictions, targets, rounds, np.ones((1, len(predictions)), int), together)


def greedy_among(
    predictions: np.ndarray, targets: np.ndarray, rounds: int, bags: np.ndarray, together: bool
) -> np.ndarray:
    """The mean over bags [B, M] (see exact.greedy_each) of the weights [M, C] that greedy finds in each."""
    from cxrlt_ray.selection import exact

    if together:
        counts = np.repeat(exact.greedy_together(predictions, targets, rounds, bags)[:, :, None], targets.shape[1], 2)
    else:
        counts = exact.greedy_each(predictions, targets, rounds, bags)
        counts = np.where(counts.sum(axis=1, keepdims=True) == 0, bags[:, :, None] > 0, counts)
    return (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
