"""Calibration by finding, class-aware thresholds, and how far a sum of scores is off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import _SigmoidCalibration
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from cxrlt_ray.evaluation import parts, soft_labels
from cxrlt_ray.evaluation.metrics import average_precision
from cxrlt_ray.evaluation.reliability import brier


def drawn(images=6000, shares=(0.3, 0.05, 0.01), slope=0.5, inflated=2.0, seed=0):
    """Targets, and scores that are too high and too flat by known maps: logit(p) = (true - inflated) ... + inflated."""
    rng = np.random.default_rng(seed)
    base = np.log(np.array(shares) / (1 - np.array(shares)))
    true = base + rng.normal(0, 1, (images, len(shares)))
    targets = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.int8)
    return targets, 1 / (1 + np.exp(-(slope * true + inflated)))


def test_with_many_labels_the_map_is_plain_logistic_regression_of_the_logit():
    targets, scores = drawn(shares=(0.3, 0.2))
    maps = soft_labels.fitted(scores, targets)
    for c in range(2):
        logit = np.log(scores[:, c] / (1 - scores[:, c]))
        free = LogisticRegression(C=1e9, max_iter=1000).fit(logit[:, None], targets[:, c])
        assert maps.slope[c] == pytest.approx(free.coef_[0, 0], rel=0.02)
        assert maps.level[c] == pytest.approx(free.intercept_[0], rel=0.02)
        platt = _SigmoidCalibration().fit(logit, targets[:, c])
        np.testing.assert_allclose(maps(scores)[:, c], platt.predict(logit), atol=0.01)


def test_inflated_scores_promise_the_right_number_of_positives_on_other_subjects():
    targets, scores = drawn()
    assert (scores.mean(axis=0) / targets.mean(axis=0) > 1.8).all()
    other, raw = drawn(seed=1)
    mapped = soft_labels.fitted(scores, targets)(raw)
    groups = np.arange(len(other)) // 2
    for estimate in soft_labels.prevalence_ratio(other, mapped, groups, rounds=200):
        assert estimate.low <= 1.1
        assert estimate.high >= 0.9
    assert all(brier(other[:, c], mapped[:, c]) < brier(other[:, c], raw[:, c]) for c in range(3))


@pytest.mark.parametrize("positives", [0, 1])
def test_a_finding_with_one_positive_or_none_is_mapped_nearly_as_the_others_are(positives):
    targets, scores = drawn(images=3000, shares=(0.3, 0.3, 0.3))
    rare = np.zeros(len(targets), np.int8)
    rare[:positives] = 1
    few = np.where(np.arange(len(rare)) < 5, rare, -1)
    maps = soft_labels.fitted(scores, np.column_stack([targets[:, :2], few]))
    assert maps.slope[2] == pytest.approx(maps.slope[:2].mean(), rel=0.5)
    # five labels move the level by less than two units of a logit, where alone they would send it to infinity
    assert abs(maps.level[2] - maps.level[:2].mean()) < 2
    assert np.isfinite(maps(scores)).all()


def test_a_finding_without_a_label_gets_the_map_of_all_and_without_any_label_scores_stay():
    targets, scores = drawn(images=500)
    maps = soft_labels.fitted(scores, np.full(targets.shape, -1))
    np.testing.assert_allclose(maps(scores), scores, atol=1e-9)
    targets[:, 2] = -1
    maps, both = soft_labels.fitted(scores, targets), soft_labels.fitted(scores[:, :2], targets[:, :2])
    np.testing.assert_allclose(maps.slope[:2], both.slope, rtol=1e-3)
    assert maps.slope[2] == pytest.approx(2, abs=0.4)  # the true one, of the pooled cells of both


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_map_never_turns_an_order_round(seed):
    rng = np.random.default_rng(seed)
    scores, targets = rng.random((40, 2)), rng.integers(-1, 2, (40, 2)).astype(np.int8)
    scores[rng.random(40) < 0.1] = np.nan
    mapped = soft_labels.fitted(scores, targets)(scores)
    assert (np.isnan(mapped) == np.isnan(scores)).all()
    for c in range(2):
        order = np.argsort(scores[:, c])
        assert (np.diff(mapped[order, c][: (~np.isnan(scores[:, c])).sum()]) >= 0).all()


def test_cross_fitted_scores_do_not_depend_on_the_subjects_own_labels():
    targets, scores = drawn(images=400)
    groups = np.arange(400) // 4
    before = soft_labels.cross_fitted(scores, targets, groups)
    changed = targets.copy()
    changed[groups == 7] = 1 - changed[groups == 7]
    after = soft_labels.cross_fitted(scores, changed, groups)
    np.testing.assert_array_equal(before[groups == 7], after[groups == 7])
    assert (before != after).any()


def test_class_aware_thresholds_give_the_labelled_prevalence_and_leave_the_middle_out():
    rng = np.random.default_rng(0)
    scores = rng.random((1000, 3))
    scores[:100, 1] = np.nan
    labels = soft_labels.class_aware(scores, np.array([0.1, 0.02, np.nan]), keep=0.8)
    for c, (share, count) in enumerate([(0.1, 1000), (0.02, 900)]):
        given_ = labels[~np.isnan(labels[:, c]), c]
        assert len(given_) == pytest.approx(0.8 * count, abs=1)
        assert given_.mean() == pytest.approx(share, abs=1 / len(given_))
        ones, zeros = scores[labels[:, c] == 1, c], scores[labels[:, c] == 0, c]
        middle = scores[np.isnan(labels[:, c]) & ~np.isnan(scores[:, c]), c]
        assert zeros.max() < middle.min() <= middle.max() < ones.min()
    assert np.isnan(labels[:, 2]).all()
    assert np.isnan(labels[:100, 1]).all()
    whole = soft_labels.class_aware(scores[:, :1], np.array([0.1]), keep=1.0)
    assert not np.isnan(whole).any()
    mapped = soft_labels.Maps(np.array([0.3]), np.array([-2.0]))(scores[:, :1])
    np.testing.assert_array_equal(whole, soft_labels.class_aware(mapped, np.array([0.1]), keep=1.0))


def test_brier_and_prevalence_are_of_labelled_cells_alone():
    targets, scores = drawn(images=200, shares=(0.3,))
    assert brier(targets[:, 0], scores[:, 0]) == pytest.approx(brier_score_loss(targets[:, 0], scores[:, 0]))
    targets[:50] = -1
    assert brier(targets[:, 0], scores[:, 0]) == pytest.approx(brier_score_loss(targets[50:, 0], scores[50:, 0]))
    assert parts.shares(targets)[0] == pytest.approx(targets[50:].mean())
    nothing = np.full((3, 1), -1)
    assert np.isnan(brier(nothing[:, 0], scores[:3, 0]))
    assert np.isnan(parts.shares(nothing)[0])


def test_the_interval_of_a_ratio_is_by_subject():
    """Ten images a subject, all alike: the interval is as wide as that of one image a subject."""
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 1)) < 0.3).astype(np.int8)
    scores = np.full((200, 1), 0.3)
    alone = soft_labels.prevalence_ratio(targets, scores, np.arange(200), rounds=400)[0]
    tenfold = [np.repeat(part, 10, axis=0) for part in (targets, scores, np.arange(200))]
    together = soft_labels.prevalence_ratio(*tenfold, rounds=400)[0]
    assert (together.value, together.low, together.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert alone.low < alone.value < alone.high
    assert alone.value == pytest.approx(0.3 / targets.mean())
    nobody = soft_labels.prevalence_ratio(np.zeros((4, 1), np.int8), scores[:4], np.arange(4), rounds=10)[0]
    assert np.isnan(nobody.value)


def test_a_map_keeps_average_precision():
    targets, scores = drawn(images=500, shares=(0.2,))
    mapped = soft_labels.fitted(scores, targets)(scores)
    assert average_precision(targets[:, 0], mapped[:, 0]) == pytest.approx(
        average_precision(targets[:, 0], scores[:, 0])
    )
