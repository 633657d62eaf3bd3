"""Greedy selection under a serving budget: the curve of score against cost."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.selection.best import merits
from cxrlt_ray.selection.greedy import greedy
from cxrlt_ray.selection.progress import uncounted
from cxrlt_ray.selection.registry import checked, choose_by, register_selector, within

CEILINGS = 4  # lower budgets that are searched too
ROUNDING = 1e-9  # so that costs which add up to the budget are within it


@dataclass(frozen=True)
class Point:
    """An ensemble: what its members cost together, its macro mAP on the images it was chosen on, weights [M, C]."""

    cost: float
    score: float
    members: tuple[int, ...]
    weights: np.ndarray


@register_selector("frontier")
def frontier(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    costs: np.ndarray | None = None,
    budget: float | None = None,
    rounds: int = 50,
    most: int = 16,
    together: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Weights [M, C] of the best ensemble on the `curve`, whose members cost at most `budget` together.

    costs: [M], seconds or FLOPs a study; None: 1 each. budget: in the same unit; None: no limit.
    together: one set of weights for the same members as without, so that a mixture of both costs no more.
    Raises CxrltError for a budget below the cheapest member, UsageError for settings out of range.
    """
    options = {"rounds": rounds, "budget": budget, "most": most}
    point = inspect.unwrap(curve)(predictions, targets, groups, costs, **options)[-1]
    if not together:
        return point.weights
    return _ensemble(predictions, targets, groups, np.ones(len(predictions)), rounds, True, point.members).weights


@checked
def curve(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    costs: np.ndarray | None = None,
    *,
    rounds: int = 50,
    together: bool = False,
    seed: int = 0,
    budget: float | None = None,
    most: int = 16,
) -> list[Point]:
    """Ensembles by rising cost, the score strictly rising: no ensemble that was tried is as cheap and better.

    Tried are each member alone, all members, and every step of forward selection by the greatest gain in macro mAP, or
    in macro mAP for its cost, up to `most` members, within the budget and some lower ones; each set is weighed by
    `greedy`. Arguments and errors as of `frontier`; nothing is random, so the seed has no effect.
    """
    from cxrlt_ray.selection.average_precision import EQUAL

    within("rounds", rounds, 1)
    within("most", most, 1)
    price, limit = _money(costs, budget, len(predictions))
    affordable = tuple(np.flatnonzero(price <= limit).tolist())
    ensemble = functools.cache(partial(_ensemble, predictions, targets, groups, price, rounds, together))
    points = [ensemble((m,)) for m in affordable] + [ensemble(affordable)]
    for ceiling in _ceilings(price, limit, most):
        for per in [price] if np.ptp(price) == 0 else [price, np.ones_like(price)]:
            points.extend(_forward(predictions, targets, ensemble, price, ceiling, per, most, together))
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score)):
        if point.cost <= limit and (not front or point.score > front[-1].score + EQUAL):
            front.append(point)
    return front


def _ceilings(price: np.ndarray, limit: float, most: int) -> list[float]:
    """The budget, and lower ones: a search that can afford expensive members never tries all the cheap ones."""
    sums = np.cumsum(np.sort(price))[1:most] * (1 + ROUNDING)
    lower = sums[sums < limit]
    if not lower.size or np.ptp(price) == 0:
        return [limit]
    return [*lower[np.unique(np.linspace(0, len(lower) - 1, CEILINGS).round().astype(int))].tolist(), limit]


def _forward(
    predictions: np.ndarray,
    targets: np.ndarray,
    ensemble: Callable[[tuple[int, ...]], Point],
    price: np.ndarray,
    limit: float,
    per: np.ndarray,
    most: int,
    together: bool,
) -> Iterator[Point]:
    """Add the member of the greatest gain / per, one after the other; one that does not raise the score is skipped."""
    current, left, gains = None, price <= limit, merits(predictions, targets, together=True)[:, 0]
    while left.any():
        tried = int(np.argmax(np.where(left, gains / per, -np.inf)))
        left[tried] = False
        point = ensemble((*(current.members if current else ()), tried))
        yield point
        if current is None or point.score > current.score:
            current = point
            if len(point.members) >= most:
                return
            left &= price + point.cost <= limit
            gains = _gains(predictions, targets, point, left, together)
            left &= gains > 0


def _gains(predictions: np.ndarray, targets: np.ndarray, point: Point, among: np.ndarray, together: bool) -> np.ndarray:
    """By how much each member of a mask [M] lifts macro mAP [M], added with equal weight or as half of the ensemble."""
    pooled, gains = _pool(predictions, point.weights, point.members), np.zeros(len(predictions))
    now = _ap(pooled, targets)
    for m in np.flatnonzero(among):
        shares = {0.5, 1 / (len(point.members) + 1)}
        lifts = np.array([_ap(pooled * (1 - share) + predictions[m] * share, targets) - now for share in shares])
        gains[m] = lifts.mean(axis=1).max() if together else np.maximum(lifts.max(axis=0), 0).mean()
    return gains


def _ensemble(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    price: np.ndarray,
    rounds: int,
    together: bool,
    members: tuple[int, ...],
) -> Point:
    chosen, weights = list(members), np.zeros((len(predictions), targets.shape[1]))
    bare = inspect.unwrap(greedy)
    with uncounted():
        weights[chosen] = choose_by(bare, predictions[chosen], targets, groups, together=together, rounds=rounds)
    used = np.flatnonzero(weights.any(axis=1)).tolist()
    score = _ap(_pool(predictions, weights, used), targets).mean()
    return Point(float(price[used].sum()), float(score), tuple(used), weights)


def _pool(predictions: np.ndarray, weights: np.ndarray, members: Iterable[int]) -> np.ndarray:
    return np.sum([weights[m] * predictions[m] for m in members], axis=0)


def _ap(pooled: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP [S] of float64 scores [N, C] for the findings with positives; [0] if there is none."""
    from cxrlt_ray.selection.average_precision import precision

    ap = precision(pooled, targets)
    return ap[~np.isnan(ap)] if (targets == 1).any() else np.zeros(1)


def _money(costs: np.ndarray | None, budget: float | None, members: int) -> tuple[np.ndarray, float]:
    """Each member's cost float64 [M] and the limit to their sum."""
    try:
        price = np.ones(members) if costs is None else np.asarray(costs, float)
    except (TypeError, ValueError) as error:
        raise CxrltError(f"costs must be numbers [members]: {error}.") from None
    if price.shape != (members,):
        raise CxrltError(f"costs of shape {price.shape} do not fit {members} members: give one number each.")
    if not (fine := np.isfinite(price) & (price > 0)).all():
        raise CxrltError(f"member {fine.argmin()} costs {price[fine.argmin()]:g}: a cost must be above 0.")
    if budget is None:
        return price, np.inf
    within("budget", budget, 0.0)
    if budget < price.min():
        raise CxrltError(
            f"a budget of {budget:g} is below the cheapest member's cost, {price.min():g} (member {price.argmin()}): "
            "raise the budget or add a cheaper member."
        )
    return price, float(budget) * (1 + ROUNDING)
