"""Which studies to label by hand: a sample with known inclusion probabilities that holds what is rare and disputed.

A study's size is a mixture of three parts, each of which sums to 1 over all N studies: uniform, 1 / N; findings, where
the studies that a labeller calls positive share 1 for each finding; disagreements, the same of studies where labellers
differ or one is uncertain. The sample is drawn with probability proportional to size by systematic sampling in random
order (Madow 1949): its size is fixed, its first-order inclusion probabilities are exactly those that are recorded, and
none is 0. So counts weighted by 1 / probability are unbiased for all studies (Horvitz & Thompson 1952), and their
ratios nearly so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.errors import UsageError


@dataclass(frozen=True)
class Shares:
    """How much of the sample each part gets; they sum to 1, and uniform is above 0."""

    uniform: float = 0.3
    findings: float = 0.4
    disagreements: float = 0.3


def sizes(tables: Sequence[pd.DataFrame], shares: Shares) -> np.ndarray:
    """The size of each study, float [N], which sum to 1; tables: labels Int8 of the same studies and findings.

    A part without any study (no positive, no disagreement) gives its share to the uniform one.
    """
    values = np.stack([table.fillna(0).to_numpy(np.int8) for table in tables])  # not mentioned is not there
    positive = (values == 1).any(axis=0)
    disputed = (values.min(axis=0) != values.max(axis=0)) | (values == -1).any(axis=0)
    size = np.full(values.shape[1], shares.uniform / values.shape[1])
    for share, marked in ((shares.findings, positive), (shares.disagreements, disputed)):
        counts = marked.sum(axis=0)
        some = counts > 0
        part = (marked[:, some] / counts[some]).mean(axis=1) if some.any() else 1 / len(size)
        size += share * part
    return size


def inclusion_probabilities(size: np.ndarray, count: int) -> np.ndarray:
    """Probabilities [N] in proportion to `size`, which sum to `count`; those that would pass 1 are 1.

    >>> inclusion_probabilities(np.array([0.7, 0.1, 0.1, 0.1]), 2).round(3).tolist()
    [1.0, 0.333, 0.333, 0.333]
    """
    certain = np.zeros(len(size), bool)
    while True:
        chance = np.ones(len(size))
        rest = size[~certain]
        chance[~certain] = (count - certain.sum()) * rest / rest.sum() if len(rest) else 1
        beyond = (chance >= 1) & ~certain
        if not beyond.any():
            return chance
        certain |= beyond


def draw(chance: np.ndarray, seed: int) -> np.ndarray:
    """Which units are in the sample, their indices in random order; each is with its own probability, `chance` [N].

    The probabilities sum to a whole number, the size of the sample.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(chance))
    bounds = np.concatenate([[0.0], np.cumsum(chance[order])])
    bounds *= round(float(bounds[-1])) / bounds[-1]  # rounding
    ticks = np.floor(bounds - rng.random())
    return rng.permutation(order[np.diff(ticks) > 0])


def sample(tables: Sequence[pd.DataFrame], count: int, shares: Shares, seed: int) -> pd.Series:
    """The studies to label by hand in random order -> their inclusion probabilities. Raises UsageError if too many."""
    studies = tables[0].index
    if count >= len(studies):
        raise UsageError(
            f"--studies {count} is not below the {len(studies):,} there are: give fewer, or label them all."
        )
    chance = inclusion_probabilities(sizes(tables, shares), count)
    drawn = draw(chance, seed)
    return pd.Series(chance[drawn], studies[drawn])
