"""Progress of long works: a line a minute in a log, a bar on a terminal, events for machines."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from cxrlt_ray import cli, output
from cxrlt_ray.output import counting
from cxrlt_ray.output.forms import Json, Text


class Clock:
    def __init__(self):
        self.at = 0.0

    def monotonic(self):
        return self.at


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(counting, "time", clock)
    return clock


def ten_minutes(clock, say=print):
    for _ in cli.with_progress(range(600), 600, say):
        clock.at += 1.0


def test_a_log_has_at_most_one_line_a_minute(clock, capsys):
    ten_minutes(clock)
    lines = capsys.readouterr().out.splitlines()
    assert 8 <= len(lines) <= 10
    assert lines[0].startswith("  6") and " of 600 images, 1 images/s, " in lines[0]  # noqa: PT018


def test_who_listens_instead_hears_the_lines_and_nothing_is_printed(clock, capsys):
    heard = []
    ten_minutes(clock, heard.append)
    assert 8 <= len(heard) <= 10
    assert capsys.readouterr().out == ""


def test_a_terminal_has_a_bar_and_keeps_the_lines_printed_beside_it(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    with output.using(Text()), output.counter("trials", 3) as counter:
        for number in range(3):
            print(f"T000{number} finished")
            counter.advance(seconds_left=60.0)
    shown = terminal.getvalue()
    assert all(f"T000{number} finished" in shown for number in range(3))
    assert "trials" in shown
    assert " of 3" not in shown  # no line of a log


def test_machines_get_events_of_progress_and_the_last_one_says_all(clock, capsys):
    with output.using(Json("label", "0")):
        ten_minutes(clock)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [event for event in events if event["event"] == "progress"]
    assert 50 <= len(steps) <= 62
    assert (steps[-1]["done"], steps[-1]["total"], steps[-1]["noun"]) == (600, 600, "images")


def test_an_epoch_and_a_trial_of_a_sweep_are_rows_with_raw_numbers(capsys, monkeypatch):
    from cxrlt_ray.search import progress

    monkeypatch.setattr(progress, "SILENCE", -1)
    with output.using(Json("sweep", "0")):
        shown = progress.Progress(None, 4, 4)
        result = {"epoch": 2, "images_per_second": 80.25, "val_map": 0.123456789}
        shown.on_trial_result(0, [], SimpleNamespace(config={"number": 3}), result)
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (event["table"], event["row"]["best"]) == ("epochs", 0.123456789)
    assert event["row"]["images_per_second"] == 80.25
