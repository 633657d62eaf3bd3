"""What self-supervised training is watched by: the features' effective rank, k-NN, and the signs of collapse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from cxrlt_ray.config import Config
from cxrlt_ray.evaluation.metrics import average_precision
from cxrlt_ray.runs.pretrain_record import Point

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of k-NN, as DINO evaluates (Caron et al. 2021)
LEAST_POSITIVES = 5  # of a finding that is scored, and as many negatives
# of an objective's statistics, as shares of ln K: the entropy of a teacher's answers, and that of their mean less it
ENTROPY, INFORMATION = "teacher_entropy", "teacher_information"
EPSILON = 1e-7


class Limits(Config):
    """When a run is stopped. A sign of collapse counts where two measurements in a row have it.

    least_rank: of the features. least_information: of a teacher's answers, as a share of ln K. knn_fall: the share of
    its best value that k-NN may lose; 1 for any. grace: steps without judgement.
    """

    least_rank: Annotated[float, Field(ge=0)] = 1.1
    least_information: Annotated[float, Field(ge=0, le=1)] = 0.01
    knn_fall: Annotated[float, Field(gt=0, le=1)] = 1.0
    grace: Annotated[int, Field(ge=0)] = 100


def effective_rank(features: np.ndarray) -> float:
    """Exp of the entropy of the singular values' shares, of features [N, D]: 1 to min(N, D).

    RankMe: Garrido et al. 2023, eq. 3. Features are not centred: those that are all alike have 1.

    >>> round(effective_rank(np.eye(4)), 3)
    4.0
    """
    values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    if not values.sum() > 0:
        return 1.0
    shares = values / values.sum() + EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def knn_scores(
    features: np.ndarray, targets: np.ndarray, subjects: np.ndarray, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """The share of each finding among an image's nearest neighbours of other subjects, float [N, C].

    features: [N, D], compared by cosine; a neighbour weighs exp(cosine / TEMPERATURE). targets: int8 [N, C], 1, 0 or -1
    (not labelled: it has no voice). nan where no neighbour is labelled.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    likeness = unit @ unit.T
    likeness[subjects[:, None] == subjects[None, :]] = -np.inf
    count = min(neighbours, len(features) - 1)
    nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
    cosine = np.take_along_axis(likeness, nearest, axis=1)
    voice = np.where(np.isfinite(cosine), np.exp((cosine - 1) / TEMPERATURE), 0.0)[:, :, None]
    labels = targets[nearest]
    known = (voice * (labels >= 0)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known > 0, (voice * (labels == 1)).sum(axis=1) / known, np.nan)


def knn_map(features: np.ndarray, targets: np.ndarray, subjects: np.ndarray) -> tuple[float, float] | None:
    """Mean AP of `knn_scores` over findings with enough positives and negatives, and its chance, the mean prevalence.

    None where there is no such finding.
    """
    scores, values = knn_scores(features, targets, subjects), []
    for column in range(targets.shape[1]):
        rows = (targets[:, column] >= 0) & np.isfinite(scores[:, column])
        labels = targets[rows, column]
        if min((labels == 1).sum(), (labels == 0).sum()) >= LEAST_POSITIVES:
            values.append((average_precision(labels, scores[rows, column]), float((labels == 1).mean())))
    if not values:
        return None
    of_knn, of_chance = np.mean(values, axis=0)
    return float(of_knn), float(of_chance)


def fallen(curve: Sequence[Point], limits: Limits) -> bool:
    """Whether k-NN has lost more than it may of the best value before the last measurement."""
    values = [point.knn for point in curve if point.knn is not None]
    return len(values) > 1 and values[-1] < (1 - limits.knn_fall) * max(values[:-1])


def collapse(curve: Sequence[Point], limits: Limits) -> str:
    """Why a run counts as collapsed after its last two measurements, and what to change; or nothing."""
    judged = [point for point in curve if point.step > limits.grace][-2:]
    if len(judged) < 2:
        return ""
    if all(point.effective_rank < limits.least_rank for point in judged):
        return (
            f"the features have collapsed: their effective rank is {judged[-1].effective_rank:.2f}, all images look "
            "alike to the backbone. Lower lr, take a larger batch_size or a longer warm-up; of a teacher, check that "
            "it is centred"
        )
    known = [point.statistics[INFORMATION] for point in judged if INFORMATION in point.statistics]
    if len(known) == 2 and all(information < limits.least_information for information in known):
        entropy = judged[-1].statistics.get(ENTROPY, 0.0)
        mend = (
            "lower the teacher's temperature, or take fewer prototypes"
            if entropy > 0.5
            else "centre the teacher (or take Sinkhorn), raise its temperature, or lower lr"
        )
        return (
            f"the teacher has collapsed: it answers alike for all images, with an entropy of {entropy:.3f} of ln K: "
            f"{mend}"
        )
    return ""
