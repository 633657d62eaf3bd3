"""The pure parts of the zero-shot benchmark: ConSE, the choice on folds, permuted prompts, paired intervals, ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from cxrlt_ray.evaluation.lift import lift_estimates

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from zeroshot_parts import (
    Choice,
    choose,
    conse,
    cosines,
    log_lift,
    mean_of,
    permutations,
    rank_correlation,
)

RNG = np.random.default_rng(0)
IMAGES, SUBJECTS = 400, 150


def cohort(seed: int, strength: float, findings: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, scores that know them by `strength`, and subjects."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((IMAGES, findings)) < 0.2).astype(np.int8)
    scores = strength * targets + rng.normal(size=targets.shape)
    return targets, 1 / (1 + np.exp(-scores)), rng.integers(0, SUBJECTS, IMAGES)


def test_conse_is_the_mean_of_the_nearest_weighed_by_similarity():
    scores = RNG.random((7, 4))
    similarity = np.array([[0.9, 0.1, 0.3, -0.5], [-0.2, -0.1, -0.3, -0.4]])
    expected = (0.9 * scores[:, 0] + 0.3 * scores[:, 2]) / 1.2
    assert np.allclose(conse(scores, similarity, 2)[:, 0], expected)
    assert np.allclose(conse(scores, similarity, 1)[:, 0], scores[:, 0])
    everything = (0.9 * scores[:, 0] + 0.1 * scores[:, 1] + 0.3 * scores[:, 2]) / 1.3
    assert np.allclose(conse(scores, similarity, 40)[:, 0], everything)  # what is unlike does not count against
    assert np.allclose(conse(scores, similarity, 3)[:, 1], scores[:, 1])  # the nearest alone where none is like


def test_the_choice_takes_the_embeddings_in_which_findings_that_go_together_are_near():
    groups = np.repeat(np.arange(4), 3)
    patient = RNG.random((IMAGES, 4)) < 0.3
    targets = (patient[:, groups] & (RNG.random((IMAGES, 12)) < 0.9)).astype(np.int8)
    scores = np.clip(targets + RNG.normal(scale=0.5, size=targets.shape), 0, 1)
    near = np.eye(4)[groups] + 0.01 * RNG.normal(size=(12, 4))
    embeddings = {"random": RNG.normal(size=(12, 4)), "near": near}
    fold = np.tile([0, 1, -1], 4)  # one of each group, so that its company stays
    assert choose(targets, scores, embeddings, fold, (1, 2)) in (Choice("near", 1), Choice("near", 2))
    assert choose(targets, scores, embeddings, fold, (1, 2)) == Choice("near", 2)  # two know more than one


def test_the_choice_does_not_read_the_scores_of_what_is_left_out():
    targets, scores, _ = cohort(1, 1.0, 6)
    fold = np.array([0, 0, 0, 0, 0, -1])
    embeddings = {"a": RNG.normal(size=(6, 3)), "b": RNG.normal(size=(6, 3))}
    other = scores.copy()
    other[:, :5] = RNG.random((IMAGES, 5))
    assert choose(targets, scores, embeddings, fold, (1, 5)) == choose(targets, other, embeddings, fold, (1, 5))


def test_permuted_prompts_leave_no_finding_its_own():
    scores = RNG.random((3, 5))
    turns = list(permutations(scores))
    assert len(turns) == 4
    for turn in turns:
        assert not (turn == scores).any()
        assert np.array_equal(np.sort(turn, axis=1), np.sort(scores, axis=1))


def test_lift_and_its_interval_are_those_of_the_package():
    targets, scores, subjects = cohort(2, 1.5)
    ours, theirs = log_lift(targets, [scores], subjects, 300), lift_estimates(targets, scores, subjects, 300)
    for c, expected in enumerate(theirs.findings):
        value = mean_of([ours], finding=c)
        assert np.allclose([value.value, value.low, value.high], [expected.value, expected.low, expected.high])
    mean = mean_of([ours])
    assert np.allclose([mean.value, mean.low, mean.high], [theirs.mean.value, theirs.mean.low, theirs.mean.high])


def test_knowing_scores_are_above_permuted_ones_and_chance_is_one():
    cohorts = [cohort(seed, 1.5) for seed in range(3)]
    own = [log_lift(targets, [scores], subjects, 200) for targets, scores, subjects in cohorts]
    turned = [log_lift(targets, list(permutations(scores)), subjects, 200) for targets, scores, subjects in cohorts]
    chance = [log_lift(targets, [np.zeros(targets.shape)], subjects, 200) for targets, _, subjects in cohorts]
    assert mean_of(chance).value == pytest.approx(1)
    assert mean_of(own, turned).low > 1.3
    assert mean_of(own, own).value == pytest.approx(1)
    permuted = mean_of(turned)
    assert permuted.low < 1.1  # AP of few positives is a little above chance
    alone, together = mean_of(own[:1]), mean_of(own)
    assert together.high - together.low < alone.high - alone.low


def test_pairing_makes_the_interval_of_a_small_difference_narrow():
    targets, scores, subjects = cohort(4, 1.5)
    near = np.clip(scores + 0.01 * RNG.normal(size=scores.shape), 0, 1)
    one, other = (log_lift(targets, [part], subjects, 200) for part in (scores, near))
    paired = mean_of([one], [other])
    assert paired.high - paired.low < 0.5 * (mean_of([one]).high - mean_of([one]).low)


def test_rank_correlation_is_spearmans_and_needs_three_trials():
    first = RNG.normal(size=24)
    second = first + RNG.normal(size=24)
    value = rank_correlation(first, second)
    assert value.value == pytest.approx(spearmanr(first, second).statistic)
    assert -1 <= value.low < value.value < value.high <= 1
    assert rank_correlation(first, first).value == pytest.approx(1)
    assert np.isnan(rank_correlation([1, 2], [1, 2]).value)
    assert rank_correlation([*first, np.nan], [*second, 1.0]).value == pytest.approx(value.value)


def test_similarity_is_the_cosine():
    rows, others = RNG.normal(size=(2, 5)), RNG.normal(size=(3, 5))
    expected = rows[1] @ others[2] / np.linalg.norm(rows[1]) / np.linalg.norm(others[2])
    assert cosines(rows, others)[1, 2] == pytest.approx(expected)
    assert cosines(3 * rows, others)[1, 2] == pytest.approx(expected)
