"""Generated images beside real ones: they train, are marked in manifest and shards, never validate, weigh nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import write_images

from cxrlt_ray.data.cohort import examine, read_cohort
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.prepare import prepare
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.objectives.registry import ObjectiveSpec, find_objective
from cxrlt_ray.storage import Store
from cxrlt_ray.training.evidence import evidence_of
from cxrlt_ray.training.job import Job, training_images, validation_images


def write_cohort(folder, count, seed, marked):
    """A plain cohort of `count` images; of generated ones, where marked."""
    manifest = write_images(folder, count, seed=seed)
    table = manifest.table[["image_id", "path", "subject_id", "split", "Mass", "Nodule"]]
    if marked:
        table = table.assign(image_id="g" + table["image_id"], split="train", Mass=1, Nodule=0)
        (folder / "generate.json").write_text("{}")
    table.to_csv(folder / "labels.csv", index=False)
    return str(folder)


@pytest.fixture
def joined(tmp_path):
    real = write_cohort(tmp_path / "real", 40, 0, marked=False)
    synthetic = write_cohort(tmp_path / "synthetic", 12, 1, marked=True)
    return read_cohort(real, task="auto", others={"synthetic": synthetic})


def test_each_finding_keeps_its_name_and_the_images_only_train(joined):
    manifest = joined.manifest
    assert manifest.synthetic == ("synthetic",)
    assert manifest.generated.sum() == 12
    part = manifest.where(manifest.generated)
    assert (part.table["split"] == "train").all()
    assert (part.targets(("Mass", "Nodule")) == [1, 0]).all()
    assert any("count for no class weight" in note for note in joined.notes)


def test_the_mark_goes_with_the_manifest_and_an_earlier_file_has_none(joined, tmp_path):
    import pyarrow.parquet as pq

    joined.manifest.write(tmp_path / "m.parquet")
    assert (Manifest.read(tmp_path / "m.parquet").generated == joined.manifest.generated).all()
    table = pq.read_table(tmp_path / "m.parquet")
    old = table.schema.metadata[b"cxrlt_ray"].replace(b', "synthetic": ["synthetic"]', b"")
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"cxrlt_ray": old}), tmp_path / "o.parquet")
    assert not Manifest.read(tmp_path / "o.parquet").generated.any()


def test_generated_images_are_marked_whatever_their_cohort_is_called(tmp_path):
    real = write_cohort(tmp_path / "real", 40, 0, marked=False)
    synthetic = write_cohort(tmp_path / "s", 12, 1, marked=True)
    (tmp_path / "mine.yaml").write_text("reader: table\nfindings: {Mass: Mass}\n")
    manifest = read_cohort(real, task="auto", others={str(tmp_path / "mine.yaml"): synthetic}).manifest
    assert manifest.synthetic == ("mine",)


def test_generated_images_are_no_data_to_validate_on(tmp_path):
    folder = write_cohort(tmp_path / "s", 40, 1, marked=True)
    with pytest.raises(CxrltError, match=r"holds generated images, which only train.*--cohort synthetic="):
        read_cohort(folder, task="auto")
    assert examine(folder, task="auto")[0].manifest.table.shape[0] == 40  # `cohort DIR` shows them all the same
    assert len(read_cohort(folder, labelled=False).manifest.table) == 40  # and a model may score them


def test_a_mapping_without_findings_is_for_generated_images_only(tmp_path):
    from cxrlt_ray.data.mapping import load_mapping

    (tmp_path / "x.yaml").write_text("reader: table\nfindings: {}\n")
    with pytest.raises(UsageError, match="map at least one"):
        load_mapping(str(tmp_path / "x.yaml"))


def test_they_never_validate_and_their_labels_count_for_no_class_weight(joined, tmp_path):
    manifest = joined.manifest
    store = Store(str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    manifest.write(tmp_path / "run" / "manifest.parquet")
    job = Job(store, (), ("Mass", "Nodule"), manifest.fingerprint)
    real = training_images(manifest, job, 0).targets
    wanted = ((real == 1).sum(0), (real >= 0).sum(0))
    for cohorts in ("all", "synthetic", "main"):
        images = training_images(manifest, job, 0, cohorts)
        make = find_objective("multilabel")
        objective = make(ObjectiveSpec(), images.targets, None, evidence_of(job, images, make.needs, 0))
        assert all((own == other).all() for own, other in zip(objective.counts, wanted, strict=True)), cohorts
    folded = Job(store, (), ("Mass", "Nodule"), manifest.fingerprint, folds=2)
    for run in (job, folded):
        assert not validation_images(manifest, run, 0).generated.any()


def test_real_images_of_another_cohort_go_on_counting(tmp_path):
    real = write_cohort(tmp_path / "real", 40, 0, marked=False)
    (tmp_path / "mine.yaml").write_text("reader: table\nfindings: {Mass: Mass, Nodule: Nodule}\n")
    other = write_cohort(tmp_path / "other", 24, 2, marked=False)
    table = pd.read_csv(tmp_path / "other" / "labels.csv", dtype=str)
    table.assign(image_id="o" + table["image_id"]).to_csv(tmp_path / "other" / "labels.csv", index=False)
    manifest = read_cohort(real, task="auto", others={str(tmp_path / "mine.yaml"): other}).manifest
    job = Job(Store(str(tmp_path)), (), ("Mass", "Nodule"), manifest.fingerprint)
    images = training_images(manifest, job, 0, "all")
    make = find_objective("multilabel")
    objective = make(ObjectiveSpec(), images.targets, None, evidence_of(job, images, make.needs, 0))
    assert (objective.counts[0] == (images.targets == 1).sum(0)).all()


def test_shards_carry_the_mark(ray, joined, tmp_path):
    (shards,) = prepare(joined.manifest, str(tmp_path / "storage"), [32], say=lambda _: None)
    assert shards.summary["synthetic"] == 12
    frames = [pd.read_parquet(path) for path in shards.store.local.glob("train-*.parquet")]
    marked = pd.concat(frames).set_index("image_id")["synthetic"]
    assert np.array_equal(marked, marked.index.str.startswith("synthetic/"))
    real = joined.manifest.of_cohort("main")
    assert "synthetic" not in prepare(real, str(tmp_path / "storage"), [32], say=lambda _: None)[0].summary
