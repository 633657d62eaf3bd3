"""Confusions between findings: shares counted by hand, intervals as wide as draws of subjects, planted ones found."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlt_ray.evaluation.mistakes import FEWEST, LEAST_TOP, confusions, highest, ranks, worst


def drawn(seed: int, rows: int = 2000, planted: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five independent findings of 1,000 subjects; scores of finding 0 also rise with finding 1."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(rows // 2), 2)
    of_subject = rng.random((rows // 2, 5)) < [0.1, 0.2, 0.2, 0.1, 0.05]
    targets = (of_subject[subjects] ^ (rng.random((rows, 5)) < 0.05)).astype(np.int8)
    scores = targets * 1.5 + rng.normal(size=targets.shape)
    scores[:, 0] += planted * targets[:, 1]
    return targets, scores, subjects.astype(str)


def test_counts_and_shares_are_those_counted_one_by_one():
    targets, scores, subjects = drawn(0)
    targets[np.random.default_rng(1).random(targets.shape) < 0.1] = -1
    own = confusions(targets, scores, subjects)
    for c in range(5):
        negatives = [n for n in range(len(targets)) if targets[n, c] == 0]
        wanted = min(max(int((targets[:, c] == 1).sum()), LEAST_TOP), int(0.2 * len(negatives)))
        top = sorted(negatives, key=lambda n: -scores[n, c])[:wanted]
        assert own.top[c] == len(top)
        for d in range(5):
            labelled = [n for n in top if targets[n, d] >= 0]
            having = [n for n in labelled if targets[n, d] == 1]
            if d == c or len({subjects[n] for n in having}) < FEWEST:
                assert own.counts[c, d] == -1
                continue
            base = np.mean([targets[n, d] == 1 for n in negatives if targets[n, d] >= 0])
            assert own.counts[c, d] == len(having)
            assert own.shares[c, d] == pytest.approx(len(having) / len(labelled))
            assert own.ratio[c, d] == pytest.approx(len(having) / len(labelled) / base)


def test_the_interval_is_as_wide_as_draws_of_subjects():
    """The bootstrap by subject of the ratio on the logarithmic scale, the threshold as it is."""
    targets, scores, subjects = drawn(2, planted=1.0)
    own = confusions(targets, scores, subjects)
    negative = targets[:, 0] == 0
    chosen = np.zeros(len(targets), bool)
    chosen[np.flatnonzero(negative)[highest(scores[negative, 0], int((targets[:, 0] == 1).sum()))]] = True
    numbers, logs = subjects.astype(int), []
    rng = np.random.default_rng(0)
    for _ in range(600):
        weight = np.bincount(rng.integers(0, 1000, 1000), minlength=1000)[numbers].astype(float)
        share = (weight * chosen * targets[:, 1]).sum() / (weight * chosen).sum()
        logs.append(np.log(share / ((weight * negative * targets[:, 1]).sum() / (weight * negative).sum())))
    half = (np.log(own.high[0, 1]) - np.log(own.low[0, 1])) / 2
    assert half == pytest.approx(1.96 * np.std(logs), rel=0.15)


def test_a_planted_confusion_is_found_and_no_other():
    false = 0
    for seed in range(20):
        own = confusions(*drawn(seed, planted=1.5))
        flagged = (own.corrected < 0.05) & (own.ratio > 1)
        assert flagged[0, 1], seed
        flagged[0, 1] = False
        false += flagged.any()
    assert false <= 3  # of 20, at a level of 5 % for each


@pytest.mark.parametrize("kind", ["equal", "few", "no positive", "nothing labelled", "one subject"])
def test_where_nothing_can_be_said_nothing_is(kind):
    targets, scores, subjects = drawn(0, 60 if kind == "few" else 400)
    if kind == "equal":
        scores[:] = 0.5
    elif kind == "no positive":
        targets[targets == 1] = 0
    elif kind == "nothing labelled":
        targets[:] = -1
    elif kind == "one subject":
        subjects[:] = "one"
    own = confusions(targets, scores, subjects)
    assert (own.counts == -1).all()
    assert np.isnan(own.ratio).all()


def test_the_worst_are_the_highest_negatives_and_the_lowest_positives():
    targets, scores = np.array([0, 1, 0, 1, -1, 0]), np.array([0.9, 0.2, 0.1, 0.8, 0.99, 0.5])
    high, low = worst(targets, scores, 2)
    assert (high.tolist(), low.tolist()) == ([0, 5], [1, 3])
    assert ranks(targets, scores).tolist() == [1, 4, 5, 2, -1, 3]
    assert ranks(targets, np.full(6, 0.5)).tolist() == [1, 1, 1, 1, -1, 1]
    assert [len(rows) for rows in worst(np.array([0, 0]), np.array([0.1, 0.2]), 3)] == [2, 0]
