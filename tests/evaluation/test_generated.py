"""Distances of generated from real images, against SciPy and the formula written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from cxrlt_ray.evaluation.generated import frechet_distance, kernel_distance


@pytest.mark.parametrize(("n", "m", "width"), [(40, 60, 5), (8, 6, 20)])
def test_frechet_distance_is_that_of_scipys_matrix_root(n, m, width):
    random = np.random.default_rng(n)
    one, other = random.normal(size=(n, width)), 1.5 * random.normal(size=(m, width)) + 0.3
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = np.real(np.trace(sqrtm(first @ second)))
    wanted = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_mean_over_pairs_of_different_images():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(6, 4)), random.normal(size=(5, 4)) + 1

    def kernel(x, y):
        return (x @ y / 4 + 1) ** 3

    own = [kernel(one[i], one[j]) for i in range(6) for j in range(6) if i != j]
    others = [kernel(other[i], other[j]) for i in range(5) for j in range(5) if i != j]
    across = [kernel(x, y) for x in one for y in other]
    assert kernel_distance(one, other) == pytest.approx(np.mean(own) + np.mean(others) - 2 * np.mean(across))


def test_kernel_distance_of_one_distribution_is_nought_on_average():
    random = np.random.default_rng(1)
    values = [kernel_distance(*random.normal(size=(2, 30, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
