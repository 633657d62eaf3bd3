"""A trial: what trains and what validates, stage after stage, and what is left."""

from __future__ import annotations

import pytest
from conftest import write_images

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models import weights
from cxrlt_ray.storage import Store
from cxrlt_ray.training import trial


@pytest.mark.parametrize("folds", [0, 3])
def test_training_and_validation_share_no_subject_and_views_limit_training_only(tmp_path, folds):
    manifest = write_images(tmp_path, 40)
    manifest.table.loc[::2, "view"] = "LATERAL"
    shards = None
    validated = []
    for fold in range(max(folds, 1)):
        job = trial.Job(Store(str(tmp_path)), shards, manifest.findings, "", "frontal", folds)
        training, validation = trial.parts(manifest, job, fold)
        subject = manifest.table.set_index("image_id")["subject_id"]
        view = manifest.table.set_index("image_id")["view"]
        assert not set(subject[training.image_id]) & set(subject[validation.image_id])
        assert set(view[training.image_id]) == {"PA"}
        assert training.targets.shape == (len(training.image_id), 2)
        validated += list(validation.image_id)
    split = "train" if folds else "val"
    assert sorted(validated) == sorted(manifest.of_split(split).table["image_id"])


def test_cohorts_choose_who_trains_and_validation_is_always_the_main_ones(tmp_path):
    manifest = write_images(tmp_path, 40)
    manifest.table["cohort"] = ["main", "nih", "main", "chexpert"] * 10
    of = manifest.table.set_index("image_id")["cohort"]
    job = trial.Job(Store(str(tmp_path)), None, manifest.findings, "")
    for cohorts, wanted in [
        ("main", {"main"}),
        ("outside", {"nih"}),
        ("all", {"main", "nih"}),
        ("nih", {"nih"}),
        ("main+nih", {"main", "nih"}),
    ]:
        training, validation = trial.parts(manifest, job, 0, cohorts)
        assert set(of[training.image_id]) == wanted
        assert set(of[validation.image_id]) == {"main"}
    with pytest.raises(UsageError, match="no images of it; give them by --cohort NAME=DIRECTORY"):
        trial.parts(manifest, job, 0, "vindr")


def test_refitting_trains_on_validation_images_too_and_never_on_test(tmp_path):
    manifest = write_images(tmp_path, 40)
    job = trial.Job(Store(str(tmp_path)), None, manifest.findings, "")
    training, _ = trial.parts(manifest, job, 0, everything=True)
    split = manifest.table.set_index("image_id")["split"]
    assert set(split[training.image_id]) == {"train", "val"}
    assert len(training) == 30


def test_a_trial_ended_from_outside_is_not_written_over(tmp_path):
    store = Store(str(tmp_path))
    store.write_json("trial.json", {"state": "pruned"})
    trial._note(store, {"state": "running", "attempt": 0})
    assert store.read_json("trial.json") == {"state": "pruned"}


def test_a_trial_begun_anew_elsewhere_is_not_written_by_its_first_process(tmp_path):
    store = Store(str(tmp_path))
    store.write_json("trial.json", {"state": "running", "attempt": 1})
    with pytest.raises(CxrltError, match="T0003 was begun anew in another process; this one ends"):
        trial._note(store, {"name": "T0003", "state": "running", "attempt": 0})
    assert store.read_json("trial.json")["attempt"] == 1


def test_weights_of_an_earlier_trial_are_told_with_where_that_began(tmp_path):
    store = Store(str(tmp_path)) / "run" / "trials" / "T0001"
    store.write_json("trial.json", {"weights": "transformers:microsoft/rad-dino"})
    told = trial._sources(f"{store.uri}/fold-0/model.safetensors")
    assert told.endswith("model.safetensors, which began from transformers:microsoft/rad-dino")
    assert weights.saw_mimic(told)
    assert trial._sources("s3://b/w.safetensors") == "s3://b/w.safetensors"
    assert not weights.saw_mimic("timm convnext_small.fb_in22k_ft_in1k")
