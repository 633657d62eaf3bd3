"""Rates of training that sweeps leave for the next plan."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from cxrlt_ray import sweep
from cxrlt_ray.runs.records import EpochRecord, TrialRecord
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.rates import Rates, trained_rates
from cxrlt_ray.storage import Store

CONFIG = TrialConfig(backbone="test_resnet", pretrained=False, resolution=32, epochs=1)


def test_sweeps_of_one_storage_keep_each_others_rates(tmp_path):
    """One that runs for days began before the others had left theirs."""
    store = Store(str(tmp_path / "runs"))
    long, short = Rates(store), Rates(store)
    short.note("H100", "test_resnet", 96, 100.0, "trials")
    short.save()
    long.note("H100", "test_resnet", 128, 60.0, "trials")
    long.save()
    assert set(Rates(store).known) == set(long.known) == {"H100 test_resnet 96", "H100 test_resnet 128"}
    short.save()  # what it had noted is not newer now
    assert len(Rates(store).known) == 2


def test_of_sweeps_that_end_together_no_rate_is_lost(tmp_path):
    store, together = Store(str(tmp_path)), threading.Barrier(8)

    def end(number):
        rates = Rates(store)
        rates.note("H100", "test_resnet", 32 * (number + 1), 10.0, "trials")
        together.wait()
        rates.save()

    threads = [threading.Thread(target=end, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Rates(store).known) == 8


def test_a_rate_that_a_record_rounds_to_nothing_is_not_kept():
    """A plan divides by it."""

    def speeds(rate):
        epochs = [EpochRecord(fold=0, stage=0, epoch=0, images_per_second=rate)]
        record = TrialRecord(name="T0000", state="finished", config=CONFIG, epochs=epochs)
        return [speed for _, speed in trained_rates(record)]

    assert speeds(0.0) == []
    assert speeds(0.1) == [0.1]


def test_a_slow_rate_is_not_rounded_to_nothing(tmp_path):
    rates = Rates(Store(str(tmp_path)))
    rates.note("cpu-2", "test_resnet", 32, 0.00412345, "probe")
    rates.save()
    (kept,) = Rates(Store(str(tmp_path))).known.values()
    assert kept["images_per_second"] == pytest.approx(0.004123, rel=1e-3)


def test_the_rates_of_a_sweep_that_goes_on_are_those_of_its_own_trials():
    def trial(name, state):
        return Trial(Store("nowhere"), TrialRecord(name=name, state=state))

    kept = []
    planner = SimpleNamespace(keep_rates=lambda trials: kept.extend(trial.name for trial in trials))
    before = [trial("T0000", "finished"), trial("T0001", "running")]
    after = [before[0], trial("T0001", "pruned"), trial("T0002", "running")]
    sweep._keep_rates(planner, SimpleNamespace(trials=lambda: after), before)
    assert kept == ["T0001", "T0002"]
