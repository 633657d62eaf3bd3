"""Weights on the simplex by gradient: the log loss of the pool, or a smooth average precision."""

from __future__ import annotations

import functools

import numpy as np

from cxrlt_ray.errors import UsageError
from cxrlt_ray.selection.fitting import fitted
from cxrlt_ray.selection.registry import register_selector, within
from cxrlt_ray.selection.smooth_ap import climb


@register_selector("simplex")
def simplex(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    objective: str = "log_loss",
    steps: int = 200,
    temperature: float = 0.1,
    positives: int = 200,
    negatives: int = 1000,
    together: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Weights [M, C] from equal ones by at most `steps` steps, each finding's sum 1; together: of all findings' loss.

    objective "log_loss": that of the pool sum_m w_m p_m (see em.py); images not labelled are left out.
    objective "smooth_ap": AP with a sigmoid for each comparison (Brown et al. 2020, Smooth-AP, eq. 6) of width
    `temperature`, in standard deviations of a score, by exponentiated gradient (Kivinen & Warmuth 1997) on at most
    `positives` and `negatives` images a finding, drawn by seed; the equal weights stay where their AP is no worse.
    Raises UsageError for settings out of range.
    """
    within("steps", steps, 1)
    within("positives", positives, 1)
    within("negatives", negatives, 1)
    within("temperature", temperature, 1e-3, 1e3)
    if objective == "log_loss":
        return fitted(functools.partial(_log_loss, steps=steps), predictions, targets, together)
    if objective == "smooth_ap":
        most = {1: positives, 0: negatives}
        fit = functools.partial(climb, steps=steps, temperature=temperature, most=most, seed=seed)
        return fitted(fit, predictions, targets, together)
    raise UsageError(f"setting 'objective' must be log_loss or smooth_ap; given {objective!r}.")


def _log_loss(values: np.ndarray, targets: np.ndarray, steps: int) -> np.ndarray:
    from cxrlt_ray.selection.em import pool_weights

    return pool_weights(values.reshape(len(values), -1), targets.ravel(), steps)
