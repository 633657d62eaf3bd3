"""What trackers are told: each epoch once whatever happens in between, and nothing that names a patient or a place."""

from __future__ import annotations

import sys

import pytest
from drawn_run import CONFIG, FINDINGS, make_run

from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.runs.records import EpochRecord, TrialRecord
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.tracking import Session, trackers_of
from cxrlt_ray.tracking.curves import points, settings

SECRET = "/data/site_of_secrets/weights/best.safetensors"


def epoch(number, fold=0):
    return EpochRecord(fold=fold, stage=0, epoch=number, score=0.1 * number + fold, loss=1.0, images_per_second=9.0)


def trial(name="T0000", epochs=(), state="running", **changes):
    config = {**CONFIG, "checkpoint": SECRET}
    values = {"version": 1, "name": name, "state": state, "config": config, "params": {"lr": 0.01}, **changes}
    return TrialRecord.parse({**values, "epochs": [e.model_dump() for e in epochs]}, "trial.json")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)[0]


def curves(run, folder):
    """The curves that TensorBoard reads: tag -> [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run.store.local / "tensorboard" / folder)).Reload()
    return {tag: [(e.step, pytest.approx(e.value)) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def session(run, *names, said=None):
    return Session(run, names or ("tensorboard",), said.append if said is not None else print)


def test_epochs_of_all_folds_stand_once_in_tensorboard(run):
    told = session(run)
    told.see(trial(epochs=[epoch(0)]))
    told.see(trial(epochs=[epoch(0)]))
    told.see(trial(epochs=[epoch(0), epoch(1), epoch(0, 1)]))
    told.see(trial(epochs=[epoch(0), epoch(1), epoch(0, 1)], state="finished", score=0.4))
    told.close()
    assert curves(run, "T0000")["val_map"] == [(0, 0.0), (1, 0.1)]
    assert curves(run, "T0000/fold-1")["val_map"] == [(0, 1.0)]
    assert curves(run, "T0000")["score"] == [(0, 0.4)]
    assert trackers_of(run) == ("tensorboard",)


@pytest.mark.parametrize("written", [True, False])
def test_a_resumed_sweep_continues_the_curves_without_doubles(run, written):
    """Also where the first process was killed before it wrote down what it had told."""
    first = session(run)
    first.see(trial(epochs=[epoch(0), epoch(1), epoch(2)]))
    if written:
        first.close()
    else:
        for tracker in first.trackers.values():
            tracker.close()
    again = session(run)
    again.see(trial(epochs=[epoch(0), epoch(1)]))  # the third epoch's state was lost: it is trained again
    again.see(trial(epochs=[epoch(0), epoch(1), epoch(2), epoch(3)], state="finished", score=0.3))
    again.close()
    last = session(run)
    last.see(trial(epochs=[epoch(0), epoch(1), epoch(2), epoch(3)], state="finished", score=0.3))
    last.close()
    assert curves(run, "T0000")["val_map"] == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)]


def test_trials_of_before_are_told_when_a_run_goes_on_with_a_tracker(run):
    told = session(run)
    told.catch_up()
    told.close()
    assert sorted(path.name for path in (run.store.local / "tensorboard").iterdir()) == ["T0000", "T0001", "T0002"]


def test_settings_are_named_without_folders_and_epochs_without_unknown_numbers():
    record = trial(epochs=[EpochRecord(fold=0, stage=0, epoch=0, score=None, loss=float("nan"))])
    assert [point.values for point in points(record)] == [{"images_per_second": 0.0}]
    assert settings(record)["checkpoint"] == "best.safetensors"
    assert settings(record)["lr"] == 0.01
    assert settings(record)["backbone"] == "test_convnext"


def test_the_scores_of_an_ensemble_stand_there_once_however_often_it_is_made(run):
    told = session(run)
    told.ensemble(ensemble(run, 0.5))
    told.close()
    told = session(run)
    told.ensemble(ensemble(run, 0.6))
    told.close()
    shown = curves(run, "ensemble-greedy")
    assert shown["test/greedy ensemble"] == [(0, 0.6)]
    assert shown["test/greedy ensemble low"] == [(0, 0.4)]
    assert not [tag for tag in shown if "cross_fitted" in tag]  # it is not known


def ensemble(run, score):
    sets = {"test": {"map": score, "low": 0.4, "high": 0.7}, "cross_fitted": {"map": None, "low": None, "high": None}}
    systems = {"greedy ensemble": sets}
    return EnsembleRecord(name="greedy", task=run.task, members=[], scores={"systems": systems})


def test_a_trackers_fault_is_a_sentence_and_ends_nothing_else(run, monkeypatch):
    from cxrlt_ray.tracking import tensorboard

    def fail(*_, **__):
        raise OSError(f"no space in {SECRET}")

    monkeypatch.setattr(tensorboard.TensorBoard, "log", fail)
    said = []
    told = session(run, said=said)
    told.see(trial(epochs=[epoch(0)]))
    told.see(trial(epochs=[epoch(0), epoch(1)]))
    told.ensemble(ensemble(run, 0.5))
    told.close()
    assert said == ["TensorBoard is left out from here on (OSError); the rest goes on."]


def test_event_files_are_copied_to_a_store_that_is_no_local_directory(run, monkeypatch):
    from cxrlt_ray.storage import Store

    monkeypatch.setattr(Store, "local", property(lambda self: None))
    monkeypatch.setattr(Store, "write", lambda self, name, content: written.update({f"{self.uri}/{name}": content}))
    written = {}
    from cxrlt_ray.tracking.tensorboard import TensorBoard

    board = TensorBoard(run.store / "tensorboard")
    board.log("T0000", {}, points(trial(epochs=[epoch(0)])))
    board.close()
    assert [name for name in written if name.startswith(f"{run.store.uri}/tensorboard/T0000/events.")]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["sweep", "--data", SECRET])


def test_weights_and_biases_has_the_curves_offline_and_names_no_place(run, offline):
    import platform

    told = session(run, "wandb")
    told.see(trial(epochs=[epoch(0)]))
    told.see(trial(epochs=[epoch(0), epoch(1)], state="finished", score=0.4))
    report = run.store.local / "report.html"
    report.write_text("<html>figures</html>")
    told.ensemble(ensemble(run, 0.5), report)
    told.close()
    assert "wandb" in told.trackers
    files = [path for path in (run.store.local / "wandb").rglob("*.wandb") if not path.is_symlink()]
    assert sorted(path.stem for path in files) == ["run-r-T0000", "run-r-ensemble-greedy"]
    content = {path.stem: path.read_bytes() for path in files}
    history = records(next(path for path in files if path.stem == "run-r-T0000"))
    assert history == [{"val_map": 0.0, "epoch": 0}, {"val_map": 0.1, "epoch": 1}]
    assert b"best.safetensors" in content["run-r-T0000"]
    assert b"r-report" in content["run-r-ensemble-greedy"]
    for bytes_ in content.values():
        assert b"site_of_secrets" not in bytes_
        assert platform.node().encode() not in bytes_ or len(platform.node()) < 6
        assert not [name for name in FINDINGS if name.encode() in bytes_]


def test_a_report_with_pictures_in_it_is_not_sent(run, offline):
    told = session(run, "wandb")
    report = run.store.local / "report.html"
    report.write_text('<img src="data:image/png;base64,AAAA">')
    told.ensemble(ensemble(run, 0.5), report)
    told.close()
    (file,) = [path for path in (run.store.local / "wandb").rglob("*.wandb") if not path.is_symlink()]
    assert b"r-report" not in file.read_bytes()
    assert "wandb" in told.trackers


def records(path):
    """The epochs in a file of Weights & Biases: val_map and epoch of each step."""
    import json
    import struct

    from wandb.proto import wandb_internal_pb2

    content, at, steps = path.read_bytes(), 7, []
    assert len(content) < 32768  # one block of LevelDB's log format, with whole records
    while at < len(content):
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        assert kind == 1
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content[at + 7 : at + 7 + length])
        at += 7 + length
        if record.HasField("history"):
            values = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            steps.append({"val_map": pytest.approx(values["val_map"]), "epoch": values["epoch"]})
    return steps


@pytest.mark.parametrize("text", ["mlflow", "", "tensorboard,comet"])
def test_a_tracker_that_there_is_not_is_refused_by_the_names_there_are(text):
    with pytest.raises(UsageError, match="--log-with is tensorboard, wandb or both"):
        SweepRequest(task="task1", log_with=text)


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    from cxrlt_ray.tracking import trackers

    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'cxrlt-ray\[track\]'"):
        SweepRequest(task="task1", log_with="tensorboard")


def test_track_of_curves_is_told_the_option_that_is_meant():
    with pytest.raises(UsageError, match="curves go by --log-with tensorboard,wandb"):
        SweepRequest(task="task1", track="tensorboard,wandb")


def test_weights_and_biases_asks_for_a_login_before_the_sweep(monkeypatch, tmp_path):
    from cxrlt_ray.tracking import check_trackers

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UsageError, match="WANDB_MODE=offline"):
        check_trackers(("wandb",))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(("wandb",))


def test_the_documents_snippet_gives_mlflow_what_the_records_hold(run, monkeypatch):
    import re
    import types
    from contextlib import nullcontext
    from pathlib import Path

    trial(epochs=[epoch(0), epoch(1)], state="finished", score=0.4).write(run.store / "trials" / "T0000", "trial.json")
    ensemble(run, 0.5).write(run.store / "ensembles" / "greedy")
    logged = []
    names = ("set_experiment", "log_params", "set_tag", "log_metric", "log_metrics", "log_artifact")
    fake = {name: (lambda *what, name=name: logged.append((name, *what))) for name in names}
    mlflow = types.SimpleNamespace(**fake, start_run=lambda run_name: nullcontext(logged.append(("run", run_name))))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr(sys, "argv", ["mlflow.py", run.store.uri])
    text = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
    (code,) = re.findall(r"((?:    [^\n]*\n|\n)*    import mlflow\n(?:    [^\n]*\n|\n)*)", text)
    exec("\n".join(line[4:] for line in code.splitlines()), {})
    assert [entry[1] for entry in logged if entry[0] == "run"] == ["T0000", "T0001", "T0002", "ensemble-greedy"]
    assert ("log_metrics", {"fold-0-score": 0.1, "fold-0-loss": 1.0}, 1) in logged
    assert ("log_metric", "test/greedy ensemble", 0.5) in logged
