"""The commands on the page that make a run again: they give what it was given, and the command knows every option."""

from __future__ import annotations

import shlex

import pytest

from cxrlt_ray.data.asking import ALWAYS, MINED, Asking
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


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"seed": 3, "holdout": 0.2}, {"--seed": "3", "--holdout": "0.2"}),
        ({"quality": 0}, {"--quality": "lossless"}),
        ({"quality": 80}, {"--quality": "80"}),
        ({"warm_from": ("earlier",)}, {"--warm-from": "earlier"}),
        ({"labels": "file", "labels_mode": "join", "labels_blank": "null"}, {"--labels-mode": "join"}),
        ({"asking": Asking(("Bulla",), ("Mass", "Edema"), (0, 1), "reports")}, {"--track": "reports"}),
        (
            {"asking": Asking(("Bulla",), ("Mass",), (ALWAYS,), MINED, True), "finding_folds": 1},
            {"--track": MINED, "--choose-by": MINED, "--finding-folds": None},  # which are refused beside it
        ),
        ({"asking": Asking(("Bulla",), ("Mass", "Edema"), (0, 1))}, {"--track": None, "--choose-by": None}),
    ],
)
def test_what_a_run_was_given_is_given_again_and_the_sweep_knows_it(options, given, tmp_path):
    words = made(tmp_path, **options)
    known = {f"--{name.replace('_', '-')}" for name in SweepRequest.model_fields}
    assert {word for word in words if word.startswith("--")} <= known
    for option, value in given.items():
        assert (words[words.index(option) + 1] if option in words else None) == value
