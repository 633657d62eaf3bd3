"""The plain mean of all members, and of their ranks: nothing is chosen, so nothing is fitted."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.registry import register_selector


@register_selector("mean")
def mean(
    predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, together: bool = False, seed: int = 0
) -> np.ndarray:
    """Weights [M, C], all 1 / M."""
    members, _, findings = predictions.shape
    return np.full((members, findings), 1 / members)


@register_selector("rank_mean", space="rank")
def rank_mean(
    predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, together: bool = False, seed: int = 0
) -> np.ndarray:
    """Weights [M, C], all 1 / M, for ranks: members count alike however their scores are scaled."""
    members, _, findings = predictions.shape
    return np.full((members, findings), 1 / members)
