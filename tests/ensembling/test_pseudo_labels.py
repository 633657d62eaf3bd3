"""From scores to pseudo-labels: no label is touched, a fold's labels stay out of its teacher, prevalence is right."""

from __future__ import annotations

import itertools
import shlex
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_ray import pseudo
from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.soft_targets import SoftTargets
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.ensembling.apply import Ensemble
from cxrlt_ray.ensembling.pseudo_labels import (
    calibrated_validation,
    few_positives,
    lines_of,
    maps_of,
    pseudo_labels,
)
from cxrlt_ray.ensembling.pseudo_request import PseudoRequest
from cxrlt_ray.ensembling.teacher import EnsembleTeacher, Validation
from cxrlt_ray.ensembling.teaching import record_of, scores_of
from cxrlt_ray.ensembling.unlabelled import Unlabelled, unlabelled_images
from cxrlt_ray.evaluation.soft_labels import class_aware
from cxrlt_ray.objectives.noisy_student import NoisyStudent
from cxrlt_ray.objectives.registry import ObjectiveSpec
from cxrlt_ray.reporting.pseudo_labels import meets
from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.runs.records import RunRecord
from cxrlt_ray.storage import Store

FINDINGS = ("Mass", "Nodule", "Edema")


def drawn(images, seed=0, shares=(0.3, 0.15, 0.05)):
    """Labels int8 [N, 3], and scores of a teacher whose loss inflates them."""
    rng = np.random.default_rng(seed)
    base = np.log(np.array(shares) / (1 - np.array(shares)))
    true = base + rng.normal(0, 1.5, (images, 3))
    targets = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.int8)
    return targets, 1 / (1 + np.exp(-(0.6 * true + 1.0)))


def validation(images=3000, folds=1, seed=0):
    targets, scores = drawn(images, seed)
    subjects = np.arange(images) // 2
    return Validation(scores, targets, subjects, subjects % folds)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["soft", "hard", "raw"]), st.integers(1, 3))
