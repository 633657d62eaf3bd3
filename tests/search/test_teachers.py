"""Whom a teacher saw is computed from its record: by split, by fold, and by what chose its weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.fingerprints import HashedSet
from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.soft_targets import SoftTargets, read_from
from cxrlt_ray.data.teacher import EVERY, Teacher, TeacherMember
from cxrlt_ray.errors import UsageError
from cxrlt_ray.search.pseudo_labels import check_teacher
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.storage import Store
from cxrlt_ray.training.job import Job, folds_of, training_images

FINDINGS = ("Mass", "Nodule")
SPACE = """
trials: 1
epochs: 1
parameters:
  {backbone: test_convnext, pretrained: false, resolution: 32, lr: 1e-3, objective: noisy_student, cohorts: all}
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(SPACE)
    return load_space(str(path))


def cohort(validation=True):
    """60 subjects of the main cohort in train, val and test, or train and test alone, and 10 of nih without Nodule."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame([dict.fromkeys(META)] * 70)
    table["image_id"] = [f"i{k}" if k < 60 else f"nih/{k}" for k in range(70)]
    table["subject_id"] = [f"s{k}" if k < 60 else f"nih/{k}" for k in range(70)]
    table["cohort"] = ["main"] * 60 + ["nih"] * 10
    splits = ["train", "train", "val" if validation else "train", "test"]
    table["split"] = [splits[k % 4] if k < 60 else "train" for k in range(70)]
    table[list(FINDINGS)] = rng.integers(0, 2, (70, 2))
    table = table.astype(dict.fromkeys(FINDINGS, "Int8"))
    table.loc[60:, "Nodule"] = pd.NA
    return Manifest(table, FINDINGS, "table", "/data")


def hashed(subjects):
    return HashedSet.of(subjects, "salt")


def taught(manifest, folds=0, seed=0, **changes):
    """Pseudo-labels of nih's cells by a teacher that trained on the manifest's training images."""
    train = (manifest.table["split"] == "train").to_numpy()
    subjects = manifest.table["subject_id"].to_numpy()[train]
    left_out = folds_of(manifest, FINDINGS, folds, seed)[train] if folds else np.full(train.sum(), EVERY)
    about = {"key": "k", "run": "/runs/r", "fingerprint": "f", "ensemble": "mean", "weights": "mean", "values": "soft"}
    about |= {"findings": FINDINGS, "folds": folds, "images": {"nih": 10}}
    about |= {"members": (TeacherMember(trial="T0000", checkpoints={"fold-0": "00"}),)}
    about |= {"trained_on": {int(fold): hashed(subjects[left_out == fold]) for fold in np.unique(left_out)}}
    teacher = Teacher.model_validate({**about, **changes})
    ids = pd.Index([f"nih/{k}" for k in range(60, 70)], name="image_id")
    tables = [pd.DataFrame({"Mass": np.nan, "Nodule": 0.1 * (fold + 1)}, ids, dtype="float32") for fold in range(folds)]
    table = pd.DataFrame({"Mass": np.nan, "Nodule": 0.5}, ids, dtype="float32")
    table = sum(tables) / folds if folds else table
    return SoftTargets(table, teacher.provenance, (), teacher, tuple(tables))


def test_a_student_split_as_its_teachers_run_was_may_learn(space):
    manifest = cohort()
    (note,) = check_teacher(taught(manifest), manifest, "/data", FINDINGS, 0, 0, space)
    assert note.startswith("Pseudo-labels: 10 cells without a label in 10 images, by soft pseudo-labels k")
    folded = cohort(validation=False)
    assert len(check_teacher(taught(folded, 3), folded, "/data", FINDINGS, 3, 0, space)) == 1


def test_a_fold_is_never_taught_by_what_saw_its_subjects(space):
    folded = cohort(validation=False)
    for folds, seed in ((3, 1), (2, 0)):
        with pytest.raises(UsageError, match=r"trained on .* of the .* subjects of fold"):
            check_teacher(taught(folded, 3), folded, "/data", FINDINGS, folds, seed, space)
    with pytest.raises(UsageError, match=r"of validation, holdout or test, .* Its run has --folds 3"):
        check_teacher(taught(folded, 3), cohort(), "/data", FINDINGS, 0, 0, space)
    with pytest.raises(UsageError, match="subjects of fold 0"):
        check_teacher(taught(cohort()), folded, "/data", FINDINGS, 3, 0, space)


def test_who_taught_the_teacher_counts_too(space):
    """A student's student, split anew: its judges trained the first teacher, not the second."""
    manifest = cohort()
    first = taught(manifest).teacher
    judges = manifest.table.loc[manifest.table["split"] == "val", "subject_id"].to_numpy()
    saw = first.model_copy(update={"trained_on": {EVERY: hashed(judges)}})
    with pytest.raises(UsageError, match=r"trained on \d+ of the \d+ subjects of validation"):
        check_teacher(taught(manifest, earlier=saw), manifest, "/data", FINDINGS, 0, 0, space)
    chose = first.model_copy(update={"chosen_on": hashed(judges)})
    with pytest.raises(UsageError, match="chose the teacher's weights"):
        check_teacher(taught(manifest, earlier=chose), manifest, "/data", FINDINGS, 0, 0, space)
    assert check_teacher(taught(manifest, earlier=first), manifest, "/data", FINDINGS, 0, 0, space)


