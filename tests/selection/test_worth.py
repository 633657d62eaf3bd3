"""What a member is worth to an ensemble of the others: its definition, and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cxrlt_ray.selection.worth import SHARES, gains, members_ahead

IMAGES, FINDINGS = 600, 3
SUBJECTS = np.arange(IMAGES) // 2
FOLD = SUBJECTS % 3


def drawn(seed, errors, skill=1.2):
    """Labels [N, C], and predictions [M, N, C] of members that know as much, with the `errors` [M, N, C]."""
    random = np.random.default_rng(seed)
    targets = (random.random((IMAGES, FINDINGS)) < 0.2).astype(np.int8)
    return targets, (1 / (1 + np.exp(1 - skill * targets - errors))).astype(np.float32)


def noise(seed, members):
    return np.random.default_rng(seed).normal(size=(members, IMAGES, FINDINGS))


def macro(targets, scores):
    return np.mean([average_precision_score(t, s) for t, s in zip(targets.T, scores.T, strict=True)])


def test_the_gain_of_one_of_two_is_that_of_the_best_share_chosen_without_the_fold():
    targets, predictions = drawn(0, noise(1, 2))
    own, other = predictions.astype(float)
    joined = other.copy()
    for k in range(3):
        inside, rows = k != FOLD, k == FOLD
        mixtures = {share: (1 - share) * other + share * own for share in (0.0, *SHARES)}
        best = max(mixtures, key=lambda share: macro(targets[inside], mixtures[share][inside]))
        joined[rows] = mixtures[best][rows]
    expected = macro(targets, joined) - macro(targets, other)
    assert gains(predictions, targets, SUBJECTS, FOLD).gain[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_of_a_member_is_worth_less_than_another_of_equal_skill(seed):
    errors = noise(seed, 3)
    errors[1] = errors[0] + 0.02 * errors[1]  # a copy of the first but for a little noise; the third errs elsewhere
    targets, predictions = drawn(seed + 100, errors)
    result = gains(predictions, targets, SUBJECTS, FOLD).gain
    assert result[1] < result[2] - 0.01


@pytest.mark.parametrize("seed", range(5))
def test_a_member_that_knows_nothing_is_worth_nothing(seed):
    targets, predictions = drawn(seed, noise(seed + 50, 4))
    predictions[3] = np.random.default_rng(seed).random(predictions[3].shape)
    result = gains(predictions, targets, SUBJECTS, FOLD).gain
    assert result[3] < 0.005
    assert result[:3].min() > result[3]


def test_gains_do_not_depend_on_the_order_of_members():
    targets, predictions = drawn(2, noise(3, 6))
    order = np.random.default_rng(0).permutation(6)
    plain = gains(predictions, targets, SUBJECTS, FOLD).gain
    moved = gains(predictions[order], targets, SUBJECTS, FOLD).gain
    np.testing.assert_allclose(moved, plain[order], atol=1e-6)


def test_images_without_a_label_count_for_nothing():
    targets, predictions = drawn(4, noise(5, 3))
    targets[::4] = -1
    changed = predictions.copy()
    changed[:, ::4] = 0.5
    plain, other = (gains(values, targets, SUBJECTS, FOLD).gain for values in (predictions, changed))
    np.testing.assert_allclose(plain, other, atol=1e-6)


def test_a_single_member_has_no_others_to_add_to():
    targets, predictions = drawn(0, noise(1, 1))
    assert np.isnan(gains(predictions, targets, SUBJECTS, FOLD).gain).all()


def test_a_member_differs_from_itself_by_nothing_and_from_others_by_about_what_chance_makes_of_it():
    differences, errors = [], []
    for seed in range(30):
        targets, predictions = drawn(seed, noise(seed + 500, 3))
        result = gains(predictions, targets, SUBJECTS, FOLD)
        own, other = result.errors(0, np.array([0, 1]))
        assert own == 0
        errors.append(other)
        differences.append(result.gain[1] - result.gain[0])
    # members of equal skill: gains differ by chance, of subjects and of members; the bootstrap knows of the former
    assert 0.4 < np.mean(errors) / np.std(differences) < 1.6


SCORES, GAIN = np.array([0.30, 0.28, 0.29, 0.20]), np.array([0.001, 0.004, 0.002, 0.0])


def ahead(error, scores=SCORES, gain=GAIN):
    return [members_ahead(k, scores, gain, lambda others: np.full(len(others), error)) for k in range(len(scores))]


def test_where_gains_are_certain_they_decide():
    assert ahead(0.0) == [2, 0, 1, 3]


def test_where_gains_are_uncertain_own_scores_decide():
    assert ahead(1.0) == [0, 2, 1, 3]


def test_only_differences_beyond_the_error_reverse_the_order():
    assert ahead(0.0025) == [1, 1, 1, 3]  # of the second and the first alone


def test_a_gain_that_is_not_known_leaves_the_own_score():
    assert ahead(0.0, gain=np.full(4, np.nan)) == [0, 2, 1, 3]
    assert ahead(0.0, gain=np.array([0.001, np.nan, 0.002, 0.0])) == [1, 2, 0, 3]


def test_nobody_is_ahead_of_a_member_without_a_score_nor_it_of_others():
    scores = np.array([0.30, np.nan, 0.29, 0.20])
    assert ahead(0.0, scores=scores) == [1, 0, 0, 2]
