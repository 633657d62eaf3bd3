"""What makes a selection honest: the tail guard, choices made by cross-fitting, and scores by cross-fitting.

The same images cannot both choose and score. `fit` chooses weights on K - 1 folds of subjects and combines the
images of the fold left out, so that every image is scored by weights that never saw its subject. Whatever is to be
chosen besides (the guard's strength, the selector itself) is chosen within those K - 1 folds, by cross-fitting among
them. Weights without folds {j, k} serve the choice within all but j and within all but k: each is made once.
What epoch choice, ASHA and the search saw is not undone by this; a held-out part is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from cxrlt_ray import metrics
from cxrlt_ray.selection.best import merits
from cxrlt_ray.selection.inputs import FEW, SELECTORS, check, takes_costs
from cxrlt_ray.splits import assign_folds

AUTO: Literal["auto"] = "auto"
STRENGTHS = (20.0, 100.0, 5.0, np.inf, 0.0)  # of the guard, what did best on average (benchmarks/honesty.py) first
PLENTY = 20_000  # images from which on a choice within folds looks at two of them, not all: the others cost the most
DRAWS = 64  # of subjects, to tell a better choice from luck


@dataclass(frozen=True)
class Method:
    """How a selection is made.

    selector, settings: from the registry.  guard: positive subjects at which a finding's own weights count
    as much as those chosen for all findings together; 0 for no guard, "auto" to choose among STRENGTHS.
    members: at most so many are kept, those of the greatest total weight, then the best, and chosen among once more.
    """

    selector: str
    settings: dict[str, Any] = field(default_factory=dict)
    guard: float | Literal["auto"] = 0.0
    members: int | None = None


@dataclass(frozen=True)
class Fitted:
    """Weights [M, C] chosen on all images, the method they were chosen by, and cross-fitted scores [R, N, C].

    Of the first repeat also each image's fold [N] and the weights [K, M, C] that scored each fold; None without folds.
    """

    weights: np.ndarray
    method: Method
    crossed: np.ndarray
    fold: np.ndarray | None = None
    fold_weights: np.ndarray | None = None


def fit(
    methods: Method | Sequence[Method],
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    costs: np.ndarray | None = None,
    margin: float = 1.0,
) -> Fitted:
    """Weights by the best of `methods`, and what they are worth on subjects they never saw.

    Shapes as in the package's docstring. methods: in order of preference; the first is taken that is not worse than
    the best by more than `margin` standard errors of the difference (by subject); 0: the best. folds below 2: no
    cross-fitting, the first is taken, and `crossed` is what the weights score where they were chosen. costs: [M],
    for selectors that weigh them. Raises CxrltError where inputs do not fit.
    """
    predictions, targets, groups = check(predictions, targets, groups)
    predictions = side_by_side(predictions)
    given = [methods] if isinstance(methods, Method) else list(methods)
    options = [replace(m, guard=g) for m in given for g in (STRENGTHS if m.guard == AUTO else (m.guard,))]
    if folds < 2:
        weights = _Chooser(options[:1], predictions, targets, groups, None, seed, costs, margin).weights(0, frozenset())
        return Fitted(weights, options[0], combine(predictions, weights)[None])
    crossed = np.empty((repeats, *targets.shape))
    first: dict[str, Any] = {}
    for r in range(repeats):
        fold = assign_folds(targets, groups, folds, seed + r)
        chooser = _Chooser(options, predictions, targets, groups, fold, seed, costs, margin)
        lefts = [frozenset([k]) for k in range(folds)]
        for k, left in enumerate(lefts):
            crossed[r, fold == k] = chooser.scores(chooser.choice(left), left, k)
        if not first:
            chosen = chooser.choice(frozenset())
            first = {"weights": chooser.weights(chosen, frozenset()), "method": options[chosen], "fold": fold}
            first["fold_weights"] = np.stack([chooser.weights(chooser.choice(left), left) for left in lefts])
    return Fitted(**first, crossed=crossed)


def side_by_side(predictions: np.ndarray) -> np.ndarray:
    """Predictions [M, N, C] laid out so that a finding's scores lie together: selectors read them for every fold."""
    return np.ascontiguousarray(predictions.transpose(2, 0, 1)).transpose(1, 2, 0)