def test_a_chain_of_folds_is_judged_fold_by_fold(space):
    folded = cohort(validation=False)
    chain = taught(folded, 3, earlier=taught(folded, 3).teacher)
    assert len(check_teacher(chain, folded, "/data", FINDINGS, 3, 0, space)) == 1
    mixed = taught(folded, 3, earlier=taught(folded, 2).teacher)
    with pytest.raises(UsageError, match="subjects of fold 0"):
        check_teacher(mixed, folded, "/data", FINDINGS, 3, 0, space)


def test_each_fold_learns_from_its_own_teacher_and_a_refit_from_the_mean(tmp_path):
    folded, store = cohort(validation=False), Store(str(tmp_path))
    taught(folded, 3).write(store)
    soft = read_from(store)
    assert soft.teacher == taught(folded, 3).teacher
    assert len(soft.folds) == 3
    job = Job(store, (), FINDINGS, "", folds=3, soft_targets=True)
    for fold, value in ((0, 0.1), (1, 0.2), (2, 0.3), (3, 0.2)):
        images = training_images(folded, job, fold, "all", with_validation=fold == 3)
        outside = np.array([name.startswith("nih/") for name in images.image_id])
        assert outside.sum() == 10
        np.testing.assert_allclose(images.soft[outside, 1], value, rtol=1e-6)
        assert np.isnan(images.soft[images.targets >= 0]).all()


def test_a_teacher_that_trained_on_validation_images_is_refused(space):
    """As a refit one would be."""
    manifest = cohort()
    refit = taught(manifest, trained_on={EVERY: hashed(manifest.table["subject_id"])})
    with pytest.raises(UsageError, match="trained on 30 of the 30 subjects of validation, holdout or test"):
        check_teacher(refit, manifest, "/data", FINDINGS, 0, 0, space)


def test_a_teacher_that_learnt_the_judges_as_another_cohort_is_refused(space):
    manifest = dataclasses.replace(cohort(), source="nih")
    table = manifest.table
    judge = table.loc[table["split"] == "test", "subject_id"].iloc[0]
    soft = taught(manifest, trained_on={EVERY: hashed([f"nih/{judge}"])})
    with pytest.raises(UsageError, match="trained on 1 of the 30 subjects of validation, holdout or test"):
        check_teacher(soft, manifest, "/data", FINDINGS, 0, 0, space)


def test_weights_that_labels_of_judges_chose_are_refused_and_those_of_others_are_not(space):
    manifest = cohort()
    judges = manifest.table.loc[manifest.table["split"] == "val", "subject_id"]
    soft = taught(manifest, weights="chosen", chosen_on=hashed(judges))
    with pytest.raises(UsageError, match=r"the labels of 15 of the 30 subjects .* chose the teacher's weights"):
        check_teacher(soft, manifest, "/data", FINDINGS, 0, 0, space)
    others = taught(manifest, weights="chosen", chosen_on=hashed(["someone", "else"]))
    assert len(check_teacher(others, manifest, "/data", FINDINGS, 0, 0, space)) == 1


def test_a_record_of_a_later_version_or_a_damaged_one_is_refused(tmp_path):
    import json

    import pyarrow.parquet as pq

    store = Store(str(tmp_path))
    taught(cohort()).write(store)
    table = pq.read_table(tmp_path / "soft_targets.parquet")
    about = json.loads(table.schema.metadata[b"cxrlt_ray"])
    for change, message in (
        ({"version": 3}, "of version 3; this"),
        ({"version": 1}, "of version 1; this"),
        ({"values": "odd"}, "record of its teacher is damaged"),
    ):
        wrong = {**about, "teacher": {**about["teacher"], **change}}
        pq.write_table(
            table.replace_schema_metadata({b"cxrlt_ray": json.dumps(wrong).encode()}), tmp_path / "w.parquet"
        )
        with pytest.raises(UsageError, match=message):
            read_from(store, "w.parquet")


def test_subjects_are_not_in_the_record_by_name():
    soft = taught(cohort())
    text = soft.teacher.model_dump_json()
    assert not [name for name in cohort().table["subject_id"] if f'"{name}"' in text]
    assert soft.teacher.saw(["s0", "s3", "nih/60"]).tolist() == [True, False, True]
