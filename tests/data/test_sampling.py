"""Samplers: the stated distribution, exactly; every image within the stated epochs."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlt_ray.data.sampling import REPEAT_BELOW, SAMPLERS, draws, expected, repeat_factors
from cxrlt_ray.errors import UsageError


def cohort(images: int = 3000, seed: int = 0) -> np.ndarray:
    """Targets of a long tail, some images without any positive, some labels missing."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, 6)) < [0.4, 0.2, 0.05, 0.02, 0.004, 0]).astype(np.int8)
    targets[rng.random(targets.shape) < 0.05] = -1
    return targets


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("epochs", [1, 3, 8])
def test_every_epoch_has_n_draws_and_every_image_comes_within_the_epochs(sampler, epochs):
    counts = expected(sampler, cohort(), epochs)
    seen = np.zeros(3000, int)
    for epoch in range(epochs):
        rows = draws(counts, epoch, epochs, seed=5)
        assert len(rows) == 3000
        np.add.at(seen, rows, 1)
    assert seen.min() >= 1
    assert np.abs(seen - epochs * counts).max() < 1


@pytest.mark.parametrize(("sampler", "power"), [("sqrt", 0.5), ("class_aware", 0.0)])
def test_findings_are_drawn_in_the_stated_proportion(sampler, power):
    rng = np.random.default_rng(1)
    which = rng.choice(5, size=4000, p=[0.6, 0.25, 0.1, 0.04, 0.01])  # one finding an image: shares are plain
    targets = np.eye(5, dtype=np.int8)[which]
    counts = expected(sampler, targets, 1000)
    drawn = np.array([counts[which == c].sum() for c in range(5)])
    wanted = np.bincount(which) ** power
    np.testing.assert_allclose(drawn / drawn.sum(), wanted / wanted.sum(), rtol=1e-6)
    rows = draws(counts, 3, 1000)
    assert np.abs(np.bincount(which[rows], minlength=5) / 4000 - wanted / wanted.sum()).max() < 0.02


def repeat_factors_by_loops(targets: np.ndarray, threshold: float) -> list[float]:
    """Gupta et al. 2019, section 4: r_c = max(1, sqrt(t / f_c)), r_i = max over the image's findings of r_c."""
    factors = []
    for image in targets:
        r = 1.0
        for c, target in enumerate(image):
            if target == 1:
                labelled = [t for t in targets[:, c] if t >= 0]
                r = max(r, (threshold / (sum(t == 1 for t in labelled) / len(labelled))) ** 0.5)
        factors.append(r)
    return factors


@pytest.mark.parametrize("threshold", [0.001, 0.01, 0.3])
def test_repeat_factors_are_the_papers_formula(threshold):
    targets = cohort(400)
    np.testing.assert_allclose(repeat_factors(targets, threshold), repeat_factors_by_loops(targets, threshold))


def test_repeat_factor_draws_rare_images_more_often_by_their_factor_and_all_others_alike():
    targets = cohort()
    factors, counts = repeat_factors(targets), expected("repeat_factor", targets, 8)
    rare = (targets == 1)[:, (targets == 1).mean(axis=0) < REPEAT_BELOW].any(axis=1)
    assert rare.any()
    np.testing.assert_allclose(counts / counts[~rare].min(), factors)
    assert (factors[~rare] == 1).all()
    assert (factors[rare] > 1).all()


def test_repeat_factor_without_rare_findings_or_labels_shows_every_image_once():
    for targets in (np.tile(np.eye(4, dtype=np.int8), (9, 1)), np.full((9, 3), -1, np.int8), np.empty((9, 0), np.int8)):
        assert np.array_equal(draws(expected("repeat_factor", targets, 3), 1, 3), np.arange(len(targets)))


def test_natural_shows_every_image_once():
    assert np.array_equal(draws(expected("natural", cohort(), 5), 2, 5), np.arange(3000))


def test_images_with_many_findings_add_up_their_shares():
    targets = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], np.int8)
    # findings of 2, 2 positives and one image of none: a third each
    np.testing.assert_allclose(expected("class_aware", targets, 10**6), 4 / 3 * np.array([1, 0.5, 0.5, 1]))


def test_the_floor_keeps_the_sum_and_scales_the_others_alike():
    targets = cohort()
    free, held = expected("class_aware", targets, 10**9), expected("class_aware", targets, 2)
    assert held.sum() == pytest.approx(3000)
    assert held.min() == pytest.approx(0.5)
    above = held > 0.51
    ratio = held[above] / free[above]
    assert ratio.max() == pytest.approx(ratio.min())


def test_one_epoch_leaves_every_sampler_no_choice():
    assert np.array_equal(draws(expected("class_aware", cohort(), 1), 0, 1), np.arange(3000))


def test_an_unknown_sampler_is_named():
    with pytest.raises(UsageError, match="no sampler 'balanced'; there are natural, sqrt, class_aware, repeat_factor"):
        expected("balanced", cohort(), 2)
