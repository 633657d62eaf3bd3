"""A trial: what trains and what validates, stage after stage, and what is left."""

from __future__ import annotations

import pytest

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.models import weights
from cxrlt_ray.runs.records import EpochRecord, RunRecord, TrialRecord
from cxrlt_ray.runs.store import Run
from cxrlt_ray.search.trial_states import reopen_trial, settle_trial
from cxrlt_ray.search.tuner import uphold_verdicts
from cxrlt_ray.storage import Store
from cxrlt_ray.training.context import Stopped, TrialContext
from cxrlt_ray.training.trial import origin_of


def process_of(store, **record):
    """A process that trains the trial in `store`, whose record it takes to be this."""
    return TrialContext(
        None, None, None, store, None, TrialRecord(**{"name": "T0003", "state": "running", **record}), None, None
    )


def test_a_trial_ended_from_outside_is_not_written_over(tmp_path):
    store = Store(str(tmp_path))
    TrialRecord(name="T0003", state="pruned").write(store, "trial.json")
    before = store.read("trial.json")
    process_of(store, attempt=0).update()
    assert store.read("trial.json") == before


def run_of(tmp_path):
    """A run whose trial T0003 has trained an epoch and goes on, and that trial's process."""
    run = Run(Store(str(tmp_path)), RunRecord(name="run", task=Task("auto", ("Mass",))))
    record = {"epochs": [{"fold": 0, "stage": 0, "epoch": 0, "score": 0.5}], "score": 0.5}
    process = process_of(run.store / "trials" / "T0003", **record)
    process.write()
    return run, process


@pytest.mark.parametrize("moment", ["before it looks", "after it has looked"])
def test_what_the_sweep_ends_stays_ended_whenever_the_trials_process_writes(tmp_path, monkeypatch, moment):
    run, process = run_of(tmp_path)
    look = process._mine

    def looks_as_the_sweep_ends_it():
        seen = look() if moment == "after it has looked" else None
        settle_trial(run, 3)
        return seen or look()

    monkeypatch.setattr(process, "_mine", looks_as_the_sweep_ends_it)
    process.record.epochs.append(EpochRecord(fold=0, stage=0, epoch=1, score=0.1))
    process.update()
    monkeypatch.undo()
    stored = run.trial("T0003").record
    assert (stored.state, len(stored.epochs)) == ("pruned", 1)
    with pytest.raises(Stopped):  # it leaves no resume state
        process.check_mine()
    process.end("finished")
    assert run.trial("T0003").record == stored


def test_a_trial_that_is_opened_again_is_written_by_its_process(tmp_path):
    run, process = run_of(tmp_path)
    reopen_trial(settle_trial(run, 3))
    process.check_mine()
    process.update()
    assert run.trial("T0003").state == "running"
    process.end("finished")
    assert run.trial("T0003").state == "finished"


def test_a_process_killed_as_it_wrote_over_the_sweeps_verdict_leaves_the_trial_ended(tmp_path, monkeypatch):
    run, process = run_of(tmp_path)
    settle_trial(run, 3)
    with monkeypatch.context() as killed:
        killed.setattr("cxrlt_ray.runs.verdict.uphold", lambda store: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            process.write()
    assert run.trial("T0003").state == "running"
    uphold_verdicts(run)
    assert run.trial("T0003").state == "pruned"


def test_a_trial_begun_anew_elsewhere_is_not_written_by_its_first_process(tmp_path):
    store = Store(str(tmp_path))
    TrialRecord(name="T0003", state="running", attempt=1).write(store, "trial.json")
    with pytest.raises(CxrltError, match="T0003 was begun anew in another process; this one ends"):
        process_of(store, attempt=0).update()
    assert store.read_json("trial.json")["attempt"] == 1


def test_weights_of_an_earlier_trial_are_told_with_where_that_began(tmp_path):
    store = Store(str(tmp_path)) / "run" / "trials" / "T0001"
    TrialRecord(name="T0001", state="finished", weights="transformers:microsoft/rad-dino").write(store, "trial.json")
    told = origin_of(f"{store.uri}/fold-0/model.safetensors")
    assert told.endswith("model.safetensors, which began from transformers:microsoft/rad-dino")
    assert weights.saw_mimic(told)
    assert origin_of("s3://b/w.safetensors") == "s3://b/w.safetensors"
    assert not weights.saw_mimic("timm convnext_small.fb_in22k_ft_in1k")
