"""Lift: AP over prevalence, by scikit-learn's AP."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cxrlt_ray.evaluation.lift import lift_estimates, lifts, mean_log_lift, prevalences


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


def test_intervals_hold_the_lift_of_many_samples_about_as_often_as_they_say():
    """Subjects of two images; the lift to expect of such samples is the mean of many."""
    expected = np.mean([np.log(lifts(*drawn(seed, 600, (0.2, 0.05)))) for seed in range(300)], axis=0)
    held = []
    for seed in range(60):
        targets, scores = drawn(1000 + seed, 600, (0.2, 0.05))
        estimates = lift_estimates(targets, scores, np.arange(600) // 2, rounds=200)
        held.append([e.low <= np.exp(m) <= e.high for e, m in zip(estimates.findings, expected, strict=True)])
        assert estimates.mean.value == pytest.approx(np.exp(mean_log_lift(targets, scores)))
    assert 0.87 <= np.mean(held) <= 1  # 120 intervals; subjects of unrelated images
    assert np.mean(held) < 1


def test_few_positives_give_no_interval_and_chance_one_around_1():
    targets, _ = drawn(images=3000, shares=(0.2, 0.0))
    targets[:3, 1] = 1
    scores = np.random.default_rng(9).random(targets.shape)
    frequent, rare = lift_estimates(targets, scores, np.arange(3000), rounds=200).findings
    assert frequent.low < 1 < frequent.high
    assert not rare.known
    targets[:9, 1] = 1
    assert lift_estimates(targets, scores, np.arange(3000), rounds=200).findings[1].known
