"""The command, whole and in process: what it leaves, that a cut costs nothing, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images
from safetensors.numpy import load_file

from cxrlt_ray import models, pretrain
from cxrlt_ray.config import names
from cxrlt_ray.data.batching import steps
from cxrlt_ray.errors import CxrltError, Diverged, UsageError
from cxrlt_ray.models import ModelSpec
from cxrlt_ray.objectives import registry
from cxrlt_ray.pretraining import course
from cxrlt_ray.pretraining.cohorts import read_cohorts
from cxrlt_ray.pretraining.plan import plan_stages
from cxrlt_ray.pretraining.settings import check_backbone, load_settings
from cxrlt_ray.runs.pretrain_record import PretrainRecord
from cxrlt_ray.storage import Store

SMALL = {
    "method": "simclr",
    "backbone": "test_convnext",
    "resolution": 32,
    "epochs": 3,
    "batch_size": 16,
    "threads": 1,
    "assignments": ["monitor.every=4", "monitor.images=16", "drop_path=0.2", "ema_decay=0"],
}


def labelled_folder(folder: Path, count: int = 64, seed: int = 0, split: str | None = None) -> str:
    """A directory with labels.csv; the images' own splits, or all of one."""
    table = write_images(folder, count, seed=seed).table
    if split is not None:
        table = table.assign(split=split)
    table[["image_id", "path", "subject_id", "study_id", "split", "Mass", "Nodule"]].to_csv(
        folder / "labels.csv", index=False
    )
    return str(folder)


@pytest.fixture(scope="module")
def storage(ray, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    labelled_folder(folder / "labelled")
    write_images(folder / "bare", 24, seed=1)
    return folder


def request(storage: Path, out: str, **options) -> pretrain.PretrainRequest:
    cohort = [f"own={storage}/labelled", f"more={storage}/bare"]
    given = {**SMALL, "cohort": cohort, "storage": str(storage), "out": f"{storage}/{out}", **options}
    return pretrain.PretrainRequest(**given)


@pytest.fixture(scope="module")
def whole(storage) -> PretrainRecord:
    return pretrain.run(request(storage, "whole"))


def test_it_leaves_a_backbone_that_a_trial_begins_with_and_a_record(storage, whole):
    out = storage / "whole"
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        "backbone.safetensors",
        "pretrain.json",
    ]
    assert PretrainRecord.read(Store(str(out)), "pretrain.json") == whole
    assert (whole.state, whole.method, whole.epoch, whole.weights) == ("finished", "simclr", 3, "none")
    model = models.build(ModelSpec("test_convnext", 32, checkpoint=f"{out}/backbone.safetensors"), 2)
    left, own = load_file(out / "backbone.safetensors"), model.backbone.state_dict()
    assert left.keys() == own.keys()
    assert all(np.array_equal(left[name], own[name].numpy()) for name in own)
    fresh = models.build(ModelSpec("test_convnext", 32, pretrained=False), 2).backbone.state_dict()
    assert any(not np.array_equal(left[name], fresh[name].numpy()) for name in own)


def test_only_training_subjects_are_used_and_some_of_them_measure(storage, whole):
    by_name = {use.name: use for use in whole.cohorts}
    assert by_name["own"].splits == {"train": 32}  # of 64, half are of val and test
    assert (by_name["own"].labelled, by_name["more"].labelled) == (True, False)
    assert by_name["more"].images == 24
    kept = sum(use.monitored for use in whole.cohorts)
    assert 2 <= kept <= 16
    assert not whole.all_splits
    assert whole.steps == 3 * len(steps(32 + 24 - kept, 16))
    assert [point.step for point in whole.curve] == [1, *range(4, whole.steps + 1, 4)]
    assert all(point.effective_rank > 1 for point in whole.curve)


def test_no_id_can_be_read_in_the_record(storage, whole):
    text = (storage / "whole" / "pretrain.json").read_text()
    table = read_cohorts({"own": f"{storage}/labelled"}, "all", 16, 0).manifest.table
    for column in ("image_id", "path"):
        assert not [value for value in table[column] if str(value).split("/")[-1] in text]
    assert len(whole.seen) == 1
    assert len(whole.seen[0].subjects) == 32 + 24
    assert len(whole.seen[0].images) == 32 + 24


