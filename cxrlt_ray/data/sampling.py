"""Which training images an epoch shows, and how often: exact distributions, every image seen within E epochs.

A sampler gives each image its expected number of draws an epoch, [N], which sum to N. `draws` turns them into
rows by systematic sampling with offsets spread over the epochs: each epoch has exactly N draws, and over E
epochs an image comes within one of E times what is expected of it. Nothing is random but where it starts.

    natural       every image once
    sqrt          findings in proportion to the square root of their positives (Kang et al. 2020, eq. 1, q = 1/2)
    class_aware   all findings alike (q = 0)
    repeat_factor images of findings that fewer than REPEAT_BELOW have, more often (Gupta et al. 2019, section 4)
"""

from __future__ import annotations

import numpy as np

from cxrlt_ray.errors import UsageError

POWERS = {"natural": 1.0, "sqrt": 0.5, "class_aware": 0.0}
REPEAT_FACTOR = "repeat_factor"
SAMPLERS = (*POWERS, REPEAT_FACTOR)
REPEAT_BELOW = 0.01  # the paper's t; .001 there, for the 1,203 classes of LVIS


def expected(sampler: str, targets: np.ndarray, epochs: int) -> np.ndarray:
    """Expected draws an epoch, float [N], summing to N, of images with targets int8 [N, C] (1, 0, -1).

    A finding j with n_j positives is drawn with p_j ~ n_j^q, one of its images at random; images without any
    positive are a finding of their own. What that leaves below 1 / epochs is raised to it, the rest scaled down,
    so that every image is seen. repeat_factor: in proportion to `repeat_factors`. Raises UsageError for an unknown
    sampler.
    """
    if sampler not in SAMPLERS:
        raise UsageError(f"no sampler '{sampler}'; there are {', '.join(SAMPLERS)}.")
    images = len(targets)
    if sampler == "natural" or not images:
        return np.ones(images)
    if sampler == REPEAT_FACTOR:
        factors = repeat_factors(targets)
        return _raised(images * factors / factors.sum(), 1 / epochs)
    positive = targets == 1
    positive = np.column_stack([positive, ~positive.any(axis=1)])
    counts = positive.sum(axis=0).astype(float)
    positive, counts = positive[:, counts > 0], counts[counts > 0]
    share = counts ** POWERS[sampler]
    return _raised(images * positive @ (share / share.sum() / counts), 1 / epochs)


def study_partners(study: np.ndarray, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each of `rows` another row of its study at random, int64 [n]; the row itself where it is alone.

    study: codes int64 [N] of all images that may be drawn.
    """
    order = np.argsort(study, kind="stable")
    first = np.flatnonzero(np.diff(study[order], prepend=study.min(initial=0) - 1))
    sizes = np.diff(first, append=len(order))
    place = np.empty(len(order), np.int64)  # of each row in the order
    place[order] = np.arange(len(order))
    group = np.searchsorted(first, place[rows], side="right") - 1
    start, size = first[group], sizes[group]
    step = 1 + (random.random(len(rows)) * (size - 1)).astype(np.int64)
    return order[start + (place[rows] - start + step) % size]


def repeat_factors(targets: np.ndarray, threshold: float = REPEAT_BELOW) -> np.ndarray:
    """How often each image is repeated by Gupta et al. 2019, float [N], of targets int8 [N, C] (1, 0, -1).

    A finding that the share f of its labelled images has: max(1, sqrt(threshold / f)); an image: the largest of its
    findings', 1 without any.
    """
    positive = targets == 1
    share = positive.sum(axis=0) / np.maximum((targets >= 0).sum(axis=0), 1)
    of_finding = np.maximum(1.0, np.sqrt(threshold / np.where(share > 0, share, threshold)))
    return np.where(positive, of_finding, 1.0).max(axis=1, initial=1.0)


def draws(counts: np.ndarray, epoch: int, epochs: int, seed: int = 0) -> np.ndarray:
    """Rows [N] of epoch `epoch` of `epochs`, each as often as `counts` [N] (summing to N) expects, to within one."""
    images = len(counts)
    if not images or (counts == 1).all():
        return np.arange(images)
    rng = np.random.default_rng([seed, 77])
    order = rng.permutation(images)
    edges = np.cumsum(counts[order])
    edges *= images / edges[-1]  # rounding of the sum must not lose a draw
    offset = (rng.random() + epoch / epochs) % 1
    whole = np.floor(edges + offset).astype(np.int64)
    whole[-1] = images  # floor(N + offset)
    times = np.diff(whole, prepend=0)
    return np.sort(np.repeat(order, times))


def _raised(counts: np.ndarray, least: float) -> np.ndarray:
    """`counts` with none below `least`, the others scaled to keep the sum."""
    total = counts.sum()
    least *= 1 + 1e-9
    low = np.zeros(len(counts), bool)
    while True:  # each turn raises at least one more; a few turns in practice
        free = total - least * low.sum()
        scaled = counts * (free / max(counts[~low].sum(), 1e-300))
        again = low | (scaled < least)
        if (again == low).all() or again.all():
            break
        low = again
    return np.where(low, least, scaled) if not again.all() else np.full(len(counts), total / len(counts))
