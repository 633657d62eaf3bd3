"""Going on with a run: what was asked for when it was made is refused where it is asked for otherwise, and kept."""

from __future__ import annotations

import pytest
from conftest import write_images

from cxrlt_ray import cli, config
from cxrlt_ray.data.soft_targets import SoftTargets
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.records import RunRecord
from cxrlt_ray.runs.store import create_run
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.resume import resumed, run_to_resume
from cxrlt_ray.storage import Store

DEFAULTS = {"holdout": 0.0, "views": "all", "uncertain": "null", "max_bad": 0.05, "quality": "95", "seed": 0}
DEFAULTS |= {"folds": 0, "objectives": "map", "promote": "map", "smoke": False}
# a run of which no option is at its default
MADE = {"holdout": 0.3, "views": "frontal", "uncertain": "one", "max_bad": 0.2, "quality": "90", "seed": 3}
MADE |= {"folds": 5, "objectives": "map,cost", "smoke": True, "sizes": "96", "space": "laptop", "format": "table"}
MADE |= {"val_like": "frontal", "warm_from": ["earlier"], "promote": "ensemble"}
LABELS = {"labels_mode": "join", "labels_blank": "null"}  # with the table that they are of
# what a run that goes on takes from the request
HEEDED = {"trials", "epochs", "time_budget", "max_concurrent", "gpus_per_trial", "cpus_per_trial", "workers_per_trial"}
HEEDED |= {"min_workers", "ingest", "cache_gb", "name", "storage", "address", "resume", "retries", "hung_after"}
HEEDED |= {"features_gb", "log_with"}
HEEDED |= {"keep_checkpoints", "search_db", "dry_run", "plan", "probe", "images", "gpu", "price", "task", "checksum"}


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A storage with the run `made`, of which no option is at its default, and `plain`, of which all are."""
    monkeypatch.chdir(tmp_path)
    manifest = write_images(tmp_path / "images", 8)
    data = Store("images").absolute().uri
    made = {**MADE, "quality": 90, "cohorts": {"nih": "/data/nih"}, "data": data}
    files = {"space.yaml": config.find("search_spaces", "laptop").read_bytes()}
    for name, options in (("made", made), ("plain", {"space": "laptop", "data": data, "format": "table"})):
        record = RunRecord(name=name, task=Task("auto", ("Mass",)), trials=6, epochs=4, **options)
        create_run("runs", record, manifest, files)
    return tmp_path


def asked(name, **options):
    return SweepRequest(task="auto", resume=True, name=name, storage="runs", **options)


@pytest.mark.parametrize("option", [*DEFAULTS])
def test_an_option_given_at_its_default_is_refused_where_the_run_was_made_with_another(storage, option):
    with pytest.raises(UsageError, match=f"run made was made with --{option.replace('_', '-')} .*leave --"):
        run_to_resume(asked("made", **{option: DEFAULTS[option]}))


@pytest.mark.parametrize("option", sorted(set(MADE) - {"space", "format"}))  # every run has these
def test_an_option_is_refused_where_the_run_was_made_with_its_default(storage, option):
    with pytest.raises(UsageError, match=f"run plain was made with --{option.replace('_', '-')} "):
        run_to_resume(asked("plain", **{option: MADE[option]}))


@pytest.mark.parametrize(
    ("option", "value"), [("data", "elsewhere"), ("space", "task1"), ("format", "mimic"), ("sizes", "64")]
)
def test_other_data_space_format_and_sizes_are_refused(storage, option, value):
    with pytest.raises(UsageError, match=f"was made with --{option}"):
        run_to_resume(asked("plain", **{option: value}))


def test_other_cohorts_and_soft_targets_are_refused(storage):
    import pandas as pd

    (storage / "nih").mkdir()
    with pytest.raises(UsageError, match=r"was made with --cohort \{\}"):
        run_to_resume(asked("plain", cohort=[f"nih={storage}/nih"]))
    SoftTargets(pd.DataFrame({"Mass": [0.5]}, pd.Index(["i000"], name="image_id")), "x").write(
        Store("."), "soft.parquet"
    )
    with pytest.raises(UsageError, match="was made with --soft-targets None"):
        run_to_resume(asked("plain", soft_targets="soft.parquet"))


@pytest.mark.parametrize("name", ["made", "plain"])
def test_the_same_options_again_go_on(storage, name):
    """As a cluster's restart gives them: the command that made the run, and --resume."""
    options = {**(MADE if name == "made" else {**DEFAULTS, "space": "laptop", "format": "table"}), "data": "images"}
    assert run_to_resume(asked(name, **options)).name == name


def test_what_a_run_may_change_is_taken_from_the_request(storage):
    request = asked("plain", trials=9, epochs=5, search_db="sqlite:///x.db", retries=0, time_budget="2h")
    record = resumed(request, run_to_resume(request))
    assert (record.trials, record.epochs, record.search_db) == (9, 5, "sqlite:///x.db")
    assert (request.retries, request.seconds) == (0, 7200)
    unchanged = asked("plain")
    assert resumed(unchanged, run_to_resume(unchanged)) == run_to_resume(unchanged).record


def test_labels_that_the_run_was_not_made_with_are_refused_and_the_same_go_on(storage):
    from cxrlt_ray.storage.provenance import provenance_of

    (storage / "new.csv").write_text("study_id,Mass\ns0,1\n")
    with pytest.raises(UsageError, match="run plain was made with --labels None, not new"):
        run_to_resume(asked("plain", labels="new.csv"))
    with pytest.raises(UsageError, match="run plain was made with --labels-mode None, not join"):
        run_to_resume(asked("plain", labels_mode="join"))
    run = run_to_resume(asked("plain"))
    run.write(run.record.model_copy(update={"labels": provenance_of("new.csv", "--labels"), **LABELS}))
    assert run_to_resume(asked("plain", labels="new.csv", **LABELS)).record.labels_mode == "join"
    (storage / "new.csv").write_text("study_id,Mass\ns0,0\n")
    with pytest.raises(UsageError, match=r"made with --labels new.csv \(sha256 "):
        run_to_resume(asked("plain", labels="new.csv"))


def test_every_option_is_one_that_a_resumed_run_heeds_or_one_that_it_checks():
    from cxrlt_ray.search import resume

    assert set(SweepRequest.model_fields) == HEEDED | set(resume._FIXED)
    assert not HEEDED & set(resume._FIXED)


@pytest.mark.parametrize(
    "words",
    [
        ["--max-bad", "0.05"],
        ["--seed", "0"],
        ["--folds", "0"],
        ["--views", "all"],
        ["--quality", "95"],
        ["--holdout", "0"],
        ["--uncertain", "null"],
        ["--objectives", "map"],
    ],
)
def test_the_command_knows_which_options_were_given(storage, capsys, words):
    with pytest.raises(SystemExit) as exit:
        cli.run("sweep", ["auto", "--resume", "--name", "made", "--storage", "runs", *words])
    assert exit.value.code == 2
    assert f"run made was made with {words[0]} " in capsys.readouterr().err


def test_options_that_only_a_plan_takes_are_refused_without_one():
    with pytest.raises(UsageError, match="--price is for --plan"):
        SweepRequest(task="task1", price=3.0)
    with pytest.raises(UsageError, match="--images is not for --resume"):
        SweepRequest(task="task1", resume=True, smoke=True, images=300)
