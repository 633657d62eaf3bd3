"""Lift: AP over prevalence, by scikit-learn's AP."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cxrlt_ray.evaluation.lift import lifts, mean_log_lift, prevalences


def drawn(seed=0, images=400, shares=(0.3, 0.05, 0.01)):
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, len(shares))) < shares).astype(np.int8)
    return targets, rng.random(targets.shape) + 0.7 * targets


def test_it_is_scikit_learns_ap_by_the_share_of_positives():
    targets, scores = drawn()
    ours = lifts(targets, scores)
    for c in range(3):
        expected = average_precision_score(targets[:, c], scores[:, c]) / targets[:, c].mean()
        assert ours[c] == pytest.approx(expected)
    assert mean_log_lift(targets, scores) == pytest.approx(np.log(ours).mean())


def test_constant_scores_have_the_lift_of_chance():
    targets, scores = drawn()
    assert np.allclose(lifts(targets, np.full_like(scores, 0.4)), 1)
    assert mean_log_lift(targets, np.full_like(scores, 0.4)) == pytest.approx(0)


def test_unlabelled_images_and_findings_that_tell_nothing_do_not_count():
    targets, scores = drawn()
    hidden = targets.copy()
    hidden[::2] = -1
    assert np.allclose(lifts(hidden, scores), lifts(targets[1::2], scores[1::2]), equal_nan=True)
    targets[:, 1], targets[:, 2] = 0, 1
    assert np.isnan(prevalences(targets)).tolist() == [False, True, True]
    assert mean_log_lift(targets, scores) == pytest.approx(np.log(lifts(targets[:, :1], scores[:, :1])[0]))
    assert np.isnan(mean_log_lift(targets[:, 1:], scores[:, 1:]))


def test_each_finding_has_the_same_say_whatever_its_prevalence():
    """Twice the lift of a rare finding makes up for half of a frequent one's."""
    targets, _ = drawn(images=100_000, shares=(0.2, 0.002))
    chance = np.zeros(targets.shape)
    better = chance.copy()
    better[:, 1] = targets[:, 1]
    assert mean_log_lift(targets, better) - mean_log_lift(targets, chance) == pytest.approx(
        0.5 * np.log(1 / targets[:, 1].mean())
    )
