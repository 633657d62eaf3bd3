"""Near-copies: planted ones are caught, real images of others are not, and what cannot be judged is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.generation.copies import Whitening, fit_detector


def features(count=300, width=40, seed=0):
    """Features that have much in common, as chests do, and a little of each image's own."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(5, width)) * 10
    return random.normal(size=(count, 5)) @ common + random.normal(size=(count, width)) + 7


def test_whitened_features_have_variance_one_in_every_direction():
    values = features()
    white = (values - Whitening.of(values).mean) @ Whitening.of(values).directions
    assert np.allclose(np.cov(white, rowvar=False, bias=True), np.eye(white.shape[1]), atol=0.02)


def test_a_copy_is_caught_as_it_is_or_mirrored_and_a_stranger_is_not():
    values, mirrored = features(), features(seed=5)
    detector = fit_detector([values], mirrored, np.arange(300), 0.01)
    noise = np.random.default_rng(1).normal(size=values.shape) * 0.1
    assert detector.are_copies(values + noise, mirrored).all()
    assert detector.are_copies(mirrored, values + noise).all()
    assert (detector.nearest(values + noise, mirrored).row == np.arange(300)).all()
    random = np.random.default_rng(9)
    strangers = values[random.permutation(300)[:150]] * 0 + features(seed=0)[:150].mean(0)
    strangers = strangers + random.normal(size=strangers.shape) * values.std(0)
    assert detector.are_copies(strangers, strangers).mean() < 0.1


def test_the_threshold_is_the_share_of_real_images_that_are_as_near():
    values = features()
    detector = fit_detector([values], features(seed=5), np.arange(300), 0.1)
    assert (detector.real < detector.distance).mean() == pytest.approx(0.1, abs=0.01)


def test_images_of_ones_own_subject_are_not_what_real_distances_are_taken_to():
    """Each subject's two images are alike: else the threshold would be as near as twins."""
    twins = np.repeat(features(150), 2, axis=0) + np.random.default_rng(2).normal(size=(300, 40)) * 0.01
    apart = fit_detector([twins], features(seed=5), np.repeat(np.arange(150), 2), 0.01)
    assert apart.distance > 0.05
    mixed = fit_detector([twins], features(seed=5), np.arange(300), 0.01)
    assert mixed.distance < 0.05


def test_a_crop_of_a_training_image_is_looked_for_too():
    values, crops = features(), features(seed=3)
    without = fit_detector([values], features(seed=5), np.arange(300), 0.01)
    with_crops = fit_detector([values, crops], features(seed=5), np.arange(300), 0.01)
    assert with_crops.are_copies(crops, features(seed=6)).all()
    assert without.are_copies(crops, features(seed=6)).mean() < 0.2


def test_too_few_images_or_one_subject_alone_cannot_be_judged_by():
    with pytest.raises(CxrltError, match="one subject only"):
        fit_detector([features(10)], features(10), np.zeros(10), 0.01)
    with pytest.raises(CxrltError, match="at least 3 training images"):
        fit_detector([features(2)], features(2), np.arange(2), 0.01)
