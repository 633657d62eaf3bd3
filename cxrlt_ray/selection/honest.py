"""What makes a selection honest: bags, the tail guard, and cross-fitting by subject.

The same images cannot both choose and score. `cross_fit` chooses on K - 1 folds of subjects and
combines the images of the fold left out, so that every image is scored by weights that never saw its
subject. What epoch choice, ASHA and the search saw is not undone by this; a held-out part is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxrlt_ray.selection.inputs import SELECTORS
from cxrlt_ray.splits import assign_folds


@dataclass(frozen=True)
class Method:
    """How a selection is made.

    selector, settings: from the registry.  bags: random subsets of `bag_fraction` of the members whose
    weights are averaged, 1 for none.  guard: positives (subjects) at which a finding's own weights count
    as much as those chosen for all findings together, 0 for no guard.  members: at most so many are kept.
    """

    selector: str
    settings: dict[str, Any] = field(default_factory=dict)
    bags: int = 1
    bag_fraction: float = 0.5
    guard: float = 0.0
    members: int | None = None


def choose(
    method: Method, predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Weights [M, C] by `method`; shapes as in the package's docstring.

    With a cap on members, those of the greatest total weight are kept and chosen among once more.
    """
    weights = _guarded(method, predictions, targets, groups, seed)
    if method.members is None or (weights.sum(axis=1) > 0).sum() <= method.members:
        return weights
    kept = np.sort(np.argsort(-weights.sum(axis=1), kind="stable")[: method.members])
    weights = np.zeros_like(weights)
    weights[kept] = _guarded(method, predictions[kept], targets, groups, seed)
    return weights


def cross_fit(
    method: Method, predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Combined predictions float64 [N, C], each image's by weights chosen without its subject's fold."""
    fold = assign_folds(targets, groups, folds, seed)
    combined = np.empty(targets.shape)
    for k in range(folds):
        out = fold == k
        weights = choose(method, predictions[:, ~out], targets[~out], groups[~out], seed)
        combined[out] = combine(predictions[:, out], weights)
    return combined


def combine(predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means float64 [N, C] of predictions [M, N, C] by weights [M, C]."""
    total = np.zeros(predictions.shape[1:])
    for member, weight in zip(predictions, weights, strict=True):
        total += member * weight
    return total


def own_share(targets: np.ndarray, groups: np.ndarray, guard: float) -> np.ndarray:
    """How much of each finding's weights [C] is its own: n / (n + guard), n its positive subjects."""
    subjects = np.array([len(np.unique(groups[column == 1])) for column in targets.T], float)
    return np.where(subjects > 0, subjects / np.maximum(subjects + guard, 1e-300), 0.0)


def _guarded(method: Method, predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    own = own_share(targets, groups, method.guard)
    weights = _bagged(method, predictions, targets, groups, seed, together=False)
    if (own == 1).all():
        return weights
    together = _bagged(method, predictions, targets, groups, seed, together=True)
    return own * weights + (1 - own) * together


def _bagged(
    method: Method, predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int, together: bool
) -> np.ndarray:
    selector, members = SELECTORS[method.selector], len(predictions)
    options = {**method.settings, "together": together, "seed": seed}
    size = max(1, round(method.bag_fraction * members))
    if method.bags <= 1 or size == members:
        return selector(predictions, targets, groups, **options)
    rng = np.random.default_rng(seed)
    weights = np.zeros((members, targets.shape[1]))
    for _ in range(method.bags):
        bag = np.sort(rng.choice(members, size=size, replace=False))
        weights[bag] += selector(predictions[bag], targets, groups, **options) / method.bags
    return weights
