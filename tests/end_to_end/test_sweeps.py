"""Sweeps of other kinds: folds, several workers, failing trials, bad images, a store by URI."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_images

from cxrlt_ray import ensemble, output, sweep
from cxrlt_ray.ensembling.pool import candidates
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs import store
from cxrlt_ray.runs.cost import gflops
from cxrlt_ray.runs.promotion_record import FILE, PromotionRecord
from cxrlt_ray.storage import Store

TINY = """
trials: 1
epochs: {epochs}
parameters:
  backbone: {backbone}
  pretrained: false
  resolution: 32
  batch_size: 8
  lr: {{low: {low}, high: {high}}}
"""


def space(folder, backbone="test_convnext", epochs=1, low=1e-3, high=1e-2):
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(backbone=backbone, epochs=epochs, low=low, high=high))
    return str(path)


@pytest.fixture
def table(tmp_path):
    """48 images of 48 subjects as a plain labels.csv."""
    manifest = write_images(tmp_path / "images", 48)
    frame = manifest.table[["image_id", "path", "subject_id", "study_id", "view", "split", "Mass", "Nodule"]]
    frame.to_csv(tmp_path / "images" / "labels.csv", index=False)
    return str(tmp_path / "images")


def test_with_folds_every_labelled_image_but_the_tests_is_predicted_out_of_fold(ray, table, tmp_path):
    storage = str(tmp_path / "runs")
    given = pd.read_csv(Path(table) / "labels.csv", dtype=str)
    assert (given["split"] == "val").any()
    sweep.main("auto", data=table, space=space(tmp_path), folds=3, name="folds", storage=storage)
    run = store.load_run(storage, "folds")
    trial = run.trials()[0]
    assert trial.state == "finished"
    assert trial.checkpoints == ["fold-0", "fold-1", "fold-2"]
    wanted = given.loc[given["split"] != "test", "image_id"]
    assert sorted(trial.predictions().index) == sorted(wanted)
    ensemble.main(select="best", storage=storage, rounds=10)
    scored = pd.read_parquet(Path(storage) / "folds" / "ensembles" / "best" / "predictions.parquet")
    assert len(scored) == 12


@pytest.mark.parametrize(
    "make", [output.Text, output.Quiet, lambda: output.Json("sweep", "0")], ids=["text", "quiet", "json"]
)
def test_a_sweep_runs_at_a_terminal_and_in_every_form_of_output(ray, table, tmp_path, monkeypatch, make):
    leader, follower = pty.openpty()
    shown = bytearray()

    def read():
        with contextlib.suppress(OSError):  # its end
            while part := os.read(leader, 4096):
                shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(follower, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        with output.using(make()):
            sweep.main("auto", data=table, space=space(tmp_path), trials=1, name="t", storage=str(tmp_path / "runs"))
    reader.join()
    os.close(leader)
    assert [trial.state for trial in store.load_run(str(tmp_path / "runs"), "t").trials()] == ["finished"]
    assert b"cxrlt_ray.ensemble" in shown


def test_a_trial_that_diverges_fails_alone_with_its_reason(ray, table, tmp_path, monkeypatch, capsys):
    storage = str(tmp_path / "runs")
    path = Path(space(tmp_path))
    # 1e30 makes every weight infinite after one step
    path.write_text(path.read_text().replace("lr: {low: 0.001, high: 0.01}", "lr: {choices: [1e30, 1e-3]}") + START)
    with_failures = {"trials": 2, "epochs": 6}
    sweep.main("auto", data=table, space=str(path), name="bad", storage=storage, **with_failures)
    first, second = store.load_run(storage, "bad").trials()
    assert first.state == "failed"
    assert first.record.reason.startswith("diverged: ")
    assert second.state in ("finished", "pruned")
    assert "T0000 failed: diverged: " in capsys.readouterr().out


START = "start:\n  - {lr: 1e30}\n  - {lr: 1e-3}\n"


def test_bad_images_are_left_out_and_the_submission_still_has_them(ray, table, tmp_path, capsys):
    storage = str(tmp_path / "runs")
    (Path(table) / "003.jpg").write_text("not an image")  # test
    (Path(table) / "002.jpg").unlink()  # validation
    sweep.main("auto", data=table, space=space(tmp_path), name="gaps", storage=storage, max_bad=0.1)
    assert len(store.load_run(storage, "gaps").trials()[0].predictions()) == 11
    ensemble.main(select="best", storage=storage, rounds=10)
    assert "1 image(s) could not be decoded" in capsys.readouterr().out
    found = pd.read_csv(Path(storage) / "gaps" / "ensembles" / "best" / "submission.csv")
    assert len(found) == 12
    assert np.isfinite(found[["Mass", "Nodule"]].to_numpy()).all()


def test_weights_that_cannot_be_had_stop_the_run_before_any_trial(ray, table, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "mine.yaml"
    path.write_text("trials: 1\nepochs: 1\nparameters: {backbone: convnext_atto.d2_in1k, resolution: 32}\n")
    with pytest.raises(CxrltError, match=r"backbone 'convnext_atto\.d2_in1k' cannot be had"):
        sweep.main("auto", data=table, space=str(path), name="none", storage=str(tmp_path / "runs"))
    assert store.runs(str(tmp_path / "runs")) == []


def test_a_run_in_a_store_given_by_uri_is_whole(ray, table, tmp_path):
    storage = f"file://{tmp_path}/runs"
    sweep.main("auto", data=table, space=space(tmp_path), name="far", storage=storage)
    ensemble.main(select="mean", storage=storage, rounds=10)
    assert (tmp_path / "runs" / "far" / "optuna.db").exists()
    sweep.main("auto", storage=storage, resume=True, trials=2)
    assert len(store.load_run(storage, "far").trials()) == 2
    assert (tmp_path / "runs" / "far" / "ensembles" / "mean" / "submission.csv").exists()


def test_a_trial_pruned_in_its_first_fold_is_told_as_pruned_and_is_no_candidate(ray, table, tmp_path):
    storage = str(tmp_path / "runs")
    path = Path(space(tmp_path, epochs=3, low=1e-8))
    path.write_text(path.read_text() + "start:\n  - {lr: 1e-2}\n  - {lr: 1e-8}\n")
    sweep.main("auto", data=table, space=str(path), folds=2, name="p", storage=storage, trials=2)
    found = store.load_run(storage, "p").trials()
    assert [trial.state for trial in found] == ["finished", "pruned"]
    assert candidates(store.load_run(storage, "p"), None) == found[:1]


@pytest.mark.slow
def test_trials_promoted_by_the_ensemble_keep_their_decisions_and_more_are_promoted_alike(ray, table, tmp_path, capsys):
    storage = str(tmp_path / "runs")
    path = space(tmp_path, epochs=3)
    sweep.main("auto", data=table, space=path, promote="ensemble", name="e", storage=storage, trials=3)
    sweep.main("auto", storage=storage, resume=True, trials=5)
    run = store.load_run(storage, "e")
    assert run.record.promote == "ensemble"
    decisions = {trial.name: PromotionRecord.read(trial.store, FILE).rungs for trial in run.trials()}
    assert sorted(rungs[0].others for rungs in decisions.values()) == list(range(5))
    for trial in run.trials():
        assert [decision.rung for decision in decisions[trial.name]] == [2]
        assert trial.state == ("finished" if decisions[trial.name][0].promoted else "pruned")
    assert "own mAP" not in capsys.readouterr().out
    ensemble.main(select="mean", storage=storage, rounds=10)


@pytest.mark.slow
def test_a_time_budget_ends_a_sweep_well_and_settles_what_it_cut(ray, table, tmp_path):
    """A machine that has become much slower than it was when its rates were measured."""
    storage = str(tmp_path / "runs")
    rate = {"images_per_second": 1e9, "from": "trials"}
    Store(storage).write_json("rates.json", {f"cpu-{threads} test_convnext 32": rate for threads in range(1, 129)})
    sweep.main("auto", data=table, space=space(tmp_path, epochs=400), name="b", storage=storage, time_budget="50s")
    trial = store.load_run(storage, "b").trials()[-1]
    assert trial.state == "pruned"
    assert 0 < len(trial.record.epochs) < 400
    ensemble.main(select="best", storage=storage, rounds=10)


def test_a_time_budget_without_a_number_of_trials_is_spent_on_more_of_them(ray, table, tmp_path, capsys):
    storage = str(tmp_path / "runs")
    began = time.monotonic()
    sweep.main("auto", data=table, space=space(tmp_path, epochs=2), name="o", storage=storage, time_budget="40s")
    assert time.monotonic() - began < 60
    run = store.load_run(storage, "o")
    printed = capsys.readouterr().out
    assert "and more as time allows" in printed
    assert run.record.trials == len(run.trials()) > 1
    assert {trial.state for trial in run.trials()[:-1]} <= {"finished", "pruned"}
    assert max(trial.record.config.epochs for trial in run.trials()) <= 3  # the last may have half as many more
    assert f"[{run.record.trials}/{run.record.trials}]" in printed


def held(ray) -> tuple[float, list[str]]:
    """CPUs that are not free, and the classes of actors that live, but for Ray Data's own."""
    from ray._private.state import actors

    lasting = ("_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker")
    alive = [each["ActorClassName"] for each in actors().values() if each["State"] == "ALIVE"]
    busy = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)
    return busy, [name for name in alive if name not in lasting]


