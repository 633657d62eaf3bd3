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


WHITENING = Whitening.of(features())


def white(values):
    return WHITENING(values)


def test_whitened_features_have_variance_one_in_every_direction():
    values = features()
    whole = (values - WHITENING.mean) @ WHITENING.directions
    assert np.allclose(np.cov(whole, rowvar=False, bias=True), np.eye(whole.shape[1]), atol=0.02)
    assert np.allclose(np.linalg.norm(white(values), axis=1), 1)


def test_a_copy_is_caught_as_it_is_or_mirrored_and_a_stranger_is_not():
    values, mirrored = features(), white(features(seed=5))
    detector = fit_detector([white(values)], mirrored, np.arange(300), 0.01)
    noisy = white(values + np.random.default_rng(1).normal(size=values.shape) * 0.1)
    assert detector.are_copies(noisy, mirrored).all()
    assert detector.are_copies(mirrored, noisy).all()
    assert (detector.nearest(noisy, mirrored).row == np.arange(300)).all()
    others = white(features(count=600)[300:])
    assert detector.are_copies(others, others).mean() < 0.1


def test_the_threshold_is_the_share_of_real_images_that_are_as_near():
    detector = fit_detector([white(features())], white(features(seed=5)), np.arange(300), 0.1)
    assert (detector.real < detector.distance).mean() == pytest.approx(0.1, abs=0.01)


def test_images_of_ones_own_subject_are_not_what_real_distances_are_taken_to():
    """Each subject's two images are alike: else the threshold would be as near as twins."""
    twins = np.repeat(features(150), 2, axis=0) + np.random.default_rng(2).normal(size=(300, 40)) * 0.01
    twins = white(twins)
    apart = fit_detector([twins], white(features(seed=5)), np.repeat(np.arange(150), 2), 0.01)
    assert apart.distance > 0.05
    mixed = fit_detector([twins], white(features(seed=5)), np.arange(300), 0.01)
    assert mixed.distance < 0.05


def test_a_crop_of_a_training_image_is_looked_for_too():
    values, crops, mirrored = white(features()), white(features(seed=3)), white(features(seed=5))
    without = fit_detector([values], mirrored, np.arange(300), 0.01)
    with_crops = fit_detector([values, crops], mirrored, np.arange(300), 0.01)
    assert with_crops.are_copies(crops, white(features(seed=6))).all()
    assert without.are_copies(crops, white(features(seed=6))).mean() < 0.2


def test_too_few_images_or_one_subject_alone_cannot_be_judged_by():
    with pytest.raises(CxrltError, match="one subject only"):
        fit_detector([features(10)], features(10), np.zeros(10), 0.01)
    with pytest.raises(CxrltError, match="at least 3 training images"):
        Whitening.of(features(2))
