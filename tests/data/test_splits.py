"""Splits by subject: nobody stands on two sides, and the rarest finding gets its share."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_ray.data.splits import assign_folds, holdout
from cxrlt_ray.errors import CxrltError


def _cohort(seed: int, people: int, findings: int, alone: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Targets and subjects of a drawn cohort with a long tail; `alone`: one finding a subject at most."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(people), rng.integers(1, 6, people))
    prevalence = rng.beta(0.3, 3, findings)
    lasting = rng.random((people, findings))[subject]
    targets = (0.6 * lasting + 0.4 * rng.random(lasting.shape) < prevalence).astype(np.int8)
    if alone:
        targets[np.arange(findings) != rng.integers(0, findings, people)[subject][:, None]] = 0
    targets[rng.random(targets.shape) < 0.05] = -1
    return targets, np.char.add("p", subject.astype(str))


def _holders(targets: np.ndarray, subjects: np.ndarray, part: np.ndarray, parts: int) -> np.ndarray:
    """Subjects with each finding in each part [parts, C]."""
    return np.array(
        [
            [len(set(subjects[(part == k) & (column == 1)])) for column in targets.T]
            for k in range(parts)
        ]
    ).reshape(parts, targets.shape[1])  # fmt: skip


def _spread(targets: np.ndarray, part: np.ndarray, parts: int) -> np.ndarray:
    """Largest relative deviation of each finding's positives from an equal share."""
    counts = np.array([(targets[part == k] == 1).sum(axis=0) for k in range(parts)])
    return np.abs(counts / counts.mean(axis=0) - 1).max(axis=0)


cohorts = st.builds(_cohort, st.integers(0, 10_000), st.integers(8, 120), st.integers(1, 12), st.booleans())


@settings(max_examples=40, deadline=None)
@given(cohorts, st.integers(2, 5), st.integers(0, 3))
def test_each_subject_is_in_one_fold_and_each_fold_has_subjects(cohort, folds, seed):
    targets, subjects = cohort
    fold = assign_folds(targets, subjects, folds, seed)
    assert set(fold) == set(range(folds))
    assert (pd.Series(fold).groupby(subjects).nunique() == 1).all()


@settings(max_examples=40, deadline=None)
@given(
    st.builds(_cohort, st.integers(0, 10_000), st.integers(8, 120), st.integers(1, 12), st.just(True)),
    st.integers(2, 5),
)
def test_a_finding_of_enough_subjects_is_in_every_fold(cohort, folds):
    targets, subjects = cohort
    holders = _holders(targets, subjects, assign_folds(targets, subjects, folds, 0), folds)
    enough = holders.sum(axis=0) >= folds
    assert (holders[:, enough] > 0).all()


def test_findings_that_come_together_are_in_every_fold_too():
    for seed in range(40):
        targets, subjects = _cohort(seed, 60, 10)
        holders = _holders(targets, subjects, assign_folds(targets, subjects, 4, seed), 4)
        assert (holders[:, holders.sum(axis=0) >= 4] > 0).all(), f"seed {seed}"


@settings(max_examples=30, deadline=None)
@given(cohorts, st.integers(0, 3))
def test_folds_depend_on_the_seed_and_not_on_the_order_of_the_images(cohort, seed):
    targets, subjects = cohort
    fold = assign_folds(targets, subjects, 3, seed)
    order = np.random.default_rng(seed).permutation(len(subjects))
    assert (assign_folds(targets[order], subjects[order], 3, seed) == fold[order]).all()


def test_another_seed_gives_other_folds():
    targets, subjects = _cohort(0, 100, 5)
    assert (assign_folds(targets, subjects, 3, 0) != assign_folds(targets, subjects, 3, 1)).any()


def test_more_folds_than_subjects_are_refused():
    with pytest.raises(CxrltError, match="5 folds need at least 5 subjects; there are 2"):
        assign_folds(np.zeros((3, 1), np.int8), np.array(["a", "b", "b"]), 5, 0)


def test_not_labelled_counts_as_no_positive():
    targets = np.array([[-1], [-1], [1], [1]], np.int8)
    fold = assign_folds(targets, np.array(list("abcd")), 2, 0)
    assert sorted(fold[2:]) == [0, 1]


def test_a_cohort_without_any_positive_is_split_by_size():
    kept = holdout(np.zeros((100, 3), np.int8), np.arange(100), 0.2, 0)
    assert kept.sum() == 20


@settings(max_examples=40, deadline=None)
@given(st.builds(_cohort, st.integers(0, 10_000), st.integers(20, 120), st.integers(1, 12), st.just(True)))
def test_holdout_shares_out_a_finding_of_two_subjects(cohort):
    targets, subjects = cohort
    kept = holdout(targets, subjects, 0.15, 0)
    assert (pd.Series(kept).groupby(subjects).nunique() == 1).all()
    holders = _holders(targets, subjects, kept.astype(int), 2)
    assert (holders[:, holders.sum(axis=0) >= 2] > 0).all()


def test_holdout_takes_its_share_of_images_and_of_each_frequent_finding():
    targets, subjects = _cohort(1, 3000, 12)
    kept = holdout(targets, subjects, 0.15, 0)
    positives = (targets == 1).sum(axis=0)
    share = (targets[kept] == 1).sum(axis=0)[positives > 200] / positives[positives > 200]
    assert kept.mean() == pytest.approx(0.15, abs=0.01)
    assert share == pytest.approx(0.15, abs=0.01)


def test_images_of_a_real_long_tail_are_better_balanced_than_by_the_reference_on_subjects(shared_data):
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    table = pd.read_parquet(shared_data / "labels" / "nih_cxr_lt.parquet")
    names = [name for name in table if str(table[name].dtype) == "Int8"]
    targets = np.column_stack([table[name].fillna(-1).to_numpy(np.int8) for name in names])
    subjects = table["subject_id"].to_numpy()
    start = time.process_time()
    fold = assign_folds(targets, subjects, 5, 0)
    assert time.process_time() - start < 40
    assert np.bincount(fold).std() / len(fold) < 0.005
    people, of = np.unique(subjects, return_inverse=True)
    has = np.zeros((len(people), len(names)), int)
    np.maximum.at(has, of, (targets == 1).astype(int))
    theirs = np.zeros(len(people), int)
    splitter = MultilabelStratifiedKFold(5, shuffle=True, random_state=0)
    for k, (_, rows) in enumerate(splitter.split(has, has)):
        theirs[rows] = k
    ours, reference = _spread(targets, fold, 5), _spread(targets, theirs[of], 5)
    assert ours.mean() < 0.5 * reference.mean()
    assert (_holders(targets, subjects, fold, 5)[:, (has.sum(axis=0) >= 5)] > 0).all()


@pytest.mark.parametrize("name", ["nih64", "nih384"])
def test_a_small_real_cohort_has_every_finding_on_both_sides(shared_data, name):
    table = pd.read_csv(shared_data / name / "labels.csv")
    targets = table.iloc[:, 8:].to_numpy(np.int8)
    kept = holdout(targets, table["subject_id"].to_numpy(), 0.15, 0)
    assert (targets[kept] == 1).any(axis=0).all()
    assert (targets[~kept] == 1).any(axis=0).all()
    assert kept.mean() == pytest.approx(0.15, abs=0.01)
