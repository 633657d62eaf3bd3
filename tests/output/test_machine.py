"""`--json` and `--quiet` of every command: stdout is JSON alone, numbers are those that were computed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_images
from drawn_run import make_run
from member_tables import labels, scores

from cxrlt_ray import cli, doctor, output
from cxrlt_ray.doctor.check import FAIL, OK, Check
from cxrlt_ray.runs.store import load_run

EVENTS = {
    "begin": {"schema", "command", "cxrlt_ray"},
    "note": {"text"},
    "progress": {"noun", "done", "total", "rate", "seconds_left"},
    "row": {"table", "row"},
    "result": {"text", "exit_code", "paths"},
    "error": {"sentence", "exit_code"},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def machine(capsys):
    """Runs a command with --json: its exit code and its events, which are checked against the schema."""

    def run(name, *words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.run(name, [*map(str, words), "--json"])
        events = [json.loads(line, parse_constant=refuse) for line in capsys.readouterr().out.splitlines()]
        assert events[0]["event"] == "begin"
        assert events[0]["command"] == name
        assert events[-1]["event"] in ("result", "error")
        assert events[-1]["exit_code"] == exit.value.code
        for event in events:
            assert EVENTS[event["event"]] | {"event", "at"} <= set(event)
        return exit.value.code, events

    return run


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def rows(events, table):
    return [event["row"] for event in events if event["event"] == "row" and event["table"] == table]


def write_labels(folder):
    rng = np.random.default_rng(0)
    truth = pd.DataFrame((rng.random((300, 2)) < 0.3).astype(int), columns=["Edema", "Mass"])
    truth.insert(0, "study_id", [f"s{k}" for k in range(300)])
    truth.insert(1, "subject_id", np.arange(300) // 2)
    truth.to_csv(folder / "gold.csv", index=False)
    truth.assign(Mass=1 - truth["Mass"]).to_csv(folder / "wrong.csv", index=False)


def test_phantom_cohort_and_evaluate(home, machine):
    code, events = machine("phantom", "tree", "--images", 200, "--size", 32, "--no-pictures")
    assert (code, events[-1]["paths"], events[-1]["images"]) == (0, ["tree"], 200)
    code, events = machine("cohort", "tree", "--task", "task1", "--no-files")
    assert code == 0
    assert events[-1]["usable"] is True
    (whole,) = [row for row in rows(events, "splits") if row["split"] == "all"]
    assert whole["images"] == 200
    from cxrlt_ray.data.cohort import read_cohort

    manifest = read_cohort("tree", task="task1").manifest
    train = manifest.of_split("train").targets()
    for c, row in enumerate(rows(events, "findings")):
        assert row["positives"]["train"] == (train[:, c] == 1).sum()
    ids = manifest.of_split("test").table["image_id"]
    values = np.random.default_rng(0).random((len(ids), 40))
    submission = pd.DataFrame(values, columns=manifest.findings)
    submission.insert(0, "dicom_id", ids.to_numpy())
    submission.to_csv("s.csv", index=False)
    words = ["--task", "task1", "--data", "tree", "--rounds", 20, "--out", "s.json", "--by", "sex", "--min-group", 5]
    code, events = machine("evaluate", "s.csv", *words)
    assert code == 0, events[-1]
    written = json.loads((home / "s.json").read_text())
    assert (code, events[-1]["paths"], events[-1]["map"]) == (0, ["s.json"], written["scores"]["map"])
    assert {row["score"]: row["value"] for row in rows(events, "scores")}["mauroc"] == written["scores"]["mauroc"]
    assert {row["finding"]: row["ap"] for row in rows(events, "findings")} == {
        name: finding["ap"] for name, finding in written["findings"].items()
    }
    by_group = written["by_group"]
    assert rows(events, "by_group") == [row for row in by_group["groups"] if row["finding"] == "mean"]
    assert events[-1]["flags"] == by_group["flags"]


def test_prepare_estimates_and_a_refused_cohort_give_their_reasons(home, machine):
    manifest = write_images(home / "images", 12)
    manifest.table.to_csv(home / "images" / "labels.csv", index=False)
    code, events = machine("prepare", "images", "--sizes", "32", "--estimate")
    assert code == 0
    assert {row["size"] for row in rows(events, "estimate")} == {32}
    (home / "images" / "000.jpg").unlink()
    code, events = machine("cohort", "images")
    assert (code, events[-1]["usable"]) == (1, False)
    assert "1 of 12 images" in events[-1]["reasons"][0]


def test_doctor_gives_each_check(home, machine, monkeypatch):
    outcomes = [Check("disk", OK, "12 GB free"), Check("weights", FAIL, "none", "fetch them")]
    monkeypatch.setattr(doctor, "checks", lambda *_, **__: iter(outcomes))
    code, events = machine("doctor")
    assert (code, events[-1]["failed"], events[-1]["checks"]) == (1, 1, 2)
    assert [(row["name"], row["state"], row["mend"]) for row in rows(events, "checks")] == [
        ("disk", "ok", ""),
        ("weights", "fail", "fetch them"),
    ]


def test_label_split_gold_and_agree(home, machine):
    write_labels(home)
    pd.DataFrame({"study_id": ["a", "b"], "text": ["No edema.", "Mild edema."]}).to_csv("reports.csv", index=False)
    code, events = machine("label", "reports.csv", "--out", "labels.csv")
    assert (code, events[-1]["paths"]) == (0, ["labels.csv"])
    code, events = machine("split", "gold.csv", "--out", "split.csv")
    assert code == 0
    parts = pd.read_csv("split.csv").groupby("split")["study_id"].nunique()
    assert {row["split"]: row["studies"] for row in rows(events, "splits")} == parts.to_dict()
    code, events = machine("gold", "sample", "gold.csv", "wrong.csv", "--studies", 50, "--out", "drawn")
    assert code == 0
    assert all((home / path).exists() for path in events[-1]["paths"])
    code, events = machine("agree", "gold.csv", "gold.csv", "wrong.csv", "--rounds", 20, "--out", "a.csv")
    assert (code, events[-1]["paths"]) == (0, ["a.csv"])
    mass = next(row for row in rows(events, "precision") if row.get("finding") == "Mass")
    assert mass["precision"]["gold"] == 1.0
    assert mass["positives"] == pd.read_csv("gold.csv")["Mass"].sum()


def test_ensemble_of_tables_gives_the_scores_that_it_leaves(home, machine):
    labels().to_csv("labels.csv", index=False)
    for name in "ab":
        scores(ord(name)).to_csv(f"{name}.csv", index=False)
    words = ["--from", "a.csv", "b.csv", "--targets", "labels.csv", "--select", "mean", "--out", "e", "--rounds", 20]
    code, events = machine("ensemble", *words, "--calibrate", "--thresholds", "f1", "sensitivity=0.5")
    assert code == 0
    left = json.loads((home / "e" / "report.json").read_text())
    (systems,) = [value for value in find(left, "systems") if isinstance(value, dict)]
    shown = {row["system"]: row["map"] for row in rows(events, "scores") if "system" in row}
    for title, of_set in systems.items():
        for where, score in of_set.items():
            assert shown[title][where]["value"] == pytest.approx(score["map"], abs=1e-12)
    called = pd.read_csv(home / "e" / "thresholds.csv")
    assert [row["threshold"] for row in rows(events, "thresholds")] == pytest.approx(called["threshold"].tolist())
    assert {row["aim"] for row in rows(events, "thresholds")} == {"f1", "sensitivity=0.5"}
    (crossed,) = json.loads((home / "e" / "calibration.json").read_text())["sets"].values()
    changes = {row["measure"]: row["change"] for row in rows(events, "calibration")}
    assert changes == crossed["change"]["mean"]["differences"]


def find(content, key):
    """The values of `key` anywhere in a JSON document."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            yield from find(value, key)


