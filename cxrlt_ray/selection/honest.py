"""What makes a selection honest: the tail guard, choices made by cross-fitting, and scores by cross-fitting.

The same images cannot both choose and score. `fit` chooses weights on K - 1 folds of subjects and combines the
images of the fold left out, so that every image is scored by weights that never saw its subject. Whatever else is
chosen (the guard's strength, the selector itself, the rule by which a study's images are joined) is chosen within those
K - 1 folds, by cross-fitting among them. Weights without folds {j, k} serve the choice within all but j and within all
but k: they are computed once. Rules are evaluated one after the other: beside the predictions there is one transformed
copy at a time (0.38 GB for 60 members, 39,293 images, 40 findings), and each takes as long as selection without rules.

Cross-fitting does not undo what epoch choice, ASHA, the search and the acceptance of test-time augmentation have seen
of the validation subjects. Only a held-out part (sweep --holdout) does.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np

from cxrlt_ray.data.splits import assign_folds
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.selection.best import merits
from cxrlt_ray.selection.method import AUTO, PRECISE, STRENGTHS, Method, own_share, sound
from cxrlt_ray.selection.progress import Listener, Progress, count_selections
from cxrlt_ray.selection.registry import SELECTORS, Doubt, check, copies, takes_costs

PLENTY = 20_000  # images from which on a choice within folds uses two of them, not all: the others cost the most
DRAWS = 64  # of subjects, to tell a better choice from chance
CHOOSING = 3  # folds from which on all but one can be cross-fitted among themselves
BETTER = 1.0  # standard errors by which a rule must be better than those before it
NO_FOLD: frozenset[int] = frozenset()
Transform = Callable[[np.ndarray], np.ndarray]  # a rule: predictions [M, N, C] -> those that are combined
Answer = TypeVar("Answer", bound=Callable[..., Any])


@dataclass(frozen=True)
class Fitted:
    """Weights [M, C] chosen on all images, the method they were chosen by, and cross-fitted scores [R, N, C].

    own: the part [M, C] of the weights that each finding chose for itself; the rest is what it leans on.
    fold, fold_weights: of the first repeat each image's fold [N] and the weights [K, M, C] chosen without each fold;
    None without folds. rule: the index of the rule chosen, to which method and weights belong. rules: the indices of
    the rules chosen without each fold, which scored it; where all are equal, `crossed` follows from fold_weights.
    """

    weights: np.ndarray
    own: np.ndarray
    method: Method
    crossed: np.ndarray
    fold: np.ndarray | None = None
    fold_weights: np.ndarray | None = None
    rule: int = 0
    rules: tuple[int, ...] = ()


def as_given(predictions: np.ndarray) -> np.ndarray:
    """The rule that leaves predictions unchanged."""
    return predictions


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
    rules: Sequence[Transform] = (as_given,),
    progress: Listener | None = None,
) -> Fitted:
    """Weights by the best of `methods`, and their scores on subjects they never saw.

    Shapes as in the package's docstring. methods: in order of preference; the first is taken that is not worse than
    the best by more than `margin` standard errors of the difference (by subject); 0: the best. rules:
    transforms of the predictions, each subject's by itself, in order of preference: each with its own best method, the
    first is taken that is not worse than the best by more than BETTER standard errors. folds below 2:
    no cross-fitting, the first are taken, and `crossed` is what the weights score where they were chosen. 2 folds: the
    first are taken too, and a Doubt says so: within one fold nothing can be cross-fitted. costs: [M], for selectors
    that weigh them. progress: takes the share of the work that is done, 0 to 1, about.
    Raises CxrltError where inputs do not fit.
    """
    predictions, targets, groups = check(predictions, targets, groups)
    predictions = side_by_side(predictions)
    candidates = [methods] if isinstance(methods, Method) else list(methods)
    options = [replace(m, guard=g) for m in candidates for g in (STRENGTHS if m.guard == AUTO else (m.guard,))]

    def chooser(rule: int, fold: np.ndarray | None) -> _Chooser:
        values = side_by_side(rules[rule](predictions))
        return _Chooser(options, values, targets, groups, fold, seed, costs, margin, counted)

    pairs = folds if len(targets) >= PLENTY else folds * (folds - 1) // 2
    counted = Progress(count_selections(options, folds, repeats, len(rules), pairs), progress)

    if folds < 2:
        unfolded = chooser(0, None)
        weights, own = unfolded.weights(0, NO_FOLD), unfolded.parts(0, NO_FOLD)[0]
        return Fitted(weights, own, options[0], combine(unfolded.predictions, weights)[None])
    if folds < CHOOSING and (len(options) > 1 or len(rules) > 1):
        few = Doubt("2 folds are too few to choose by within one: the first of each choice is taken.")
        warnings.warn(few, stacklevel=2)
    crossed = np.empty((repeats, *targets.shape))
    first: dict[str, Any] = {}
    for r in range(repeats):
        fold = assign_folds(targets, groups, folds, seed + r)
        results = [_evaluate(chooser(rule, fold), folds, len(rules) > 1) for rule in range(len(rules))]
        *by_fold, chosen = (_first_of([result.choices[k] for result in results]) for k in range(folds + 1))
        for k, rule in enumerate(by_fold):
            crossed[r, fold == k] = results[rule].scores[fold == k]
        if not first:
            option = results[chosen].choices[-1].option
            last = chooser(chosen, fold)
            first = {"weights": last.weights(option, NO_FOLD), "own": last.parts(option, NO_FOLD)[0]}
            first |= {"method": options[option], "fold": fold}
            first |= {"fold_weights": results[chosen].weights, "rule": chosen, "rules": tuple(by_fold)}
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
    """Combined predictions float64 [N, C], of each image by weights chosen without its subject's fold."""
    return fit(method, predictions, targets, groups, folds=folds, seed=seed).crossed[0]


