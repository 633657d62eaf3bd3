"""One ensemble for findings that no label may choose: greedy selection on the mean log(AP / prevalence) of others."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.registry import register_selector, within


@register_selector("greedy_lift")
def greedy_lift(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    rounds: int = 20,
    together: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Weights [M, C], the same for every finding, labelled or not: greedy selection as in `greedy_global`, where a
    finding counts by the logarithm of its AP, so that a rare one has as much say as a frequent one.
    """
    from cxrlt_ray.selection import exact

    within("rounds", rounds, 1)
    every = np.ones((1, len(predictions)), int)
    (counts,) = exact.greedy_together(predictions, targets, rounds, every, logs=True)
    return np.repeat((counts / counts.sum())[:, None], targets.shape[1], axis=1)
