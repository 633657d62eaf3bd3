"""Stacking by non-negative least squares (Breiman 1996, Stacked regressions)."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.fitting import fitted
from cxrlt_ray.selection.registry import register_selector


@register_selector("nnls")
def nnls(
    predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, together: bool = False, seed: int = 0
) -> np.ndarray:
    """Weights [M, C] that minimise the squared error of labels on predictions and an intercept, w >= 0; then sum 1.

    together: one w for all findings, an intercept each. Equal weights where no member helps. Images that are not
    labelled are left out of that finding. The N images are read once; the system solved has size M.
    """
    return fitted(_fit, predictions, targets, together)


def _fit(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls as solve

    members = len(values)
    scale = max(float(values.max()), -float(values.min()), np.finfo(float).tiny)
    products = np.zeros((members + 1, members + 1))  # of centred members and labels, over images
    for c in np.flatnonzero((targets >= 0).any(axis=0)):
        rows = np.flatnonzero(targets[:, c] >= 0)
        columns = np.vstack([values[:, rows, c].astype(np.float64) / scale, targets[rows, c]])
        columns -= columns.min(axis=1, keepdims=True)  # a constant column is exactly 0 then
        columns -= columns.mean(axis=1, keepdims=True)
        products += columns @ columns.T
    size = np.sqrt(products.diagonal())
    size[size == 0] = 1
    # a square root of the products has the same solution; squaring loses fewer digits than float32 inputs do
    powers, axes = np.linalg.eigh(products / np.outer(size, size))
    root = np.sqrt(np.maximum(powers, 0))[:, None] * axes.T
    return solve(root[:, :members], root[:, members])[0] / size[:members]
