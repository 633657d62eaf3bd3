"""The best single member by macro mAP, for all findings."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.inputs import register_selector


@register_selector("best")
def best(
    predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, together: bool = False, seed: int = 0
) -> np.ndarray:
    """Weights [M, C]: 1 for the member of the highest mAP over findings with positives, the first of equals."""
    from cxrlt_ray.selection import exact

    weights = np.zeros((predictions.shape[0], predictions.shape[2]))
    scored = (targets == 1).any(axis=0)
    ap = exact.precisions(predictions, targets)[:, scored]
    values = ap.mean(axis=1) if scored.any() else np.zeros(len(ap))
    weights[np.flatnonzero(values >= values.max() - exact.EQUAL)[0]] = 1
    return weights
