"""Weights of an earlier trial that a run which asks by text may begin with, and those that would tell what it hides."""

from __future__ import annotations

import json

import pytest
from drawn_run import FINDINGS, make_run

from cxrlt_ray.data.asking import MINED, OUTSIDE_LABELS, REPORTS, SCRUBBED, Asking
from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import ModelSpec
from cxrlt_ray.search.begun_from import check_begun_from
from cxrlt_ray.storage import Store


@pytest.fixture
def trial(tmp_path):
    """The store of a trial that has learnt labels of FINDINGS, in a run that asked for nothing."""
    run, _ = make_run(tmp_path)
    run.store.write_json("run.json", json.loads(run.record.model_dump_json()))
    return run.store / "trials" / "T0000"


def changed(trial, **config):
    record = trial.read_json("trial.json")
    trial.write_json("trial.json", {**record, "config": {**record["config"], **config}})


def check(trial, asked, seen=("Hernia", "Edema"), track=SCRUBBED, checkpoint="fold-0"):
    spec = ModelSpec("test_convnext", 32, checkpoint=f"{trial.uri}/{checkpoint}/model.safetensors")
    check_begun_from([spec], Asking(asked, seen, (0, -1), track))


def test_labels_of_what_is_hidden_are_refused_and_those_of_all_else_are_not(trial):
    with pytest.raises(UsageError, match="fold-0 have learnt labels of nodule, which this run hides"):
        check(trial, ("nodule",))
    with pytest.raises(UsageError, match="have learnt labels of Mass,"):  # of a fold that chooses
        check(trial, ("Bulla",), seen=("Mass", "Hernia"))
    check(trial, ("Bulla",))
    check(trial, ("Nodule",), track=OUTSIDE_LABELS)  # they may be another cohort's
    with pytest.raises(UsageError, match="have learnt labels of Nodule"):  # the data's, not mined ones
        check(trial, ("Nodule",), track=MINED)
    changed(trial, objective="simclr")
    check(trial, ("Nodule",))
    assert "Nodule" in FINDINGS


def test_what_a_trial_began_from_counts_too(trial):
    other = trial.uri.replace("T0000", "T0001")
    changed(trial, objective="simclr", pretrained=True, checkpoint=f"{other}/fold-0/model.safetensors")
    with pytest.raises(UsageError, match="T0001/fold-0 have learnt labels of Nodule"):
        check(trial, ("Nodule",))


def test_weights_that_have_read_reports_are_not_for_track_scrubbed(trial):
    changed(trial, objective="clip", text="minilm")
    with pytest.raises(UsageError, match="have read reports: on track scrubbed"):
        check(trial, ("Nodule",))
    check(trial, ("Nodule",), track=REPORTS)
    changed(trial, objective="stated_grounding", head="film")
    check(trial, ("Bulla",))  # its run had no reports, and it does without
    Store(trial.uri.rsplit("/", 2)[0]).write("corpus.parquet", b"")
    with pytest.raises(UsageError, match="have read reports: on track scrubbed"):
        check(trial, ("Bulla",))


def test_a_model_of_a_run_that_hid_the_same_may_go_on(trial):
    run = type(trial)(trial.uri.rpartition("/trials/")[0])
    asking = {"asked": ["Nodule"], "seen": ["Mass", "Edema"], "fold": [0, 1], "track": SCRUBBED}
    run.write_json("run.json", {**run.read_json("run.json"), "asking": asking})
    check(trial, ("Nodule",), seen=("Mass", "Hernia"))  # Mass was hidden from the model of fold 0
    with pytest.raises(UsageError, match="have learnt labels of Edema"):
        check(trial, ("Nodule",), seen=("Edema", "Hernia"))


def test_a_model_that_has_learnt_mined_labels_of_its_fold_may_not(trial):
    run = type(trial)(trial.uri.rpartition("/trials/")[0])
    asking = {"asked": ["Nodule"], "seen": ["Mass", "Edema"], "fold": [0, 1], "track": MINED}
    run.write_json("run.json", {**run.read_json("run.json"), "asking": asking})
    with pytest.raises(UsageError, match="have learnt labels of Mass"):
        check(trial, ("Bulla",), seen=("Mass", "Hernia"))
    check(trial, ("Nodule",), track=MINED)  # mined labels of the asked ones are what it is to learn


def test_weights_of_a_runs_stage_are_refused_as_nothing_says_what_they_have_learnt(trial):
    run = trial.uri.rpartition("/trials/")[0]
    spec = ModelSpec("test_convnext", 32, checkpoint=f"{run}/stages/0123abcd/model.safetensors")
    with pytest.raises(UsageError, match="stages do not say what they have learnt"):
        check_begun_from([spec], Asking(("Bulla",), ("Hernia", "Edema"), (0, -1), REPORTS))
