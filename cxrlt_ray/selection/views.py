"""One prediction per study: labels are given per study, scores per image, so a study's images may be joined.

A `StudyRule` says how: each image by itself, or all by the study's weighted mean, maximum or noisy-or. `options` lists
the rules among which honest.fit is to choose. 39,293 images x 40 findings x 12 members take 0.3 to 0.8 s a rule on a
busy core; a rule's result is as large as its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cxrlt_ray.selection import spaces

How = Literal["none", "mean", "max", "noisy_or"]
AUTO: Literal["auto"] = "auto"
LEARNED: Literal["learned"] = "learned"
GRID = ((1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (1.0, 0.0))  # weights of frontal and lateral views, the plainest first
_TOLD = {"none": "each image by itself", "mean": "study mean", "max": "study maximum", "noisy_or": "study noisy-or"}


@dataclass(frozen=True)
class StudyRule:
    """How the images of a study speak; `views`: weights >= 0 of PA, AP, LATERAL, OTHER, UNKNOWN, 1 where not named."""

    how: How = "none"
    views: Mapping[str, float] | None = None

    def __str__(self) -> str:
        given = dict(self.views or {})
        if self.how == "none" or not given:
            return _TOLD[self.how]
        if set(given) == {"PA", "AP", "LATERAL"} and given["PA"] == given["AP"]:
            return f"{_TOLD[self.how]}, frontal {given['PA']:g} : lateral {given['LATERAL']:g}"
        return f"{_TOLD[self.how]}, {', '.join(f'{view} {weight:g}' for view, weight in given.items())}"

    def values(
        self, space: str, predictions: np.ndarray, reference: np.ndarray, study: np.ndarray, view: np.ndarray
    ) -> np.ndarray:
        """Probabilities float32 [M, N, C] in `space` (see spaces.into), joined by this rule. study, view: [N].

        The mean is taken in `space`, where members are averaged too. Maximum and noisy-or are of probabilities, which
        are then brought into `space`; the ranks they get there are those among single images.
        """
        if self.how in ("max", "noisy_or"):
            predictions = by_study(predictions, study, self.voice(view), self.how)
        placed = spaces.into(space, predictions, reference)
        return by_study(placed, study, self.voice(view)) if self.how == "mean" else placed

    def voice(self, view: np.ndarray) -> np.ndarray:
        """The weight float64 [N] of each image, by its view."""
        given = self.views or {}
        return np.array([given.get(str(each), 1.0) for each in view], float)


def options(aggregation: str, views: Mapping[str, float] | Literal["learned"] | None) -> list[StudyRule]:
    """The rules that an ensembles/ file's two keys leave to choose among, in order of preference.

    aggregation auto: none, mean, max, noisy_or. views learned: the mean, or the rule given, with each weights of GRID.
    """
    graded = [{"PA": frontal, "AP": frontal, "LATERAL": lateral} for frontal, lateral in GRID]
    stated = None if views == LEARNED else views
    weights: list[Any] = graded if views == LEARNED else [stated]
    if aggregation == AUTO:
        return [
            StudyRule(),
            *(StudyRule("mean", each) for each in weights),
            StudyRule("max", stated),
            StudyRule("noisy_or", stated),
        ]
    if aggregation == "none":
        return [StudyRule()]
    return [StudyRule(aggregation, each) for each in weights]  # type: ignore[arg-type]


def by_study(values: np.ndarray, study: np.ndarray, voice: np.ndarray, how: str = "mean") -> np.ndarray:
    """Each image's values float [M, N, C] as those of its study, joined from its images by `voice` >= 0 [N].

    how: `mean`, weighted by voice; `max` of those that have a voice; `noisy_or`, of probabilities: 1 - prod (1 - p)^w,
    w the voice (Pearl 1988: one cause that is seen suffices); `none`: the values as they are.
    study: [N]. An image that has no values (nan) has no voice, and takes those of its study's others; a study
    without any voice keeps what its images had.
    """
    if how == "none":
        return values
    _, of = np.unique(np.asarray(study).astype(str), return_inverse=True)
    order = np.argsort(of, kind="stable")
    starts = np.flatnonzero(np.diff(of[order], prepend=-1))
    said = np.empty_like(values)
    for m, each in enumerate(values):
        weight = np.where(np.isnan(each).any(axis=1), 0.0, voice)
        heard = (np.add.reduceat(weight[order], starts) > 0)[of]
        joined = _JOINED[how](each.T[:, order], weight[order], starts).T[of]
        said[m] = np.where(heard[:, None], joined, each)
    return said


def _mean(values: np.ndarray, weight: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[C, S] of values [C, N] whose S studies begin at `starts`."""
    weights = np.add.reduceat(weight, starts)
    total = np.add.reduceat(np.where(weight > 0, values, 0) * weight, starts, axis=1)
    return total / np.where(weights > 0, weights, 1)


def _max(values: np.ndarray, weight: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(np.where(weight > 0, values, -np.inf), starts, axis=1)


def _noisy_or(values: np.ndarray, weight: np.ndarray, starts: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # log 0 of what is certain
        unseen = np.log1p(-np.where(weight > 0, values, 0).astype(float)) * weight
    return -np.expm1(np.add.reduceat(unseen, starts, axis=1))


_JOINED = {"mean": _mean, "max": _max, "noisy_or": _noisy_or}
