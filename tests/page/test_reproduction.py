"""The commands on the page that make a run again: they give what it was given, and the command knows every option."""

from __future__ import annotations

import shlex

import pytest

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.page.reproduction import making_commands
from cxrlt_ray.runs.records import RunRecord
from cxrlt_ray.runs.store import Run
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.storage import Store

FILES = ("reports", "reworded", "scrub", "descriptions", "labels", "boxes", "soft_targets")


def made(tmp_path, **options):
    record = RunRecord(name="mine", task=Task("task3", ("Bulla",)), trials=3, epochs=4, space="laptop_text", **options)
    return shlex.split(making_commands(Run(Store(str(tmp_path)), record), None)[0].command)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_a_run_was_given_is_asked_for_again(name, tmp_path):
    option = f"--{name.replace('_', '-')}"
    words = made(tmp_path, **{name: "/data/mine"})
    assert words[words.index(option) + 1] == name.upper()  # a page that is passed on names no one's folders
    assert option not in made(tmp_path)


def test_every_option_is_one_of_the_sweep(tmp_path):
    words = made(tmp_path, **dict.fromkeys(FILES, "file"), ask="Bulla", seed=3, holdout=0.2)
    known = {f"--{name.replace('_', '-')}" for name in SweepRequest.model_fields}
    assert {word for word in words if word.startswith("--")} <= known
    assert words[words.index("--seed") + 1] == "3"
