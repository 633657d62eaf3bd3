"""Which images are kept and why others are not; a teacher that has seen the sources does not judge."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cxrlt_ray import generate
from cxrlt_ray.errors import UsageError
from cxrlt_ray.generation.cohort_folder import write_labels
from cxrlt_ray.generation.filtering import COPY, DISAGREES, QUOTA, UNREADABLE, Judged, agreement, counted, reasons
from cxrlt_ray.generation.records import FindingTally, GeneratedRecord, Learnt, Sampled
from cxrlt_ray.generation.teacher import RealScores, Teacher, auroc_interval, check_teacher
from cxrlt_ray.storage import Store

FINDINGS = ("Mass", "Nodule")
OF = np.array(["Mass"] * 4 + ["Nodule"] * 3, object)
NONE = np.zeros(7, bool)


def teacher(*seen):
    run = SimpleNamespace()
    trials = (SimpleNamespace(), SimpleNamespace())
    return Teacher("t", run, trials, np.array([[0.5, 1.0], [0.5, 0.0]]), FINDINGS, tuple(map(frozenset, seen)))


def test_the_first_reason_counts_and_the_quota_is_of_what_is_left():
    copies = np.array([0, 1, 0, 0, 0, 0, 0], bool)
    agrees = np.array([1, 0, 0, 1, 1, 1, 1], bool)
    readable = np.array([1, 1, 1, 1, 0, 1, 1], bool)
    why = reasons(Judged(OF, readable, copies, agrees), 1)
    assert why.tolist() == ["", COPY, DISAGREES, QUOTA, UNREADABLE, "", QUOTA]
    assert (reasons(Judged(OF, ~NONE), None) == "").all()


def test_a_teacher_agrees_where_it_scores_higher_than_most_real_images_without_the_finding():
    random = np.random.default_rng(0)
    targets = (random.random((500, 2)) < 0.3).astype(np.int8)
    real = RealScores(random.random((500, 2)), targets, np.arange(500))
    scores = np.tile(np.linspace(0.1, 0.95, 7)[:, None], 2)
    agrees = agreement(OF, scores, real, FINDINGS, FINDINGS, 0.8)
    for name, column in (("Mass", 0), ("Nodule", 1)):
        without = real.scores[targets[:, column] == 0, column]
        for row in np.flatnonzero(name == OF):
            if abs((without < scores[row, column]).mean() - 0.8) > 0.01:
                assert agrees[row] == ((without < scores[row, column]).mean() > 0.8)
    both = np.array(["Mass+Nodule"], object)
    assert not agreement(both, np.array([[1.0, 0.0]]), real, FINDINGS, FINDINGS, 0.5)[0]
    assert not agreement(both, np.array([[np.nan, 1.0]]), real, FINDINGS, FINDINGS, 0.5)[0]


def test_a_teacher_of_other_findings_is_refused():
    real = RealScores(np.zeros((4, 1)), np.zeros((4, 1), np.int8), np.arange(4))
    with pytest.raises(UsageError, match="does not predict Nodule"):
        agreement(OF, np.zeros((7, 1)), real, ("Mass",), FINDINGS, 0.5)
    ill = replace(real, targets=np.ones((4, 1), np.int8))
    with pytest.raises(UsageError, match="no image without Mass"):
        agreement(OF[:4], np.zeros((4, 1)), ill, ("Mass",), FINDINGS, 0.5)


def test_each_image_is_judged_by_the_folds_that_have_not_seen_its_source():
    folds = teacher({"a", "b"}, {"b", "c"})
    models = check_teacher(folds, np.array(["a", "c", "x"]), False)
    assert models.tolist() == [[False, True], [True, False], [True, True]]
    scores = np.arange(3 * 4 * 2, dtype=float).reshape(3, 4, 2)  # of trial 0 both folds, then of trial 1
    combined = folds.combined(scores, models)
    assert combined[0].tolist() == [(scores[0, 1, 0] + scores[0, 3, 0]) / 2, scores[0, 1, 1]]
    assert combined[1].tolist() == [(scores[1, 0, 0] + scores[1, 2, 0]) / 2, scores[1, 0, 1]]
    assert combined[2, 0] == scores[2, :, 0].mean()


def test_a_teacher_that_has_seen_a_source_is_refused_unless_told():
    folds = teacher({"a", "b"}, {"b", "c"})
    with pytest.raises(UsageError, match=r"has seen the source subjects of 1 of 2 images.*--seen-teacher"):
        check_teacher(folds, np.array(["b", "c"]), False)
    assert check_teacher(folds, np.array(["b", "c"]), True).tolist() == [[True, True], [True, False]]


def test_a_source_is_known_in_whichever_cohort_the_teacher_learnt_it():
    folds = teacher({"nih/b"}, {"b"})  # of another cohort of its run, and of its main data
    assert folds.unseen(np.array(["b", "x"]), "nih").tolist() == [[False, False], [True, True]]
    assert folds.unseen(np.array(["b"])).tolist() == [[True, False]]


def test_a_folder_that_was_filtered_is_not_filtered_again(tmp_path):
    """It does not say which image was drawn for which set: its counts would be wrong."""
    learnt = Learnt(
        data="d", task="t", findings=FINDINGS, images=1, subjects_count=1, cohort="", subjects="", shards="", size=8
    )
    sampled = Sampled(
        sets=("Mass",), each=1, company="real", guidance=1, solver="ddim", solver_steps=1, seed=0, resolution=8
    )
    record = GeneratedRecord(generator="g", learnt=learnt, sampled=sampled, images=1)
    write_labels(Store(str(tmp_path / "kept")), record, ["g000000"], np.array([[1, 0]], np.int8))
    with pytest.raises(UsageError, match=r"draws.parquet is not there.*that `generate sample` made"):
        generate.run(generate.GenerateRequest(action="filter", source=str(tmp_path / "kept"), out=str(tmp_path / "k")))


def test_the_tally_says_what_became_of_the_images_and_what_the_teacher_is_worth():
    random = np.random.default_rng(0)
    targets = np.where(np.array(OF == "Mass")[:, None], [1, 0], [0, 1]).astype(np.int8)
    scores = np.where(targets == 1, 0.9, 0.1)
    real = RealScores(random.random((200, 2)), (random.random((200, 2)) < 0.5).astype(np.int8), np.arange(200))
    tallies = {name: FindingTally(positives=3, drawn=9, kept=9) for name in FINDINGS}
    why = np.array(["", COPY, "", "", QUOTA, "", ""], object)
    made = counted(tallies, OF, why, targets, FINDINGS, (scores, real, FINDINGS), np.arange(7).astype(str))
    assert (made["Mass"].drawn, made["Mass"].kept, made["Mass"].dropped) == (4, 3, {COPY: 1})
    assert made["Mass"].auroc[0] == 1.0
    low, high = made["Mass"].auroc_real[1:]
    assert low < 0.5 < high  # the scores of real images are drawn without regard to their targets


def test_an_auroc_without_negatives_has_no_value():
    assert np.isnan(auroc_interval(np.ones(5, np.int8), np.linspace(0, 1, 5), np.arange(5))).all()
