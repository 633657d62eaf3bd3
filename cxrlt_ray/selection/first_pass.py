"""Greedy selection among more members than memory holds: one finding at a time, exact, without the others in memory.

No bound says beforehand which members greedy selection will never take: one that is weak alone may be the best to add,
and a bound on what an ensemble can gain by it holds for the one running sum that it was made for. So every member is
judged in every round, as in exact.py, most of them by a coarse bound alone; what is bounded here is memory. Two threads
hold two findings: of 2,000 members and 39,293 images 0.8 GB each.

What follows is exact: greedy selection among the members that it picks anywhere is greedy selection among all. The best
of all in a round is the best of any part that holds it, and the running sums are the same. Picks beyond the best prefix
count as well: without them another path could reach a higher AP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.selection import kernels, progress
from cxrlt_ray.selection.finding import prepare
from cxrlt_ray.selection.threads import SMALL, by_work, for_each

Scores = Callable[[int], np.ndarray]  # finding c -> all members' scores of it, float32 [M, N]
NONE = -1  # in place of a member: nothing is picked for a finding without positives


@dataclass(frozen=True)
class Paths:
    """What greedy selection picks among M members, for each of S sets of labels and each finding, round by round.

    picked: int64 [S, C, R] members; NONE for a finding without positives. reached: float64 [S, C, R], the AP then.
    ap: float64 [M, C] of every member alone by the first set; nan where a finding has no positives.
    """

    picked: np.ndarray
    reached: np.ndarray
    ap: np.ndarray

    def weights(self, s: int = 0) -> np.ndarray:
        """Weights float64 [M, C] by set s: those of `greedy` for each finding; equal for one without positives."""
        nothing = self.picked[s, :, 0] == NONE
        weights = np.repeat(np.where(nothing, 1 / len(self.ap), 0.0)[None], len(self.ap), axis=0)
        for c in np.flatnonzero(~nothing):
            last = kernels.foremost(self.reached[s, c], np.zeros(self.reached.shape[2]))
            weights[:, c] = np.bincount(self.picked[s, c, : last + 1], minlength=len(weights)) / (last + 1)
        return weights

    def earliest(self) -> np.ndarray:
        """The first round, int [M] from 0, in which each member is picked anywhere; R where it never is."""
        rounds = self.picked.shape[2]
        first = np.full(len(self.ap) + 1, rounds)  # the last one stands for NONE
        turns = np.broadcast_to(np.arange(rounds), self.picked.shape)
        np.minimum.at(first, self.picked.ravel(), turns.ravel())  # numpy 2.4 reads beyond what it broadcasts itself
        return first[:-1]


def follow(scores: Scores, targets: Sequence[np.ndarray], members: int, rounds: int) -> Paths:
    """Greedy selection's paths of `rounds` picks among `members`, for each finding and each set of labels.

    scores: called once a finding, perhaps by several threads at a time; images without labels in any set may be nan.
    targets: S sets, int8 [N, C], 1, 0 or -1 (not labelled): all, and those without a fold.
    """
    findings = targets[0].shape[1]
    shape = (len(targets), findings, rounds)
    paths = Paths(np.full(shape, NONE, np.int64), np.zeros(shape), np.full((members, findings), np.nan))
    ranks = np.ones(members, np.int64)

    def one(c: int) -> None:
        of_finding = scores(c)[:, :, None]
        for s, labels in enumerate(targets):
            if not (labels[:, c] == 1).any():
                continue
            finding = prepare(of_finding, labels[:, [c]], 0)
            kernels.follow(finding, ranks, paths.picked[s, c], paths.reached[s, c])
            if s == 0:
                finding.total_pos[:], finding.total_neg[:] = 0, 0
                kernels.judge_all(finding, np.arange(members), 2, alone := np.empty(members))
                paths.ap[:, c] = alone

    for_each(one, by_work(targets[0]), max(SMALL, members * len(targets[0])), progress.step)
    return paths
