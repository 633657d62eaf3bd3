"""A trial that is cut off goes on as if it had not been: the same weights, predictions and record."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import write_images
from safetensors.numpy import load_file

from cxrlt_ray.data.prepare import prepare
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.runs.checkpoint import whole
from cxrlt_ray.runs.records import EpochRecord, TrialRecord
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store, patience
from cxrlt_ray.training import resume
from cxrlt_ray.training.context import TimeLeft
from cxrlt_ray.training.job import Job
from cxrlt_ray.training.trial import train


class Cut(Exception):
    """The end of a process, at a report or a write."""


@pytest.fixture(scope="module")
def cohort(ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    manifest = write_images(folder / "images", 48)
    return manifest, prepare(manifest, str(folder), [32, 48], say=lambda text: None)


def job_in(folder, cohort, folds=0):
    manifest, shards = cohort
    with Store(str(folder)).place("manifest.parquet") as path:
        manifest.write(path)
    return Job(Store(str(folder)), shards, manifest.findings, manifest.fingerprint, folds=folds, threads=1)


def config(**options):
    plain = {"backbone": "test_convnext", "pretrained": False, "resolution": 32, "epochs": 3, "batch_size": 8}
    return TrialConfig(**{**plain, "drop_path": 0.2, "drop_rate": 0.2, **options})


STAGES = ({"epochs": 1, "frozen_backbone": True}, {"epochs": 2, "frozen_backbone": False, "resolution": 48})
KINDS = {
    "plain": (config(accumulation=2), 0),
    "average": (config(ema_decay=0.9), 0),
    "swa": (config(backbone="test_resnet", swa_start=0.3, drop_path=0.0), 0),
    "stages": (config(stages=STAGES, fusion="attention"), 0),
    "patience": (config(epochs=6, patience=1, schedule="stable"), 0),
    "folds": (config(epochs=2, refit=True, tta="flip"), 2),
}


def left(folder):
    """What a trial leaves that others read, without times."""
    store = Store(str(folder)) / "trials" / "T0000"
    about = store.read_json("trial.json")
    kept = {
        name: load_file(f"{store.uri}/{name}/model.safetensors")
        for name in store.list()
        if "-" in name or name == "refit"
    }
    told = [{k: v for k, v in epoch.items() if k != "images_per_second"} for epoch in about["epochs"]]
    return about["state"], about["score"], told, kept, pd.read_parquet(f"{store.uri}/predictions/val.parquet")


def ended_after(reports):
    """A process that ends when it has reported so many times, and those that count their reports."""
    seen = []

    def report(told):
        seen.append(told)
        if len(seen) == reports:
            raise Cut

    return report, seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_cut_after_any_epoch_ends_as_one_that_was_not(cohort, tmp_path, kind):
    trial, folds = KINDS[kind]
    train(job_in(tmp_path / "whole", cohort, folds), "T0000", trial, {}, lambda told: None)
    wanted = left(tmp_path / "whole")
    job, numbers = job_in(tmp_path / "cut", cohort, folds), []
    for _ in range(8):  # each process ends one epoch
        report, seen = ended_after(2 if numbers else 1)
        with contextlib.suppress(Cut):
            train(job, "T0000", trial, {}, report)
        numbers.append([told["epoch"] for told in seen])
    assert numbers[1][0] == numbers[0][-1]  # the epoch that was told is told again, none is trained again
    found = left(tmp_path / "cut")
    assert found[:2] == wanted[:2]
    assert found[0] == "finished"
    assert found[2] == wanted[2]
    for name, tensors in wanted[3].items():
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(found[3][name][key], tensor, err_msg=f"{name} {key}")
    pd.testing.assert_frame_equal(found[4], wanted[4], check_exact=True)
    assert not resume.names(job.run / "trials" / "T0000")


@pytest.mark.parametrize(("seconds", "epochs"), [(1e6, 5), (0.0, 2)])
def test_a_trial_has_the_epochs_that_its_time_holds_by_the_first_ones_rate(cohort, tmp_path, seconds, epochs):
    job, told = job_in(tmp_path, cohort), []
    time_left = TimeLeft(time.time() + seconds, most=5)
    train(job, "T0000", config(schedule="stable"), {}, lambda report: told.append(report["epoch"]), time_left)
    assert [epoch["epoch"] for epoch in left(tmp_path)[2]] == list(range(epochs))
    assert TrialRecord.read(job.run / "trials" / "T0000", "trial.json").config.epochs == epochs
    assert told == [1, *range(1, epochs + 1)]


def test_what_follows_the_last_epoch_has_its_time_too():
    time_left = TimeLeft(time.time() + 100.5, most=50)
    assert time_left.epochs(3, 10.0) == 13
    assert time_left.epochs(3, 10.0, afterwards=35.0) == 9
    assert time_left.epochs(3, 10.0, afterwards=1e6) == 4


def test_a_trial_whose_epochs_were_counted_anew_goes_on_with_as_many(cohort, tmp_path):
    job, time_left = job_in(tmp_path, cohort), TimeLeft(time.time() + 1e6, most=5)
    report, _ = ended_after(3)  # the first epoch, again, the second
    with pytest.raises(Cut):
        train(job, "T0000", config(), {}, report, time_left)
    train(job, "T0000", config(), {}, lambda told: None)
    cut = left(tmp_path)
    assert len(cut[2]) == 5
    (tmp_path / "whole").mkdir()
    train(job_in(tmp_path / "whole", cohort), "T0000", config(), {}, lambda told: None, time_left)
    whole = left(tmp_path / "whole")
    assert cut[2] == whole[2]
    pd.testing.assert_frame_equal(cut[4], whole[4], check_exact=True)


@pytest.mark.parametrize(("shortest", "epochs"), [(1e-9, 3), (1e9, 5)])
def test_patience_ends_a_trial_that_has_all_the_time_where_another_could_follow(cohort, tmp_path, shortest, epochs):
    time_left = TimeLeft(time.time() + 1e6, 5, shortest)
    still = {"lr": 1e-12, "weight_decay": 0.0, "patience": 2}
    train(job_in(tmp_path, cohort), "T0000", config(**still), {}, lambda told: None, time_left)
    assert len(left(tmp_path)[2]) == epochs


def test_trials_of_folds_keep_their_epochs(cohort, tmp_path):
    time_left = TimeLeft(time.time() + 1e6, most=5)
    train(job_in(tmp_path, cohort, 2), "T0000", config(epochs=2), {}, lambda told: None, time_left)
    assert len(left(tmp_path)[2]) == 4


def test_a_stage_ends_when_no_epoch_has_been_better_for_as_long_as_its_patience(cohort, tmp_path):
    still = {"lr": 1e-12, "weight_decay": 0.0}  # scores stay, so that the first epoch is the best
    stages = ({"epochs": 4}, {"epochs": 5, "resolution": 48})
    train(job_in(tmp_path, cohort), "T0000", config(patience=2, stages=stages, **still), {}, lambda told: None)
    state, _, epochs, _, _ = left(tmp_path)
    assert state == "finished"
    assert [(epoch["stage"], epoch["epoch"]) for epoch in epochs] == [(0, 0), (0, 1), (0, 2), (1, 4), (1, 5), (1, 6)]


def test_small_steps_up_do_not_keep_a_stage_going(cohort, tmp_path):
    options = {"patience": 2, "patience_gain": 0.9, "schedule": "stable", "epochs": 9}
    train(job_in(tmp_path, cohort), "T0000", config(**options), {}, lambda told: None)
    state, _, epochs, _, _ = left(tmp_path)
    assert state == "finished"
    best = epochs[0]["score"]  # nearly twice as high is what counts as better
    better = next((k for k, epoch in enumerate(epochs) if epoch["score"] > 1.9 * best), 0)
    assert len(epochs) == better + 3


@pytest.mark.parametrize(
    ("scores", "gain", "over"),
    [
        ([0.20, 0.25, 0.25, 0.251], 0.0, False),
        ([0.20, 0.25, 0.25, 0.251], 0.05, True),
        ([0.20, 0.25, 0.26, 0.265], 0.05, False),  # small steps that together are large enough
        ([0.20, 0.25, 0.24, 0.23], 0.0, True),
    ],
)
def test_steps_are_counted_from_the_last_one_that_was_large_enough(scores, gain, over):
    epochs = [EpochRecord(fold=0, stage=0, epoch=k, score=score) for k, score in enumerate(scores)]
    assert TrialRecord(name="T0000", state="running", epochs=epochs).out_of_patience(0, 0, 2, gain) == over


def test_of_a_metric_that_falls_a_lower_score_is_better_by_a_share():
    falling = Metric("loss", "min", "loss")
    assert falling.better(0.9, 1.0, 0.05)
    assert not falling.better(0.96, 1.0, 0.05)
    assert not falling.better(float("nan"), 1.0, 0.05)
    assert falling.better(2.0, None, 0.05)


def test_an_end_between_the_state_and_the_checkpoint_costs_nothing(cohort, tmp_path, monkeypatch):
    train(job_in(tmp_path / "whole", cohort), "T0000", config(), {}, lambda told: None)
    job = job_in(tmp_path / "cut", cohort)
    place = Store.place

    def cut(self, name):
        if name == "fold-0":
            raise Cut
        return place(self, name)

    with monkeypatch.context() as broken:
        broken.setattr(Store, "place", cut)
        with pytest.raises(Cut):
            train(job, "T0000", config(), {}, lambda told: None)
    assert not (job.run / "trials" / "T0000").exists("fold-0")
    train(job, "T0000", config(), {}, lambda told: None)
    pd.testing.assert_frame_equal(left(tmp_path / "cut")[4], left(tmp_path / "whole")[4], check_exact=True)


def test_a_damaged_state_begins_the_trial_anew(cohort, tmp_path):
    job = job_in(tmp_path / "cut", cohort)
    with pytest.raises(Cut):
        train(job, "T0000", config(), {}, ended_after(2)[0])
    (name,) = resume.names(job.run / "trials" / "T0000")
    path = tmp_path / "cut" / "trials" / "T0000" / name
    assert whole(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert not whole(path)
    report, seen = ended_after(9)
    train(job, "T0000", config(), {}, report)
    assert [told["epoch"] for told in seen] == [1, 2, 3]


def test_a_state_that_the_storage_does_not_give_is_waited_for_and_not_overwritten(cohort, tmp_path, monkeypatch):
    """A storage that fails for a while was taken for damage: the trial began anew and deleted the good state."""
    train(job_in(tmp_path / "whole", cohort), "T0000", config(), {}, lambda told: None)
    job = job_in(tmp_path / "cut", cohort)
    with pytest.raises(Cut):
        train(job, "T0000", config(), {}, ended_after(2)[0])
    fetched, failures = Store.fetched, iter([True, True])

    def refused(self, name=""):
        if name.startswith(resume.PREFIX) and next(failures, False):
            raise CxrltError("s3://bucket cannot be reached: connection refused.")
        return fetched(self, name)

    monkeypatch.setattr(Store, "fetched", refused)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))
    report, seen = ended_after(9)
    train(job, "T0000", config(), {}, report)
    assert [told["epoch"] for told in seen] == [2, 3]
    pd.testing.assert_frame_equal(left(tmp_path / "cut")[4], left(tmp_path / "whole")[4], check_exact=True)


def test_a_storage_that_does_not_come_back_ends_the_trial_and_leaves_its_state(cohort, tmp_path, monkeypatch):
    job = job_in(tmp_path / "cut", cohort)
    with pytest.raises(Cut):
        train(job, "T0000", config(), {}, ended_after(2)[0])
    store = job.run / "trials" / "T0000"
    before = [(name, store.read(name)) for name in resume.names(store)]

    def refused(self, name=""):
        raise CxrltError("s3://bucket cannot be reached: connection refused.")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "fetched", refused)
        broken.setattr(
            patience, "time", SimpleNamespace(monotonic=itertools.count(0, 200).__next__, sleep=lambda _: None)
        )
        with pytest.raises(CxrltError, match="cannot be reached"):
            train(job, "T0000", config(), {}, lambda told: None)
    assert [(name, store.read(name)) for name in resume.names(store)] == before


def test_a_process_whose_trial_was_taken_over_writes_no_more(cohort, tmp_path):
    job = job_in(tmp_path / "run", cohort)
    store = job.run / "trials" / "T0000"

    def taken_over(told):
        store.write_json("trial.json", {**store.read_json("trial.json"), "attempt": 2})

    with pytest.raises(CxrltError, match="begun anew in another process"):
        train(job, "T0000", config(), {}, taken_over)
    assert json.loads(store.read("trial.json"))["attempt"] == 2
    assert len(store.read_json("trial.json")["epochs"]) == 1


def test_a_state_without_a_header_or_of_another_kind_is_none(tmp_path):
    store = Store(str(tmp_path))
    for content in (b"", b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"):
        store.write("resume-000001.safetensors", content)
        assert resume.latest(store) is None
    assert not whole(tmp_path / "nothing")
    shutil.rmtree(tmp_path)
