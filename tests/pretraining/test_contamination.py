"""What a backbone has seen of a run's images is computed from hashes, for sweeps and for ensembles."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images
from drawn_run import make_run

from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.data.fingerprints import HashedSet, image_keys, release_of, subject_keys
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.prepare import prepare
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.ensembling.from_run import contaminations_of
from cxrlt_ray.ensembling.pool import Pool
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.pretrain_record import BEGAN, FILE, PretrainRecord, contaminations, hashed, records_of
from cxrlt_ray.runs.records import RunRecord, ShardsRecord
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.run_data import RunData
from cxrlt_ray.search.run_setup import with_contamination
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.storage import Store
from cxrlt_ray.training.trial import origin_of

CONFIG = TrialConfig(backbone="test_convnext", resolution=32, epochs=1, pretrained=False, objective="simclr")


def read(folder: Path) -> Manifest:
    return read_cohort(str(folder), task="auto").manifest


def prepared(manifest: Manifest, storage: Path) -> Shards:
    return prepare(manifest, str(storage), [32], say=lambda text: None)[0]


def with_labels(folder: Path, seed: int = 0, prefix: str = "") -> Path:
    """64 images with labels.csv, under other names where there is a prefix."""
    table = write_images(folder, 64, seed=seed).table
    for column in ("image_id", "subject_id", "study_id"):
        table[column] = prefix + table[column]
    table[["image_id", "path", "subject_id", "study_id", "split", "Mass", "Nodule"]].to_csv(
        folder / "labels.csv", index=False
    )
    return folder


@pytest.fixture(scope="module")
def cohort(ray, tmp_path_factory):
    """A cohort, its shards, and a backbone that was pretrained on its training images and half of its test images."""
    folder = tmp_path_factory.mktemp("seen")
    data = with_labels(folder / "data")
    manifest = read(data)
    shards = prepared(manifest, folder)
    test = np.flatnonzero((manifest.table["split"] == "test").to_numpy())
    chosen = (manifest.table["split"] == "train").to_numpy().copy()
    chosen[test[::2]] = True
    part = dataclasses.replace(manifest.where(chosen), table=manifest.where(chosen).table.assign(cohort="own"))
    out = Store(str(folder / "pretrained"))
    seen = hashed(part, {"own": release_of("table", str(data))}, shards, "salt")
    PretrainRecord(method="simclr", config=CONFIG, weights="none", seen=[seen]).write(out, FILE)
    return folder, data, manifest, shards, f"{out.uri}/backbone.safetensors"


def test_a_hashed_set_holds_what_was_put_in_and_nothing_else():
    keys = [f"mimic/{k}" for k in range(3000)]
    kept = HashedSet.of(keys, "salt")
    assert len(kept) == 3000
    assert kept.holds(keys).all()
    assert not kept.holds([f"mimic/{k}" for k in range(3000, 9000)]).any()
    assert HashedSet.of(keys[:1], "salt").hashes != HashedSet.of(keys[:1], "pepper").hashes
    assert "mimic" not in kept.model_dump_json()
    assert HashedSet.model_validate_json(kept.model_dump_json()) == kept
    assert not HashedSet.of([], "salt").holds(["a"]).any()


def test_two_releases_of_one_hospital_share_their_subjects_and_plain_tables_do_not(tmp_path):
    assert release_of("cxrlt2023", "/a") == release_of("cxrlt2024", "/b")
    assert release_of("nih", "/a") == release_of("nih", "/b") != release_of("padchest", "/b")
    assert release_of("table", "/a") != release_of("table", "/b")
    (tmp_path / "phantom.json").write_text("{}")
    assert release_of("cxrlt2024", str(tmp_path)) != release_of("cxrlt2024", "/b")  # drawn patients are nobody's


def test_what_was_seen_is_counted_by_split(cohort):
    _, data, manifest, shards, weights = cohort
    (found,) = contaminations(weights, manifest, str(data), shards)
    assert (found.split, found.images, found.of_images) == ("test", 8, 16)
    assert (found.subjects, found.of_subjects) == (8, 16)
    assert "8 of the 16 test subjects" in found.sentence


def test_another_copy_under_other_names_is_recognised_by_its_images(cohort, tmp_path):
    _, data, _, _, weights = cohort
    copy = with_labels(tmp_path / "copy", prefix="other")
    for path in data.glob("*.jpg"):
        shutil.copyfile(path, copy / path.name)
    renamed = read(copy)
    assert not set(renamed.table["subject_id"]) & set(read(data).table["subject_id"])
    (found,) = contaminations(weights, renamed, str(copy), prepared(renamed, tmp_path))
    assert (found.split, found.images, found.subjects) == ("test", 8, 8)


def test_other_images_of_other_people_are_not(cohort, tmp_path):
    _, _, _, _, weights = cohort
    other = with_labels(tmp_path / "other", seed=5)
    assert contaminations(weights, read(other), str(other), prepared(read(other), tmp_path)) == []


def test_other_images_of_the_same_people_are_recognised_by_their_ids(cohort, tmp_path):
    """Another download of a release, recompressed."""
    _, data, _, _, weights = cohort
    other = with_labels(tmp_path / "other", seed=5)
    again = read(other)
    (found,) = contaminations(weights, again, str(data), prepared(again, tmp_path))
    assert (found.images, found.subjects) == (0, 8)


def test_an_image_that_was_not_prepared_has_no_key(cohort):
    _, _, manifest, shards, _ = cohort
    known = manifest.table["image_id"].iloc[0]
    first, second = image_keys(shards, [known, "not there"])
    assert first
    assert not second
    assert subject_keys("nih", ["1"]) == ["nih/1"]


def test_a_sweep_that_begins_with_these_weights_says_so_and_records_it(cohort, tmp_path, capsys):
    _, data, manifest, shards, weights = cohort
    (tmp_path / "s.yaml").write_text(
        "trials: 1\nepochs: 1\nparameters: {backbone: test_convnext, resolution: 32, checkpoint: " + weights + "}\n"
    )
    space, run_data = load_space(str(tmp_path / "s.yaml")), RunData(manifest, Task("x", ("Mass",)), str(data), {})
    record = with_contamination(RunRecord(name="r", task=Task("x", ("Mass",))), space, run_data, (shards,))
    assert [(seen.split, seen.subjects) for seen in record.seen] == [("test", 8)]
    assert "Warning: " + weights in capsys.readouterr().out
    assert RunRecord.model_validate_json(record.model_dump_json()) == record
    folded = with_contamination(RunRecord(name="r", task=Task("x", ("Mass",)), folds=3), space, run_data, (shards,))
    assert [seen.split for seen in folded.seen] == ["test", "train"]  # whose folds judge
    assert "validation by folds of them promises too much" in capsys.readouterr().out
    (tmp_path / "s.yaml").write_text(
        "trials: 1\nepochs: 1\nparameters: {backbone: test_convnext, resolution: 32, pretrained: false}\n"
    )
    other = with_contamination(
        record.model_copy(update={"seen": ()}), load_space(str(tmp_path / "s.yaml")), run_data, (shards,)
    )
    assert other.seen == ()


def test_an_ensemble_is_flagged_for_chosen_members_alone_even_where_the_weights_are_gone(cohort, tmp_path):
    _, data, manifest, shards, weights = cohort
    run, _ = make_run(tmp_path)
    trials = run.trials()[:2]
    trials[0].record.weights = f"/an/earlier/fold-0/model.safetensors{BEGAN}{weights}"
    storage, name = Store(shards.store.uri.rpartition("/shards/")[0]), shards.name()
    about = run.record.model_copy(update={"data": str(data), "shards": (ShardsRecord(name=name, size=32),)})
    run = dataclasses.replace(run, store=storage / "r", record=RunRecord.model_validate(about.model_dump()))
    pool = Pool(["a", "b"], np.array([]), np.array([]), np.array([]), np.array([]), trials)
    (found,) = contaminations_of(run, manifest, pool, [True, True])
    assert (found.weights, found.split, found.subjects) == (weights, "test", 8)
    assert contaminations_of(run, manifest, pool, [False, True]) == []
    gone = dataclasses.replace(
        run,
        record=run.record.model_copy(
            update={"seen": (found.model_copy(update={"weights": "/gone/backbone.safetensors"}),)}
        ),
    )
    trials[1].record.weights = "/gone/backbone.safetensors"
    (kept,) = contaminations_of(gone, manifest, pool, [False, True])
    assert kept.subjects == 8


def test_sources_of_weights_are_told_through_all_pretrainings(tmp_path):
    first, second = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    PretrainRecord(method="simclr", config=CONFIG, weights="transformers:microsoft/rad-dino").write(first, FILE)
    begun = origin_of(f"{first.uri}/backbone.safetensors")
    assert begun == f"{first.uri}/backbone.safetensors{BEGAN}transformers:microsoft/rad-dino"
    PretrainRecord(method="simclr", config=CONFIG, weights=begun).write(second, FILE)
    assert origin_of(f"{second.uri}/backbone.safetensors").count(BEGAN) == 2
    second.write(FILE, b"{}")
    with pytest.raises(CxrltError, match=r"pretrain\.json"):
        list(records_of(f"{second.uri}/backbone.safetensors"))