def test_trials_gives_runs_and_trials_as_they_were_recorded(home, machine, capsys):
    run, _ = make_run(home)
    run.write(run.record)
    code, events = machine("trials", "--storage", home)
    assert (code, [row["run"] for row in rows(events, "runs")]) == (0, ["r"])
    code, events = machine("trials", "r", "--storage", home)
    recorded = {trial.name: trial for trial in load_run(str(home), "r").trials()}
    for row in rows(events, "trials"):
        assert row["score"] == recorded[row["trial"]].score
        assert row["lr"] == recorded[row["trial"]].config.lr
    with pytest.raises(SystemExit):
        cli.run("trials", ["--storage", str(home), "--quiet"])
    assert capsys.readouterr().out == "r\n"


def test_a_report_gives_the_page_that_it_leaves(home, machine):
    run, _ = make_run(home)
    run.write(run.record)
    code, events = machine("report", "--storage", home)
    assert code == 0
    assert events[-1]["paths"] == [f"{home}/r/report.html"]
    assert (home / "r" / "report.html").exists()


def test_describe_shows_its_texts_as_notes(home, machine):
    code, events = machine("describe", "Bulla", "--show")
    assert code == 0
    assert any("Bulla" in event["text"] for event in events if event["event"] == "note")


@pytest.mark.slow
def test_a_plan_gives_rates_and_costs(home, machine):
    code, events = machine("sweep", "task1", "--space", "laptop", "--plan", "--images", 1000)
    assert code == 0
    assert all(row["images_per_second"] for row in rows(events, "rates"))
    assert all(row["seconds"] > 0 for row in rows(events, "forecasts"))