def test_no_label_ever_changes(seed, values, teachers):
    """Whatever labels, scores and values are: in the table that the student learns, labels are as they were."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(-1, 2, (30, 3)).astype(np.int8)
    scores = rng.random((teachers, 30, 3))
    scores[rng.random(scores.shape) < 0.1] = np.nan  # quarantine
    folds = teachers if teachers > 1 else 0
    maps = maps_of(validation(200, max(folds, 1), seed), folds)
    cohorts = {"a": np.arange(30) < 12, "b": np.arange(30) >= 12}
    filled = pseudo_labels(scores, targets, cohorts, values, maps, np.full((teachers, 3), 0.2), 0.8)
    assert np.isnan(filled[:, targets >= 0]).all()
    assert ((filled >= 0) & (filled <= 1) | np.isnan(filled)).all()
    if values != "hard":
        np.testing.assert_array_equal(np.isnan(filled), np.isnan(scores) | (targets >= 0))
    # even where pseudo-labels were wrongly given for every cell
    soft = np.where(rng.random(targets.shape) < 0.8, rng.random(targets.shape), np.nan).astype(np.float32)
    student = NoisyStudent(ObjectiveSpec(objective="noisy_student"), targets, soft)
    table = student.table()
    np.testing.assert_array_equal(table[targets >= 0], targets[targets >= 0])
    np.testing.assert_array_equal(table[targets < 0], np.where(np.isnan(soft), -1, soft)[targets < 0])
    np.testing.assert_array_equal(student.counts, [(targets == 1).sum(0), (targets >= 0).sum(0)])


def test_the_loss_of_a_student_is_that_of_multilabel_on_the_filled_labels_with_weights_from_real_ones():
    import torch

    from cxrlt_ray.objectives.multilabel import MultiLabel

    rng = np.random.default_rng(0)
    targets = rng.integers(-1, 2, (16, 3)).astype(np.int8)
    soft = rng.random((16, 3)).astype(np.float32)
    spec = ObjectiveSpec(objective="noisy_student", loss="weighted_bce")
    student, plain = NoisyStudent(spec, targets, soft), MultiLabel(spec, targets)
    rows, logits = torch.from_numpy(student.table()), torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    assert student.loss(logits, [(1.0, rows)]) == plain.loss(logits, [(1.0, rows)])
    alone = NoisyStudent(spec, targets, None)
    np.testing.assert_array_equal(alone.table(), plain.table())


def test_no_label_of_a_folds_subjects_reaches_what_its_student_learns():
    before = validation(400, folds=2)
    targets = before.targets.copy()
    targets[before.fold == 1] = 1 - targets[before.fold == 1]
    after = Validation(before.scores, targets, before.subjects, before.fold)
    scores = np.random.default_rng(1).random((2, 20, 3))
    empty, cohorts = np.full((20, 3), -1, np.int8), {"a": np.ones(20, bool)}
    one, two = (
        pseudo_labels(scores, empty, cohorts, "soft", maps_of(part, 2), np.full((2, 3), 0.2), 0.8)
        for part in (before, after)
    )
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.allclose(one[0], two[0])
    own = calibrated_validation(before, maps_of(before, 2))
    np.testing.assert_array_equal(
        own[before.fold == 1], calibrated_validation(after, maps_of(after, 2))[before.fold == 1]
    )


def test_hidden_cells_of_an_outside_cohort_get_their_true_prevalence():
    """A fifth of the known outside cells is hidden: calibrated sums meet .8 to 1.25, raw ones do not; CAP sets it."""
    known, scores = drawn(4000, seed=3)
    groups = np.arange(4000) // 3
    hidden = np.random.default_rng(0).random(groups.max() + 1)[groups] < 0.2
    told = np.where(hidden[:, None], -1, known)
    maps, everything = maps_of(validation(), 0), {"nih": np.ones(4000, bool)}
    shares = (validation().targets == 1).mean(axis=0)[None]
    soft, raw, hard = (
        pseudo_labels(scores[None], told, everything, values, maps, shares, 0.8)[0]
        for values in ("soft", "raw", "hard")
    )
    of_hidden, truth = hidden, known[hidden]
    lines = lines_of(FINDINGS, truth, scores[of_hidden], soft[of_hidden], hard[of_hidden], groups[of_hidden], 300, 0)
    assert sum(line.positives >= 50 for line in lines) >= 2
    assert all(meets(line) for line in lines if line.positives >= 50)
    raws = lines_of(FINDINGS, truth, scores[of_hidden], raw[of_hidden], hard[of_hidden], groups[of_hidden], 300, 0)
    assert not any(meets(line) for line in raws)
    for line, own in zip(lines, raws, strict=True):
        assert line.ap == own.ap  # a monotone map keeps the order
        assert line.brier < line.brier_raw
        assert line.precision > 1.5 * line.labelled
    given_ = hard[hidden]
    kept = ~np.isnan(given_)
    np.testing.assert_allclose(np.nanmean(given_, axis=0), shares[0], atol=0.02)
    assert kept.mean() == pytest.approx(0.8, abs=0.05)


def test_hard_labels_are_made_within_each_cohort():
    scores = np.concatenate([np.linspace(0.0, 0.4, 50), np.linspace(0.6, 1.0, 50)])[:, None]
    cohorts = {"a": np.arange(100) < 50, "b": np.arange(100) >= 50}
    maps = maps_of(validation(50), 0)
    filled = pseudo_labels(scores[None], np.full((100, 1), -1), cohorts, "hard", maps, np.array([[0.1]]), 1.0)[0]
    for rows in cohorts.values():
        np.testing.assert_array_equal(filled[rows], class_aware(scores[rows], np.array([0.1]), 1.0))
        assert filled[rows].sum() == 5


def test_findings_with_one_positive_subject_are_named_and_break_nothing():
    part = validation(60)
    targets = part.targets.copy()
    targets[:, 2] = 0
    targets[5, 2] = 1
    rare = Validation(part.scores, targets, part.subjects, part.fold)
    assert few_positives(rare, FINDINGS) == ["Edema"]
    (maps,) = maps_of(rare, 0)
    assert np.isfinite(maps(part.scores)).all()
    lines = lines_of(FINDINGS, targets, part.scores, maps(part.scores), targets, part.subjects, 50, 0)
    assert lines[2].positives == 1
    assert lines[2].high is None or lines[2].high >= lines[2].ratio


def unlabelled_run(tmp_path):
    """A run of 4 training images without a label, the last of them in quarantine; and its manifest."""
    table = pd.DataFrame([dict.fromkeys(META, "x") | {"image_id": f"i{k}", "split": "train"} for k in range(4)])
    manifest = Manifest(table.assign(cohort="main", Mass=pd.array([pd.NA] * 4, "Int8")), ("Mass",), "table", "/data")
    about = SimpleNamespace(folds=0, fingerprint="f", seed=0, predicted=("Mass",), transductive=False)
    about.data, about.cohorts, about.soft_targets = "/data", {}, None
    store, index = Store(str(tmp_path / "r")), pd.DataFrame(index=["i0", "i1", "i2"])
    shards = (SimpleNamespace(index=lambda: index),)
    return SimpleNamespace(record=about, name="r", store=store, manifest=lambda: manifest, shards=lambda: shards)


def test_images_in_the_runs_quarantine_are_not_prepared_in_vain(tmp_path):
    """Alone they are all bad: more than --max-bad allows."""
    record = EnsembleRecord.model_validate({"task": Task("t", ("Mass",)), "members": []})
    teacher = EnsembleTeacher(unlabelled_run(tmp_path), Ensemble(record, []), "mean")
    images = unlabelled_images(teacher, PseudoRequest(ensemble="e"))
    assert images.prepared.tolist() == [True] * 4


def test_an_ensemble_that_was_weighed_anew_is_another_teacher(tmp_path, monkeypatch):
    """Of chosen weights, neither kept scores nor names are those of the same members under other weights."""
    run = unlabelled_run(tmp_path)
    manifest = run.manifest()
    images = Unlabelled(manifest, manifest.targets(), np.ones(4, bool))
    monkeypatch.setattr("cxrlt_ray.cluster.start.start_ray", lambda address: None)

    def score(self, work, shards, images):
        assert list(images["image_id"]) == ["i0", "i1", "i2"]
        work.write("part", b"")
        return np.full((1, len(images), 1), self.ensemble.weights[0, 0])

    monkeypatch.setattr(EnsembleTeacher, "score", score)

    def taught(weight, weights):
        members = [{"trial": f"T{k}", "weights": {"Mass": share}} for k, share in enumerate((weight, 1 - weight))]
        record = EnsembleRecord.model_validate(
            {"name": "e", "task": Task("t", ("Mass",)), "fingerprint": "f", "members": members}
        )
        teacher = EnsembleTeacher(run, Ensemble(record, []), weights)
        request, judges = PseudoRequest(ensemble="e", weights=weights), validation(4)
        scores = scores_of(teacher, images, Store(str(tmp_path / "out")), 0.0, None, lambda line: None)
        assert np.isnan(scores[0, 3]).all()  # in quarantine
        return record_of(request, teacher, images, judges).key, scores[0, 0, 0]

    one, other = taught(0.25, "chosen"), taught(0.75, "chosen")
    assert one[0] != other[0]
    assert (one[1], other[1]) == (0.25, 0.75)
    assert taught(0.25, "mean")[0] == taught(0.75, "mean")[0]


def test_the_record_of_a_student_who_teaches_has_its_own_teacher(tmp_path):
    run = unlabelled_run(tmp_path)
    run.record.fingerprint = "g"
    images = Unlabelled(run.manifest(), run.manifest().targets(), np.ones(4, bool))
    record = EnsembleRecord.model_validate({"name": "e", "task": Task("t", ("Mass",)), "members": []})
    teacher = EnsembleTeacher(run, Ensemble(record, []), "mean")
    first = record_of(PseudoRequest(ensemble="e"), teacher, images, validation(4))
    assert first.earlier is None
    labels = pd.DataFrame({"Mass": [0.5]}, pd.Index(["i0"], name="image_id"), dtype="float32")
    SoftTargets(labels, first.provenance, (), first).write(run.store)
    run.record.soft_targets = first.provenance
    second = record_of(PseudoRequest(ensemble="e"), teacher, images, validation(4))
    assert second.earlier == first
    assert second.key != first.key


def test_the_students_command_reads_labels_and_images_as_the_teachers_run_did(capsys):
    read = {"uncertain": "one", "views": "frontal", "val_like": "frontal,any", "holdout": 0.3, "seed": 4}
    given = {"labels": "labels.csv 1f", "labels_mode": "join", "labels_blank": "null"}
    swept = RunRecord(name="r", task=Task("t", ("Mass",)), task_argument="auto", data="/data", **read, **given)
    teacher = SimpleNamespace(run=SimpleNamespace(record=swept, store=Store("runs/r")))
    made = SimpleNamespace(key="k", provenance="p", transductive=False, weights="mean")
    pseudo._say_next(PseudoRequest(ensemble="e"), teacher, made)
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    options = dict(itertools.pairwise(words))
    expected = {**read, "labels": "LABELS", "labels_mode": "join", "labels_blank": "null"}
    for name, value in expected.items():
        assert options[f"--{name.replace('_', '-')}"] == str(value), name
