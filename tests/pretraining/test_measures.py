"""What self-supervised training is watched by, against formulas and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from cxrlt_ray.pretraining.measures import (
    INFORMATION,
    NEIGHBOURS,
    TEMPERATURE,
    Limits,
    collapse,
    effective_rank,
    fallen,
    knn_map,
    knn_scores,
)
from cxrlt_ray.runs.pretrain_record import Point


def test_the_effective_rank_is_the_exponential_of_the_singular_values_entropy():
    features = np.random.default_rng(0).normal(size=(80, 12)) * np.geomspace(1, 0.01, 12)
    values = np.linalg.svd(features)[1]
    shares = values / values.sum()
    assert effective_rank(features) == pytest.approx(np.prod(shares**-shares), rel=1e-4)
    assert effective_rank(np.ones((80, 12))) == pytest.approx(1, abs=1e-3)  # all alike
    assert effective_rank(np.zeros((80, 12))) == 1
    orthonormal = np.linalg.qr(features)[0]
    assert effective_rank(orthonormal) == pytest.approx(12, rel=1e-3)
    assert effective_rank(7 * features) == pytest.approx(effective_rank(features))  # of any scale


def drawn(count: int = 200):
    rng = np.random.default_rng(1)
    targets = (rng.random((count, 3)) < (0.3, 0.1, 0.01)).astype(np.int8)
    targets[rng.random(targets.shape) < 0.2] = -1
    features = rng.normal(size=(count, 5)) + 2 * targets[:, :1]
    return features, targets, rng.permutation(np.arange(count) // 2)


def test_nearest_neighbours_are_scikit_learn_s_of_other_subjects():
    features, targets, subjects = drawn()
    scores = knn_scores(features, targets, subjects)
    for k in range(0, len(features), 17):
        others = np.flatnonzero(subjects != subjects[k])
        search = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine").fit(features[others])
        distance, near = search.kneighbors(features[k : k + 1])
        voice, labels = np.exp(-distance[0] / TEMPERATURE), targets[others[near[0]]]
        for c in range(3):
            known = labels[:, c] >= 0
            assert scores[k, c] == pytest.approx((voice * (labels[:, c] == 1)).sum() / voice[known].sum(), abs=1e-9)


def test_the_mean_is_over_findings_with_enough_of_both_kinds():
    features, targets, subjects = drawn()
    assert (targets[:, 2] == 1).sum() < 5
    found = knn_map(features, targets, subjects)
    scores = knn_scores(features, targets, subjects)
    expected = []
    for c in (0, 1):
        rows = targets[:, c] >= 0
        expected.append(average_precision_score(targets[rows, c], scores[rows, c]))
    assert found is not None
    assert found[0] == pytest.approx(np.mean(expected))
    assert found[1] == pytest.approx(np.mean([targets[targets[:, c] >= 0, c].mean() for c in (0, 1)]))
    assert knn_map(features, np.full_like(targets, -1), subjects) is None


def test_features_that_know_the_labels_score_above_chance_and_noise_does_not():
    features, targets, subjects = drawn(400)
    score, chance = knn_map(np.hstack([10 * (targets[:, :2] == 1), 0.1 * features]), targets[:, :2], subjects)
    assert score > 0.9
    noise, _ = knn_map(np.random.default_rng(2).normal(size=(400, 5)), targets[:, :2], subjects)
    assert noise < chance + 0.1


def point(step: int, rank: float = 10.0, knn: float | None = None, **statistics: float) -> Point:
    return Point(stage=0, step=step, loss=1.0, effective_rank=rank, knn=knn, statistics=statistics)


def test_a_collapse_needs_two_measurements_after_the_grace():
    limits = Limits(grace=100)
    assert not collapse([], limits)
    assert not collapse([point(50, 1.0), point(100, 1.0), point(150, 1.0)], limits)
    assert not collapse([point(150, 1.0), point(200, 5.0)], limits)
    assert "effective rank is 1.05" in collapse([point(150, 1.0), point(200, 1.05)], limits)


@pytest.mark.parametrize(
    ("entropy", "mend"), [(0.999, "lower the teacher's temperature"), (0.001, "centre the teacher")]
)
def test_a_teacher_that_answers_alike_for_all_images_has_collapsed(entropy, mend):
    flat = [point(step, teacher_entropy=entropy, **{INFORMATION: 0.001}) for step in (200, 300)]
    assert mend in collapse(flat, Limits())
    healthy = [point(step, teacher_entropy=0.9, **{INFORMATION: 0.1}) for step in (200, 300)]
    assert not collapse(healthy, Limits())


def test_k_nn_falls_against_its_best_value():
    curve = [point(1, knn=0.2), point(2, knn=0.4), point(3, knn=0.33)]
    assert not fallen(curve, Limits(knn_fall=0.2))
    assert fallen([*curve, point(4, knn=0.31)], Limits(knn_fall=0.2))
    assert not fallen([*curve, point(4, knn=0.01)], Limits())
    assert not fallen([point(1), point(2)], Limits(knn_fall=0.2))
