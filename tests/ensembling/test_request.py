"""What is asked of ensemble and predict: no option is read and then ignored."""

from __future__ import annotations

import pytest

from cxrlt_ray import cli
from cxrlt_ray.ensembling.request import OF_RUNS, OF_TABLES, EnsembleRequest
from cxrlt_ray.errors import UsageError

RUN_OPTIONS = [
    ["--zip"],
    ["--split", "test"],
    ["--run", "r"],
    ["--storage", "elsewhere"],
    ["--storage", "runs"],  # the default, but given
    ["--score-all"],
    ["--pruned"],
    ["--most", "3"],
    ["--address", "auto"],
    ["--no-report"],
]
TABLE_OPTIONS = [
    ["--out", "elsewhere"],
    ["--out", "ensemble"],  # the default, but given
    ["--findings", "Mass"],
    ["--id-column", "uid"],
    ["--drop-missing"],
    ["--targets", "labels.csv"],
    ["--groups", "subject_id"],
    ["--apply", "a.csv"],
    ["--scores", "percent"],
]


def refused(capsys, *args) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.run("ensemble", list(args))
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("option", RUN_OPTIONS, ids=" ".join)
def test_an_option_of_runs_is_refused_with_tables(option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, "--from", "a.csv", "b.csv", "--targets", "labels.csv", *option)
    assert f"{option[0]} is for an ensemble of a run's trials: it does not go with --from." in message


@pytest.mark.parametrize("option", TABLE_OPTIONS, ids=" ".join)
def test_an_option_of_tables_is_refused_without_them(option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"{option[0]} goes with --from, the tables of predictions" in refused(capsys, *option)


def test_every_option_is_of_runs_of_tables_or_of_both():
    both = {"select", "rounds", "seed", "costs", "explain", "tables", "calibrate", "thresholds", "critical"}
    assert set(EnsembleRequest.model_fields) == both | set(OF_RUNS) | set(OF_TABLES)
    assert not set(OF_RUNS) & set(OF_TABLES)
    assert {words[0] for words in RUN_OPTIONS} == set(OF_RUNS.values())
    assert {words[0] for words in TABLE_OPTIONS} == set(OF_TABLES.values())


def test_options_of_both_go_with_both():
    shared = {"select": "mean", "rounds": 10, "seed": 1, "explain": True}
    assert EnsembleRequest(**shared).tables is None
    assert EnsembleRequest(**shared, tables=["a.csv"], targets="labels.csv").out == "ensemble"


@pytest.mark.parametrize("option", ["--groups", "--targets", "--id-column", "--findings", "--drop-missing"])
def test_an_archive_of_arrays_takes_no_options_of_tables_but_apply(option, capsys):
    value = [] if option == "--drop-missing" else ["x"]
    message = refused(capsys, "--from", "all.npz", option, *value)
    assert "all.npz holds labels and all: of the options for tables it takes --apply and --scores only." in message


def test_bootstrap_rounds_are_at_least_one(capsys):
    assert "--rounds must be at least 1, not 0." in refused(capsys, "--rounds", "0")


def test_a_request_cannot_be_changed_and_has_no_other_options():
    request = EnsembleRequest()
    with pytest.raises(ValueError, match="frozen"):
        request.zip = True
    with pytest.raises(ValueError, match="zipped"):
        EnsembleRequest(zipped=True)
    with pytest.raises(UsageError, match="--split is one of test, development and holdout, not 'tets'"):
        EnsembleRequest(split="tets")
    for learnt in ("train", "val"):
        with pytest.raises(UsageError, match=f"--split {learnt}: members have learnt those images .* no forecast"):
            EnsembleRequest(split=learnt)
    with pytest.raises(UsageError, match="--most is 1 or more trials to choose among, not 0"):
        EnsembleRequest(most=0)


@pytest.mark.parametrize("command", ["ensemble", "evaluate", "sweep"])
def test_a_seed_that_no_generator_takes_is_refused_before_any_work(command, capsys):
    arguments = {"evaluate": ["x.csv"], "sweep": ["task1"]}.get(command, [])
    with pytest.raises(SystemExit) as ended:
        cli.run(command, [*arguments, "--seed", "-1"])
    assert ended.value.code == 2
    assert "seed -1 is negative" in capsys.readouterr().err
