"""The trial store: records of earlier versions, and how often records are read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import s3 as server
from conftest import write_images
from safetensors.numpy import save_file

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs import store as trial_store
from cxrlt_ray.runs.damage import damages
from cxrlt_ray.runs.records import EpochRecord, RunRecord, TrialRecord
from cxrlt_ray.runs.store import (
    Run,
    Trial,
    check_free,
    create_run,
    drop_checkpoints,
    keep_index,
    read_run,
    read_trial,
    read_trials,
)
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.runs.trial_index import INDEX, read_index
from cxrlt_ray.search.disk import DiskRoom
from cxrlt_ray.search.optuna_study import OptunaStudy
from cxrlt_ray.search.progress import Progress
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.search.stop import StopRequest
from cxrlt_ray.search.trial_states import trial_name
from cxrlt_ray.search.tuner import FaultPolicy, StudySearcher, missing_trials
from cxrlt_ray.storage import Store

CONFIG = TrialConfig(backbone="test_resnet", pretrained=False, resolution=32, epochs=3)
SPACE = """
trials: 300
epochs: 3
prune: false
parameters:
  backbone: test_resnet
  pretrained: false
  resolution: 32
  lr: {low: 1e-4, high: 1e-1, log: true}
"""
MANY = 200  # trials that have ended
SMALL = 16


def ended(number, **changes):
    epochs = [EpochRecord(fold=0, stage=0, epoch=k, score=0.1 + 0.001 * number) for k in range(3)]
    options = {"name": trial_name(number), "state": "finished", "params": {"lr": 1e-3 + 1e-5 * number}}
    return TrialRecord(**{**options, "config": CONFIG, "epochs": epochs, "score": epochs[-1].score, **changes})


@pytest.fixture(scope="module")
def bucket():
    with server.served("bucket") as served:
        yield served


@pytest.fixture
def run(bucket, tmp_path) -> Run:
    """A run on an object store with MANY trials that have ended, whose checkpoints were removed."""
    record = RunRecord(name="many", task=Task("auto", ("Mass",)))
    run = create_run("s3://bucket/runs", record, write_images(tmp_path / "images", 8), {})
    for number in range(MANY):
        ended(number, dropped=True).write(run.store / "trials" / trial_name(number), "trial.json")
    return run


def test_a_trials_end_reads_its_own_record_whatever_the_number_of_trials_before_it(bucket, run, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    space = load_space(str(path))
    policy = FaultPolicy(keep_checkpoints=2, disk=DiskRoom(run.store, 1.0, 1))
    search = SimpleNamespace(run=run, pace=None, policy=policy)
    searcher = StudySearcher(search, OptunaStudy(run, space, 0), StopRequest(), SimpleNamespace())
    progress = Progress(run, 300, missing_trials(run, 300))
    reads = []
    for _ in range(3):
        point = searcher.suggest("id")
        name = trial_name(point["number"])
        ended(point["number"], params=point["params"]).write(run.store / "trials" / name, "trial.json")
        bucket.requests.clear()
        searcher.on_trial_complete("id")
        progress.on_trial_complete(0, [], SimpleNamespace(config=point))
        left = missing_trials(run, 300)
        of_records = re.compile(r"/trials/T\d+/trial\.json")
        reads.append(sum(method == "GET" and bool(of_records.search(path)) for method, path in bucket.requests))
    assert left == 300 - MANY - 3
    assert max(reads) <= 5
    assert "[203/300] T0202 finished" in capsys.readouterr().out


def test_of_a_dropped_trial_no_checkpoint_is_left_beside_the_refit_one(tmp_path):
    run = create_run(
        str(tmp_path), RunRecord(name="few", task=Task("auto", ("Mass",))), write_images(tmp_path / "i", 8), {}
    )
    for number in range(3):
        store = run.store / "trials" / trial_name(number)
        ended(number).write(store, "trial.json")
        for name in ("fold-0", "fold-1", "refit"):
            store.write(f"{name}/model.safetensors", b"weights")
        store.write("predictions/val.parquet", b"predictions")
    drop_checkpoints(run, 2)
    left = {trial.name: trial.store.list() for trial in run.trials()}
    assert left["T0000"] == ["predictions", "trial.json"]  # the one of the lowest score
    for trial in run.trials()[1:]:
        assert trial.checkpoints == ["refit"]
        assert {"fold-0", "fold-1", "refit"} <= set(trial.store.list())


def test_a_record_that_another_process_has_written_again_is_read_again(tmp_path):
    store = Store(str(tmp_path)) / "T0000"
    ended(0).write(store, "trial.json")
    assert read_trials(Store(str(tmp_path)))[0].state == "finished"
    ended(0, state="running", epochs=[]).write(store, "trial.json")
    assert read_trials(Store(str(tmp_path)))[0].state == "running"


def test_what_this_process_writes_is_seen_on_an_object_store_too(bucket):
    folder = Store("s3://bucket/elsewhere")
    ended(0).write(folder / "T0000", "trial.json")
    (trial,) = read_trials(folder)
    trial.record.state = "failed"  # a record is its reader's own
    assert read_trials(folder)[0].state == "finished"
    Trial(trial.store, ended(0, state="pruned")).write(ended(0, state="pruned"))
    assert read_trials(folder)[0].state == "pruned"


OLD_TRIAL = {
    "name": "T0003",
    "state": "finished",
    "params": {"lr": 1e-3},
    "config": {"backbone": "test_resnet", "resolution": 32, "epochs": 2},
    "findings": ["Mass"],
    "fingerprint": "f" * 16,
    "epochs": [{"fold": 0, "stage": 0, "epoch": 0, "val_map": 0.5, "loss": 0.1, "images_per_second": 7.0}],
    "val_map": 0.5,
    "tta": {"looks": 6, "val_map": 0.6, "price": 5.5},
    "again": {"state": "pruned", "curve": [[1, 0.5]]},
}


def test_a_trials_record_of_the_first_version_is_read_as_one_of_today(tmp_path):
    (tmp_path / "trial.json").write_text(json.dumps(OLD_TRIAL))
    record = read_trial(Store(str(tmp_path))).record
    assert (record.score, record.epochs[0].score, record.config.backbone) == (0.5, 0.5, "test_resnet")
    assert (record.tta.augmentations, record.tta.score) == (6, 0.6)
    assert record.retraining.curve == ((1, 0.5),)
    assert record.trained_findings == record.findings == ("Mass",)
    record.write(Store(str(tmp_path)), "trial.json")
    assert json.loads((tmp_path / "trial.json").read_text())["version"] == TrialRecord.VERSION
    assert read_trial(Store(str(tmp_path))).record == record


def test_a_trial_of_the_first_version_that_ended_before_it_began_is_read(tmp_path):
    (tmp_path / "trial.json").write_text(json.dumps({**OLD_TRIAL, "state": "failed", "config": {}, "val_map": None}))
    trial = read_trial(Store(str(tmp_path)))
    assert trial.record.config is None
    with pytest.raises(CxrltError, match="T0003 ended before it began"):
        _ = trial.config


def test_a_run_of_a_layout_that_is_not_read_any_more_is_refused(tmp_path):
    old = {"name": "old", "task": {"name": "auto", "findings": ["Mass"]}, "shards": {"name": "x", "size": 32}}
    (tmp_path / "run.json").write_text(json.dumps(old))
    with pytest.raises(UsageError, match="run old was made by an earlier version of cxrlt_ray"):
        read_run(Store(str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": 99}, "is of version 99, written by a later cxrlt_ray"),
        ({**OLD_TRIAL, "mistyped": 1}, "cannot be read as a TrialRecord: mistyped: it is damaged"),
        ([], "does not hold a JSON object"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused_with_the_file_and_the_reason(tmp_path, content, message):
    (tmp_path / "trial.json").write_text(json.dumps(content))
    with pytest.raises(CxrltError, match=message) as refusal:
        read_trial(Store(str(tmp_path)))
    assert str(tmp_path) in str(refusal.value)


@pytest.fixture
def afresh(monkeypatch):
    """As a process that has read nothing yet."""

    def forget():
        monkeypatch.setattr(trial_store, "_SETTLED", {})
        monkeypatch.setattr(trial_store, "_INDEXED", {})

    forget()
    return forget


@pytest.fixture
def small(bucket, tmp_path, afresh, monkeypatch) -> Run:
    """A run on an object store with SMALL trials that have ended, of which each is many."""
    monkeypatch.setattr(trial_store, "FEW", 4)
    run = Run(Store(f"s3://bucket/{tmp_path.name}"), RunRecord(name="small", task=Task("auto", ("Mass",))))
    for number in range(SMALL):
        ended(number, dropped=True).write(run.store / "trials" / trial_name(number), "trial.json")
    return run


def test_a_run_on_an_object_store_is_opened_by_its_index_and_a_listing(small, bucket, afresh):
    before = small.trials()
    keep_index(small, every=4)
    afresh()
    bucket.requests.clear()
    assert small.trials() == before
    assert len(bucket.requests) < SMALL / 2


def test_what_changed_since_the_index_was_written_is_read_from_the_store(small, bucket, afresh):
    keep_index(small, every=4)
    ended(3, state="pruned", reason="by hand").write(small.store / "trials" / trial_name(3), "trial.json")
    (small.store / "trials" / trial_name(5)).remove()
    ended(SMALL).write(small.store / "trials" / trial_name(SMALL), "trial.json")
    afresh()
    bucket.requests.clear()
    trials = {trial.name: trial for trial in small.trials()}
    assert trials[trial_name(3)].state == "pruned"
    assert trial_name(5) not in trials
    assert trial_name(SMALL) in trials
    assert len(trials) == SMALL
    assert sum("trial.json" in path for method, path in bucket.requests if method == "GET") == 2


@pytest.mark.parametrize("content", [b"half", b"", b"[1]\n{}"])
def test_a_damaged_index_costs_time_and_nothing_else(small, afresh, content):
    import gzip

    small.store.write(INDEX, content if content == b"half" else gzip.compress(content))
    assert read_index(small.store / "trials", [trial_name(0)]) == {}
    assert len(small.trials()) == SMALL


def test_the_index_is_written_anew_where_enough_trials_have_ended_since(small, afresh):
    written = []
    for number in range(SMALL, SMALL + 3):
        keep_index(small, every=4)
        written.append(small.store.files()[INDEX])
        ended(number, dropped=True).write(small.store / "trials" / trial_name(number), "trial.json")
    assert len(set(written)) == 1
    keep_index(small, every=1)
    assert small.store.files()[INDEX] != written[0]
    afresh()
    assert len(read_index(small.store / "trials", small.store.list("trials"))) == SMALL + 3


def test_missing_files_of_many_trials_are_told_by_one_listing(small, bucket):
    def put(number, *files):
        for file in files:
            small.store.write(f"trials/{trial_name(number)}/{file}", b"x")
        trial = ended(number)
        trial.write(small.store / "trials" / trial.name, "trial.json")

    put(0, "predictions/val.parquet", "fold-0/model.safetensors")
    put(1, "fold-0/model.safetensors")
    put(2, "predictions/val.parquet")
    trials = [small.trial(trial_name(number)) for number in range(3)]
    bucket.requests.clear()
    faults = damages(small, trials)
    assert list(faults) == [trial_name(1), trial_name(2)]
    assert "val.parquet is not there" in faults[trial_name(1)]
    assert faults[trial_name(2)] == "its checkpoint is not there"
    assert len(bucket.requests) == 1


@pytest.mark.parametrize("content", [{"state": "later", "name": "T"}, {"version": 2, "name": "T", "state": "finished"}])
def test_a_record_is_judged_alike_whichever_way_it_is_parsed(content):
    faults = []
    for parse, given in ((TrialRecord.parse, content), (TrialRecord.parse_json, json.dumps(content).encode())):
        with pytest.raises((CxrltError, UsageError)) as error:
            parse(given, "where")
        faults.append(str(error.value))
    assert faults[0] == faults[1]


def test_a_record_of_this_version_is_the_same_whichever_way_it_is_parsed():
    content = json.loads(ended(1).model_dump_json(exclude_none=True))
    assert TrialRecord.parse_json(json.dumps(content).encode(), "where") == TrialRecord.parse(content, "where")
    old = {key: value for key, value in content.items() if key not in ("version", "score")} | {"val_map": 0.25}
    assert TrialRecord.parse_json(json.dumps(old).encode(), "where").score == 0.25


def test_records_are_read_without_torch(tmp_path):
    ended(0).write(Store(str(tmp_path)) / trial_name(0), "trial.json")
    code = f"""
