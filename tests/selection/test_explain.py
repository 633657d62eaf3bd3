"""Why these members: contributions, stability, the worth of the next trial, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from cxrlt_ray.selection import explain
from cxrlt_ray.selection.honest import fit
from cxrlt_ray.selection.method import Method


def cohort(skills, images=400, findings=3, prevalence=0.2, seed=0):
    """Members whose scores tell `skills` of the labels; two images a subject."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, findings)) < prevalence).astype(np.int8)
    scores = np.array(skills)[:, None, None] * targets + rng.normal(size=(len(skills), images, findings))
    return (1 / (1 + np.exp(-scores))).astype(np.float32), targets, np.arange(images) // 2


def macro(targets, scores):
    return np.mean([average_precision_score(t, s) for t, s in zip(targets.T, scores.T, strict=True)])


@pytest.fixture(scope="module")
def explained():
    inputs = cohort([2.0, 1.5, 1.0, 0.0])
    fitted = fit(Method("greedy", {"rounds": 10}), *inputs)
    return inputs, fitted, explain.contributions(*inputs, fitted, orders=4, rounds=40)


def test_marginal_contributions_add_up_to_the_cross_fitted_score_less_chance(explained):
    (_, targets, _), fitted, result = explained
    assert result.whole[-1, 0] == pytest.approx(macro(targets, fitted.crossed[0]), abs=1e-9)
    assert result.chance[:3, 0] == pytest.approx(targets.mean(axis=0))
    assert np.allclose(result.marginal[:, :, 0].sum(axis=0), result.whole[:, 0] - result.chance[:, 0], atol=1e-9)


def test_a_good_member_brings_more_than_a_useless_one(explained):
    _, _, result = explained
    marginal, without = result.marginal[:, -1, 0], result.without[:, -1, 0]
    assert marginal[0] == marginal.max()
    assert marginal[3] == pytest.approx(0, abs=0.02)
    assert without[0] == without.max() > 0
    assert result.marginal[0, -1, 1] > 0  # surely
    assert (result.marginal[..., 1] <= result.marginal[..., 2]).all()


def test_what_is_lost_without_a_member_is_what_the_others_score_by_their_own_proportions(explained):
    (scores, targets, _), fitted, result = explained
    rest = np.zeros(targets.shape)
    for k, weights in enumerate(fitted.fold_weights):
        others = np.where(np.arange(4)[:, None] == 1, 0, weights)
        rows = fitted.fold == k
        rest[rows] = np.einsum("mnc,mc->nc", scores[:, rows].astype(float), others / others.sum(axis=0))
    lost = macro(targets, fitted.crossed[0]) - macro(targets, rest)
    assert result.without[1, -1, 0] == pytest.approx(lost, abs=1e-6)


def test_members_that_are_the_same_bring_the_same():
    scores, targets, groups = cohort([1.5, 1.0])
    inputs = scores[[0, 0, 1]], targets, groups
    result = explain.contributions(*inputs, fit(Method("mean"), *inputs), orders=3, rounds=20)
    assert np.allclose(result.marginal[0], result.marginal[1])
    assert np.array_equal(result.without[0], result.without[1])


def test_one_member_brings_all():
    inputs = cohort([1.5])
    result = explain.contributions(*inputs, fit(Method("mean"), *inputs), orders=2, rounds=20)
    for values in (result.marginal, result.without):
        assert np.allclose(values[0, :, 0], result.whole[:, 0] - result.chance[:, 0])


def test_a_member_that_no_fold_gave_weight_is_judged_alone_only(explained):
    inputs, fitted, _ = explained
    without = replace(fitted, fold_weights=np.repeat(np.array([1.0, 0, 0, 0])[:, None], 3, axis=1)[None].repeat(5, 0))
    again = explain.contributions(*inputs, without, orders=2, rounds=20)
    assert again.alone[1, -1, 0] == pytest.approx(macro(inputs[1], inputs[0][1]), abs=1e-6)
    assert not again.marginal[1:].any()
    assert np.allclose(again.marginal[0, :, 0], again.whole[:, 0] - again.chance[:, 0])


def test_correlations_are_spearmans():
    scores, _, _ = cohort([2.0, 1.0, 0.0])
    expected = np.mean([spearmanr(scores[:, :, c], axis=1).statistic for c in range(3)], axis=0)
    assert np.allclose(explain.correlations(scores), expected)
    scores[1] = 0.5
    assert np.isnan(explain.correlations(scores)[1]).all()


def test_a_firm_choice_keeps_its_weight_and_one_among_noise_does_not():
    firm, noise = cohort([3.0, 0.0, 0.0, 0.0]), cohort([0.0] * 8, seed=1)
    for inputs, method, least, most in (
        (firm, Method("best"), 1, 1),
        (noise, Method("mean"), 1, 1),
        (noise, Method("greedy", {"rounds": 5}), 0, 0.6),
    ):
        weights = fit(method, *inputs).weights
        overlap = explain.stability(method, *inputs, weights, draws=10)
        assert overlap.shape == (10, 3)
        assert least - 1e-9 <= overlap.mean() <= most + 1e-9


def test_the_power_law_is_found_again_and_never_falls():
    sizes, at = np.array([1, 2, 4, 8, 16]), np.array([3, 16, 32, 100])
    power = explain.POWERS[15]
    values = 0.4 - 0.15 * sizes**-power
    result = explain.power_law(sizes, values, np.ones(5), at)
    assert np.allclose(result, 0.4 - 0.15 * at.astype(float) ** -power, atol=1e-9)
    falling = explain.power_law(sizes, 0.3 - 0.01 * sizes, np.ones(5), at)
    assert np.ptp(falling) == 0
    steep = explain.power_law(sizes[:3], np.array([0.4, 0.75, 0.95]), np.ones(3), at)
    assert 0.85 < steep[0] < steep[-1] <= 1


def test_the_curve_ends_at_the_cross_fitted_score_and_rises_with_members_that_add():
    inputs = cohort([0.8] * 10, findings=4)
    method = Method("mean")
    result = explain.growth(method, *inputs, subsets=4, rounds=50)
    assert result.sizes[0] == 1
    assert result.sizes[-1] == 10
    assert result.scores[-1, 0] == pytest.approx(macro(inputs[1], fit(method, *inputs).crossed[0]), abs=1e-6)
    assert result.scores[-1, 0] > result.scores[0, 0] + 0.1
    ahead = result.ahead.tolist()
    next_one, twice = result.gains[ahead.index(11)], result.gains[ahead.index(20)]
    assert 0 < next_one[0] < twice[0] < 0.2
    assert next_one[1] <= next_one[0] <= next_one[2]
    more = fit(method, *cohort([0.8] * 20, findings=4)).crossed[0]  # as many again
    assert result.curve[ahead.index(20), 0] == pytest.approx(macro(inputs[1], more), abs=0.06)


def test_of_three_trials_nothing_is_foretold():
    result = explain.growth(Method("mean"), *cohort([1.0, 1.0, 1.0]), subsets=2, rounds=10)
    assert np.isnan(result.gains).all()
