"""A sample for hand labels has the probabilities that are recorded, and its weighted estimates are unbiased."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.confusion import Resampled, counts, rates
from cxrlt_ray.labelling.gold import Shares, draw, inclusion_probabilities, sample, sizes


def frame(studies: int = 2000, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """The truth, int8 [N, 4], from common to rare, and two labellers with errors of their own."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((studies, 4)) < [0.3, 0.1, 0.03, 0.01]).astype(np.int8)
    labellers = []
    for missed, false in ((0.1, 0.01), (0.25, 0.002)):
        noise = rng.random(truth.shape)
        labellers.append(np.where(truth == 1, noise > missed, noise < false).astype(np.int8))
    return truth, labellers


def tables(labellers: list[np.ndarray]) -> list[pd.DataFrame]:
    return [pd.DataFrame(labels, columns=list("abcd")).astype("Int8") for labels in labellers]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=3, max_size=60), st.integers(1, 59))
def test_probabilities_sum_to_the_sample_and_keep_proportion_below_1(size, count):
    size, count = np.array(size), min(count, len(size) - 1)
    chance = inclusion_probabilities(size, count)
    assert chance.sum() == pytest.approx(count)
    assert (chance > 0).all()
    assert (chance <= 1).all()
    some = chance < 1
    ratio = chance[some] / size[some]
    assert ratio == pytest.approx(np.full(some.sum(), ratio.mean() if some.any() else 0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1), min_size=3, max_size=60), st.integers(1, 59), st.integers(0, 99))
def test_every_draw_has_the_size_that_was_asked_for(size, count, seed):
    count = min(count, len(size) - 1)
    drawn = draw(inclusion_probabilities(np.array(size), count), seed)
    assert len(drawn) == len(set(drawn)) == count


def test_each_unit_is_drawn_as_often_as_its_probability_says():
    chance = inclusion_probabilities(np.random.default_rng(0).lognormal(size=50), 15)
    often = np.zeros(50)
    for seed in range(4000):
        often[draw(chance, seed)] += 1
    error = np.sqrt(chance * (1 - chance) / 4000)
    assert (np.abs(often / 4000 - chance) <= 4.5 * error + 1e-12).all()


def test_rare_findings_and_disagreements_come_more_often_than_by_chance():
    _, labellers = frame()
    drawn = sample(tables(labellers), 200, Shares(), 1)
    one, other = (labels[drawn.index] for labels in labellers)
    assert (one[:, 3] | other[:, 3]).sum() > 10 * 200 * (labellers[0][:, 3] | labellers[1][:, 3]).mean() / 3
    assert (one != other).any(axis=1).mean() > 2 * (labellers[0] != labellers[1]).any(axis=1).mean()
    assert (sizes(tables(labellers), Shares()) >= 0.3 / 2000).all()
    assert sizes(tables(labellers), Shares()).sum() == pytest.approx(1)


def test_parts_without_a_study_go_to_the_uniform_one():
    nothing = tables([np.zeros((40, 4), np.int8)])
    assert sizes(nothing, Shares()) == pytest.approx(np.full(40, 1 / 40))


def test_weighted_counts_are_unbiased_and_ratios_nearly_so_where_unweighted_ones_are_not():
    truth, labellers = frame()
    chance = inclusion_probabilities(sizes(tables(labellers), Shares()), 300)
    whole = counts(truth, labellers[0]).sum(axis=1)
    true = rates(whole.sum(axis=1))
    weighted, ratios, plain = [], [], []
    for seed in range(1500):
        drawn = draw(chance, seed)
        table = counts(truth[drawn], labellers[0][drawn], 1 / chance[drawn]).sum(axis=1)
        weighted.append(table)
        ratios.append([rates(table.sum(axis=1))[rate] for rate in ("precision", "recall")])
        own = counts(truth[drawn], labellers[0][drawn]).sum(axis=(1, 2))
        plain.append([rates(own)[rate] for rate in ("precision", "recall")])
    error = np.std(weighted, axis=0) / np.sqrt(1500)
    assert (np.abs(np.mean(weighted, axis=0) - whole) <= 4.5 * error + 1e-9).all()
    bias = np.abs(np.mean(ratios, axis=0) - [true["precision"], true["recall"]])
    assert (bias < 0.012).all()
    assert (np.abs(np.mean(plain, axis=0) - [true["precision"], true["recall"]]) > 3 * bias).any()


def test_intervals_of_weighted_estimates_hold_the_truth_about_as_often_as_they_say():
    truth, labellers = frame(seed=3)
    chance = inclusion_probabilities(sizes(tables(labellers), Shares()), 300)
    whole = rates(counts(truth, labellers[0]).sum(axis=(1, 2)))
    held = {"precision": 0, "recall": 0}
    for seed in range(200):
        drawn = draw(chance, seed)
        table = counts(truth[drawn], labellers[0][drawn], 1 / chance[drawn])
        estimates = Resampled.of(table, drawn, np.ones(4, bool), 200, seed).rates().pooled
        for rate in held:
            held[rate] += estimates[rate].low <= whole[rate] <= estimates[rate].high
    assert held["precision"] >= 0.88 * 200
    assert held["recall"] >= 0.85 * 200


def test_a_sample_as_large_as_all_studies_is_refused():
    with pytest.raises(UsageError, match="label them all"):
        sample(tables(frame(50)[1]), 50, Shares(), 0)