def choose(
    method: Method, predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Weights [M, C] by a method whose guard is a number; nothing is cross-fitted."""
    return fit(method, predictions, targets, groups, folds=0, seed=seed).weights


def cross_fit(
    method: Method, predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Combined predictions float64 [N, C], each image's by weights chosen without its subject's fold."""
    return fit(method, predictions, targets, groups, folds=folds, seed=seed).crossed[0]


def combine(predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means float64 [N, C] of predictions [M, N, C] by weights [M, C]."""
    total = np.zeros(predictions.shape[1:])
    for member, weight in zip(predictions, weights, strict=True):
        if weight.any():
            total += member * weight
    return total


def own_share(targets: np.ndarray, groups: np.ndarray, guard: float) -> np.ndarray:
    """How much of each finding's weights [C] is its own: n / (n + guard), n its positive subjects; 0 below 2 images."""
    subjects = np.array([len(np.unique(groups[column == 1])) for column in targets.T], float)
    share = np.where(guard > 0, subjects / np.maximum(subjects + guard, 1e-300), 1.0)
    return np.where((targets == 1).sum(axis=0) < FEW, 0.0, share)


class _Chooser:
    """Weights by each of `options` on all but some folds, each made once."""

    def __init__(
        self,
        options: list[Method],
        predictions: np.ndarray,
        targets: np.ndarray,
        groups: np.ndarray,
        fold: np.ndarray | None,
        seed: int,
        costs: np.ndarray | None,
        margin: float,
    ) -> None:
        self.options, self.predictions, self.targets = options, predictions, targets
        self.groups = np.unique(groups.astype(str), return_inverse=True)[1]  # numbers compare faster
        self.fold, self.seed, self.costs, self.margin = fold, seed, costs, margin
        self._bases: dict[Any, np.ndarray] = {}
        self._combined: dict[Any, np.ndarray] = {}
        self.choice = functools.cache(self._choice)
        self.weights = functools.cache(self._weights)
        self._alone = functools.cache(lambda left: merits(predictions, self._without(left), together=True)[:, 0])
        self._own = functools.cache(lambda left, guard: own_share(self._without(left), self.groups, guard))
        self._without = functools.cache(self._unlabelled)

    def _weights(self, option: int, left: frozenset[int]) -> np.ndarray:
        """Weights [M, C] chosen without the folds `left`."""
        method, targets = self.options[option], self._without(left)
        everyone = np.arange(len(self.predictions))
        weights = self._guarded(method, targets, left, everyone)
        if method.members is None or (weights.sum(axis=1) > 0).sum() <= method.members:
            return weights
        kept = np.sort(
            np.lexsort([-self._alone(left), -weights.sum(axis=1).round(9)])[: method.members]
        )  # of equals the better
        weights = np.zeros_like(weights)
        weights[kept] = self._guarded(method, targets, left, kept)
        return weights

    def scores(self, option: int, left: frozenset[int], k: int) -> np.ndarray:
        """Combined predictions float64 [n, C] of fold k's images by weights chosen without the folds `left`."""
        from cxrlt_ray.selection import exact

        assert self.fold is not None
        method, targets, rows = self.options[option], self._without(left), np.flatnonzero(self.fold == k)
        if method.members is not None:
            return exact.mixed(self.predictions, self.weights(option, left), rows)
        own = self._own(left, float(method.guard))  # all strengths are mixtures of the same two
        mixed = np.zeros((len(rows), len(own)))
        for together, share in ((False, own), (True, 1 - own)):
            if share.any():
                key = (method.selector, tuple(sorted(method.settings.items())), left, k, together)
                if key not in self._combined:
                    weights = self._base(method, targets, left, np.arange(len(self.predictions)), together)
                    self._combined[key] = exact.mixed(self.predictions, weights, rows)
                mixed += self._combined[key] * share
        return mixed

    def _choice(self, left: frozenset[int]) -> int:
        """The option to take without the folds `left`, by cross-fitting among the others."""
        if len(self.options) == 1:
            return 0
        from cxrlt_ray.selection import exact

        assert self.fold is not None
        folds = int(self.fold.max()) + 1
        inner = [k for k in range(folds) if k not in left]
        if left and len(self.fold) >= PLENTY:  # its neighbours: so a pair left out serves both
            inner = [k for k in inner if any((k - other) % folds in (1, folds - 1) for other in left)]
        seen = np.isin(self.fold, inner)
        scores = np.zeros((len(self.options), *self.targets.shape), np.float32)
        for j in inner:
            for o in range(len(self.options)):
                scores[o, self.fold == j] = self.scores(o, left | {j}, j)
        systems = list(scores[:, seen])
        targets, groups = self.targets[seen], self.groups[seen]
        values = np.array([metrics.macro(ap) for ap in exact.precisions(np.stack(systems), targets)])
        if np.isnan(values).all():
            return 0
        best = int(np.nanargmax(values))
        if self.margin == 0:
            return int(np.flatnonzero(values >= values[best] - exact.EQUAL)[0])
        draws = metrics.bootstrap_map(targets, systems, groups, rounds=DRAWS, seed=self.seed)
        error = np.nanstd(draws[best] - draws, axis=1)
        return int(np.flatnonzero(values[best] - values <= self.margin * error)[0])

    def _guarded(self, method: Method, targets: np.ndarray, left: frozenset[int], among: np.ndarray) -> np.ndarray:
        assert method.guard != AUTO
        own = self._own(left, float(method.guard))
        if (own == 1).all():
            return self._base(method, targets, left, among, together=False)
        together = self._base(method, targets, left, among, together=True)
        if (own == 0).all():
            return together
        return own * self._base(method, targets, left, among, together=False) + (1 - own) * together

    def _base(
        self, method: Method, targets: np.ndarray, left: frozenset[int], among: np.ndarray, together: bool
    ) -> np.ndarray:
        key = (method.selector, tuple(sorted(method.settings.items())), left, tuple(among.tolist()), together)
        if key not in self._bases:
            options: dict[str, Any] = {**method.settings, "together": together, "seed": self.seed}
            if takes_costs(method.selector) and self.costs is not None:
                options["costs"] = self.costs[among]
            predictions = self.predictions if len(among) == len(self.predictions) else self.predictions[among]
            selector = inspect.unwrap(SELECTORS[method.selector])
            self._bases[key] = selector(predictions, targets, self.groups, **options)
        return self._bases[key]

    def _unlabelled(self, left: frozenset[int]) -> np.ndarray:
        """The targets, unlabelled in the folds `left`: selectors leave those images out, and nothing is copied."""
        if not left:
            return self.targets
        assert self.fold is not None
        return np.where(np.isin(self.fold, list(left))[:, None], np.int8(-1), self.targets)
