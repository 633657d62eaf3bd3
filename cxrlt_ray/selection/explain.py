"""Why these members: what each adds, how similar they are, how stable the choice is, and what more of them would add.

Arrays only; ensembling/explain.py prints and draws the results. Every score is cross-fitted (honest.py), every interval
a 95 % bootstrap interval by subject.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.selection.honest import Fitted, fit
from cxrlt_ray.selection.method import Method
from cxrlt_ray.selection.registry import takes_costs

ORDERS = 16  # in which members are added, each also backwards, for their marginal contributions
DRAWS = 200  # of subjects, for the intervals
REDRAWN = 20  # bootstrap samples on which the choice is made again
SIZES = 7  # points of the curve of mAP against the number of trials
SUBSETS = 8  # of each size
POWERS = np.geomspace(0.2, 3, 40)  # of the power law: from barely levelling off to flat after a few trials


@dataclass(frozen=True)
class Contributions:
    """What members add: `alone`, `marginal` and `without` [M, C + 1, 3], the last finding's place for macro mAP.

    The 3 are a value and the ends of its 95 % interval: nan where it is not known (Estimate).

    alone: the member's AP.  marginal: its mean gain when members are added in random order (Shapley 1953); over the
    members they sum to the ensemble's score less that of constant predictions (`whole` less `chance`, [C + 1, 3]).
    without: what the ensemble loses without it, the others' weights scaled up (negative: it gains).
    """

    alone: np.ndarray
    marginal: np.ndarray
    without: np.ndarray
    whole: np.ndarray
    chance: np.ndarray


def contributions(
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    fitted: Fitted,
    *,
    orders: int = ORDERS,
    rounds: int = DRAWS,
    seed: int = 0,
) -> Contributions:
    """What each of the M members adds to an ensemble.

    0 for a member without any weight; for one with weight in `fitted.weights` but in no fold, only `alone` is computed.
    A subset of the members is weighed as the whole is, by the fold's weights, scaled to sum 1; where none of them has
    weight they count equally. Shapes as in the package's docstring.
    """
    assert fitted.fold is not None
    assert fitted.fold_weights is not None
    members, findings = predictions.shape[0], predictions.shape[2]
    used = np.flatnonzero(fitted.fold_weights.any(axis=(0, 2))).tolist()
    shown = sorted({*used, *np.flatnonzero(fitted.weights.any(axis=1)).tolist()})
    rng, paths = np.random.default_rng(seed), []
    if all_orders := math.factorial(len(used)) <= 2 * orders:
        paths = [list(path) for path in itertools.permutations(used)]
    else:
        for path in (rng.permutation(used).tolist() for _ in range(orders)):
            paths += [path, path[::-1]]
    known: dict[frozenset[int], np.ndarray] = {}

    def judge(sets: Iterable[Iterable[int]]) -> None:
        """Fill `known` [C + 1, 1 + rounds]: AP and macro mAP, first on all subjects, then in draws of them."""
        new = [some for some in dict.fromkeys(map(frozenset, sets)) if some not in known]
        if new:
            systems = [_part(predictions, fitted, sorted(some)) for some in new]
            known.update(zip(new, _judged(targets, systems, groups, rounds, seed), strict=True))

    every = frozenset(used)
    judge([[], every, *([m] for m in shown), *(every - {m} for m in used)])
    for path in paths:  # one by one: the scores of all sets would not fit into memory
        judge(path[:k] for k in range(len(path)))
    whole, sample = known[every], Sample.of(targets, groups)
    alone, marginal, without = np.zeros((3, members, findings + 1, 3))
    drawn = np.tile(np.arange(len(paths)), (rounds, 1))
    if not all_orders:  # the paths are a sample too
        drawn = rng.integers(0, len(paths), drawn.shape)
    for m in shown:
        alone[m] = _scores(known[frozenset([m])], sample)
    for m in used:
        gains = np.empty((len(paths), *whole.shape))
        for p, path in enumerate(paths):
            before = frozenset(path[: path.index(m)])
            gains[p] = known[before | {m}] - known[before]
        mean = np.empty_like(whole)
        mean[:, 0] = gains[:, :, 0].mean(axis=0)
        for r in range(rounds):
            mean[:, r + 1] = gains[drawn[r], :, r + 1].mean(axis=0)
        for figures, values in ((marginal, mean), (without, whole - known[every - {m}])):
            figures[m] = _differences(values, sample)
    ends = [_scores(known[some], sample) for some in (every, frozenset())]
    return Contributions(alone, marginal, without, *ends)


def correlations(predictions: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation [M, M] of members' scores, the mean over findings; nan of one that is constant."""
    from scipy.stats import rankdata

    members, _, findings = predictions.shape
    by_finding = np.empty((findings, members, members))
    for c in range(findings):
        ranks = rankdata(predictions[:, :, c], axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            by_finding[c] = np.corrcoef(ranks).reshape(members, members)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all nan
        return np.nanmean(by_finding, axis=0)


def stability(
    method: Method,
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray,
    *,
    costs: np.ndarray | None = None,
    draws: int = REDRAWN,
    seed: int = 0,
) -> np.ndarray:
    """The share [draws, C] of the weight that stays on the same members when subjects are drawn anew, 0 to 1."""
    subject = metrics.numbered(groups)
    images = np.split(np.argsort(subject, kind="stable"), np.cumsum(np.bincount(subject))[:-1])
    rng, overlap = np.random.default_rng(seed), np.empty((draws, targets.shape[1]))
    for d in range(draws):
        drawn = [images[k] for k in rng.integers(0, len(images), len(images))]
        rows = np.concatenate(drawn)
        copies = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])  # a subject drawn twice counts as two
        again = _quietly(method, predictions[:, rows], targets[rows], copies, folds=0, seed=seed, costs=costs).weights
        overlap[d] = np.minimum(weights, again).sum(axis=0)
    return overlap


