"""report --watch: the page is written anew while the run goes on, whatever is missing for a moment."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from cxrlt_ray import report
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.page.watched import ended, watch
from cxrlt_ray.runs.store import load_run
from cxrlt_ray.storage.claim import claim

sys.path.insert(0, str(Path(__file__).parent))
from browser_page import drawn_run

REFRESH = '<meta http-equiv="refresh" content="60">'


@pytest.fixture(autouse=True)
def _no_counting(monkeypatch):
    monkeypatch.setattr("cxrlt_ray.page.costs._flops", lambda *_: 1e9)  # counting them imports torch


@pytest.fixture
def run(tmp_path):
    return drawn_run(tmp_path, trials=3, images=40, findings=("Effusion", "Mass"))


def never(seconds):
    pytest.fail("it waits for a run that has ended")


def test_of_a_run_that_has_ended_the_page_is_written_once(run, capsys):
    written = watch(run, 60, pause=never)
    assert 'http-equiv="refresh"' not in Path(written.uri).read_text()
    assert "All 3 trials have ended." in capsys.readouterr().out


def test_the_command_prints_the_pages_path_last(run, tmp_path, capsys):
    report.main(watch=True, storage=str(tmp_path), out=str(tmp_path / "page.html"))
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "page.html")


def test_while_a_sweep_has_the_run_the_page_is_written_again_and_damage_passes(run, capsys):
    page, held, seen = Path(run.store.uri) / "report.html", ExitStack(), []
    record = run.store.read("run.json")

    def pause(seconds):
        seen.append((page.stat().st_mtime_ns, REFRESH in page.read_text()))
        if len(seen) == 1:
            run.store.write("run.json", b"{")
        elif len(seen) == 2:
            run.store.delete("run.json")
        elif len(seen) == 3:
            run.store.write("run.json", record)
        elif len(seen) == 4:
            held.close()

    with held:
        held.enter_context(claim(run.store))
        watch(run, 60, pause=pause)
    times, refreshed = zip(*seen, strict=True)
    assert all(refreshed)
    assert times[0] == times[1] == times[2] < times[3]
    assert REFRESH not in page.read_text()
    assert "All 3 trials have ended." in capsys.readouterr().out


def test_a_run_that_nobody_trains_is_looked_at_twice_before_it_counts_as_stopped(run, capsys):
    run.write(run.record.model_copy(update={"trials": 5}))
    pauses = []
    watch(load_run(str(Path(run.store.uri).parent)), 60, pause=pauses.append)
    assert pauses == [60]
    assert "stopped with 2 trials left; --resume" in capsys.readouterr().out


def test_a_trial_that_runs_is_left_where_no_sweep_has_the_run(run):
    trial = run.trials()[0]
    trial.write(trial.record.model_copy(update={"state": "running"}))
    assert ended(run)[1] == 1
    with claim(run.store):
        assert ended(run) == ("", 1)


def test_ctrl_c_leaves_a_page_that_is_not_loaded_anew(run):
    def pause(seconds):
        raise KeyboardInterrupt

    with claim(run.store):
        written = watch(run, 60, pause=pause)
    assert REFRESH not in Path(written.uri).read_text()


def test_what_cannot_be_written_at_all_is_an_error_at_once(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CxrltError):
        watch(run, 60, out=str(tmp_path / "file" / "page.html"), pause=never)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": "30s"}, "--every is for --watch"),
        ({"watch": True, "every": "1s"}, "between 5s and 1d"),
        ({"watch": True, "every": "nan"}, "--every is a number and s, m, h or d"),
        ({"watch": True, "every": "often"}, "--every is a number and s, m, h or d"),
        ({"watch": True, "compare": ["a", "b"]}, "--watch does not go with --compare"),
    ],
)
def test_options_of_watching_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        report.ReportRequest(**options)
