"""What each member adds to an ensemble of the others, and who is ahead by it: how a sweep promotes its trials.

A member's gain is cross-fitted by subject. Without each fold, forward selection finds the best ensemble of the others,
and the member joins it with the share that is best there, 0 among them; on the fold's images the ensemble with it and
the one without it are scored. So a copy of a member that is in the ensemble gains next to nothing, and one whose errors
are others' a lot; a member that the ensemble does not want gains 0 on that fold.

Gains are small and uncertain. A member is ahead of another by its gain only where the difference exceeds one standard
error, by a bootstrap of subjects paired between the two; otherwise by its own score.

60 members of 2,000 images x 40 findings take 1.0 s on one core, the errors of 30 differences 0.8 s more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.selection import exact
from cxrlt_ray.selection.average_precision import EQUAL, precisions

ROUNDS = 8  # of forward selection, with replacement
SHARES = (0.15, 0.35)  # of the ensemble, that a member may have; or none
DRAWS = 64  # of subjects


@dataclass(frozen=True)
class Gains:
    """What each of M members adds: `gain` float64 [M] in mAP; nan of a single member, which has no others to join.

    joined, without: float32 [M, N, C], cross-fitted predictions of the others with and without the member. targets:
    int8 [N, C]. groups: [N], the subject of each image. base: int [M], for each member one of the same `without`, which
    all share that no ensemble holds.
    """

    gain: np.ndarray
    joined: np.ndarray = field(repr=False)
    without: np.ndarray = field(repr=False)
    targets: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    base: np.ndarray = field(repr=False)

    def errors(self, member: int, others: np.ndarray, seed: int = 0) -> np.ndarray:
        """Standard errors [len(others)] of the differences between the others' gains and the member's.

        By a bootstrap of subjects (Efron & Tibshirani 1993, ch. 6), the same draws for all.
        """
        rows = [member, *others.tolist()]
        distinct, place = np.unique(self.base[rows], return_inverse=True)
        systems = [*(self.joined[row] for row in rows), *(self.without[row] for row in distinct)]
        draws = metrics.bootstrap_map(self.targets, systems, self.groups, rounds=DRAWS, seed=seed)
        gains = draws[: len(rows)] - draws[len(rows) :][place]
        return np.nanstd(gains[1:] - gains[0], axis=1, ddof=1)


def gains(predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, fold: np.ndarray) -> Gains:
    """What each member adds to an ensemble of the others, by predictions float32 [M, N, C] in [0, 1].

    targets: int8 [N, C], 1, 0 or -1 (not labelled). groups: [N], the subject of each image. fold: int [N] from 0; the
    images of a subject share one. Members of equal predictions count in their order: the first is in the ensemble.
    """
    members = len(predictions)
    predictions = _by_finding(predictions)
    joined, without = _by_finding(predictions), _by_finding(predictions)
    if members < 2:
        return Gains(np.full(members, np.nan), joined, without, targets, groups, np.arange(members))
    chosen = np.zeros(members, bool)
    for k in range(int(fold.max()) + 1):
        rows = np.flatnonzero(fold == k)
        inside = np.where((fold == k)[:, None], np.int8(-1), targets)
        rest, base = _ensembles_without_each(predictions, inside)
        chosen |= base == np.arange(members)
        share = _best_shares(predictions, rest, base, inside)[:, None, None]
        without[:, rows] = rest[:, rows]
        joined[:, rows] = (1 - share) * rest[:, rows] + share * predictions[:, rows]
    base = _bases(chosen)
    gain = _macro(joined, targets) - _macro_of_rest(without, base, targets)
    return Gains(gain, joined, without, targets, groups, base)


def members_ahead(member: int, scores: np.ndarray, gain: np.ndarray, errors: Callable[[np.ndarray], np.ndarray]) -> int:
    """How many others are ahead of a member: by their gain where that is certain, else by their own score.

    scores: float64 [M], higher is better; nan: ahead of nobody, and nobody is ahead of it. gain: float64 [M], nan where
    it is not known: there own scores decide. errors: of some others, the standard errors of the differences between
    their gains and the member's; it is asked only where gain and own score disagree.
    """
    ahead = scores > scores[member]
    difference = gain - gain[member]
    disputed = np.flatnonzero(np.where(ahead, difference < -EQUAL, difference > EQUAL) & ~np.isnan(scores))
    if disputed.size and not np.isnan(scores[member]):
        certain = np.abs(difference[disputed]) > errors(disputed)
        ahead[disputed] ^= certain
    return int(ahead.sum())


def _ensembles_without_each(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions [M, N, C] of the best ensemble by forward selection, each less one member; and `_bases` [M]."""
    members = len(predictions)
    (counts,) = exact.greedy_together(predictions, targets, ROUNDS, np.ones((1, members), int))
    chosen = np.flatnonzero(counts)
    total = np.einsum("m,mnc->nc", counts[chosen], predictions[chosen])
    rest = _by_finding(np.broadcast_to(total / counts.sum(), predictions.shape))
    for m in chosen:
        left = counts.sum() - counts[m]
        if left:
            rest[m] = (total - counts[m] * predictions[m]) / left
        else:  # it is the whole ensemble
            alone = _macro(predictions, targets)
            alone[m] = -np.inf
            rest[m] = predictions[int(alone.argmax())]
    return rest, _bases(counts > 0)


def _bases(chosen: np.ndarray) -> np.ndarray:
    """Of members of which the `chosen`, bool [M], are in an ensemble: each one itself, the others the first of them."""
    return np.where(chosen, np.arange(len(chosen)), chosen.argmin())


def _macro_of_rest(rest: np.ndarray, base: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`_macro` of ensembles without each member; those of one base are the same, and scored once."""
    distinct, place = np.unique(base, return_inverse=True)
    return _macro(rest[distinct], targets)[place]


def _best_shares(predictions: np.ndarray, rest: np.ndarray, base: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The share [M] of 0 and SHARES with which each member joins the ensemble `rest` [M, N, C] of the others."""
    best, chosen = _macro_of_rest(rest, base, targets), np.zeros(len(rest), np.float32)
    for share in SHARES:
        value = _macro((1 - share) * rest + share * predictions, targets)
        better = value > best + EQUAL
        best, chosen = np.where(better, value, best), np.where(better, np.float32(share), chosen)
    return chosen


def _macro(systems: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The macro mAP [M] of each system's scores [M, N, C]."""
    return np.array([metrics.macro(ap) for ap in precisions(systems, targets)])


def _by_finding(predictions: np.ndarray) -> np.ndarray:
    """A float32 copy of predictions [M, N, C] in which a finding's scores lie together."""
    return np.array(predictions.transpose(2, 0, 1), np.float32, order="C").transpose(1, 2, 0)