@dataclass(frozen=True)
class Growth:
    """Cross-fitted macro mAP of ensembles of fewer trials, and its extrapolation.

    sizes int [S]; scores: value, low, high [S, 3], over random subsets and subjects; curve: the law a - b n^-c at
    `ahead` int [A] trials, [A, 3]; gains: its prediction beyond the present number of trials, [A, 3].
    """

    sizes: np.ndarray
    scores: np.ndarray
    ahead: np.ndarray
    curve: np.ndarray
    gains: np.ndarray


def growth(
    method: Method,
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    folds: int = 5,
    costs: np.ndarray | None = None,
    subsets: int = SUBSETS,
    rounds: int = DRAWS,
    seed: int = 0,
) -> Growth:
    """What `method` makes of random subsets of the M members, and the power law through it (as learning curves follow).

    Future trials are assumed to be like the present ones. The interval of the law is of 200 bootstrap draws of
    subjects and subsets together. With fewer than 4 members the law is not fitted: `curve` and `gains` are nan.
    """
    members, rng = len(predictions), np.random.default_rng(seed)
    sizes = np.unique(np.geomspace(1, members, SIZES).round().astype(int))
    by_size = []  # of each size [subsets of it, 1 + rounds]
    for size in sizes:
        chosen = {tuple(sorted(rng.choice(members, size, replace=False).tolist())) for _ in range(subsets)}
        systems = []
        for some in map(list, sorted(chosen)):
            part, price = predictions[some], None if costs is None else costs[some]
            systems.append(_quietly(method, part, targets, groups, folds=folds, seed=seed, costs=price).crossed[0])
        by_size.append(_judged(targets, systems, groups, rounds, seed)[:, -1])
    values, drawn = np.empty(len(sizes)), np.empty((rounds, len(sizes)))
    for s, judged in enumerate(by_size):
        values[s] = judged[:, 0].mean()
        again = rng.integers(0, len(judged), (rounds, len(judged)))
        drawn[:, s] = [judged[again[r], r + 1].mean() for r in range(rounds)]
    sample = Sample.of(targets, groups)
    scores = np.array([astuple(Estimate.of_score(values[s], drawn[:, s], sample)) for s in range(len(sizes))])
    ahead = np.unique(np.append(sizes, [members + 1, members + 2, members + 5, 2 * members, 4 * members]))
    counts = np.array([len(judged) for judged in by_size])
    if members < 4:
        unknown = np.full((len(ahead), 3), np.nan)
        return Growth(sizes, scores, ahead, unknown, unknown)
    laws = np.array([power_law(sizes, observed, counts, np.append(ahead, members)) for observed in (values, *drawn)])
    curve = np.array([astuple(Estimate.of_score(law[0], law[1:], sample)) for law in laws.T[:-1]])
    beyond = (laws[:, :-1] - laws[:, -1:]).T
    gains = np.array([astuple(Estimate.of_difference(gain[0], gain[1:], sample)) for gain in beyond])
    return Growth(sizes, scores, ahead, curve, gains)


