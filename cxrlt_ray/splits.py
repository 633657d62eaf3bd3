"""Splits by subject in which even the rarest finding gets its share.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas: On the stratification of multi-label data,
ECML 2011) over subjects instead of images: a subject brings the summed positives of its images. The
finding with the fewest subjects left goes first; each of its subjects, those with most positives
before the others, goes to the part that lacks most of that finding. A last pass moves single subjects
to parts that were left without a finding. Greedy, so not the best balance there is, but 45,480
subjects x 40 findings take about a second; a finding cannot be spread at all where its subjects are
tied to rarer ones (three findings that pairwise share three subjects, two folds).
"""

from __future__ import annotations

import numpy as np

from cxrlt_ray.errors import CxrltError


def assign_folds(targets: np.ndarray, subjects: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold, 0 to folds - 1, of each image: int64 [N].

    targets: int8 [N, C], 1, 0 or -1 (not labelled). subjects: [N] names; all images of one share a fold.
    A finding of at least `folds` positive subjects has positives in each fold. The order of the images
    does not matter, the seed does. Raises CxrltError if there are fewer subjects than folds.

    >>> assign_folds(np.array([[1], [1], [0], [0]], np.int8), np.array(["a", "b", "c", "c"]), 2, seed=0).shape
    (4,)
    """
    positives, sizes, of = _by_subject(targets, subjects)
    if len(sizes) < folds:
        raise CxrltError(f"{folds} folds need at least {folds} subjects; there are {len(sizes)}. Lower --folds.")
    return _distribute(positives, sizes, np.full(folds, 1 / folds), seed)[of]


def holdout(targets: np.ndarray, subjects: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which images to keep apart: bool [N], about `share` of them and of each finding's positives.

    Arguments as of `assign_folds`. A finding of two positive subjects has one on each side.
    """
    positives, sizes, of = _by_subject(targets, subjects)
    return _distribute(positives, sizes, np.array([1 - share, share]), seed)[of] == 1


def _by_subject(targets: np.ndarray, subjects: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positives [G, C] and images [G] of each subject, and each image's subject [N]."""
    # as fixed-width text: numpy sorts it many times faster than objects
    names, of = np.unique(np.asarray(subjects).astype(str), return_inverse=True)
    positives = np.zeros((len(names), targets.shape[1]), np.int64)
    for column in range(targets.shape[1]):
        positives[:, column] = np.bincount(of[targets[:, column] == 1], minlength=len(names))
    return positives, np.bincount(of, minlength=len(names)), of


def _distribute(positives: np.ndarray, sizes: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """The part of each subject [G]; part k is to hold `shares[k]` of each finding's positives and of the images."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    part = np.full(len(sizes), -1)
    wanted = np.outer(shares, positives.sum(axis=0))
    have = np.zeros_like(wanted)
    holders = np.zeros(wanted.shape, np.int64)  # subjects with the finding
    room = shares * sizes.sum()

    def put(subject: int, k: int) -> None:
        part[subject] = k
        have[k] += positives[subject]
        holders[k] += positives[subject] > 0
        room[k] -= sizes[subject]

    while True:
        waiting = order[part[order] < 0]
        left = (positives[waiting] > 0).sum(axis=0)
        if not left.any():
            break
        finding = int(np.argmin(np.where(left > 0, left, len(sizes) + 1)))
        members = waiting[positives[waiting, finding] > 0]
        members = members[np.argsort(-positives[members, finding], kind="stable")]
        for at, subject in enumerate(members):
            need = wanted[:, finding] - have[:, finding]
            lacking = holders[:, finding] == 0
            # the last ones are for the parts that have none, however little their share is
            if len(members) - at <= lacking.sum():
                need[~lacking] = -np.inf
            best = np.flatnonzero(need == need.max())
            put(subject, int(best[np.argmax(room[best])]))
    for subject in waiting[np.argsort(-sizes[waiting], kind="stable")]:
        put(subject, int(np.argmax(room)))
    _spread(positives, sizes, part, holders, room)
    return part


def _spread(positives: np.ndarray, sizes: np.ndarray, part: np.ndarray, holders: np.ndarray, room: np.ndarray) -> None:
    """Move single subjects, in place, to parts without a finding, where no other finding loses a part by it."""
    has = positives > 0
    for finding in np.argsort(holders.sum(axis=0), kind="stable"):
        if holders[:, finding].sum() < len(holders):
            continue
        for k in np.flatnonzero(holders[:, finding] == 0):
            members = np.flatnonzero(has[:, finding])
            spare = (holders[part[members]] > 1) | ~has[members]
            movable = members[spare.all(axis=1)]
            if len(movable):
                subject = movable[np.argmin(sizes[movable])]
                holders[part[subject]] -= has[subject]
                holders[k] += has[subject]
                room[part[subject]] += sizes[subject]
                room[k] -= sizes[subject]
                part[subject] = k