import sys
from cxrlt_ray.runs.store import read_trials
from cxrlt_ray.storage import Store
assert read_trials(Store({str(tmp_path)!r}))[0].record.config.epochs == 3
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("folds", [0, 3])
def test_a_trial_of_folds_that_was_stopped_early_lacks_nothing_without_predictions(tmp_path, folds):
    record = RunRecord(name="mine", task=Task("auto", ("Mass",)), folds=folds)
    run = create_run(str(tmp_path / "runs"), record, write_images(tmp_path / "images", 8), {})
    trials = []
    for number, state in enumerate(("pruned", "finished")):
        store = run.store / "trials" / trial_name(number)
        ended(number, state=state).write(store, "trial.json")
        (store.local / "fold-0").mkdir()
        save_file({"weight": np.zeros(1, np.float32)}, store.local / "fold-0" / "model.safetensors")
        trials.append(read_trial(store))
    lacking = damages(run, trials)
    assert set(lacking) == ({"T0001"} if folds else {"T0000", "T0001"})
    (trials[0].store.local / "fold-0" / "model.safetensors").write_bytes(b"half")
    assert "damaged" in damages(run, trials[:1])["T0000"] or not folds


@pytest.mark.parametrize("copies", [None, 0, 3])
def test_a_setting_that_is_null_is_read_as_it_was(tmp_path, copies):
    store = Store(str(tmp_path))
    record = ended(0, config=CONFIG.model_copy(update={"feature_copies": copies, "frozen_backbone": True}))
    record.write(store, "trial.json")
    assert TrialRecord.read(store, "trial.json").config == record.config
    assert "checkpoint" not in json.loads((tmp_path / "trial.json").read_text())["config"]


@pytest.mark.parametrize("name", ["shards", "features", "devices", "rates.json", "mine.part", "mine.whole", ".mine"])
def test_a_run_is_not_called_as_what_a_storage_keeps_beside_runs(tmp_path, name):
    with pytest.raises(UsageError, match=f"--name '{name}'"):
        check_free(str(tmp_path), name)
