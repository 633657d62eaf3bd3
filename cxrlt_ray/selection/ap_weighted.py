"""All members, weighted by their AP alone."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.best import merits
from cxrlt_ray.selection.registry import register_selector, within


@register_selector("ap_weighted")
def ap_weighted(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    power: float = 1.0,
    together: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Weights [M, C] in proportion to AP ** power; together: to macro mAP ** power.

    power 0 is the plain mean, a large one the best member. Equal weights for a finding without positives.
    Raises UsageError for a negative power.
    """
    within("power", power, 0.0)
    ap = merits(predictions, targets, together)
    top = ap.max(axis=0)
    weights = np.where(top > 0, ap / np.where(top > 0, top, 1), 1.0) ** power  # of the top one: no underflow
    return weights / weights.sum(axis=0)
