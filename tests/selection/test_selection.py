"""Greedy against a plain loop, spaces and studies, and the honesty around selectors (whose battery: test_selectors)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from cxrlt_ray.selection import SELECTORS, greedy, honest, spaces, views
from cxrlt_ray.selection.honest import choose, combine, cross_fit
from cxrlt_ray.selection.method import Method, own_share


def problem(members=5, images=120, findings=4, seed=0, steps=0):
    """Predictions of members of growing skill, targets with some nulls, two images a subject."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, findings)) < 0.25).astype(np.int8)
    skill = np.linspace(0.1, 0.6, members)[:, None, None]
    scores = rng.random((members, images, findings)) * (1 - skill) + skill * targets
    if steps:
        scores = np.round(scores * steps) / steps
    targets[rng.random(targets.shape) < 0.1] = -1
    return scores.astype(np.float32), targets, np.arange(images) // 2


def plain_greedy(scores, targets, rounds):
    """Caruana's algorithm for one finding, a loop over scikit-learn; counts [M] of the best prefix."""
    known = targets >= 0
    scores, positive = scores[:, known].astype(np.float64), targets[known] == 1
    total, picked, reached = np.zeros(known.sum()), [], []
    for _ in range(rounds):
        values = np.array([average_precision_score(positive, total + each) for each in scores])
        picked.append(int(np.flatnonzero(values >= values.max() - 1e-12)[0]))
        reached.append(values[picked[-1]])
        total = total + scores[picked[-1]]
    best = int(np.flatnonzero(np.array(reached) >= max(reached) - 1e-12)[0])
    return np.bincount(picked[: best + 1], minlength=len(scores)) / (best + 1)


@pytest.mark.parametrize("steps", [0, 3, 10])
def test_greedy_equals_a_plain_loop_over_scikit_learn(steps):
    scores, targets, groups = problem(seed=steps, steps=steps)
    weights = greedy(scores, targets, groups, rounds=15)
    for c in range(targets.shape[1]):
        assert np.allclose(weights[:, c], plain_greedy(scores[:, :, c], targets[:, c], 15), atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1e-310, 0.1, 0.25, 0.5, 1.0, -3.0, 40.0]), st.booleans()),
        min_size=2,
        max_size=40,
    )
)
def test_average_precision_is_scikit_learns_on_ties_of_any_scale(rows):
    from cxrlt_ray.selection.average_precision import average_precision

    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    if positive.any():
        expected = average_precision_score(positive, scores)
        assert abs(average_precision(scores.astype(float), positive.astype(bool)) - expected) < 1e-12
    else:
        assert np.isnan(average_precision(scores.astype(float), positive.astype(bool)))


def test_among_equal_members_the_first_is_taken():
    scores, targets, groups = problem()
    weights = greedy(np.stack([scores[0]] * 4), targets, groups, rounds=5)
    assert (weights[0] == 1).all()


def test_greedy_is_never_worse_than_the_best_member_where_it_chose():
    scores, targets, groups = problem()
    combined = combine(scores, greedy(scores, targets, groups))
    for c in range(targets.shape[1]):
        known = targets[:, c] >= 0
        alone = max(average_precision_score(targets[known, c], each[known, c]) for each in scores)
        assert average_precision_score(targets[known, c], combined[known, c]) >= alone - 1e-9


def test_members_beyond_the_cap_get_nothing_and_bags_spread_the_weight():
    inputs = problem(members=8)
    plain = choose(Method("greedy", {"rounds": 20}), *inputs)
    bagged = choose(Method("greedy_bagged", {"rounds": 20, "bags": 10}), *inputs)
    assert (bagged > 0).sum() > (plain > 0).sum()
    capped = choose(Method("greedy_bagged", {"rounds": 20, "bags": 10}, members=3), *inputs)
    assert 0 < (capped.sum(axis=1) > 0).sum() <= 3
    assert np.allclose(capped.sum(axis=0), 1)


