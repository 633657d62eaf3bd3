"""The best single member by macro mAP, for all findings; and the AP of each member alone."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.registry import register_selector


@register_selector("best")
def best(
    predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, together: bool = False, seed: int = 0
) -> np.ndarray:
    """Weights [M, C]: 1 for the member of the highest mAP over findings with positives, the first of equals."""
    from cxrlt_ray.selection.average_precision import EQUAL

    weights = np.zeros((predictions.shape[0], predictions.shape[2]))
    values = merits(predictions, targets, together=True)[:, 0]
    weights[np.flatnonzero(values >= values.max() - EQUAL)[0]] = 1
    return weights


def merits(predictions: np.ndarray, targets: np.ndarray, together: bool) -> np.ndarray:
    """AP float64 [M, C] of each member alone, 0 for a finding without positives.

    together: each member's macro mAP over findings with positives, the same for all findings.
    """
    from cxrlt_ray.selection.average_precision import precisions

    scored = (targets == 1).any(axis=0)
    ap = np.where(scored, precisions(predictions, targets), 0.0)
    if together and scored.any():
        return np.repeat(ap[:, scored].mean(axis=1, keepdims=True), len(scored), axis=1)
    return ap
