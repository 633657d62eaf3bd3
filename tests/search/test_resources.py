"""What a sweep refuses before it starts, and how it shares a machine."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlt_ray import sweep
from cxrlt_ray.cluster.start import DATA_CPUS
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.search.resources import plan_resources


@given(
    st.integers(1, 64),
    st.integers(0, 8),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(0.1, 8),
    st.integers(1, 4),
)
def test_a_plan_always_leaves_cpus_to_stream_images_or_is_refused_with_numbers(cpus, gpus, concurrent, each, workers):
    asked = {"max_concurrent": concurrent, "cpus_per_trial": each, "workers_per_trial": workers}
    try:
        plan = plan_resources(cpus, gpus, **asked)
    except UsageError:
        with pytest.raises(UsageError, match=r"\d"):
            plan_resources(cpus, gpus, **asked)
        return
    assert plan.cpus_for_data >= DATA_CPUS
    assert plan.cpus_per_trial > 0
    assert plan.max_concurrent * plan.workers_per_trial * plan.gpus_per_trial <= gpus


def test_more_than_the_machine_has_is_refused_with_what_there_is():
    with pytest.raises(UsageError, match="there are 2: at most 2 trials"):
        plan_resources(16, 2, max_concurrent=3)
    with pytest.raises(UsageError, match=r"asks for 4 GPU; there are 2"):
        plan_resources(16, 2, workers_per_trial=4)
    with pytest.raises(UsageError, match=r"ask for 2 of 2 CPU, and 0.5 must stay free"):
        plan_resources(2, 0, cpus_per_trial=2)
    for few in (0, 3):
        with pytest.raises(UsageError, match=f"--min-workers must be 1 to 2 .--workers-per-trial., not {few}"):
            plan_resources(16, 2, workers_per_trial=2, min_workers=few)


def test_one_core_is_enough():
    assert 0 < plan_resources(1, 0).cpus_per_trial <= 0.5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "task1", "views": "side"}, "--views is all or frontal"),
        ({"task": "task1", "folds": 1}, "at least 2 folds"),
        ({"task": "task1", "holdout": 1.5}, "--holdout"),
        ({"task": "task1", "trials": 0}, "--trials must be at least 1"),
        ({"task": "task1", "time_budget": "soon"}, "--time-budget"),
        ({"task": "task1", "space": "nope", "dry_run": True}, "no search_spaces file 'nope'"),
        ({"task": "task1", "address": "ray://head:10001"}, "--address auto"),
        ({"task": "task1", "data": "/nowhere", "dry_run": False}, "no directory /nowhere"),
        ({"task": "task1", "name": "a/b"}, "cannot be a directory's name"),
        ({"task": "task1", "resume": True}, "no run in"),
    ],
)
def test_wrong_usage_is_told_before_anything_starts(options, told, tmp_path):
    with pytest.raises(UsageError, match=told):
        sweep.main(**{"storage": str(tmp_path), **options})


def test_a_storage_that_cannot_be_written_is_told_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CxrltError, match="cannot be written"):
        sweep.main("task1", storage=str(tmp_path / "file" / "below"))


def test_a_name_already_taken_is_told_before_anything_starts(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text(json.dumps({"name": "mine"}))
    with pytest.raises(UsageError, match=r"'mine' already exists.*--resume"):
        sweep.main("task1", name="mine", storage=str(tmp_path))


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path, capsys):
    sweep.main("task1", storage=str(tmp_path / "runs"), space="laptop", dry_run=True)
    told = capsys.readouterr().out
    assert "Resources: " in told
    assert "trials of up to" in told
    assert "nothing was started" in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "seconds"), [(None, None), ("90s", 90), ("30m", 1800), ("2h", 7200), ("45", 45)])
def test_a_time_budget_is_read_with_its_unit(text, seconds):
    assert sweep.SweepRequest(task="task1", time_budget=text).seconds == seconds


@pytest.mark.parametrize(("part", "held"), [(0.1, 10), (0.2, 5), (0.25, 4), (1 / 3, 3), (0.4, 2), (0.5, 2), (1.0, 1)])
@pytest.mark.parametrize("gpus", [1, 2, 7])
def test_as_many_trials_share_gpus_as_their_parts_hold(part, held, gpus):
    """A tenth of a GPU goes into it ten times, though 1 // 0.1 is 9."""
    assert plan_resources(1000, gpus, gpus_per_trial=part).max_concurrent == held * gpus
    assert plan_resources(1000, gpus, gpus_per_trial=part, max_concurrent=held * gpus).max_concurrent == held * gpus
    with pytest.raises(UsageError, match=f"at most {held * gpus} trials"):
        plan_resources(1000, gpus, gpus_per_trial=part, max_concurrent=held * gpus + 1)


def test_a_worker_has_its_part_of_one_gpu():
    assert plan_resources(16, 2, gpus_per_trial=0.6).max_concurrent == 2  # .8 are left, .4 of each
    with pytest.raises(UsageError, match=r"asks for 1.8 GPU; there are 2, each of which holds 1"):
        plan_resources(16, 2, gpus_per_trial=0.6, workers_per_trial=3)
    for wrong in (1.5, -1):
        with pytest.raises(UsageError, match=rf"--gpus-per-trial is a part of a GPU.*not {wrong}"):
            plan_resources(16, 4, gpus_per_trial=wrong)
    with pytest.raises(UsageError, match="--workers-per-trial must be at least 1, not 0"):
        plan_resources(16, 2, workers_per_trial=0)


def test_workers_on_one_machine_share_its_cores():
    assert plan_resources(8, 0, workers_per_trial=2).threads == 4
    assert plan_resources(8, 0, max_concurrent=2, workers_per_trial=2).threads == 2


@pytest.mark.parametrize("text", ["0", "-5m", "inf", "nan", "1e400h", "infs"])
@pytest.mark.parametrize("option", ["time_budget", "hung_after"])
def test_no_time_and_endless_time_are_refused(text, option):
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} is "):
        sweep.SweepRequest(task="task1", **{option: text})


def test_a_plan_for_a_time_budget_is_of_what_fits_it(tmp_path, capsys):
    options = {"storage": str(tmp_path / "runs"), "space": "laptop", "plan": True, "images": 20_000}
    sweep.main("task1", time_budget="30m", **options)
    told = capsys.readouterr().out
    assert "Fitted to 30 min: " in told
    assert not (tmp_path / "runs").exists()