def test_the_guard_trusts_a_finding_by_its_positive_subjects():
    targets = np.zeros((40, 3), np.int8)
    targets[:20, 0] = 1
    targets[:20, 1] = 1
    groups = np.arange(40)
    assert own_share(targets, groups, 20).tolist() == [0.5, 0.5, 0]
    assert own_share(targets, groups // 20, 20).tolist() == pytest.approx([1 / 21, 1 / 21, 0])  # one subject
    assert own_share(targets, groups, 0).tolist() == [1, 1, 0]


def test_a_finding_without_positives_takes_the_common_ensemble():
    scores, targets, groups = problem()
    targets[:, 3] = 0
    weights = choose(Method("greedy", guard=20), scores, targets, groups)
    common = SELECTORS["greedy"](scores, targets, groups, together=True)
    assert np.allclose(weights[:, 3], common[:, 3])


def test_cross_fitting_never_scores_a_subject_with_weights_that_saw_it(monkeypatch):
    scores, targets, groups = problem(images=60)
    fold = groups % 3
    monkeypatch.setattr(honest, "assign_folds", lambda targets, groups, folds, seed: fold)
    before = cross_fit(Method("greedy"), scores, targets, groups, folds=3)
    out = fold == 1
    flipped = np.where(out[:, None] & (targets >= 0), 1 - targets, targets)
    after = cross_fit(Method("greedy"), scores, flipped, groups, folds=3)
    assert np.allclose(before[out], after[out])
    assert not np.allclose(before[~out], after[~out])


def test_on_noise_the_optimistic_score_is_above_the_cross_fitted():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 10)) < 0.1).astype(np.int8)
    scores = rng.random((20, 200, 10)).astype(np.float32)
    groups = np.arange(200)
    chosen = combine(scores, greedy(scores, targets, groups))
    crossed = cross_fit(Method("greedy"), scores, targets, groups)
    optimistic, honest = (
        np.mean([average_precision_score(targets[:, c], each[:, c]) for c in range(10)]) for each in (chosen, crossed)
    )
    assert optimistic > honest + 0.1
    assert honest == pytest.approx(targets.mean(), abs=0.06)


@pytest.mark.parametrize("space", spaces.SPACES)
def test_a_space_keeps_every_members_order_and_ends_in_0_to_1(space):
    scores, _, _ = problem()
    values = spaces.into(space, scores, scores)
    assert (np.argsort(values[0, :, 0], kind="stable") == np.argsort(scores[0, :, 0], kind="stable")).all()
    back = spaces.out_of(space, combine(values, np.full((5, 4), 0.2)))
    assert ((back >= 0) & (back <= 1)).all()


def test_ranks_do_not_depend_on_what_is_scored_along():
    scores, _, _ = problem()
    whole = spaces.into("rank", scores, scores)
    assert np.array_equal(whole[:, :3], spaces.into("rank", scores[:, :3], scores))


def test_averaging_logits_of_one_member_gives_its_probabilities():
    scores, _, _ = problem(members=1)
    back = spaces.out_of("logit", combine(spaces.into("logit", scores, scores), np.ones((1, 4))))
    assert np.allclose(back, np.clip(scores[0], 1e-6, 1 - 1e-6), atol=1e-5)


def test_a_study_speaks_with_one_voice():
    values = np.array([[[0.2], [0.8], [0.5], [np.nan], [0.4]]], np.float32)
    study, voice = np.array(["a", "a", "b", "b", "c"]), np.array([3.0, 1, 1, 1, 0])
    joined = views.by_study(values, study, voice)
    assert joined[0, :, 0] == pytest.approx([0.35, 0.35, 0.5, 0.5, 0.4])  # 3 : 1; the sibling's; its own
    order = [4, 2, 0, 3, 1]
    assert np.allclose(views.by_study(values[:, order], study[order], voice[order]), joined[:, order])


def test_selection_stands_alone():
    code = (
        "import sys; from cxrlt_ray.selection import greedy; "
        "sys.exit(any(m in sys.modules for m in ('ray', 'torch', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_logits_of_saturated_probabilities_keep_their_order():
    top = np.float32(1) - np.arange(5, dtype=np.float32)[:, None] * np.float32(2**-24)
    values = np.concatenate([top, np.float32([[0.5], [1e-7], [1e-8]])])[None]
    assert (np.diff(spaces.into("logit", values, values)[0, :, 0]) < 0).all()
