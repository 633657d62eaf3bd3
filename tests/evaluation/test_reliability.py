"""Log loss, Brier, ECE and reliability curves: scikit-learn and netcal as references, intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.calibration_change import calibration_change
from cxrlt_ray.evaluation.reliability import (
    brier,
    brier_parts,
    calibration_error,
    log_loss,
    reliability_curve,
)


def sample(images=1000, seed=0, slope=1.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, images)
    return (rng.random(images) < expit(logits)).astype(np.int8), expit(slope * logits), np.arange(images) // 2


def test_log_loss_and_brier_are_scikit_learns():
    targets, scores, _ = sample()
    hidden = np.where(np.arange(1000) % 7 == 0, -1, targets).astype(np.int8)
    known = hidden >= 0
    assert log_loss(hidden, scores) == pytest.approx(reference.log_loss(targets[known], scores[known]))
    assert brier(hidden, scores) == pytest.approx(reference.brier_score_loss(targets[known], scores[known]))
    assert np.isnan(log_loss(np.full(3, -1), np.full(3, 0.5)))
    assert np.isfinite(log_loss(np.array([1]), np.array([0.0])))


def test_brier_scores_parts_sum_and_are_those_of_isotonic_recalibration():
    targets, scores, _ = sample(slope=3)
    parts = brier_parts(targets, scores)
    assert parts.score == pytest.approx(parts.miscalibration - parts.discrimination + parts.uncertainty)
    best = IsotonicRegression().fit_transform(scores, targets)
    assert parts.miscalibration == pytest.approx(parts.score - reference.brier_score_loss(targets, best))
    assert parts.uncertainty == pytest.approx(targets.mean() * (1 - targets.mean()))
    flat = brier_parts(targets, np.full(1000, targets.mean()))
    assert flat.miscalibration == pytest.approx(0)
    assert flat.discrimination == pytest.approx(0)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_ece_is_netcals(equal_mass):
    from netcal.metrics import ECE

    targets, scores, _ = sample(900, slope=2)
    wanted = ECE(bins=15, equal_intervals=not equal_mass).measure(scores, targets)
    assert calibration_error(targets, scores, equal_mass=equal_mass).value == pytest.approx(wanted, abs=1e-6)


def test_ece_of_equal_width_is_that_of_evaluate():
    targets, scores, _ = sample(slope=2)
    assert calibration_error(targets, scores, equal_mass=False).value == pytest.approx(metrics.ece(targets, scores))


def test_ece_of_calibrated_scores_is_what_chance_gives_and_debiased_it_is_nearer_the_truth():
    calibrated = [calibration_error(*sample(500, seed)[:2]) for seed in range(60)]
    values, chance, debiased = np.array([[e.value, e.by_chance, e.debiased] for e in calibrated]).T
    assert values.mean() == pytest.approx(chance.mean(), rel=0.1)
    assert debiased.mean() < 0.7 * values.mean()
    truth = calibration_error(*sample(400_000, 1, slope=2)[:2]).value
    few = [calibration_error(*sample(500, seed, slope=2)[:2]) for seed in range(60)]
    bias = np.mean([[e.value - truth, e.debiased - truth] for e in few], axis=0)
    assert abs(bias[1]) < abs(bias[0])


def test_the_curve_is_scikit_learns_and_its_intervals_hold_the_rates():
    targets, scores, groups = sample(2000)
    curve = reliability_curve(targets, scores, groups, rounds=200)
    rates, means = calibration_curve(targets, scores, n_bins=10, strategy="quantile")
    np.testing.assert_allclose([b.rate.value for b in curve], rates, atol=0.01)
    np.testing.assert_allclose([b.score for b in curve], means, atol=0.01)
    assert sum(b.images for b in curve) == 2000
    assert sum(b.positives for b in curve) == targets.sum()
    held = [
        b.rate.low <= b.score <= b.rate.high
        for seed in range(20)
        for b in reliability_curve(*sample(600, seed), rounds=100)
        if b.rate.known
    ]
    assert np.mean(held) > 0.9


def test_a_bin_of_one_label_has_the_exact_bound_of_its_subjects_and_few_positives_none():
    targets = np.r_[np.zeros(100), 1, np.zeros(99)].astype(np.int8)
    scores = np.repeat([0.1, 0.6], 100)
    low, high = reliability_curve(targets, scores, np.arange(200), bins=2, rounds=20)
    assert (low.rate.low, low.rate.high) == pytest.approx((0, 1 - 0.025 ** (1 / 100)))
    assert not high.rate.known
    assert reliability_curve(np.full(4, -1), scores[:4], np.arange(4)) == ()


def test_a_change_is_paired_masks_what_is_unlabelled_and_averages_findings_with_positives():
    targets, scores, groups = sample(800)
    table = np.column_stack([targets, np.zeros(800, np.int8), np.where(groups % 3 == 0, -1, targets)])
    before = np.column_stack([scores**2] * 3)
    after = np.column_stack([scores] * 3)
    after[5, 2] = before[5, 2] = np.nan
    change = calibration_change(table, before, after, groups, ("a", "none", "part"), rounds=100)
    for name, c in (("a", 0), ("part", 2)):
        quality = change.findings[name].before
        assert quality.log_loss.value == pytest.approx(log_loss(table[:, c], before[:, c]))
        assert quality.brier.value == pytest.approx(quality.brier_parts.score)
    mean = (change.findings["a"].after.log_loss.value + change.findings["part"].after.log_loss.value) / 2
    assert change.mean.after.log_loss.value == pytest.approx(mean)
    gap = change.mean.differences["log_loss"]
    assert gap.value == pytest.approx(mean - change.mean.before.log_loss.value)
    width = change.mean.before.log_loss.high - change.mean.before.log_loss.low
    assert gap.high < 0
    assert gap.high - gap.low < width  # paired
    assert not change.findings["none"].differences["log_loss"].known
    same = calibration_change(table, before, before, groups, ("a", "none", "part"), rounds=20)
    assert same.mean.differences["ece"].value == 0
