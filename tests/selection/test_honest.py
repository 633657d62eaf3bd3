"""What is chosen by cross-fitting, and that its score has not seen what it is scored on."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cxrlt_ray.selection import honest
from cxrlt_ray.selection.honest import combine, fit
from cxrlt_ray.selection.method import AUTO, Method
from cxrlt_ray.selection.registry import Doubt


def cohort(skills, images=400, findings=4, prevalence=0.2, seed=0):
    """Members whose scores tell `skills` [M, C] of the labels; two images a subject."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, findings)) < prevalence).astype(np.int8)
    scores = np.asarray(skills)[:, None, :] * targets + rng.normal(size=(len(skills), images, findings))
    return (1 / (1 + np.exp(-scores))).astype(np.float32), targets, np.arange(images) // 2


EACH_ITS_OWN = np.eye(4) * 4  # member m is good at finding m alone
ONE_FOR_ALL = np.array([[2.0] * 4, [0.3] * 4, [0.3] * 4])


def test_the_guards_strength_follows_the_data():
    own = fit(Method("greedy", guard=AUTO), *cohort(EACH_ITS_OWN, images=1000, prevalence=0.03))
    assert own.method.guard < 20
    common = fit(Method("greedy", {"rounds": 20}, guard=AUTO), *cohort(ONE_FOR_ALL, prevalence=0.03))
    assert common.method.guard >= 20


def test_the_best_is_taken_and_ties_go_to_the_first():
    methods = [Method("mean"), Method("best"), Method("greedy")]
    assert fit(methods, *cohort(EACH_ITS_OWN, images=1000), margin=0).method.selector == "greedy"
    assert fit(methods, *cohort(np.ones((3, 4)) * 1.5), margin=0).method.selector == "mean"
    alone = cohort(np.ones((1, 4)))
    for some in (methods, methods[::-1]):
        assert fit(some, *alone, margin=0).method == some[0]


def test_the_first_stays_unless_another_is_better_by_more_than_chance():
    weak = cohort([[2.0] * 4, [0.3] * 4, [0.3] * 4, [0.3] * 4], images=1000)
    assert fit([Method("mean"), Method("best")], *weak).method.selector == "best"
    alike = cohort(np.ones((3, 4)) * 1.5 + np.arange(3)[:, None] * 0.05)
    for first in ("greedy", "mean"):
        methods = [Method(first), Method("topk_mean", {"k": 2})]
        assert fit(methods, *alike, margin=3).method.selector == first


def test_of_equal_weights_the_better_members_are_kept():
    inputs = cohort([[0.5] * 4, [2.0] * 4, [0.1] * 4, [1.5] * 4], images=1000)
    weights = honest.choose(Method("mean", members=2), *inputs)
    assert (weights == np.array([0, 0.5, 0, 0.5])[:, None]).all()


def test_choosing_all_methods_equals_fitting_the_chosen_one():
    inputs = cohort(EACH_ITS_OWN)
    chosen = fit([Method("mean"), Method("greedy", guard=5.0)], *inputs)
    alone = fit(chosen.method, *inputs)
    assert np.array_equal(chosen.weights, alone.weights)


@pytest.mark.parametrize("methods", [Method("greedy", guard=AUTO), [Method("mean"), Method("best"), Method("greedy")]])
@pytest.mark.parametrize("plenty", [100, 1000])
def test_no_choice_has_seen_the_subjects_it_is_scored_on(monkeypatch, methods, plenty):
    monkeypatch.setattr(honest, "PLENTY", plenty)
    scores, targets, groups = cohort(EACH_ITS_OWN, images=200)
    fold = groups % 4
    monkeypatch.setattr(honest, "assign_folds", lambda *_: fold)
    before = fit(methods, scores, targets, groups, folds=4)
    out = fold == 2
    after = fit(methods, scores, np.where(out[:, None], 1 - targets, targets), groups, folds=4)
    assert np.array_equal(before.crossed[0, out], after.crossed[0, out])
    assert not np.array_equal(before.crossed[0, ~out], after.crossed[0, ~out])


def test_each_fold_is_scored_by_the_weights_of_the_others():
    scores, targets, groups = cohort(EACH_ITS_OWN)
    result = fit(Method("greedy", {"rounds": 10}), scores, targets, groups, folds=4, seed=3)
    fold = honest.assign_folds(targets, groups, 4, 3)
    for k in range(4):
        out = fold == k
        weights = honest.choose(Method("greedy", {"rounds": 10}), scores[:, ~out], targets[~out], groups[~out])
        assert np.array_equal(result.crossed[0, out], combine(scores[:, out], weights))


