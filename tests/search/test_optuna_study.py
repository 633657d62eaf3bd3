"""The search's memory: whatever is lost or cut off, it suggests what it would have suggested."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from types import SimpleNamespace

import optuna
import pytest
import s3 as server
from conftest import write_images

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.records import EpochRecord, RunRecord
from cxrlt_ray.runs.store import create_run, load_run, read_trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search import optuna_study
from cxrlt_ray.search.asha import ResumableASHA, scheduler_of
from cxrlt_ray.search.optuna_study import OptunaStudy, check_url
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.search.stop import StopRequest
from cxrlt_ray.search.trial_states import note_retry, reopen_trial, settle_trial, trial_name
from cxrlt_ray.search.tuner import FaultPolicy, StudySearcher, _longest
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.patience import patiently

SPACE = """
trials: 9
epochs: 3
parameters:
  backbone: {choices: [test_convnext, test_resnet]}
  pretrained: false
  resolution: 32
  lr: {low: 1e-4, high: 1e-1, log: true}
  loss: {choices: [bce, focal]}
  focal_gamma: {when: {loss: focal}, low: 1.0, high: 3.0}
start:
  - {backbone: test_resnet, lr: 1e-3}
"""
TRIALS = 9
RECORD = RunRecord(name="mine", task=Task("auto", ("Mass",)), objectives="map", folds=0)


class Cut(Exception):
    """The end of a process."""


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "mine.yaml"
    path.write_text(SPACE)
    return load_space(str(path))


@pytest.fixture
def run(tmp_path):
    return create_run(str(tmp_path / "runs"), RECORD, write_images(tmp_path / "images", 8), {})


def trained(run, number, params, epochs=3):
    """As a trial leaves its record after so many epochs."""
    trial = run.trial(trial_name(number))
    scores = [round(1 / (1 + abs(params["lr"] - 0.02)) + k / 100, 6) for k in range(epochs)]
    records = [EpochRecord(fold=0, stage=0, epoch=k, score=score) for k, score in enumerate(scores)]
    config = TrialConfig(backbone="test_resnet", resolution=32, epochs=3)
    trial.write(trial.record.model_copy(update={"epochs": records, "config": config, "score": scores[-1]}))


def test_a_run_on_an_object_store_does_not_copy_its_study_for_every_trial(space, tmp_path, monkeypatch):
    """Copies of a growing study at every trial's end would be a cost of the square of the trials."""
    seconds = iter(range(10**6))  # a copy takes one
    monkeypatch.setattr(optuna_study, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with server.served("bucket") as bucket:
        run = create_run("s3://bucket/runs", RECORD, write_images(tmp_path / "images", 8), {})
        study = OptunaStudy(run, space, 0)

        def copies():
            return sum(method == "PUT" and "optuna.db" in path for method, path in bucket.requests)

        for _ in range(20):
            number, params = study.next()
            trained(run, number, params)
            study.settle(number)
        assert copies() == 1
        study.copy()
        assert copies() == 2
        assert len(OptunaStudy(run, space, 0).study.trials) == 20


def searched(run, space, url=None, ends=lambda number, step: None, until=TRIALS):
    """Search, as a sweep does, one trial at a time; every third is pruned after an epoch. ends: raises Cut."""
    study = OptunaStudy(run, space, 0, url)
    while True:
        done = sum(trial.state != "running" for trial in run.trials())
        if done == until:
            return {trial.name: trial.record.params for trial in run.trials()}
        number, params = study.next()
        ends(number, "suggested")
        trained(run, number, params, 1 if number % 3 == 2 else 3)
        ends(number, "trained")
        settle_trial(run, number)
        ends(number, "written")
        study.settle(number)


@pytest.fixture(scope="module")
def wanted(space, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run = create_run(str(folder), RECORD, write_images(folder / "images", 8), {})
    return searched(run, space)


def test_a_runs_folder_is_its_owners_alone(run):
    assert run.store.local.stat().st_mode & 0o777 == 0o700


def test_a_search_goes_through_the_space(wanted):
    assert len({params["lr"] for params in wanted.values()}) == TRIALS
    assert wanted["T0000"]["backbone"] == "test_resnet"
    assert {params["loss"] for params in wanted.values()} == {"bce", "focal"}


@pytest.mark.parametrize("step", ["suggested", "trained", "written"])
@pytest.mark.parametrize("loss", ["nothing", "half of it"])
def test_a_search_cut_off_at_any_step_of_any_trial_goes_on_as_it_would_have(run, space, wanted, step, loss):
    cuts = set()

    def ends(number, now):
        if now == step and number not in cuts:
            cuts.add(number)
            raise Cut

    database = run.store.local / "optuna.db"
    for _ in range(TRIALS + 1):
        try:
            found = searched(run, space, ends=ends)
            break
        except Cut:
            if loss == "half of it":
                database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])
    assert len(cuts) == TRIALS
    assert found == wanted
    study = optuna.load_study(study_name="mine", storage=f"sqlite:///{database}")
    assert [trial.params for trial in study.trials] == list(wanted.values())
    pruned = {trial.number for trial in study.trials if trial.state.name == "PRUNED"}
    assert pruned == {2, 5, 8}


