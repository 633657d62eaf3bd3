"""Intervals hold what they are for, say so where too few positives tell, and lie around their value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import LEAST, Estimate, Sample

PLENTY = Sample(np.array([100, 80]), 500)


def test_a_sample_counts_subjects_not_images():
    targets = np.array([[1, 0], [1, 1], [0, 1], [-1, 1]], np.int8)
    sample = Sample.of(targets, np.array(["a", "a", "b", "c"]))
    assert sample.positives.tolist() == [1, 3]
    assert sample.subjects == 3
    assert sample.degrees == 2  # 4 positive subjects less 2 findings
    assert sample.part([1]).degrees == 2
    assert Sample(np.array([50, 50]), 10).degrees == 9  # no more than the subjects give


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(1e-4, 0.2), st.integers(LEAST + 1, 500))
def test_the_interval_of_a_score_lies_around_it_and_within_0_and_1(value, error, positives):
    draws = value + error * np.random.default_rng(0).standard_normal(200)
    estimate = Estimate.of_score(value, draws, Sample(np.array([positives]), 10_000))
    assert 0 <= estimate.low < value < estimate.high <= 1
    wider = Estimate.of_score(value, draws, Sample(np.array([LEAST + 1]), 10_000))
    assert wider.low <= estimate.low


def test_the_interval_of_a_difference_is_symmetric_and_leaves_out_nan():
    draws = np.r_[np.random.default_rng(0).normal(0.3, 0.1, 4000), np.nan]
    estimate = Estimate.of_difference(0.2, draws, PLENTY)
    assert (estimate.low, estimate.high) == pytest.approx((0.2 - 0.196, 0.2 + 0.196), abs=0.01)
    assert estimate.excludes_zero
    assert not Estimate.of_difference(0.19, draws, PLENTY).excludes_zero


def test_too_few_positive_subjects_give_a_value_without_an_interval():
    few = Sample(np.array([3, 2]), 500)
    for estimate in (Estimate.of_score(0.2, np.array([0.1, 0.3]), few), Estimate.of_difference(0.2, np.zeros(3), few)):
        assert estimate.value == 0.2
        assert not estimate.known
        assert not estimate.excludes_zero
    assert not Estimate.of_score(float("nan"), np.zeros(3), PLENTY).known


@pytest.mark.parametrize("noise", [0.0, 1e-16])
def test_equal_draws_give_no_interval_of_no_width(noise):
    """AUROC of constant predictions is .5 in every draw."""
    assert not Estimate.of_score(0.5, 0.5 + noise * np.arange(50), PLENTY).known


def test_a_perfect_score_of_few_is_not_certain():
    perfect = Estimate.of_score(1.0, np.ones(100), Sample(np.array([10]), 100))
    assert perfect.low == pytest.approx(0.025 ** (1 / 10))  # binomial, 10 of 10 (Clopper & Pearson 1934)
    assert perfect.high == 1
    none = Estimate.of_score(0.0, np.zeros(100), Sample(np.array([10]), 100))
    assert (none.low, none.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))


def test_intervals_hold_the_macro_map_of_other_samples_and_the_difference_of_two_systems():
    rng = np.random.default_rng(0)

    def sample() -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        subjects = np.repeat(np.arange(150), 2)
        targets = (rng.random((300, 12)) < np.geomspace(0.3, 0.02, 12)).astype(np.int8)
        shared = rng.normal(size=targets.shape)
        logits = [targets * apart + shared + 0.5 * rng.normal(size=targets.shape) for apart in (1.2, 1.3)]
        return targets, [1 / (1 + np.exp(-values)) for values in logits], subjects

    def macro(targets: np.ndarray, scores: np.ndarray) -> float:
        return metrics.macro(metrics.per_finding(targets, scores, ("ap",))["ap"])

    samples = [sample() for _ in range(150)]
    expected = np.mean([[macro(targets, scores) for scores in systems] for targets, systems, _ in samples], axis=0)
    held = []
    for targets, systems, subjects in samples:
        draws = metrics.bootstrap_map(targets, systems, subjects, rounds=128)
        of = Sample.of(targets, subjects)
        values = [macro(targets, scores) for scores in systems]
        score = Estimate.of_score(values[0], draws[0], of)
        gain = Estimate.of_difference(values[1] - values[0], draws[1] - draws[0], of)
        difference = expected[1] - expected[0]
        held.append((score.low <= expected[0] <= score.high, gain.low <= difference <= gain.high))
    assert np.mean(held, axis=0) == pytest.approx([0.95, 0.95], abs=0.05)