@pytest.mark.slow
def test_two_workers_leave_what_one_leaves_and_give_back_what_they_had(ray, table, tmp_path):
    found = []
    for workers in (1, 2):
        storage = str(tmp_path / f"runs-{workers}")
        path = space(tmp_path, backbone="test_convnext", epochs=3)
        options = {"workers_per_trial": workers, "cpus_per_trial": 1 if workers == 1 else 0.25}
        sweep.main("auto", data=table, space=path, name="w", storage=storage, trials=2, **options)
        found.append(store.load_run(storage, "w").trials())
    for one, two in zip(*found, strict=True):
        assert two.state in ("finished", "pruned"), two.record.reason
        assert one.record.config == two.record.config
        assert sorted(one.predictions().index) == sorted(two.predictions().index)
    until = time.monotonic() + 30
    while held(ray) != (0, []) and time.monotonic() < until:
        time.sleep(0.5)
    assert held(ray) == (0, [])


@pytest.mark.slow
def test_ray_data_and_threads_train_the_same_model(ray, table, tmp_path):
    """The engine decides who decodes, not what is learnt; and a machine's memory is left as it was."""
    from cxrlt_ray.cluster import node_cache

    found = {}
    for engine in ("threads", "ray"):
        sweep.main(
            "auto", data=table, space=space(tmp_path), ingest=engine, name=engine, storage=str(tmp_path / "runs")
        )
        (trial,) = store.load_run(str(tmp_path / "runs"), engine).trials()
        found[engine] = trial.predictions()
        assert {"model", "first_batch", "first_step", "training", "validation"} <= set(trial.record.seconds)
    pd.testing.assert_frame_equal(*found.values(), atol=1e-5)
    assert not list(node_cache.MEMORY.glob(f"{node_cache.PREFIX}-*.u8"))