@pytest.mark.parametrize(
    "name", ["my%20runs", "a%41", "a?b=c", "a#b", "a b", "Größe", "a{b}", "a\nb", "s3:x", "'\"$HOME"]
)
def test_a_search_remembers_in_a_folder_of_any_name(space, wanted, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    run = create_run(name, RECORD, write_images(tmp_path / "images", 8), {})
    searched(run, space, until=5)
    with closing(sqlite3.connect(tmp_path / name / "mine" / "optuna.db")) as database:
        assert database.execute("select count(*) from trials").fetchone() == (5,)
    assert len(OptunaStudy(load_run(name, "mine"), space, 0).study.trials) == 5
    assert {path.name for path in tmp_path.iterdir()} == {name, "images"}


def test_a_trial_cut_off_while_it_is_suggested_keeps_what_it_has(run, space, wanted, monkeypatch):
    searched(run, space, until=5)
    write = Store.write_json
    with monkeypatch.context() as broken:
        broken.setattr(Store, "write_json", lambda *_: (_ for _ in ()).throw(Cut()))
        with pytest.raises(Cut):
            OptunaStudy(run, space, 0).next()
    with sqlite3.connect(run.store.local / "optuna.db") as database:  # not all of it had been written
        database.execute("DELETE FROM trial_params WHERE trial_id = 6 AND param_name = 'loss'")
    assert write is Store.write_json
    assert searched(run, space) == wanted


def test_an_older_copy_of_the_database_is_made_up_from_the_store(run, space, wanted, tmp_path):
    searched(run, space, until=3)
    shutil.copy(run.store.local / "optuna.db", tmp_path / "old.db")
    searched(run, space, until=6)
    shutil.copy(tmp_path / "old.db", run.store.local / "optuna.db")
    assert searched(run, space) == wanted


def test_a_run_goes_on_from_another_place(run, space, wanted, tmp_path):
    """As from another machine: a copy of the storage elsewhere, without the search's database."""
    searched(run, space, until=4)
    shutil.copytree(tmp_path / "runs", tmp_path / "moved")
    (tmp_path / "moved" / "mine" / "optuna.db").unlink()
    assert searched(load_run(str(tmp_path / "moved"), "mine"), space) == wanted


def test_a_trial_that_is_opened_again_is_suggested_again_under_its_number(run, space, wanted):
    searched(run, space, until=5)
    reopen_trial(run.trials()[1])
    again = run.trials()[1].record
    assert (again.state, again.epochs, again.retraining.state) == ("running", [], "finished")
    assert OptunaStudy(run, space, 0).next() == (1, wanted["T0001"])
    assert searched(run, space) == wanted


def test_a_trial_that_is_trained_again_keeps_no_predictions_of_its_old_weights(run, space):
    searched(run, space, until=2)
    trial = run.trials()[1]
    for split in ("val", "test", "test-tta"):
        trial.store.write(f"predictions/{split}.parquet", b"scores")
    reopen_trial(trial)
    assert trial.store.list("predictions") == []


def test_asha_is_told_again_what_it_knew(run, space):
    searched(run, space, until=4)
    asha = ResumableASHA("epoch", max_t=3, grace_period=1, reduction_factor=3)
    assert asha.recall(run.trials()) == []
    assert set(asha._brackets[0]._rungs[-1][1]) == {"T0000", "T0001", "T0002", "T0003"}
    number, params = OptunaStudy(run, space, 0).next()
    trained(run, number, {**params, "lr": 90.0}, 1)  # far below the others: it would have been stopped
    asha = ResumableASHA("epoch", max_t=3, grace_period=1, reduction_factor=3)
    assert asha.recall(run.trials()) == [number]


def test_asha_does_not_stop_a_trial_that_had_passed_its_rung(run, space):
    """Which others had reported by then is not known any more: what a trial did after the rung is."""
    searched(run, space, until=4)
    number, params = OptunaStudy(run, space, 0).next()
    trained(run, number, {**params, "lr": 90.0}, 2)
    asha = ResumableASHA("epoch", max_t=3, grace_period=1, reduction_factor=3)
    assert asha.recall(run.trials()) == []


def test_a_trial_that_is_settled_while_it_waits_is_not_suggested_again(run, space):
    searched(run, space, until=4)
    first = OptunaStudy(run, space, 0)
    numbers = [first.next()[0] for _ in range(2)]
    trained(run, numbers[0], run.trial(trial_name(numbers[0])).record.params, 1)
    study = OptunaStudy(run, space, 0)
    assert study.settle(numbers[0]) == "pruned"
    assert [study.next()[0] for _ in range(2)] == [numbers[1], numbers[1] + 1]


def test_a_trial_pruned_in_its_first_fold_is_no_failure_to_the_sampler(tmp_path, space):
    record = RECORD.model_copy(update={"folds": 3})
    run = create_run(str(tmp_path / "runs"), record, write_images(tmp_path / "images", 8), {})
    study = OptunaStudy(run, space, 0)
    number, params = study.next()
    trained(run, number, params, 1)
    trial = run.trial(trial_name(number))
    trial.write(trial.record.model_copy(update={"score": None}))
    curve = [epoch.score for epoch in trial.record.epochs]
    assert study.settle(number) == "pruned"
    for again in (study.study, study._remade(optuna.storages.InMemoryStorage(), run.trials())):
        (known, *_) = again.trials
        assert (known.state, known.value) == (optuna.trial.TrialState.PRUNED, curve[-1])


def test_a_database_that_fails_for_a_while_is_waited_for(capsys):
    from sqlalchemy.exc import OperationalError

    faults = iter([OperationalError("select", {}, Exception("the server is restarting"))])

    def ask():
        for fault in faults:
            try:
                raise fault
            except OperationalError as within:
                raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from within
        return "answer"

    assert patiently(ask, also=optuna_study.UNREACHED) == "answer"
    assert "the server is restarting" in capsys.readouterr().err


@pytest.mark.parametrize("score", [None, 0.3])
def test_a_trial_cut_after_its_last_fold_is_whole(tmp_path, space, score):
    record = RECORD.model_copy(update={"folds": 3})
    run = create_run(str(tmp_path / "runs"), record, write_images(tmp_path / "images", 8), {})
    number, params = OptunaStudy(run, space, 0).next()
    trained(run, number, params)
    trial = run.trial(trial_name(number))
    config = trial.record.config.model_copy(update={"refit": True})
    trial.write(trial.record.model_copy(update={"score": score, "config": config}))
    ended = settle_trial(run, number, cut=True)
    assert ended.state == ("pruned" if score is None else "finished")
    assert ended.record.reason == (None if score is None else "the time budget ended before its refit")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://user:secret@host/name", "leave it out, and put it into the environment variable PGPASSWORD"),
        ("nonsense", "is no URL"),
        ("oracle://host/name", "of postgresql, mysql or sqlite, not oracle"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused(url, told):
    with pytest.raises(UsageError, match=told) as refusal:
        check_url(url)
    assert "secret" not in str(refusal.value)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A PostgreSQL server of Debian's package, where there is one; its URL."""
    if not shutil.which("initdb") or not shutil.which("postgres"):
        pytest.skip("no PostgreSQL here (Debian's package postgresql)")
    folder = tmp_path_factory.mktemp("postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user = [] if os.getuid() else ["runuser", "-u", "postgres", "--"]
    os.chmod(folder.parent.parent, 0o755)
    os.chmod(folder.parent, 0o755)
    os.chmod(folder, 0o777)
    try:
        subprocess.run([*user, "initdb", "-D", f"{folder}/data", "-A", "trust"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"PostgreSQL's initdb does not run here: {getattr(error, 'stderr', error)!r}")
    options = ["-D", f"{folder}/data", "-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
    server = subprocess.Popen([*user, "postgres", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    name = "postgres" if user else os.environ["USER"]
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield check_url(f"postgresql://{name}@127.0.0.1:{port}/postgres")
    server.terminate()
    server.wait(20)


def test_postgresql_keeps_the_search_and_may_be_lost_too(run, space, wanted, postgres):
    searched(run, space, postgres, until=4)
    assert not (run.store.local / "optuna.db").exists()
    optuna.delete_study(study_name="mine", storage=postgres)
    searched(run, space, postgres, until=6)
    assert searched(run, space, postgres) == wanted
    assert len(optuna.load_study(study_name="mine", storage=postgres).trials) == TRIALS


def test_a_server_that_does_not_answer_is_told(run, space):
    with pytest.raises(CxrltError, match=r"cannot be opened: .*Is --search-db right") as refusal:
        OptunaStudy(run, space, 0, check_url("postgresql://me@127.0.0.1:1/none"))
    assert "\n" not in str(refusal.value)


def test_reasons_of_retries_end_up_in_the_trials_record(run, space):
    number, _ = OptunaStudy(run, space, 0).next()
    store = run.store / "trials" / trial_name(number)
    note_retry(store, "its process ended (killed, or out of memory)", 1.0)
    note_retry(store, "hung: no batch was done in 10 min, its process was ended", 2.0)
    assert settle_trial(run, number, error=True).state == "failed"
    record = read_trial(store).record
    assert record.reason.startswith("hung: ")
    assert [retry.at for retry in record.retries] == [1.0, 2.0]
    assert not store.exists("retries.json")


def test_a_trial_that_its_surroundings_ended_keeps_its_state_and_one_of_its_own_fault_does_not(run, space):
    study = OptunaStudy(run, space, 0)
    for own_fault in (False, True):
        number, params = study.next()
        trained(run, number, params, 1)
        trial = run.trial(trial_name(number))
        trial.write(trial.record.model_copy(update={"own_fault": own_fault}))
        trial.store.write("resume-000001.safetensors", b"state")
        assert settle_trial(run, number, error=True).state == "failed"
        assert trial.store.exists("resume-000001.safetensors") is not own_fault


@pytest.mark.parametrize(("epochs", "cut", "state"), [(3, True, "finished"), (3, False, "pruned"), (2, True, "pruned")])
def test_a_trial_cut_by_the_time_budget_after_its_last_epoch_lacks_its_augmented_scores_alone(
    run, space, epochs, cut, state
):
    number, params = OptunaStudy(run, space, 0).next()
    trained(run, number, params, epochs)
    trial = run.trial(trial_name(number))
    config = trial.record.config.model_copy(update={"tta": "flip", "epochs": 3})
    trial.write(trial.record.model_copy(update={"config": config}))
    assert settle_trial(run, number, cut=cut).state == state


def stopped_now(run, space):
    """What a sweep has that was asked to stop."""
    stop = StopRequest()
    stop.now, stop.reason = True, "by Ctrl-C"
    search = SimpleNamespace(run=run, pace=None, policy=FaultPolicy())
    return StudySearcher(search, OptunaStudy(run, space, 0), stop, SimpleNamespace())


@pytest.mark.parametrize(("folds", "state"), [(0, "finished"), (3, "running")])
def test_a_trial_stopped_after_its_first_fold_goes_on_with_the_others(tmp_path, space, folds, state):
    record = RECORD.model_copy(update={"folds": folds})
    run = create_run(str(tmp_path / "runs"), record, write_images(tmp_path / "images", 8), {})
    searcher = stopped_now(run, space)
    number, params = searcher.optuna_study.next()
    searcher.numbers["id"] = number
    trained(run, number, params)  # all epochs of the first fold, which alone are reported
    run.trial(trial_name(number)).store.write("resume-000003.safetensors", b"state")
    searcher.on_trial_complete("id")
    assert run.trial(trial_name(number)).state == state
    assert run.trial(trial_name(number)).store.exists("resume-000003.safetensors") == (state == "running")


def test_a_trial_that_was_given_more_epochs_than_the_space_has_is_not_stopped_at_those(run, space):
    number, params = OptunaStudy(run, space, 0).next()
    trained(run, number, params, 5)
    trial = run.trial(trial_name(number))
    trial.write(trial.record.model_copy(update={"config": trial.record.config.model_copy(update={"epochs": 8})}))
    search = SimpleNamespace(space=space, pace=None, run=run)
    scheduler, stopped = scheduler_of(space, _longest(search), run)
    assert stopped == []
    goes_on = SimpleNamespace(config={"number": number}, trial_id="id")
    scheduler.set_search_properties("val_map", "max")
    scheduler.on_trial_add(None, goes_on)
    decisions = [scheduler.on_trial_result(None, goes_on, {"epoch": k, "val_map": 0.9}) for k in (5, 6, 7, 8)]
    assert decisions == ["CONTINUE", "CONTINUE", "CONTINUE", "STOP"]


def test_a_database_keeps_searches_of_equal_name_apart(space, tmp_path):
    url = check_url(f"sqlite:///{tmp_path}/shared.db")
    images = write_images(tmp_path / "images", 8)
    first, second = (create_run(str(tmp_path / name), RECORD, images, {}) for name in ("one", "two"))
    second = dataclasses.replace(second, record=second.record.model_copy(update={"created": "later"}))
    searched(first, space, url, until=3)
    with pytest.raises(CxrltError, match=r"search of another run called mine, made .*give another --name"):
        OptunaStudy(second, space, 0, url)
    assert second.trials() == []
    searched(first, space, url, until=5)  # it is as it was
    optuna.delete_study(study_name="mine", storage=url)
    assert searched(second, space, url, until=1).keys() == {"T0000"}
