"""Weights that climb a smooth average precision: a sigmoid for each comparison of two images.

AP is the mean over positives of their rank among positives to that among all (Brown et al. 2020, Smooth-AP,
eqs. 3 to 6); the climb on the simplex is exponentiated gradient (Kivinen & Warmuth 1997).
"""

from __future__ import annotations

import numpy as np

from cxrlt_ray.selection.best import merits


def climb(
    values: np.ndarray, targets: np.ndarray, steps: int, temperature: float, most: dict[int, int], seed: int
) -> np.ndarray:
    """Weights float64 [M], sum 1, for values [M, n, c] and targets [n, c]; the equal ones if none are better by AP.

    most: at most so many images of each label, 1 and 0, are drawn for each finding. temperature: see simplex.
    """
    start = weights = np.full(len(values), 1 / len(values))
    samples = [_sample(values[:, :, c], targets[:, c], most, seed) for c in np.flatnonzero((targets == 1).any(axis=0))]
    for step in range(steps):
        slope = np.mean([_slope(weights, *sample, temperature) for sample in samples], axis=0)
        slope -= slope.max()
        if (steepest := -slope.min()) > 0:
            weights = weights * np.exp(0.2 * (1 - step / steps) * slope / steepest)
            weights = weights / weights.sum()
    pooled = np.stack(
        [sum(w * value for w, value in zip(mixture, values, strict=True)) for mixture in (start, weights)]
    )
    before, after = merits(pooled.astype(np.float32), targets, together=True)[:, 0]
    return weights if after > before else start


def _sample(
    values: np.ndarray, targets: np.ndarray, most: dict[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Standardised values [M, s] of a sample, positives first, how many images each stands for [s], positives."""
    rng, mean = np.random.default_rng(seed), values.mean(axis=0, dtype=float)
    rows, shares = [], []
    for label in (1, 0):
        images = np.flatnonzero(targets == label)
        images = images[np.lexsort([*values[:, images], mean[images]])]  # the draw does not depend on their order
        rows.append(images[rng.permutation(len(images))[: most[label]]])
        shares.append(np.full(len(rows[-1]), len(images) / max(len(rows[-1]), 1)))
    sample = values[:, np.concatenate(rows)].astype(float)
    sample -= sample.mean(axis=1, keepdims=True)
    return sample / max(sample.std(), np.finfo(float).tiny), np.concatenate(shares), len(rows[0])


def _slope(weights: np.ndarray, sample: np.ndarray, shares: np.ndarray, positives: int, width: float) -> np.ndarray:
    """Gradient [M] of the smooth AP, the mean over positives of their smooth rank among positives to that among all."""
    from scipy.special import expit

    scores = weights @ sample
    above = expit((scores - scores[:positives, None]) / width)
    change = above * (1 - above) * shares / width
    above = above * shares
    for matrix in (above, change):
        np.fill_diagonal(matrix, 0)  # an image is not above itself
    among = 1 + above[:, :positives].sum(axis=1, keepdims=True)
    rank = among + above[:, positives:].sum(axis=1, keepdims=True)
    pull = -change * among / rank**2
    pull[:, :positives] += change[:, :positives] / rank
    slope = pull.sum(axis=0)
    slope[:positives] -= pull.sum(axis=1)
    return sample @ slope / positives