class Full(OSError):
    """A disk without room."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_that_is_cut_by_a_full_disk_and_by_ctrl_c_ends_with_the_same_weights(storage, whole, monkeypatch):
    place, states = Store.place, []

    def full(self, name):
        if name.startswith("resume-"):
            states.append(name)
            if len(states) == 2:
                raise CxrltError(f"{name} cannot be written: No space left on device.") from Full()
        return place(self, name)

    with monkeypatch.context() as broken:
        broken.setattr(Store, "place", full)
        with pytest.raises(CxrltError, match=r"No space left.*--resume --out"):
            pretrain.run(request(storage, "cut"))
    cut = PretrainRecord.read(Store(f"{storage}/cut"), "pretrain.json")
    assert cut.state == "running"
    measured, counted = course.measure, []

    def interrupted(*args):
        counted.append(args)
        if len(counted) == 2:
            raise KeyboardInterrupt
        return measured(*args)

    with monkeypatch.context() as broken:
        broken.setattr(course, "measure", interrupted)
        with pytest.raises(CxrltError, match="stopped; what is done is kept"):
            pretrain.run(pretrain.PretrainRequest(resume=True, out=f"{storage}/cut"))
    with pytest.raises(UsageError, match="--lr differs from what"):
        pretrain.run(pretrain.PretrainRequest(resume=True, out=f"{storage}/cut", lr=1.0))
    again = pretrain.run(pretrain.PretrainRequest(resume=True, out=f"{storage}/cut"))
    one, two = (load_file(storage / name / "backbone.safetensors") for name in ("whole", "cut"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert again.curve == whole.curve
    assert again.config == whole.config
    with pytest.raises(UsageError, match="has finished"):
        pretrain.run(pretrain.PretrainRequest(resume=True, out=f"{storage}/cut"))


def test_a_run_whose_cohort_has_changed_does_not_go_on(storage, monkeypatch):
    grown = labelled_folder(storage / "grown", 32)

    def full(self, name):
        if name.startswith("resume-"):
            raise CxrltError(f"{name} cannot be written: No space left on device.") from Full()
        return place(self, name)

    with monkeypatch.context() as broken:
        place = Store.place
        broken.setattr(Store, "place", full)
        with pytest.raises(CxrltError, match="No space left"):
            pretrain.run(request(storage, "changed", cohort=[f"own={grown}"]))
    labelled_folder(storage / "grown", 40)
    again = pretrain.PretrainRequest(resume=True, out=f"{storage}/changed")
    with pytest.raises(UsageError, match=r"the cohorts have \d+ images now, and this pretraining began with \d+"):
        pretrain.run(again)
    labelled_folder(storage / "grown", 32)
    assert pretrain.run(again).state == "finished"


def test_adapters_are_added_to_the_weights_that_are_left(storage):
    own = {"method": "mae", "backbone": "test_vit", "epochs": 1, "cohort": [f"own={storage}/labelled"]}
    assignments = ["monitor.every=4", "monitor.images=16", "image_lora=2", "drop_path=0"]
    pretrain.run(request(storage, "adapted", **own, assignments=assignments))
    left = f"{storage}/adapted/backbone.safetensors"
    assert models.build(ModelSpec("test_vit", 32, checkpoint=left), 2)


def test_steps_beyond_the_files_epochs_are_planned_as_they_are_run(tmp_path):
    config = load_settings(None, "mae", {"steps": 5000, "backbone": "test_vit", "resolution": 32}).config
    (stage,) = plan_stages(config, 300, 1, "cpu-2", 2, Store(str(tmp_path)))
    assert stage.steps == 5000


@pytest.mark.parametrize("assignment", ["pretrained=true", "checkpoint=weights.safetensors"])
def test_weights_given_by_set_are_continued_as_those_of_an_option(assignment):
    own = load_settings(None, "dinov2", {}, [assignment]).config
    name, _, value = assignment.partition("=")
    by_option = load_settings(None, "dinov2", {name: value}).config
    assert own.frozen_steps == by_option.frozen_steps > 0
    assert own.lr == by_option.lr < load_settings(None, "dinov2", {}).config.lr


def test_generated_images_are_not_pretrained_on(storage):
    folder = labelled_folder(storage / "drawn", 16)
    Path(folder, "generate.json").write_text("{}")
    with pytest.raises(UsageError, match="cohort synthetic holds generated images"):
        pretrain.run(request(storage, "refused", cohort=[f"synthetic={folder}"]))


def test_continuing_keeps_the_backbone_while_heads_warm_up_and_inherits_what_was_seen(storage, whole, capsys):
    begun = f"{storage}/whole/backbone.safetensors"
    options = {"checkpoint": begun, "epochs": None, "steps": 2, "splits": "all", "cohort": [f"own={storage}/labelled"]}
    record = pretrain.run(request(storage, "more", **options))
    assert record.config.frozen_steps == 500  # of the file's `continued`
    assert record.config.lr < whole.config.lr
    assert record.steps == 2
    assert "frozen_steps is 500, and there are 2 steps" in capsys.readouterr().out
    one, two = (load_file(storage / name / "backbone.safetensors") for name in ("whole", "more"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert record.weights == f"{begun}"
    assert len(record.seen) == 2
    assert record.all_splits


def test_a_collapse_ends_it_with_what_to_change_and_its_curve_is_kept(storage):
    sabotage = [*SMALL["assignments"], "monitor.least_rank=1000", "monitor.grace=0"]
    with pytest.raises(Diverged, match=r"features have collapsed.*Lower lr.*pretrain\.json"):
        pretrain.run(request(storage, "collapsed", assignments=sabotage))
    record = PretrainRecord.read(Store(f"{storage}/collapsed"), "pretrain.json")
    assert record.state == "failed"
    assert len(record.curve) == 2


def test_it_stops_where_k_nn_falls_with_the_last_backbone_before(storage, monkeypatch):
    real, scores = course.measure, iter([0.5, 0.5, 0.5, 0.1, 0.1, 0.1])
    monkeypatch.setattr(course, "measure", lambda *args: real(*args).model_copy(update={"knn": next(scores)}))
    falling = [*SMALL["assignments"], "monitor.knn_fall=0.5", "monitor.every=2"]
    record = pretrain.run(request(storage, "fell", assignments=falling))
    assert record.state == "stopped"
    assert "k-NN fell by more than 50%" in record.reason
    assert record.epoch == 1
    assert (storage / "fell" / "backbone.safetensors").is_file()


def test_a_time_budget_fits_the_steps(storage, capsys):
    record = pretrain.run(request(storage, "budget", epochs=100_000, time_budget="9s"))
    assert record.state in ("finished", "stopped")
    assert 0 < record.steps <= record.config.steps
    assert "The time budget holds" in capsys.readouterr().out


def test_a_plan_starts_nothing(storage, capsys):
    assert pretrain.run(request(storage, "planned", plan=True, gpu="H100")) is None
    assert "12 steps of 16 images, 3 epochs" in capsys.readouterr().out
    assert not (storage / "planned").exists()


METHODS = registry.self_supervised()


def test_methods_are_the_objectives_that_learn_from_images_alone():
    assert {"simclr", "moco"} <= set(METHODS)
    assert not {"multilabel", "clip", "mama", "distill", "grounding", "location"} & set(METHODS)


def test_every_method_has_a_file_that_is_taken_without_config():
    assert set(METHODS) <= set(names("pretraining"))
    for name in METHODS:
        assert load_settings(None, name, {}).config.objective == name


@pytest.mark.parametrize("name", names("pretraining"))
def test_files_are_valid_in_full_size_in_small_and_continued(name):
    settings = load_settings(name, None, {})
    assert settings.config.objective in METHODS
    assert not settings.config.pretrained
    small = load_settings(name, None, {}, smoke=True)
    assert small.config.backbone.startswith("test_")
    assert bool(small.config.stages) == bool(settings.config.stages)
    check_backbone(small.config)
    further = load_settings(name, None, {"pretrained": True})
    assert further.config.lr < settings.config.lr
    assert further.config.frozen_steps
    assert further.monitoring.limits.knn_fall < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "multilabel"}, "--method is .*simclr.*not 'multilabel'"),
        ({"method": None}, "--method says how to learn"),
        ({"batch_size": 1}, "batch_size': given 1.*take 2 at least"),
        ({"assignments": ["lrr=1"]}, "unknown key 'lrr'; simclr has simclr_width"),
        ({"assignments": ["lr"]}, "--set is KEY=VALUE"),
        ({"assignments": ["monitor.evry=1"]}, r"unknown key 'monitor\.evry'"),
        ({"assignments": ["simclr_temperature=-1"]}, "must be above 0"),
        ({"assignments": ["patience=3"]}, "patience and tta mean nothing"),
        ({"steps": 3}, "--epochs and --steps"),
        ({"splits": "test"}, "--splits is train"),
        ({"backbone": "test_convnet"}, "no backbone 'test_convnet'"),
        ({"method": "mae"}, "masks the patches of a timm vision transformer.*take barlow, moco or simclr"),
        ({"cohort": []}, "--cohort NAME=DIR"),
        ({"cohort": ["x"]}, "--cohort is NAME=DIR"),
        ({"cohort": ["x=/nowhere"]}, "no directory /nowhere"),
        ({"workers": 64}, "ask for 64|asks for 64|CPU"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(storage, options, words):
    with pytest.raises(UsageError, match=words):
        pretrain.run(request(storage, "refused", **options))
    assert not (storage / "refused" / "pretrain.json").exists()


def test_cohorts_without_anything_to_train_on_are_refused_by_name(storage, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "labels.csv").write_text("image_id,path,subject_id,Mass\n")
    tests = labelled_folder(tmp_path / "tests", 12, split="test")
    unlabelled = Path(labelled_folder(tmp_path / "unlabelled", 12))
    (unlabelled / "labels.csv").write_text(
        "image_id,path,subject_id\n" + "".join(f"i{k},{k:03d}.jpg,s{k}\n" for k in range(12))
    )
    few = labelled_folder(tmp_path / "few", 6, split="train")
    for folder, words in (
        (tmp_path / "nothing", r"cohort x: .* holds no format that is known.* Call it by its mapping"),
        (tmp_path / "empty", "cohort x: .*no images"),
        (tests, "cohort x: .*no images of split train"),
        (unlabelled, r"cohort x has no image of split train \(12 of test\): say in a column `split`"),
        (few, "images of . subjects: pretraining needs 8"),
    ):
        with pytest.raises(CxrltError, match=words):
            pretrain.run(request(storage, "refused", cohort=[f"x={folder}"]))
    assert read_cohorts({"x": str(unlabelled)}, "all", 16, 0).uses[0].images == 12


def test_a_checkpoint_of_another_shape_is_refused_before_anything_is_prepared(storage, whole):
    begun = f"{storage}/whole/backbone.safetensors"
    with pytest.raises(CxrltError, match=r"another architecture|does not hold"):
        pretrain.run(request(storage, "refused", checkpoint=begun, backbone="test_convnext2"))


def test_what_is_there_is_not_overwritten_and_a_later_record_is_refused(storage, whole):
    with pytest.raises(UsageError, match="holds a pretraining: give --resume"):
        pretrain.run(request(storage, "whole"))
    shutil.copytree(storage / "whole", storage / "later")
    path = storage / "later" / "pretrain.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(UsageError, match="later cxrlt_ray"):
        pretrain.run(pretrain.PretrainRequest(resume=True, out=f"{storage}/later"))


@pytest.mark.parametrize("cohort", ["own", pytest.param(None, marks=pytest.mark.slow)])
def test_the_command_runs_in_small_on_a_cohort_or_on_the_phantom(storage, cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = None if cohort is None else [f"{cohort}={storage}/labelled"]
    pretrain.main(method="simclr", cohort=given, smoke=True, out="small", threads=1)
    told = capsys.readouterr().out
    assert "steps/s" in told
    assert "Flagged: --smoke" in told
    assert "`backbone: test_convnext` and `checkpoint: " in told
    assert (tmp_path / "small" / "backbone.safetensors").is_file()


@pytest.mark.slow
def test_two_workers_of_a_group_train_one_backbone_and_say_why_they_end(storage, capsys):
    record = pretrain.run(request(storage, "group", workers=2, batch_size=8))
    assert record.state == "finished"
    assert record.workers == 2
    assert [point.step for point in record.curve][:2] == [1, 4]
    assert "steps/s" in capsys.readouterr().out  # told by the first worker
    assert (storage / "group" / "backbone.safetensors").is_file()
    sabotage = [*SMALL["assignments"], "monitor.least_rank=1000", "monitor.grace=0"]
    with pytest.raises(Diverged, match="features have collapsed"):
        pretrain.run(request(storage, "group2", workers=2, batch_size=8, assignments=sabotage))
