"""Rates of labels beside a reference are scikit-learn's; draws are by subject and paired; weights undo a sample."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from cxrlt_ray.evaluation.confusion import Resampled, counts, differences, rates


def drawn(seed: int, rows: int = 400, findings: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = (rng.random((rows, findings)) < rng.uniform(0.05, 0.5, findings)).astype(np.int8)
    labels = np.where(rng.random(gold.shape) < 0.15, 1 - gold, gold).astype(np.int8)
    gold[rng.random(gold.shape) < 0.1] = -1
    labels[rng.random(gold.shape) < 0.1] = -1
    return gold, labels


@pytest.mark.parametrize("seed", range(5))
def test_each_finding_has_scikit_learns_rates_over_what_both_label(seed):
    gold, labels = drawn(seed)
    own = rates(counts(gold, labels).sum(axis=1))
    for c in range(gold.shape[1]):
        both = (gold[:, c] >= 0) & (labels[:, c] >= 0)
        true, said = gold[both, c], labels[both, c]
        assert own["precision"][c] == pytest.approx(reference.precision_score(true, said))
        assert own["recall"][c] == pytest.approx(reference.recall_score(true, said))
        assert own["f1"][c] == pytest.approx(reference.f1_score(true, said))
        assert own["kappa"][c] == pytest.approx(reference.cohen_kappa_score(true, said))
        assert own["pabak"][c] == pytest.approx(2 * reference.accuracy_score(true, said) - 1)


def test_macro_and_pooled_are_scikit_learns_averages():
    rng = np.random.default_rng(1)
    gold = (rng.random((300, 4)) < 0.3).astype(np.int8)
    labels = np.where(rng.random(gold.shape) < 0.2, 1 - gold, gold).astype(np.int8)
    labels[:, 3] = 0  # never affirmed
    own = Resampled.of(counts(gold, labels), np.arange(300), np.ones(4, bool), 50, 0).rates()
    for rate, score in {"precision": reference.precision_score, "recall": reference.recall_score}.items():
        assert own.macro[rate].value == pytest.approx(score(gold, labels, average="macro", zero_division=0))
        assert own.pooled[rate].value == pytest.approx(score(gold, labels, average="micro"))
    assert own.macro["f1"].value == pytest.approx(reference.f1_score(gold, labels, average="macro", zero_division=0))


def test_a_rate_without_a_value_is_nan():
    table = np.array([[0, 0], [0, 2], [3, 0], [5, 6]])
    values = rates(table)
    assert np.isnan(values["precision"][0])
    assert np.isnan(values["recall"][1])
    assert np.isnan(values["f1"][1])
    assert np.isnan(rates(np.array([0, 0, 0, 4]))["kappa"])


def test_the_difference_of_a_labeller_and_itself_is_zero_in_every_draw():
    gold, labels = drawn(0)
    subjects = np.arange(len(gold)) // 3
    own = Resampled.of(counts(gold, labels), subjects, np.ones(5, bool), 100, 7)
    for estimate in differences(own, own).values():
        assert estimate.value == estimate.low == estimate.high == 0


def test_a_clear_gain_is_clear_and_copies_of_a_study_of_one_subject_add_nothing():
    gold, _ = drawn(3, rows=300)
    rng = np.random.default_rng(0)
    good = np.where(rng.random(gold.shape) < 0.02, 1 - gold, gold).astype(np.int8)
    bad = np.where(rng.random(gold.shape) < 0.2, 1 - gold, gold).astype(np.int8)
    mean = np.ones(5, bool)

    def pair(copies: int) -> list[Resampled]:
        subjects = np.repeat(np.arange(300), copies)
        return [
            Resampled.of(counts(np.repeat(gold, copies, 0), np.repeat(x, copies, 0)), subjects, mean, 400, 0)
            for x in (good, bad)
        ]

    once, five = differences(*pair(1)), differences(*pair(5))
    assert once["pooled", "f1"].low > 0
    assert five["pooled", "f1"].low == pytest.approx(once["pooled", "f1"].low)


def test_weights_of_a_sample_give_the_counts_of_all():
    gold, labels = drawn(2, rows=4000)
    chance = np.where(gold[:, 0] == 1, 0.9, 0.3)
    whole = counts(gold, labels).sum(axis=1)
    rng, sums = np.random.default_rng(0), []
    for _ in range(200):
        taken = rng.random(len(gold)) < chance
        sums.append(counts(gold[taken], labels[taken], 1 / chance[taken]).sum(axis=1))
    error = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert (np.abs(np.mean(sums, axis=0) - whole) < 4 * error + 1e-9).all()


def test_no_interval_leaves_the_range_of_its_rate_and_full_agreement_of_few_is_not_certain():
    gold = np.zeros((200, 2), np.int8)
    gold[:8, 0], gold[:6, 1] = 1, 1
    labels = gold.copy()
    labels[0, 1] = 0
    own = Resampled.of(counts(gold, labels), np.arange(200), np.ones(2, bool), 200, 0).rates()
    for rate, estimates in own.intervals.items():
        least = 0 if rate in ("precision", "recall", "f1") else -1
        for estimate in estimates:
            assert least <= estimate.low <= estimate.value <= estimate.high <= 1
    assert own.intervals["kappa"][0].value == 1
    assert own.intervals["kappa"][0].low < 0.9
