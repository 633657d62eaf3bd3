"""A run's name: claimed before any work, different from every other, and free again where nothing came of it."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import time

import pytest
from conftest import write_images

from cxrlt_ray import config
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.records import RunRecord, TrialRecord
from cxrlt_ray.runs.store import Run, create_run
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.resources import plan_resources
from cxrlt_ray.search.resume import resume_command, resumed
from cxrlt_ray.search.run_setup import claimed_name, sizes_to_prepare, space_for
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.search.trial_states import trial_name
from cxrlt_ray.search.tuner import missing_trials
from cxrlt_ray.storage import Store


@pytest.fixture
def second(monkeypatch):
    """A second that does not end."""
    monkeypatch.setattr(time, "strftime", lambda *_: "20261129-101500")


def asked(tmp_path, **options):
    return SweepRequest(task="auto", storage=str(tmp_path / "my runs"), **options)


def test_shards_have_the_edges_that_crops_are_taken_from(tmp_path, capsys):
    space = tmp_path / "space.yaml"
    space.write_text(
        "trials: 1\nepochs: 1\nparameters:\n  backbone: {value: test_resnet}\n  resolution: {choices: [64, 96]}\n"
        "  crop: [{when: {resolution: 96}, value: 0.75}, {value: 1.0}]\n"
    )
    assert sizes_to_prepare(asked(tmp_path), load_space(str(space))) == [64, 128]
    assert sizes_to_prepare(asked(tmp_path, sizes="96"), load_space(str(space))) == [96]
    assert "trials at up to 128 px will enlarge these images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "space"),
    [
        ({"task": "task1"}, "laptop"),
        ({"task": "task3"}, "laptop_text"),
        ({"task": "task3", "track": "reports"}, "laptop_reports"),
        ({"task": "task3", "reports": "reports.csv"}, "laptop_reports"),
        ({"task": "task3", "track": "mined", "reports": "reports.csv"}, "laptop_text"),
        ({"task": "task1", "ask": "Bulla", "track": "reports"}, "laptop_reports"),
        ({"task": "task3", "track": "mined", "reports": "reports.csv", "reworded": "again.csv"}, "laptop_reports"),
        ({"task": "task3", "scrub": "words.yaml"}, "laptop_reports"),
    ],
)
def test_without_a_gpu_the_space_is_that_of_the_task_and_of_what_is_read(options, space, capsys):
    loaded, content = space_for(SweepRequest(**options), None, plan_resources(2, 0))
    assert f"Search space: {space} (no GPU here)" in capsys.readouterr().out
    assert (loaded.name, content) == (space, config.find("search_spaces", space).read_bytes())


@pytest.mark.parametrize(
    ("options", "space"), [({}, "task3"), ({"reports": "reports.csv"}, "team_g_task3"), ({"track": "mined"}, "task3")]
)
def test_with_a_gpu_too_it_is_one_that_reads_reports_where_they_are_given(options, space):
    assert space_for(SweepRequest(task="task3", **options), None, plan_resources(2, 1))[0].name == space


def test_sweeps_that_begin_in_the_same_second_have_names_of_their_own(tmp_path, second):
    request = asked(tmp_path)
    with (
        claimed_name(request, None) as first,
        claimed_name(request, None) as other,
        claimed_name(request, None) as third,
    ):
        assert [first, other, third] == [f"auto-20261129-101500{end}" for end in ("", "-2", "-3")]


@pytest.mark.parametrize("form", ["plan", "dry_run"])
def test_a_plan_refuses_a_name_that_its_sweep_would_refuse_and_writes_nothing(tmp_path, form):
    with claimed_name(asked(tmp_path, name="mine", **{form: True}), None) as name:
        assert name == "mine"
    assert not Store(asked(tmp_path).storage).list()
    Store(asked(tmp_path).storage).write("mine/run.json", b"{}")
    for wrong in ("mine", "shards", ".hidden"):
        with pytest.raises(UsageError, match=f"'{wrong}'"), claimed_name(asked(tmp_path, name=wrong, plan=True), None):
            pass


def test_a_name_is_free_again_once_a_sweep_has_ended_before_it_left_a_run(tmp_path, second):
    request = asked(tmp_path)
    for _ in range(2):
        with claimed_name(request, None) as name:
            assert name == "auto-20261129-101500"
    assert Store(request.storage).list() == [".writable"]


def test_the_name_of_a_finished_run_is_not_chosen_and_its_run_not_claimed(tmp_path, second):
    request = asked(tmp_path)
    Store(request.storage).write("auto-20261129-101500/run.json", b"{}")
    with claimed_name(request, None) as name:
        assert name == "auto-20261129-101500-2"
        assert not Store(request.storage).exists("auto-20261129-101500/.claim")


def test_a_given_name_that_another_sweep_prepares_is_refused_before_any_work(tmp_path):
    request = asked(tmp_path, name="mine")
    with (
        claimed_name(request, None),
        pytest.raises(UsageError, match=r"'mine' is being made .* by another sweep .process \d+ on .*another --name"),
        claimed_name(request, None),
    ):
        pass


def test_two_processes_at_once_have_two_names(tmp_path):
    code = (
        "import sys, time; from cxrlt_ray.search.request import SweepRequest\n"
        "from cxrlt_ray.search.run_setup import claimed_name\n"
        "time.strftime = lambda *_: 'now'\n"
        "with claimed_name(SweepRequest(task='auto', storage=sys.argv[1]), None) as name:\n"
        "    print(name, flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:
        names = {one.stdout.readline().strip(), two.stdout.readline().strip()}
        one.communicate("\n")
        two.communicate("\n")
    assert names == {"auto-now", "auto-now-2"}


def test_the_command_that_goes_on_is_one_that_a_shell_takes(tmp_path):
    storage = str(tmp_path / "my runs; #1")
    record = RunRecord(name="my run", task=Task("auto", ("Mass",)), task_argument="my task.yaml")
    words = shlex.split(resume_command(Run(Store(f"{storage}/my run"), record), storage))
    assert words[2:] == ["cxrlt_ray.sweep", "my task.yaml", "--resume", "--name", "my run", "--storage", storage]


def test_the_command_that_goes_on_runs_where_and_how_the_sweep_did(tmp_path):
    run = Run(Store("runs/mine"), RunRecord(name="mine", task=Task("auto", ("Mass",)), task_argument="auto"))
    how = {"address": "auto", "workers_per_trial": 4, "min_workers": 2, "keep_checkpoints": 20, "retries": 10}
    request = SweepRequest(task="auto", trials=9, seed=3, checksum=True, hung_after="10m", **how)
    words = shlex.split(resume_command(run, "runs", request))[3:]
    assert words[:4] == ["auto", "--resume", "--name", "mine"]
    assert {"--checksum", "--keep-checkpoints", "--address"} < set(words)
    assert not {"--trials", "--seed", "--hung-after"} & set(words)  # the run's own, or as without it
    given = dict(itertools.pairwise(words))
    assert all(given[f"--{name.replace('_', '-')}"] == str(value) for name, value in how.items())


def test_the_command_that_goes_on_has_what_is_left_of_the_time_budget():
    run = Run(Store("runs/mine"), RunRecord(name="mine", task=Task("auto", ("Mass",)), task_argument="auto"))
    request = SweepRequest(task="auto", time_budget="8h")
    for left, words in ((3 * 3600 + 30.0, ["--time-budget", "180m"]), (30.0, []), (-5.0, [])):
        command = shlex.split(resume_command(run, "runs", request, time.monotonic() + left))
        assert command[7:] == words


def test_a_trial_beyond_those_planned_goes_on_after_its_sweep_was_killed(tmp_path):
    record = RunRecord(name="mine", task=Task("auto", ("Mass",)), task_argument="auto", trials=2)
    run = create_run(str(tmp_path / "runs"), record, write_images(tmp_path / "images", 8), {})
    for number, state in enumerate(("finished", "finished", "finished", "running")):
        TrialRecord(name=trial_name(number), state=state).write(run.store / "trials" / trial_name(number), "trial.json")
    request = SweepRequest(task="auto", resume=True, storage=str(tmp_path / "runs"))
    assert missing_trials(run, resumed(request, run).trials) == 1
