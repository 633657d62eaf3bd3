"""Calibration of every finding, chosen and judged by cross-fitting on subjects, and the record of it.

A finding's map (evaluation/calibrators.py) is a mean of its own and of one pooled over findings, n / (n + guard) of it
its own, n the subjects of its rarer label: a finding of few positives leans on what all have in common. Which method
is taken is decided by cross-fitted log loss: the first, in the registry's order from no change to isotonic, that is not
worse than the best by more than MARGIN standard errors of the difference (by subject). `Fitted.calibrated` are scores
of images whose subjects neither fitted nor chose: methods are chosen anew without each fold, by cross-fitting among
the others. Maps without folds {j, k} serve both. 39,293 images of 40 findings take 16 fits a finding and method.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from cxrlt_ray.config import Config
from cxrlt_ray.data.splits import assign_folds
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.calibrators import CALIBRATORS, Cells, LogitMap, identity, mixed
from cxrlt_ray.evaluation.reliability import log_losses

GUARD = 20.0  # subjects at which a finding's own map counts as much as the pooled one
FEW = 2  # positives, or negatives, below which a finding is left as it is
MARGIN = 1.0  # standard errors by which a more flexible method must be better
NONE = "none"
NO_FOLD: frozenset[int] = frozenset()


class FindingCalibration(Config):
    """A finding's map, and how it was made.

    method: of CALIBRATORS. own: the share of the map that is the finding's own, the rest is pooled. positives: labelled
    images. left: why the finding was left as it is without a choice, else "".
    """

    method: str = NONE
    own: float = Field(default=0.0, ge=0, le=1)
    positives: int = Field(default=0, ge=0)
    left: str = ""
    map: LogitMap = LogitMap()

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated scores float64 [N] of scores [N]; nan stays nan."""
        return np.array(scores, np.float64) if self.method == NONE else self.map(scores)


class Calibration(Config):
    """How scores are calibrated, by finding: what ensemble.json keeps."""

    version: Literal[1] = 1
    guard: float = Field(default=GUARD, ge=0)
    findings: dict[str, FindingCalibration]

    def apply(self, scores: np.ndarray, findings: Sequence[str]) -> np.ndarray:
        """Calibrated scores float64 [N, C] of scores [N, C] in [0, 1] in the order of `findings` [C]; nan stays nan.

        Within a finding images keep their order. Raises ValueError for a finding that was not calibrated.
        """
        if missing := [name for name in findings if name not in self.findings]:
            raise ValueError(f"there is no calibration of {', '.join(missing)}")
        columns = zip(findings, np.asarray(scores).T, strict=True)
        return np.column_stack([self.findings[name].apply(column) for name, column in columns])

    def of(self, findings: Sequence[str]) -> Calibration:
        """The same of `findings` only, in their order."""
        return self.model_copy(update={"findings": {name: self.findings[name] for name in findings}})


@dataclass(frozen=True)
class Fitted:
    """A calibration fitted on all images, and their cross-fitted scores.

    calibrated: float64 [N, C], each image's by methods and maps chosen without its subject's fold. fold: int [N].
    """

    calibration: Calibration
    calibrated: np.ndarray
    fold: np.ndarray


def calibrate(
    targets: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    findings: Sequence[str],
    *,
    methods: Sequence[str] = tuple(CALIBRATORS),
    guard: float = GUARD,
    folds: int = 5,
    seed: int = 0,
) -> Fitted:
    """Calibrate each finding by the best of `methods`.

    targets: int8 [N, C], 1, 0 or -1 (not labelled). scores: float [N, C] in [0, 1]; nan where there is none. groups:
    [N] subjects. methods: names of CALIBRATORS, in order of preference; with one that one is taken. guard: 0 for no
    pooling. A finding with fewer than FEW positives or negatives is left as it is, and all are where there is
    one subject. Raises ValueError for scores outside [0, 1], shapes that differ and an unknown method.
    """
    targets, scores = np.asarray(targets), np.asarray(scores, np.float64)
    if targets.shape != scores.shape or targets.ndim != 2 or len(findings) != targets.shape[1]:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} must both be [images, findings]")
    if (scores < 0).any() or (scores > 1).any():
        raise ValueError("scores must be in [0, 1]")
    if unknown := [name for name in methods if name not in CALIBRATORS]:
        raise ValueError(f"no method '{unknown[0]}'; there are {', '.join(CALIBRATORS)}")
    targets = np.where(np.isnan(scores), -1, targets)
    subject = metrics.numbered(groups) if len(targets) else np.zeros(0, int)
    folds = min(folds, len(np.unique(subject)))
    fold = assign_folds(targets, subject, folds, seed) if folds > 1 else np.zeros(len(targets), int)
    left = [_left(column, folds) for column in targets.T]
    chooser = _Chooser(targets, scores, subject, fold, tuple(methods), guard, np.array([not why for why in left]))
    taken = chooser.choice(NO_FOLD)
    calibrated = scores.copy()
    for k in range(folds if folds > 1 else 0):
        rows, without = fold == k, frozenset([k])
        for c, method in enumerate(chooser.choice(without)):
            if method != NONE:
                calibrated[rows, c] = chooser.maps(without)[method][c](scores[rows, c])
    shares = chooser.shares(NO_FOLD)
    made = {
        name: FindingCalibration(
            method=taken[c],
            own=shares[c] if taken[c] != NONE else 0.0,
            positives=int((targets[:, c] == 1).sum()),
            left=left[c],
            map=chooser.maps(NO_FOLD)[taken[c]][c] if taken[c] != NONE else LogitMap(),
        )
        for c, name in enumerate(findings)
    }
    return Fitted(Calibration(guard=guard, findings=made), calibrated, fold)