@pytest.mark.parametrize(
    ("name", "words", "part"),
    [
        ("predict", ["--ensemble", "none.json", "--data", "data"], "none.json"),
        ("pretrain_text", ["graph"], "--out FOLDER"),
        ("pretrain", ["--method", "nope", "--smoke"], "nope"),
        ("generate", ["sample", "none", "--out", "o"], "none"),
        ("pseudo", ["runs/none/ensembles/x"], "runs/none"),
        ("ensemble", ["--select", "nope"], "no ensembles file 'nope'"),
        ("sweep", ["task1", "--no-such-option"], "--no-such-option"),
        ("sweep", ["task1", "--trials", "many"], "--trials"),
        ("trials", ["--quiet"], "--quiet and --json are two forms"),
    ],
)
def test_what_is_wrong_is_an_event_with_its_exit_code(home, machine, capsys, name, words, part):
    code, events = machine(name, *words)
    assert code == 2
    assert events[-1]["event"] == "error"
    assert part in events[-1]["sentence"]


def test_every_command_is_run_by_a_test_of_this_file():
    text = Path(__file__).read_text()
    assert [name for name in cli.COMMANDS if f'machine("{name}"' not in text and f'("{name}", [' not in text] == []


def test_whatever_is_printed_is_a_note_and_a_fault_is_no_silence(capsys, monkeypatch):
    def main():
        print("one\n\n  two")
        cli.console().print("a long line " * 30)
        raise RuntimeError("with an id in it")

    import sys
    import types

    monkeypatch.setitem(sys.modules, "cxrlt_ray.cohort", types.SimpleNamespace(main=main))
    with pytest.raises(RuntimeError):
        cli.run("cohort", ["--json"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert [note.split()[0] for note in notes] == ["one", "two", "a"]
    assert events[-1]["event"] == "error"
    assert "an id" not in events[-1]["sentence"]
    assert output.current().__class__ is output.Text


def test_quiet_prints_the_result_alone(home, capsys):
    write_labels(home)
    with pytest.raises(SystemExit) as exit:
        cli.run("split", ["gold.csv", "--out", "split.csv", "--quiet"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        "Left in split.csv. With --images DIR it becomes a cohort that a sweep reads."
    ]
    with pytest.raises(SystemExit) as exit:
        cli.run("split", ["gold.csv", "--shares", "1", "--quiet"])
    said = capsys.readouterr()
    assert (exit.value.code, said.out) == (2, "")
    assert said.err.startswith("error: ")


def test_numbers_that_json_lacks_are_null():
    from cxrlt_ray.output.values import plain

    values = {"a": np.float32("nan"), "b": math.inf, "c": np.arange(2), "d": np.int64(3), "e": (1.5, None)}
    assert json.loads(json.dumps(plain(values), allow_nan=False)) == {
        "a": None,
        "b": None,
        "c": [0, 1],
        "d": 3,
        "e": [1.5, None],
    }
