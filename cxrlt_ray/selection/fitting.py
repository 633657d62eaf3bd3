"""Shared by the fitted selectors (nnls, logistic, simplex): one fit for each finding, or one for all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# values float32 [M, n, c], targets int8 [n, c] -> coefficients float64 [M], not negative, of any scale
Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]


def fitted(fit: Fit, predictions: np.ndarray, targets: np.ndarray, together: bool) -> np.ndarray:
    """Weights [M, C] by `fit` on each finding by itself, c = 1, or once on all, c = C.

    A finding whose labels are all of one kind is not fitted; where nothing is, weights are equal.
    """
    both = (targets == 1).any(axis=0) & (targets == 0).any(axis=0)
    weights = np.zeros((predictions.shape[0], predictions.shape[2]))
    if together and both.any():
        weights[:] = fit(predictions, np.where(both, targets, np.int8(-1)))[:, None]
    elif not together:
        for c in np.flatnonzero(both):
            weights[:, c] = fit(np.ascontiguousarray(predictions[:, :, c : c + 1]), targets[:, c : c + 1])
    weights /= np.maximum(weights.max(axis=0), np.finfo(float).tiny)  # so that no sum overflows or underflows
    weights = np.where(weights.any(axis=0), weights, 1.0)
    return weights / weights.sum(axis=0)