def power_law(sizes: np.ndarray, values: np.ndarray, counts: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The law a - b n^-c of least squares through values [S] at sizes [S] with weights `counts`; evaluated at `at` [A].

    b >= 0, since more members do no harm; at most 1.
    """
    best, law = np.inf, np.full(len(at), np.average(values, weights=counts))
    for power in POWERS:
        x, ahead = sizes.astype(float) ** -power, at.astype(float) ** -power
        x_mean, mean = np.average(x, weights=counts), np.average(values, weights=counts)
        spread = counts @ (x - x_mean) ** 2
        fall = max(counts @ ((x_mean - x) * (values - mean)) / spread, 0.0) if spread > 0 else 0.0
        error = counts @ (values - mean - fall * (x_mean - x)) ** 2
        if error < best:
            best, law = error, mean + fall * (x_mean - ahead)
    return np.minimum(law, 1.0)


def _part(predictions: np.ndarray, fitted: Fitted, some: Sequence[int]) -> np.ndarray:
    """Cross-fitted scores float64 [N, C] of some of the members; all 0 of none."""
    from cxrlt_ray.selection.average_precision import weighted_mean

    assert fitted.fold is not None
    assert fitted.fold_weights is not None
    scores = np.zeros(predictions.shape[1:])
    for k, weights in enumerate(fitted.fold_weights):
        part = np.zeros_like(weights)
        part[list(some)] = weights[list(some)]
        part[list(some)] += (part.sum(axis=0) == 0) * 1.0
        total = part.sum(axis=0)
        rows = np.flatnonzero(fitted.fold == k)
        scores[rows] = weighted_mean(predictions, part / np.where(total > 0, total, 1), rows)
    return scores


def _judged(targets: np.ndarray, systems: Sequence[np.ndarray], groups: np.ndarray, rounds: int, seed: int) -> Any:
    """AP of every finding, then their mean [S, C + 1, 1 + rounds]: first on all subjects, then in draws of them."""
    from cxrlt_ray.selection.average_precision import precision

    now = np.array([precision(scores, targets) for scores in systems])[:, :, None]
    values = np.concatenate([now, metrics.bootstrap_ap(targets, systems, groups, rounds, seed)], axis=2)
    return np.concatenate([values, metrics.means(values)[:, None]], axis=1)


def _scores(values: np.ndarray, sample: Sample) -> np.ndarray:
    """Of `_judged` values [C + 1, 1 + rounds] the first with the interval that the others give, [C + 1, 3]."""
    return np.array([astuple(Estimate.of_score(row[0], row[1:], part)) for row, part in _parts(values, sample)])


def _differences(values: np.ndarray, sample: Sample) -> np.ndarray:
    """The same of differences."""
    return np.array([astuple(Estimate.of_difference(row[0], row[1:], part)) for row, part in _parts(values, sample)])


def _parts(values: np.ndarray, sample: Sample) -> Iterable[tuple[np.ndarray, Sample]]:
    """Of every finding, and last of all of them, the values and what they rest on."""
    return zip(values, [*(sample.part([c]) for c in range(len(values) - 1)), sample], strict=True)


def _quietly(method: Method, *inputs: Any, costs: np.ndarray | None, **options: Any) -> Fitted:
    """`fit` on a subset of members or subjects, without its warnings, which concern the subset only."""
    budget = method.settings.get("budget")
    if costs is not None and budget is not None and takes_costs(method.selector):  # some member must be affordable
        method = replace(method, settings={**method.settings, "budget": max(float(budget), float(costs.min()))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(method, *inputs, costs=costs, **options)
