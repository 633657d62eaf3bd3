"""One voice per study: labels are given per study, scores per image."""

from __future__ import annotations

import numpy as np


def by_study(values: np.ndarray, study: np.ndarray, voice: np.ndarray) -> np.ndarray:
    """Each image's values float [M, N, C] as the weighted mean of its study's images, by `voice` >= 0 [N].

    study: [N]. An image that has no values (nan) has no voice, and takes those of its study's others; a study
    without any voice keeps what its images had.
    """
    _, of = np.unique(np.asarray(study).astype(str), return_inverse=True)
    order = np.argsort(of, kind="stable")
    starts = np.flatnonzero(np.diff(of[order], prepend=-1))
    said = np.empty_like(values)
    for m, each in enumerate(values):
        weight = np.where(np.isnan(each).any(axis=1), 0.0, voice)[:, None]
        total = np.add.reduceat((np.nan_to_num(each) * weight)[order], starts)
        weights = np.add.reduceat(weight[order], starts)
        mean = (total / np.where(weights > 0, weights, 1))[of]
        said[m] = np.where((weights > 0)[of], mean, each)
    return said
