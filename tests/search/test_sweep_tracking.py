"""A sweep tells its trackers of each epoch, by what the store has."""

from __future__ import annotations

from types import SimpleNamespace

from drawn_run import make_run

from cxrlt_ray.runs.records import EpochRecord
from cxrlt_ray.search.tracking import tracked
from cxrlt_ray.tracking import trackers_of


def test_callbacks_tell_what_the_store_has_and_the_end_tells_the_rest(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(tmp_path)[0]
    first, *_ = run.trials()
    epochs = [EpochRecord(fold=0, stage=0, epoch=k, score=0.25 * k) for k in range(3)]
    with tracked(run, ["tensorboard"]) as (callback,):
        pass  # trials of before have ended: they are told at once
    (tmp_path / "r" / "tracking.json").unlink()
    first.write(first.record.model_copy(update={"state": "running", "epochs": epochs[:2]}))
    with tracked(run, ["tensorboard"]) as (callback,):
        callback.on_trial_result(0, [], SimpleNamespace(config={"number": 0}), {})
        callback.on_trial_result(0, [], SimpleNamespace(config={"number": 9}), {})  # has left no record yet
        first.write(first.record.model_copy(update={"state": "pruned", "epochs": epochs}))
    read = EventAccumulator(str(tmp_path / "r" / "tensorboard" / "T0000")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("val_map")] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert trackers_of(run) == ("tensorboard",)
    with tracked(run, []) as callbacks:
        assert callbacks == []


def test_tune_writes_the_callbacks_down_whatever_print_is(tmp_path, monkeypatch):
    """Ray Data's progress bars put a function of theirs in the place of print."""
    from ray import cloudpickle

    run, _ = make_run(tmp_path)
    run.write(run.record)
    with tracked(run, ["tensorboard"]) as (callback,):
        monkeypatch.setattr("builtins.print", lambda *words, **options: None)
        assert cloudpickle.dumps(callback)
