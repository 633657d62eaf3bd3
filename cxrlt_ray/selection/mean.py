"""The plain mean of all members: nothing is chosen, so nothing is fitted."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.inputs import register_selector


@register_selector("mean")
def mean(
    predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, together: bool = False, seed: int = 0
) -> np.ndarray:
    """Weights [M, C], all 1 / M."""
    members, _, findings = predictions.shape
    return np.full((members, findings), 1 / members)
