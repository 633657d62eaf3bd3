"""Who trains and who validates: splits, folds, views, cohorts, and the findings of either."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_images

from cxrlt_ray.data.splits import assign_folds
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import Store
from cxrlt_ray.training import job as job_
from cxrlt_ray.training.job import Job, folds_of, training_images, validation_images


@pytest.mark.parametrize("folds", [0, 3])
def test_training_and_validation_share_no_subject_and_views_limit_training_only(tmp_path, folds):
    manifest = write_images(tmp_path, 40)
    manifest.table.loc[::2, "view"] = "LATERAL"
    shards = None
    validated = []
    for fold in range(max(folds, 1)):
        job = Job(Store(str(tmp_path)), shards, manifest.findings, "", "frontal", folds)
        training, validation = training_images(manifest, job, fold), validation_images(manifest, job, fold)
        subject = manifest.table.set_index("image_id")["subject_id"]
        view = manifest.table.set_index("image_id")["view"]
        assert not set(subject[training.image_id]) & set(subject[validation.image_id])
        assert set(view[training.image_id]) == {"PA"}
        assert training.targets.shape == (len(training.image_id), 2)
        validated += list(validation.image_id)
    split = "train" if folds else "val"
    assert sorted(validated) == sorted(manifest.of_split(split).table["image_id"])


def test_folds_are_assigned_once_for_all_trials_and_are_those_of_the_seed_and_the_findings(tmp_path, monkeypatch):
    """At the challenge's size it takes seconds, and each of K folds asks twice."""
    manifest, counted = write_images(tmp_path, 60, seed=8), []
    monkeypatch.setattr(job_, "assign_folds", lambda *given: (counted.append(given), assign_folds(*given))[1])
    job = Job(Store(str(tmp_path)), None, manifest.findings, "", folds=3, seed=5)
    for _ in range(2):
        for fold in range(3):
            training_images(manifest, job, fold)
            validation_images(manifest, job, fold)
    assert len(counted) == 1
    train = manifest.table["split"] == "train"
    for findings, seed in ((manifest.findings, 5), (manifest.findings, 6), (("Nodule",), 5)):
        wanted = assign_folds(manifest.targets(findings)[train], manifest.table["subject_id"][train], 3, seed)
        np.testing.assert_array_equal(folds_of(manifest, findings, 3, seed)[train], wanted)
    with pytest.raises(CxrltError, match="3 folds need at least 3 subjects; there are 0"):
        folds_of(manifest.where(~train), manifest.findings, 3, 5)


def test_cohorts_choose_who_trains_and_validation_is_always_the_main_ones(tmp_path):
    manifest = write_images(tmp_path, 40)
    manifest.table["cohort"] = ["main", "nih", "main", "chexpert"] * 10
    cohort_of = manifest.table.set_index("image_id")["cohort"]
    job = Job(Store(str(tmp_path)), None, manifest.findings, "")
    for cohorts, wanted in [
        ("main", {"main"}),
        ("outside", {"nih"}),
        ("all", {"main", "nih"}),
        ("nih", {"nih"}),
        ("main+nih", {"main", "nih"}),
    ]:
        assert set(cohort_of[training_images(manifest, job, 0, cohorts).image_id]) == wanted
        assert set(cohort_of[validation_images(manifest, job, 0).image_id]) == {"main"}
    with pytest.raises(UsageError, match="no images of it; give them by --cohort NAME=DIRECTORY"):
        training_images(manifest, job, 0, "vindr")


def test_refitting_trains_on_validation_images_too_and_never_on_test(tmp_path):
    manifest = write_images(tmp_path, 40)
    job = Job(Store(str(tmp_path)), None, manifest.findings, "")
    training = training_images(manifest, job, 0, with_validation=True)
    split = manifest.table.set_index("image_id")["split"]
    assert set(split[training.image_id]) == {"train", "val"}
    assert len(training) == 30


def test_training_has_the_labels_of_the_trained_findings_and_validation_of_the_predicted_ones(tmp_path):
    manifest = write_images(tmp_path, 40)
    job = Job(Store(str(tmp_path)), None, ("Nodule",), "", trained_findings=("Mass", "Nodule"))
    training, validation = training_images(manifest, job, 0), validation_images(manifest, job, 0)
    labels = manifest.table.set_index("image_id")[["Mass", "Nodule"]].astype(int)
    np.testing.assert_array_equal(training.targets, labels.loc[training.image_id])
    np.testing.assert_array_equal(validation.targets[:, 0], labels.loc[validation.image_id, "Nodule"])
    assert job.outputs.tolist() == [1]
    with pytest.raises(UsageError, match="Mass is to be predicted, but no labels of it are trained on"):
        _ = Job(Store(str(tmp_path)), None, ("Mass",), "", trained_findings=("Nodule",)).outputs
