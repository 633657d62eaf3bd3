"""How far a set of generated images is from real ones, by the features [N, D] of both in one network.

What a distance is worth is told by the same distance between two halves of the real images, of different patients.
"""

from __future__ import annotations

import numpy as np


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of means and covariances (Heusel et al. 2017, FID).

    Features float [N, D] and [M, D], N and M 2 or more. It is biased upwards where images are few for D: compare sets
    of the same size only. The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2).
    """
    means = [np.asarray(values, np.float64).mean(axis=0) for values in (one, other)]
    # of features centred and divided by sqrt(n - 1): C = A^T A, and the root's trace is the nuclear norm of A1 A2^T
    factors = [
        (np.asarray(values, np.float64) - mean) / np.sqrt(len(values) - 1)
        for values, mean in zip((one, other), means, strict=True)
    ]
    root = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    traces = sum(float((factor**2).sum()) for factor in factors)
    return float(((means[0] - means[1]) ** 2).sum() + traces - 2 * root)


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased squared MMD with the kernel (x y / D + 1)^3 (Binkowski et al. 2018, section 4, KID).

    Features float [N, D] and [M, D], N and M 2 or more. 0 on average where both are of one distribution, whatever N.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    width, (n, m) = one.shape[1], (len(one), len(other))

    def kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (left @ right.T / width + 1) ** 3

    own, others = kernel(one, one), kernel(other, other)
    within = (own.sum() - np.trace(own)) / (n * (n - 1)) + (others.sum() - np.trace(others)) / (m * (m - 1))
    return float(within - 2 * kernel(one, other).mean())
