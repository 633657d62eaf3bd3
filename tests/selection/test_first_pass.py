"""Greedy selection one finding at a time: the same picks as with all predictions in memory, and what they prove."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlt_ray.data.splits import assign_folds
from cxrlt_ray.selection import greedy
from cxrlt_ray.selection.first_pass import NONE, follow
from cxrlt_ray.selection.honest import fit
from cxrlt_ray.selection.method import Method

MEMBERS, IMAGES, FINDINGS, ROUNDS, FOLDS = 40, 300, 4, 12, 3


@pytest.fixture(params=["smooth", "tied"])
def drawn(request):
    """Predictions [M, N, C], targets [N, C] with some not labelled and a finding without positives, subjects [N]."""
    rng = np.random.default_rng(3)
    targets = (rng.random((IMAGES, FINDINGS)) < [0.3, 0.1, 0.05, 0.0]).astype(np.int8)
    targets[rng.random(targets.shape) < 0.1] = -1
    targets[0, :3] = 1
    logits = 1.5 * (targets == 1) + rng.normal(0, rng.uniform(0.5, 3, (MEMBERS, 1, 1)), (MEMBERS, *targets.shape))
    predictions = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return predictions.round(1) if request.param == "tied" else predictions, targets, np.arange(IMAGES) // 2


def sets_of(targets, groups):
    fold = assign_folds(targets, groups, FOLDS, 0)
    return [targets, *(np.where((fold == k)[:, None], np.int8(-1), targets) for k in range(FOLDS))]


def paths_of(predictions, targets, groups):
    return follow(lambda c: predictions[:, :, c], sets_of(targets, groups), len(predictions), ROUNDS)


def test_weights_are_those_of_greedy_selection_by_every_set_of_labels(drawn):
    predictions, targets, groups = drawn
    paths = paths_of(*drawn)
    for s, labels in enumerate(sets_of(targets, groups)):
        chosen = (labels == 1).sum(axis=0) > 1
        expected = greedy(predictions, labels, groups, rounds=ROUNDS)
        np.testing.assert_array_equal(paths.weights(s)[:, chosen], expected[:, chosen])
    np.testing.assert_array_equal(paths.weights()[:, 3], np.full(MEMBERS, 1 / MEMBERS))
    assert (paths.picked[:, 3] == NONE).all()


def test_selection_among_all_that_is_ever_picked_is_selection_among_all(drawn):
    predictions, targets, groups = drawn
    predictions, targets = predictions[:, :, :3], targets[:, :3]  # of findings with positives
    picked = np.flatnonzero(paths_of(predictions, targets, groups).earliest() < ROUNDS)
    assert 1 < len(picked) < MEMBERS
    method = Method("greedy", {"rounds": ROUNDS})
    all_of_them = fit(method, predictions, targets, groups, folds=FOLDS)
    among_picked = fit(method, predictions[picked], targets, groups, folds=FOLDS)
    np.testing.assert_array_equal(among_picked.weights, all_of_them.weights[picked])
    np.testing.assert_array_equal(among_picked.crossed, all_of_them.crossed)
    assert all_of_them.weights.sum() == all_of_them.weights[picked].sum()


def test_the_earliest_round_and_the_ap_of_members_alone_are_known(drawn):
    from sklearn.metrics import average_precision_score

    predictions, targets, _ = drawn
    paths = paths_of(*drawn)
    first = paths.earliest()
    assert (first[paths.picked[:, :3, 0].ravel()] == 0).all()
    assert first.max() == ROUNDS
    known = targets[:, 1] >= 0
    expected = [average_precision_score(targets[known, 1] == 1, member[known, 1]) for member in predictions]
    np.testing.assert_allclose(paths.ap[:, 1], expected, atol=1e-12)
    assert np.isnan(paths.ap[:, 3]).all()


def test_scores_of_images_without_a_label_may_be_missing(drawn):
    predictions, targets, _ = drawn
    labelled = np.where((np.arange(IMAGES) < 50)[:, None], np.int8(-1), targets)
    whole = follow(lambda c: predictions[:, :, c], [labelled], MEMBERS, ROUNDS)
    predictions[:, :50] = np.nan
    partly = follow(lambda c: predictions[:, :, c], [labelled], MEMBERS, ROUNDS)
    np.testing.assert_array_equal(whole.picked, partly.picked)
