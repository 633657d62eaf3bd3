"""Faults on purpose: what is killed, hangs or is stopped goes on, and ends as it would have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_images

from cxrlt_ray import ensemble, sweep
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs import store
from cxrlt_ray.runs.records import RunRecord
from cxrlt_ray.search.resume import claimed
from cxrlt_ray.storage import Store

SPACE = """
trials: 1
epochs: {epochs}
parameters:
  backbone: test_convnext
  pretrained: false
  resolution: 32
  batch_size: 4
  drop_rate: 0.1
  lr: 1e-3
  augment: {{low: 0.1, high: 0.5}}
"""
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def table(tmp_path):
    manifest = write_images(tmp_path / "images", 48)
    frame = manifest.table[["image_id", "path", "subject_id", "study_id", "view", "split", "Mass", "Nodule"]]
    frame.to_csv(tmp_path / "images" / "labels.csv", index=False)
    return str(tmp_path / "images")


def space(folder, epochs):
    path = folder / "tiny.yaml"
    path.write_text(SPACE.format(epochs=epochs))
    return str(path)


def process_of(run):
    """The process of the first trial of the run in a folder."""
    from ray.experimental import internal_kv

    from cxrlt_ray.search.watchdog import NAMESPACE, keys_of

    told = internal_kv._internal_kv_get(f"{keys_of(Store(str(run)).uri, 'T0000')}0".encode(), namespace=NAMESPACE)
    return json.loads(told)["pid"] if told else None


def epochs_of(path):
    try:
        return len(json.loads(path.read_text())["epochs"])
    except (OSError, ValueError):
        return 0


def test_a_trial_that_is_killed_and_then_hangs_ends_as_one_that_was_left_alone(ray, table, tmp_path, capsys):
    options = {"data": table, "space": space(tmp_path, 24), "storage": str(tmp_path / "runs")}
    sweep.main("auto", name="calm", **options)
    storm = tmp_path / "runs" / "storm"
    record = storm / "trials" / "T0000" / "trial.json"
    seen = []

    def trouble():
        for number, least in ((signal.SIGKILL, 2), (signal.SIGSTOP, 8)):
            while not (
                (pid := process_of(tmp_path / "runs" / "storm")) and pid not in seen and epochs_of(record) >= least
            ):
                time.sleep(0.02)
            seen.append(pid)
            os.kill(pid, number)

    thread = threading.Thread(target=trouble, daemon=True)
    thread.start()
    sweep.main("auto", name="storm", hung_after="6s", **options)
    thread.join(1)
    assert len(seen) == 2
    calm, storm = (store.load_run(str(tmp_path / "runs"), name).trials()[0] for name in ("calm", "storm"))
    assert storm.state == calm.state == "finished"
    pd.testing.assert_frame_equal(storm.predictions(), calm.predictions(), check_exact=True)
    assert [epoch.epoch for epoch in storm.record.epochs] == list(range(24))
    killed, hung = (retry.reason for retry in storm.record.retries)
    assert killed == "its process ended (killed, or out of memory)"
    assert hung.startswith("hung: no batch was done in 6 s")
    told = capsys.readouterr().out
    assert "T0000 is begun anew: its process ended" in told
    assert not list((record.parent).glob("resume-*"))


def test_a_trial_whose_images_are_gone_says_so_and_nothing_else(ray, table, tmp_path):
    """The reason is what its process met; the watch adds none of its own."""
    storage = str(tmp_path / "runs")
    record = tmp_path / "runs" / "g" / "trials" / "T0000" / "trial.json"

    def trouble():
        while epochs_of(record) < 1:
            time.sleep(0.02)
        for shard in (tmp_path / "runs" / "shards").glob("*/*-*.parquet"):
            shard.unlink()

    threading.Thread(target=trouble, daemon=True).start()
    options = {"data": table, "space": space(tmp_path, 400), "storage": storage, "retries": 0, "cache_gb": 0.0}
    with pytest.raises(CxrltError, match="no trial of run g ended well"):
        sweep.main("auto", name="g", **options)
    (trial,) = store.load_run(storage, "g").trials()
    (told,) = trial.record.retries
    assert trial.record.reason == told.reason
    assert told.reason.startswith("shard ")
    assert told.reason.endswith("No such file or directory; --resume prepares what is missing again.")


@pytest.mark.slow
def test_damaged_files_are_made_again_and_checkpoints_are_bounded(ray, table, tmp_path, capsys):
    storage = str(tmp_path / "runs")
    sweep.main("auto", data=table, space=space(tmp_path, 2), name="d", storage=storage, trials=3, keep_checkpoints=2)
    run = store.load_run(storage, "d")
    assert sum(bool(trial.checkpoints) for trial in run.trials()) == 2
    before = {trial.name: trial.predictions() for trial in run.trials()}
    kept = next(trial for trial in run.trials() if trial.checkpoints)
    (Path(kept.store.uri) / "fold-0" / "model.safetensors").write_bytes(b"half")
    other = next(trial for trial in run.trials() if trial.name != kept.name)
    predictions = Path(other.store.uri) / "predictions" / "val.parquet"
    content = bytearray(predictions.read_bytes())
    content[200] ^= 1
    predictions.write_bytes(content)
    next((tmp_path / "runs" / "shards").glob("*/*-*.parquet")).unlink()
    sweep.main("auto", name="d", storage=storage, resume=True, keep_checkpoints=3)
    told = capsys.readouterr().out
    assert f"{kept.name} is trained again: " in told
    assert f"{other.name} is trained again: " in told
    after = store.load_run(storage, "d").trials()
    assert [trial.name for trial in after] == list(before)
    for trial in after:
        pd.testing.assert_frame_equal(trial.predictions(), before[trial.name], check_exact=True)
    ensemble.main(select="mean", storage=storage, rounds=10, pruned=True)


def test_a_run_that_is_being_swept_is_refused(tmp_path):
    from cxrlt_ray.storage import Store

    run = store.Run(Store(str(tmp_path)), RunRecord(name="r", task=Task("auto", ("Mass",))))
    refusal = pytest.raises(UsageError, match=f"being swept by another process .process {os.getpid()} on ")
    with claimed(run), refusal, claimed(run):
        pass
    with claimed(run):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_saves_and_names_the_command_that_goes_on(table, tmp_path, times):
    storage = tmp_path / "runs"
    given = [sys.executable, "-m", "cxrlt_ray.sweep", "auto", "--name", "c", "--storage", str(storage)]
    more = ["--data", table, "--space", space(tmp_path, 60)]
    begun = subprocess.Popen([*given, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    record = storage / "c" / "trials" / "T0000" / "trial.json"
    while epochs_of(record) < 3:
        assert begun.poll() is None
        time.sleep(0.02)
    for _ in range(times):
        begun.send_signal(signal.SIGINT)
        time.sleep(0.05)
    told = begun.communicate(timeout=60)[0]
    assert begun.returncode == 1
    assert "each trial ends its epoch and saves it" in told
    assert "with 0 of 1 trials done, 1 more begun and saved; continue with `python -m cxrlt_ray.sweep auto" in told
    done = epochs_of(record)
    assert 3 <= done < 60
    subprocess.run([*given, "--resume"], check=True, timeout=200, capture_output=True)
    about = json.loads(record.read_text())
    assert (about["state"], len(about["epochs"])) == ("finished", 60)


@pytest.mark.slow
def test_a_short_chaos_loses_nothing(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "chaos.py"), "--faults", "8", "--seed", "1"]
    subprocess.run(command, check=True, timeout=2400)