@pytest.mark.slow
def test_trials_at_two_resolutions_read_shards_of_their_own_size(ray, table, tmp_path):
    path = Path(space(tmp_path))
    path.write_text(path.read_text().replace("resolution: 32", "resolution: {choices: [32, 48]}\n  crop: 0.75") + TWO)
    sweep.main("auto", data=table, space=str(path), trials=2, name="two", storage=str(tmp_path / "runs"))
    run = store.load_run(str(tmp_path / "runs"), "two")
    assert [each.size for each in run.shards()] == [32, 48]
    ensemble.main(select="mean", storage=str(tmp_path / "runs"), rounds=10)
    for trial in run.trials():
        assert len(trial.predictions("test")) == 12
    assert "Planned" not in run.store.read_json("run.json")


TWO = """start:
  - {resolution: 32}
  - {resolution: 48}
"""


@pytest.mark.slow
def test_a_search_for_map_and_cost_tells_optuna_both(ray, table, tmp_path, capsys):
    import optuna

    storage = str(tmp_path / "runs")
    path = Path(space(tmp_path))
    path.write_text(
        path.read_text().replace("backbone: test_convnext", "backbone: {choices: [test_convnext, test_resnet]}")
    )
    options = {"data": table, "space": str(path), "objectives": "map,cost", "name": "two", "storage": storage}
    sweep.main("auto", trials=2, **options)
    assert "both more mAP and fewer GFLOPs: T000" in capsys.readouterr().out
    study = optuna.load_study(study_name="two", storage=f"sqlite:///{storage}/two/optuna.db")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    found = {trial.name: trial for trial in store.load_run(storage, "two").trials()}
    costs = gflops(list(found.values()))
    for told, trial, cost in zip(study.trials, found.values(), costs, strict=True):
        assert told.values == pytest.approx([trial.score, cost])
    sweep.main("auto", storage=storage, resume=True, trials=3)
    assert len(store.load_run(storage, "two").trials()) == 3


EDGE = """
import sys
import ray
ray.init(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
from cxrlt_ray import ensemble, sweep
from cxrlt_ray.search import resources
data, space, storage, engine, cpus = sys.argv[1:]
resources.available = lambda address: (1.0, 0.0)
sweep.main("auto", data=data, space=space, storage=storage, name="edge", ingest=engine, cpus_per_trial=float(cpus))
ensemble.main(select="mean", storage=storage, rounds=10)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "cpus"), [("threads", 1.0), ("ray", 0.4)])
def test_one_core_all_of_it_taken_and_a_tiny_object_store_neither_hang_nor_fail(table, tmp_path, engine, cpus):
    command = [sys.executable, "-c", EDGE, table, space(tmp_path), str(tmp_path / "runs"), engine, str(cpus)]
    subprocess.run(command, check=True, timeout=500)
    assert (tmp_path / "runs" / "edge" / "ensembles" / "mean" / "submission.csv").exists()
    assert store.load_run(str(tmp_path / "runs"), "edge").trials()[0].state == "finished"