def test_repeats_are_other_folds():
    result = fit(Method("greedy", {"rounds": 5}), *cohort(ONE_FOR_ALL), repeats=3)
    assert result.crossed.shape == (3, 400, 4)
    assert not np.array_equal(result.crossed[0], result.crossed[1])
    again = fit(Method("greedy", {"rounds": 5}), *cohort(ONE_FOR_ALL), repeats=3)
    assert np.array_equal(result.crossed, again.crossed)


def test_what_scored_each_fold_is_told():
    scores, targets, groups = cohort(EACH_ITS_OWN)
    result = fit([Method("greedy", guard=5.0), Method("best")], scores, targets, groups, folds=3)
    for k in range(3):
        out = result.fold == k
        assert np.allclose(result.crossed[0, out], combine(scores[:, out], result.fold_weights[k]), atol=1e-12)


def test_a_finding_leans_on_the_mean_by_its_positive_subjects():
    scores, targets, groups = cohort(EACH_ITS_OWN, prevalence=0.03)
    own = fit(Method("greedy"), scores, targets, groups, folds=0).weights
    fitted = fit(Method("greedy", guard=30.0, lean="mean"), scores, targets, groups, folds=0)
    subjects = np.array([len(np.unique(groups[column == 1])) for column in targets.T])
    share = subjects / (subjects + 30)
    assert np.allclose(fitted.weights, share * own + (1 - share) / 4)
    assert np.allclose(fitted.own, share * own)


def test_what_is_leaned_on_may_be_the_mean_of_the_sound_members():
    inputs = cohort([[1.5] * 4, [1.5] * 4, [0.0] * 4], images=2000)
    weights = fit(Method("greedy", guard=np.inf, lean="sound"), *inputs, folds=0).weights
    assert (weights == np.array([0.5, 0.5, 0])[:, None]).all()


def test_a_blend_is_the_mean_of_what_its_selectors_choose():
    inputs = cohort(EACH_ITS_OWN)
    parts = [fit(Method(name), *inputs, folds=0).weights for name in ("greedy", "simplex", "nnls")]
    blended = fit(Method("greedy", blend=("simplex", "nnls")), *inputs, folds=0).weights
    assert np.allclose(blended, np.mean(parts, axis=0))


@pytest.mark.parametrize("lean", ["global", "mean", "sound"])
def test_each_fold_is_scored_by_weights_that_lean_without_it_too(lean):
    scores, targets, groups = cohort(EACH_ITS_OWN)
    method = Method("greedy", {"rounds": 10}, guard=30.0, lean=lean, blend=("simplex",))
    result = fit(method, scores, targets, groups, folds=4, seed=3)
    fold = honest.assign_folds(targets, groups, 4, 3)
    for k in range(4):
        out = fold == k
        weights = honest.choose(method, scores[:, ~out], targets[~out], groups[~out])
        assert np.allclose(result.crossed[0, out], combine(scores[:, out], weights), atol=1e-6)


@pytest.mark.parametrize("seed", [1, 7, 12, 19])
def test_of_guards_that_lean_on_the_sound_members_the_one_of_the_best_cross_fitted_score_is_taken(seed):
    """Which members are sound depends on the guard: none may be judged by the sound members of another."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((400, 2)) < [0.3, 0.05]).astype(np.int8)
    noise = np.array([[2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [9.0, 0.8]])  # the last is good at what is rare alone
    scores = 1 / (1 + np.exp(1 - 2 * targets - rng.normal(size=(4, 400, 2)) * noise[:, None]))
    inputs = (scores.astype(np.float32), targets, np.arange(400))
    methods = [Method("best", guard=guard, lean="sound") for guard in (np.inf, 100.0, 5.0)]
    alone = [average_precision_score(targets, fit(m, *inputs, folds=4).crossed[0], average="macro") for m in methods]
    assert fit(methods, *inputs, folds=4, margin=0).method == methods[int(np.argmax(alone))]


@pytest.mark.parametrize("lean", ["global", "sound"])
def test_within_one_of_two_folds_nothing_is_chosen(lean):
    scores, targets, groups = cohort(EACH_ITS_OWN)
    methods = [Method("mean"), Method("greedy", {"rounds": 5}, guard=AUTO, lean=lean)]
    with pytest.warns(Doubt, match="2 folds"):
        result = fit(methods, scores, targets, groups, folds=2, margin=0)
    assert result.method == methods[0]  # what was cross-fitted is what is applied
    assert np.array_equal(result.crossed, fit(methods[0], scores, targets, groups, folds=2).crossed)


def test_a_copy_does_not_lift_what_is_served_above_the_budget():
    scores, targets, groups = cohort(ONE_FOR_ALL)
    twice, costs = np.concatenate([scores, scores]), np.ones(6)
    fitted = fit(Method("frontier", {"budget": 1.0}), twice, targets, groups, folds=0, costs=costs)
    assert costs[fitted.weights.any(axis=1)].sum() <= 1
