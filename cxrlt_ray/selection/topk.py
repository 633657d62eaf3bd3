"""The mean of the k best members."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.best import merits
from cxrlt_ray.selection.registry import register_selector, within


@register_selector("topk_mean")
def topk_mean(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    k: int = 5,
    together: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Weights [M, C]: 1 / k for the k members of the highest AP, the first of equals; all if there are fewer.

    together: the k members of the highest macro mAP. Raises UsageError for k below 1.
    """
    within("k", k, 1)
    ap = merits(predictions, targets, together).round(12)  # as elsewhere, equal to within 1e-12 is equal
    chosen = np.argsort(-ap, axis=0, kind="stable")[:k]
    weights = np.zeros(ap.shape)
    np.put_along_axis(weights, chosen, 1 / len(chosen), axis=0)
    return weights
