"""Stacking by non-negative logistic regression on the members' logits, pulled towards equal weights."""

from __future__ import annotations

import functools

import numpy as np

from cxrlt_ray.selection.fitting import fitted
from cxrlt_ray.selection.registry import register_selector, within


@register_selector("logistic", space="logit")
def logistic(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    l2: float = 1.0,
    together: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Weights [M, C] that minimise the log loss of sigmoid(w . x + intercept), w >= 0; then divided by their sum.

    That scaling leaves every AP as it is. l2: strength of the pull, the term l2 / 2 sum (w - mean w)^2 beside the
    summed log loss, x in standard deviations; a large one ends in the plain mean, and the overall scale is free.
    together: one w for all findings, an intercept each. Images that are not labelled are left out of that finding.
    Raises UsageError for an l2 outside 0 to 1e9. By L-BFGS-B (Byrd et al. 1995); a step reads the predictions twice.
    """
    within("l2", l2, 0.0, 1e9)
    return fitted(functools.partial(_fit, l2=l2), predictions, targets, together)


def _fit(values: np.ndarray, targets: np.ndarray, l2: float) -> np.ndarray:
    from scipy.optimize import minimize
    from scipy.special import expit, logit

    members, known, positive = len(values), targets >= 0, (targets == 1).astype(float)
    labelled = np.maximum(known.sum(axis=0), 1)
    centre = np.array([(member * known).sum(axis=0, dtype=float) for member in values]) / labelled
    squares = [(((member - centre[m]) * known) ** 2).sum() for m, member in enumerate(values)]
    spread = np.sqrt(np.sum(squares) / (members * labelled.sum()))
    if spread <= 1e-12 * np.abs(centre).max():  # all members are constant
        return np.ones(members)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean log loss with the pull, and its gradient; parameters: w [M] per standard deviation, intercepts [c]."""
        w, intercepts = parameters[:members], parameters[members:]
        z = np.tile(intercepts - w @ centre / spread, (len(targets), 1))
        for member, weight in zip(values, w / spread, strict=True):
            z += weight * member
        residual, apart = (expit(z) - positive) * known, w - w.mean()
        total = ((np.logaddexp(0, z) - positive * z) * known).sum() + l2 / 2 * apart @ apart
        slope = np.array([np.vdot(residual, member) for member in values]) - centre @ residual.sum(axis=0)
        slope = np.concatenate([slope / spread + l2 * apart, residual.sum(axis=0)])
        return total / labelled.sum(), slope / labelled.sum()

    start = np.concatenate([np.full(members, 1 / members), logit((positive.sum(axis=0) + 0.5) / (labelled + 1))])
    bounds = [(0, None)] * members + [(None, None)] * targets.shape[1]
    limits = {"maxiter": 500, "ftol": 1e-11, "gtol": 1e-8}
    result = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=limits)
    return result.x[:members]