def _left(targets: np.ndarray, folds: int) -> str:
    """Why a finding of targets [N] is left as it is; "" where it is not."""
    for label, name in ((1, "positive"), (0, "negative")):
        if (count := int((targets == label).sum())) < FEW:
            return f"{count} {name}{'' if count == 1 else 's'}"
    return "one subject" if folds < 2 else ""


@dataclass(frozen=True, eq=False)
class _Chooser:
    """Maps of every method without some folds, each fitted once, and the method to take without them."""

    targets: np.ndarray
    scores: np.ndarray
    subject: np.ndarray
    fold: np.ndarray
    methods: tuple[str, ...]
    guard: float
    able: np.ndarray  # which findings are calibrated, bool [C]

    @functools.cached_property
    def folds(self) -> int:
        return int(self.fold.max(initial=0)) + 1

    @functools.cached_property
    def _maps(self) -> dict[frozenset[int], dict[str, list[LogitMap]]]:
        return {}

    def maps(self, without: frozenset[int]) -> dict[str, list[LogitMap]]:
        """Each method's map of each finding, fitted without the folds `without`."""
        if without not in self._maps:
            self._maps[without] = self._fit(without)
        return self._maps[without]

    def shares(self, without: frozenset[int]) -> list[float]:
        """The share [C] of a finding's own map: n / (n + guard), n the subjects of its rarer label."""
        targets, subject = self._seen(without)
        rarer = [metrics.positive_subjects((targets == label).astype(np.int8), subject) for label in (0, 1)]
        n = np.minimum(*rarer).astype(float)
        return list((n / np.maximum(n + self.guard, 1e-300)).tolist())

    def choice(self, without: frozenset[int]) -> list[str]:
        """The method [C] to take without the folds `without`, by cross-fitting among the others."""
        if len(self.methods) == 1:
            return [self.methods[0] if able else NONE for able in self.able]
        losses = np.full((len(self.methods), *self.targets.shape), np.nan)
        for j in (j for j in range(self.folds) if j not in without):
            rows = np.flatnonzero(self.fold == j)
            maps = self.maps(without | {j}) if self.able.any() else {}
            for m, c in np.ndindex(len(self.methods), self.targets.shape[1]):
                if self.able[c]:
                    method, column = self.methods[m], self.scores[rows, c]
                    probabilities = column if method == NONE else maps[method][c](column)
                    losses[m, rows, c] = log_losses(self.targets[rows, c], probabilities)
        return [self._best(losses[:, :, c]) if able else NONE for c, able in enumerate(self.able)]

    def _best(self, losses: np.ndarray) -> str:
        """The first method not worse than the best by more than MARGIN standard errors; losses [S, N], nan unknown."""
        totals = np.stack([np.bincount(self.subject, weights=np.nan_to_num(row)) for row in losses])
        excess = totals - totals[totals.sum(axis=1).argmin()]
        error = np.sqrt(excess.shape[1] * excess.var(axis=1))
        return self.methods[int(np.flatnonzero(excess.sum(axis=1) <= MARGIN * error + 1e-12)[0])]

    def _seen(self, without: frozenset[int]) -> tuple[np.ndarray, np.ndarray]:
        rows = ~np.isin(self.fold, list(without))
        return self.targets[rows], self.subject[rows]

    def _fit(self, without: frozenset[int]) -> dict[str, list[LogitMap]]:
        rows = ~np.isin(self.fold, list(without))
        cells: dict[int, Cells] = {}
        for c in np.flatnonzero(self.able).tolist():
            known = rows & (self.targets[:, c] >= 0)
            cells[c] = Cells.of(self.scores[known, c], self.targets[known, c] == 1)
        shares, pooled = self.shares(without), Cells.pooled(list(cells.values()))
        maps: dict[str, list[LogitMap]] = {}
        for name in (name for name in self.methods if name != NONE):
            fit = CALIBRATORS[name]
            whole = fit(pooled) if pooled.both else identity(pooled)
            maps[name] = [
                mixed(fit(cells[c]), whole, share) if c in cells and cells[c].both else whole
                for c, share in enumerate(shares)
            ]
        return maps