def combine(predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means float64 [N, C] of predictions [M, N, C] by weights [M, C]."""
    total = np.zeros(predictions.shape[1:])
    for member, weight in zip(predictions, weights, strict=True):
        if weight.any():
            total += member * weight
    return total


@dataclass(frozen=True)
class _Choice:
    """The option taken, its mAP and the mAP in DRAWS of subjects (nan: nothing was compared)."""

    option: int
    value: float
    draws: np.ndarray


@dataclass(frozen=True)
class _RuleResult:
    """A rule's choices without each fold and, last, on all images; and the weights and scores without each fold.

    weights: [K, M, C].  scores: float64 [N, C], of each fold by the weights without it.
    """

    choices: list[_Choice]
    weights: np.ndarray
    scores: np.ndarray


def _evaluate(chooser: _Chooser, folds: int, several: bool) -> _RuleResult:
    """The result of the chooser's rule, one of `several`; it holds no predictions."""
    assert chooser.fold is not None
    choices, weights, scores = [], [], np.empty(chooser.targets.shape)
    for k, without in enumerate(frozenset([k]) for k in range(folds)):
        choices.append(chooser.choice(without, several))
        weights.append(chooser.weights(choices[k].option, without))
        scores[chooser.fold == k] = chooser.scores(choices[k].option, without, k)
    return _RuleResult([*choices, chooser.choice(NO_FOLD, several)], np.stack(weights), scores)


def _first_of(choices: Sequence[_Choice]) -> int:
    """The index of the rule to take, from the choice under each."""
    if len(choices) == 1:
        return 0
    return _foremost(
        np.array([choice.value for choice in choices]), np.stack([choice.draws for choice in choices]), BETTER
    )


def _foremost(values: np.ndarray, draws: np.ndarray, margin: float) -> int:
    """The first value [S] that is not worse than the best by more than `margin` standard errors, by draws [S, D]."""
    from cxrlt_ray.selection.average_precision import EQUAL

    if np.isnan(values).all():
        return 0
    best = int(np.nanargmax(values))
    error = np.nanstd(draws[best] - draws, axis=1) if margin else np.zeros(len(values))
    return int(np.flatnonzero(values[best] - values <= margin * error + EQUAL)[0])


def _cached(method: Answer) -> Answer:
    """Cache a method's results in its object: functools.cache would keep the object and its predictions alive."""

    @functools.wraps(method)
    def with_cache(self: _Chooser, *arguments: Any) -> Any:
        key = (method.__name__, *arguments)
        if key not in self.cache:
            self.cache[key] = method(self, *arguments)
        return self.cache[key]

    return cast(Answer, with_cache)


class _Chooser:
    """Weights by each of `options` without some folds, each computed once, for one transform of the predictions."""

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
        progress: Progress,
    ) -> None:
        self.progress = progress
        self.options, self.predictions, self.targets = options, predictions, targets
        self.groups = metrics.numbered(groups)  # numbers compare faster
        self.fold, self.seed, self.costs, self.margin = fold, seed, costs, margin
        self.chooses = fold is not None and int(fold.max()) + 1 >= CHOOSING
        self.cache: dict[Any, Any] = {}
        self._bases: dict[Any, np.ndarray] = {}
        self._combined: dict[Any, np.ndarray] = {}
        first = {copy: original for original, copy in copies(predictions)}
        self.alike = np.array([first.get(m, m) for m in range(len(predictions))])

    @_cached
    def parts(self, option: int, without: frozenset[int]) -> np.ndarray:
        """Weights chosen without the folds `without`, in two parts [2, M, C]: each finding's own, what it leans on."""
        method, targets = self.options[option], self._without(without)
        everyone = np.arange(len(self.predictions))
        parts = self._guarded(method, targets, without, everyone)
        weights = parts.sum(axis=(0, 2))
        if method.members is None or (weights > 0).sum() <= method.members:
            return parts
        heaviest = np.lexsort([-self._alone(without), -weights.round(9)])  # of equals the better first
        members = np.sort(heaviest[: method.members])
        parts = np.zeros_like(parts)
        parts[:, members] = self._guarded(method, targets, without, members)
        return parts

    def weights(self, option: int, without: frozenset[int]) -> np.ndarray:
        """Weights [M, C] chosen without the folds `without`."""
        own, leaned_on = self.parts(option, without)
        return own + leaned_on

    def scores(self, option: int, without: frozenset[int], k: int) -> np.ndarray:
        """Combined predictions float64 [n, C] of fold k's images by weights chosen without the folds `without`."""
        from cxrlt_ray.selection.average_precision import weighted_mean

        assert self.fold is not None
        method, targets, rows = self.options[option], self._without(without), np.flatnonzero(self.fold == k)
        if method.members is not None:
            return weighted_mean(self.predictions, self.weights(option, without), rows)
        own = self._own(without, float(method.guard))  # all strengths are mixtures of the same two
        mixed = np.zeros((len(rows), len(own)))
        for leaning, share in ((False, own), (True, 1 - own)):
            if share.any():
                settings = tuple(sorted(method.settings.items()))
                strength = method.guard if leaning and method.lean == "sound" else None  # by which members are sound
                key = (method.selector, settings, method.blend, method.lean, strength, without, k, leaning)
                if key not in self._combined:
                    part = self._leaned_on if leaning else self._own_weights
                    weights = part(method, targets, without, np.arange(len(self.predictions)))
                    self._combined[key] = weighted_mean(self.predictions, weights, rows)
                mixed += self._combined[key] * share
        return mixed

    @_cached
    def choice(self, without: frozenset[int], compared: bool = False) -> _Choice:
        """The option to take without the folds `without`, by cross-fitting among the others.

        compared: the choice is to be compared with others, so its score is needed even if it is the only one.
        """
        if not self.chooses or (len(self.options) == 1 and not compared):
            return _Choice(0, np.nan, np.full(DRAWS, np.nan))
        from cxrlt_ray.selection.average_precision import precisions

        assert self.fold is not None
        folds = int(self.fold.max()) + 1
        inner = [k for k in range(folds) if k not in without]
        if without and len(self.fold) >= PLENTY:  # its neighbours: so a pair left out serves both
            inner = [k for k in inner if any((k - other) % folds in (1, folds - 1) for other in without)]
        seen = np.isin(self.fold, inner)
        scores = np.zeros((len(self.options), *self.targets.shape), np.float32)
        for j in inner:
            for o in range(len(self.options)):
                scores[o, self.fold == j] = self.scores(o, without | {j}, j)
        systems = list(scores[:, seen])
        targets, groups = self.targets[seen], self.groups[seen]
        values = np.array([metrics.macro(ap) for ap in precisions(np.stack(systems), targets)])
        draws = np.full((len(systems), DRAWS), np.nan)
        if self.margin or compared:
            draws = metrics.bootstrap_map(targets, systems, groups, rounds=DRAWS, seed=self.seed)
        option = _foremost(values, draws, self.margin)
        return _Choice(option, float(values[option]), draws[option])

    def _guarded(self, method: Method, targets: np.ndarray, without: frozenset[int], among: np.ndarray) -> np.ndarray:
        assert method.guard != AUTO
        own = self._own(without, float(method.guard))
        parts = np.zeros((2, len(among), len(own)))
        if own.any():
            parts[0] = own * self._own_weights(method, targets, without, among)
        if (own < 1).any():
            parts[1] = (1 - own) * self._leaned_on(method, targets, without, among)
        if takes_costs(method.selector):  # a copy costs as much again
            return parts
        for m in np.flatnonzero(np.bincount(self.alike[among]) > 1):  # copies share what one of them was given
            same = self.alike[among] == m
            parts[:, same] = parts[:, same].mean(axis=1, keepdims=True)
        return parts

    def _own_weights(
        self, method: Method, targets: np.ndarray, without: frozenset[int], among: np.ndarray
    ) -> np.ndarray:
        """Weights [len(among), C] that each finding chooses for itself: the mean of the selector's and the blend's."""
        names = (method.selector, *method.blend)
        settings = (method.settings, *({} for _ in method.blend))
        parts = [self._base(*one, targets, without, among, False) for one in zip(names, settings, strict=True)]
        return parts[0] if len(parts) == 1 else np.mean(parts, axis=0)

    def _leaned_on(self, method: Method, targets: np.ndarray, without: frozenset[int], among: np.ndarray) -> np.ndarray:
        """Weights [len(among), C] that stand in where a finding knows little."""
        shape = (len(among), targets.shape[1])
        if method.lean == "mean":
            return np.full(shape, 1 / len(among))
        if method.lean == "sound":
            chosen = self._sound(without, float(method.guard))[among]
            chosen = chosen if chosen.any() else np.ones(len(among), bool)
            return np.repeat(chosen[:, None] / chosen.sum(), shape[1], axis=1)
        return self._base(method.selector, method.settings, targets, without, among, together=True)

    def _base(
        self,
        name: str,
        settings: dict[str, Any],
        targets: np.ndarray,
        without: frozenset[int],
        among: np.ndarray,
        together: bool,
    ) -> np.ndarray:
        key = (name, tuple(sorted(settings.items())), without, tuple(among.tolist()), together)
        if key not in self._bases:
            options: dict[str, Any] = {**settings, "together": together, "seed": self.seed}
            if takes_costs(name) and self.costs is not None:
                options["costs"] = self.costs[among]
            predictions = self.predictions if len(among) == len(self.predictions) else self.predictions[among]
            selector = inspect.unwrap(SELECTORS[name])
            with self.progress.selection():
                self._bases[key] = selector(predictions, targets, self.groups, **options)
        return self._bases[key]

    @_cached
    def _sound(self, without: frozenset[int], guard: float) -> np.ndarray:
        """Which members [M] are sound, as method.sound says."""
        targets, draws = self._without(without), None
        seen = (targets >= 0).any(axis=1)
        if seen.sum() < PRECISE:
            systems = [np.ascontiguousarray(member[seen]) for member in self.predictions]
            draws = metrics.bootstrap_ap(targets[seen], systems, self.groups[seen], rounds=DRAWS, seed=self.seed)
        prevalence = (targets == 1).sum(axis=0) / np.maximum((targets >= 0).sum(axis=0), 1)
        ap = merits(self.predictions, targets, together=False)
        return sound(ap, draws, prevalence, self._own(without, min(guard, 1e9)))  # of an infinite one: by positives

    @_cached
    def _alone(self, without: frozenset[int]) -> np.ndarray:
        """The macro mAP [M] of each member alone."""
        return merits(self.predictions, self._without(without), together=True)[:, 0]

    @_cached
    def _own(self, without: frozenset[int], guard: float) -> np.ndarray:
        return own_share(self._without(without), self.groups, guard)

    @_cached
    def _without(self, without: frozenset[int]) -> np.ndarray:
        """The targets, unlabelled in the folds `without`: selectors skip those images, no predictions are copied."""
        if not without:
            return self.targets
        assert self.fold is not None
        return np.where(np.isin(self.fold, list(without))[:, None], np.int8(-1), self.targets)
