"""Greedy selection for all findings together, and greedy selection over bags of members."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.greedy import greedy_among
from cxrlt_ray.selection.registry import register_selector, within


@register_selector("greedy_global")
def greedy_global(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    rounds: int = 50,
    together: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Weights [M, C], the same for every finding: `greedy` on macro mAP whatever `together` says."""
    within("rounds", rounds, 1)
    return greedy_among(predictions, targets, rounds, np.ones((1, len(predictions)), int), together=True)


@register_selector("greedy_bagged")
def greedy_bagged(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    rounds: int = 20,
    bags: int = 10,
    bag_fraction: float = 0.6,
    together: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Weights [M, C]: the mean of those that `greedy` finds in `bags` random subsets (Caruana et al. 2004, 2.3).

    A bag holds max(1, round(bag_fraction * M)) members in random order; each member is in as many bags as any
    other, to within one, so that neither its index nor chance favours it. Raises UsageError for settings out of range.
    """
    within("rounds", rounds, 1)
    within("bags", bags, 1)
    within("bag_fraction", bag_fraction, 0.0, 1)
    members, rng = len(predictions), np.random.default_rng(seed)
    size = max(1, round(bag_fraction * members))
    ranks, used = np.zeros((bags, members), int), np.zeros(members)
    for rank in ranks:
        bag = np.lexsort((rng.random(members), used))[:size]  # the least used, else at random
        rank[bag] = np.arange(1, size + 1)
        used[bag] += 1
    return greedy_among(predictions, targets, rounds, ranks, together)
