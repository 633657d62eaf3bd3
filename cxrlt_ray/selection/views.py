"""One prediction per study: labels are given per study, scores per image, so a study's images may be joined.

A `StudyRule` says how: each image by itself, or all by the study's weighted mean, maximum or noisy-or; and whether its
Normal gates the other findings before (gating.py). `options` lists the rules among which honest.fit is to choose.
39,293 images x 40 findings x 12 members take 0.3 to 0.8 s a rule on a busy core; a rule's result is as large as its
input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cxrlt_ray.selection import spaces
from cxrlt_ray.selection.gating import STRENGTHS, gated_by_normal

How = Literal["none", "mean", "max", "noisy_or"]
AUTO: Literal["auto"] = "auto"
LEARNED: Literal["learned"] = "learned"
GRID = ((1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (1.0, 0.0))  # weights of frontal and lateral views, the plainest first
_NAMES = {"none": "each image by itself", "mean": "study mean", "max": "study maximum", "noisy_or": "study noisy-or"}


@dataclass(frozen=True)
class StudyRule:
    """How a study's images are joined; `views`: weights >= 0 of PA, AP, LATERAL, OTHER, UNKNOWN, 1 where not named.

    gating: how strongly finding `normal`, an index, gates the others; 0: not.
    """

    how: How = "none"
    views: Mapping[str, float] | None = None
    gating: float = 0.0
    normal: int | None = None

    def __str__(self) -> str:
        return self._joining() + (f", Normal gating {self.gating:g}" if self.gating else "")

    def _joining(self) -> str:
        weights = dict(self.views or {})
        if self.how == "none" or not weights:
            return _NAMES[self.how]
        if set(weights) == {"PA", "AP", "LATERAL"} and weights["PA"] == weights["AP"]:
            return f"{_NAMES[self.how]}, frontal {weights['PA']:g} : lateral {weights['LATERAL']:g}"
        return f"{_NAMES[self.how]}, {', '.join(f'{view} {weight:g}' for view, weight in weights.items())}"

    def values(
        self, space: str, predictions: np.ndarray, reference: np.ndarray, study: np.ndarray, view: np.ndarray
    ) -> np.ndarray:
        """Probabilities float32 [M, N, C] in `space` (see spaces.into), joined by this rule. study, view: [N].

        Gating comes first. The mean is taken in `space`, where members are averaged too. Maximum and noisy-or are taken
        of probabilities, and their result is converted to `space`; its ranks are those among single images.
        """
        joint = reference is predictions
        predictions = self.gated(predictions)
        reference = predictions if joint else self.gated(reference)
        if self.how in ("max", "noisy_or"):
            predictions = by_study(predictions, study, self.view_weights(view), self.how)
        converted = spaces.into(space, predictions, reference)
        return by_study(converted, study, self.view_weights(view)) if self.how == "mean" else converted

    def gated(self, predictions: np.ndarray) -> np.ndarray:
        """Probabilities [M, N, C] gated by each member's own of Normal, as this rule says."""
        if not self.gating or self.normal is None:
            return predictions
        return gated_by_normal(predictions, self.normal, self.gating)

    def joins_as(self, other: StudyRule) -> bool:
        """Whether both join a study's images alike, whatever they gate."""
        return (self.how, self.views) == (other.how, other.views)

    def view_weights(self, view: np.ndarray) -> np.ndarray:
        """The weight float64 [N] of each image, by its view."""
        weights = self.views or {}
        return np.array([weights.get(str(name), 1.0) for name in view], float)


def options(
    aggregation: str,
    views: Mapping[str, float] | Literal["learned"] | None,
    strength: float | Literal["auto"] = 0.0,
    normal: int | None = None,
) -> list[StudyRule]:
    """The rules that an ensembles/ file's keys leave to choose among, in order of preference.

    >>> [str(rule) for rule in options("auto", None)]
    ['each image by itself', 'study mean', 'study maximum', 'study noisy-or']

    aggregation auto: none, mean, max, noisy_or. views learned: the mean, or the rule given, with each weights of GRID.
    strength: of the gating by finding `normal`; auto: each of STRENGTHS, after all rules without it.
    """
    if normal is not None and strength:
        strengths = STRENGTHS if strength == AUTO else (strength,)
        return [replace(rule, gating=a, normal=normal) for a in strengths for rule in options(aggregation, views)]
    graded = [{"PA": frontal, "AP": frontal, "LATERAL": lateral} for frontal, lateral in GRID]
    stated = None if views == LEARNED else views
    weights: list[Any] = graded if views == LEARNED else [stated]
    if aggregation == AUTO:
        return [
            StudyRule(),
            *(StudyRule("mean", weighting) for weighting in weights),
            StudyRule("max", stated),
            StudyRule("noisy_or", stated),
        ]
    if aggregation == "none":
        return [StudyRule()]
    return [StudyRule(aggregation, weighting) for weighting in weights]  # type: ignore[arg-type]


def by_study(values: np.ndarray, study: np.ndarray, weights: np.ndarray, how: str = "mean") -> np.ndarray:
    """Each image's values float [M, N, C] replaced by its study's, joined from its images by weights >= 0 [N].

    how: `mean`, weighted; `max` of the images with a weight; `noisy_or`, of probabilities: 1 - prod (1 - p)^w (Pearl
    1988: one visible cause suffices); `none`: the values as they are. study: [N]. An image without values (nan) has
    weight 0 and takes those of its study's other images; a study whose weights are all 0 keeps its images' values.
    """
    if how == "none":
        return values
    _, number = np.unique(np.asarray(study).astype(str), return_inverse=True)
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    result = np.empty_like(values)
    for m, member in enumerate(values):
        weight = np.where(np.isnan(member).any(axis=1), 0.0, weights)
        has_weight = (np.add.reduceat(weight[order], starts) > 0)[number]
        joined = _JOINED[how](member.T[:, order], weight[order], starts).T[number]
        result[m] = np.where(has_weight[:, None], joined, member)
    return result


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
