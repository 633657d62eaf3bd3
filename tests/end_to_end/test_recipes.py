"""Every published system runs whole in small, and its full size is built on paper, by the commands its page names."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import config, ensemble, sweep
from cxrlt_ray.data.tasks import TASK1, load_task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs import store
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.asking import check_asking
from cxrlt_ray.search.dry_run import stage_models
from cxrlt_ray.search.space_file import load_space

RECIPES = [n for n in config.names("search_spaces") if n.startswith("team_") or n in ("all_winners", "winner_2026")]
ASKING = [name for name in RECIPES if name.endswith("_task3")]  # that answer for findings without labels
READING = (*ASKING, "team_b", "team_c", "team_h", "team_i")  # text, whose kinds are built in small in every test run
TASKS = {"winner_2026": "2026-task1", **dict.fromkeys(ASKING, "task3")}  # of recipes that are not for task 1
QUICK = "team_d"  # other cohorts, three stages, ML-Decoder, fusion, test-time augmentation
MINUTES = 3
PAGES = Path(__file__).parents[2] / "docs" / "systems"
SHORT = ("team_d", "team_e")  # whose models are built on paper in every test run; the others' in the slow tests


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return str(tmp_path_factory.mktemp("recipes"))


def run_whole(name: str, storage: str, task: str | None = None, count: int | None = None) -> Path:
    """Sweep and ensemble of a recipe in small; the ensemble's directory."""
    task = task or TASKS.get(name, "task1")
    sweep.main(task, space=name, smoke=True, name=f"{name}-{task}", storage=storage, trials=count)
    ensemble.main(select=name, run=f"{name}-{task}", storage=storage, rounds=20)
    return Path(storage) / f"{name}-{task}" / "ensembles" / name


def test_there_is_a_space_an_ensemble_and_a_page_for_each_of_the_teams():
    assert {f"team_{letter}" for letter in "abcdefghi"} | {"winner_2026"} <= set(RECIPES)
    assert {f"team_{letter}_task3" for letter in "bcghi"} == set(ASKING)
    for name in set(RECIPES) - {"all_winners"}:
        page = PAGES / f"{name.removesuffix('_task3').removesuffix('_dinov2')}.md"
        assert name in config.names("ensembles")
        assert f"`search_spaces/{name}.yaml`" in page.read_text() or f"`{name}`" in page.read_text()
        assert f"--space {name}" in page.read_text()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in READING else pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe_in_small_is_built_on_paper(name):
    """Of every kind of model one, and a step of each stage's objective."""
    kinds = {repr([(s.head, s.fusion, s.objective, s.backbone) for s in kind.staged()]): kind for kind in small(name)}
    models = stage_models(list(kinds.values()), TASK1)
    assert all(model.flops > 0 for model in models)


@pytest.mark.parametrize("name", ASKING)
def test_recipes_of_task_3_answer_by_text_and_are_judged_by_lift(name):
    space = load_space(name)
    check_asking(space, asks=True)
    assert space.metric.name == "val_log_lift"
    with pytest.raises(UsageError, match="asked by text"):
        check_asking(space, asks=False)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_in_small_need_no_text_encoder_but_the_one_that_is_offline(name):
    stages = [stage for kind in small(name) for stage in kind.staged()]
    assert {stage.text for stage in stages} <= {None, "minilm"}


def test_a_member_of_team_c_reads_reports_and_then_none():
    members = load_space("team_c").kinds()
    pretrained = [kind.staged() for kind in members if kind.system == "mama"]
    assert {tuple((s.objective, s.text, s.head) for s in stages) for stages in pretrained} == {
        (("mama", "biomedlm", "linear"), ("multilabel", None, "linear"))
    }
    assert all(not stages[0].flip and stages[0].objective_settings["mama_start"] == 8000 for stages in pretrained)
    assert all(len(kind.staged()) == 1 for kind in members if kind.system == "imagenet")


def small(name: str) -> list[TrialConfig]:
    """The kinds of trials of a recipe in small."""
    return load_space(name, smoke=True).kinds()


@pytest.mark.slow
def test_a_recipe_runs_whole_in_small(ray, storage, capsys):
    made = run_whole(QUICK, storage, count=1)
    told = capsys.readouterr().out
    assert "In the place of nih" in told
    submission = pd.read_csv(made / "submission.csv")
    assert list(submission.columns) == ["dicom_id", *TASK1]
    assert np.isfinite(submission[list(TASK1)].to_numpy()).all()
    run = store.load_run(storage, f"{QUICK}-task1")
    manifest = run.manifest().table
    assert set(manifest["cohort"]) == {"main", "nih", "chexpert", "vindr"}
    assert set(manifest.loc[manifest["cohort"] != "main", "split"]) == {"train"}
    for trial in run.trials():
        assert trial.state == "finished"
        assert [epoch.stage for epoch in trial.record.epochs][-2:] == [1, 2]
        assert trial.config.fusion == "transformer"
        assert trial.record.tta.augmentations == 2
        assert trial.has_predictions("val-tta")
        assert trial.has_predictions("test-tta")
        frame = trial.predictions().join(manifest.set_index("image_id")["study_id"])
        spread = frame.groupby("study_id").agg(lambda column: column.max() - column.min())
        assert float(spread.to_numpy().max()) < 1e-6  # a study's images have one voice
    about = json.loads((made / "ensemble.json").read_text())
    assert all(member["tta"] for member in about["members"])


def test_the_winner_of_2026_pretrains_on_mimic_then_trains_the_head_then_all():
    (kind, *_) = load_space("winner_2026").kinds()
    stages = kind.staged()
    assert [stage.cohorts for stage in stages] == ["mimic", "mimic", "main", "main"]
    assert [stage.frozen_backbone for stage in stages] == [True, False, True, False]
    assert {stage.ema_decay for stage in stages} == {0.9999}
    assert [(s.head, s.loss, s.sampler) for s in stages[1:3]] == [
        ("linear", "logit_adjusted_asl", "natural"),
        ("csra", "distribution_balanced", "repeat_factor"),
    ]


@pytest.mark.slow
def test_a_smoke_run_goes_on_where_it_was(ray, storage, capsys):
    run_there = store.load_run(storage, f"{QUICK}-task1") if Path(storage, f"{QUICK}-task1").exists() else None
    if run_there is None:
        run_whole(QUICK, storage, count=1)
    sweep.main("task1", name=f"{QUICK}-task1", storage=storage, resume=True)
    assert "are done; give --trials a larger number" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe_is_built_and_planned_in_full_size_on_paper(name, tmp_path, capsys):
    task = TASKS.get(name, "task1")
    sweep.main(task, space=name, dry_run=True, images=377_110, storage=str(tmp_path))
    told = capsys.readouterr().out
    assert f"were built for {len(load_task(task).findings)} findings, and took a training step, on paper" in told
    assert "device-hours" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", config.names("search_spaces"))
def test_every_space_has_a_small_form_of_the_same_structure(name):
    large, small = load_space(name), load_space(name, smoke=True)
    shape = lambda space: {  # noqa: E731
        tuple((stage.fusion, stage.head, stage.cohorts) for stage in kind.staged()) for kind in space.kinds()
    }
    assert shape(large) == shape(small)
    assert all(backbone.startswith("test_") or "lite0" in backbone for backbone in {s.backbone for s in small.specs()})


def test_stages_of_other_cohorts_want_their_data(tmp_path):
    with pytest.raises(UsageError, match=r"trains on nih, chexpert, vindr too: .* --cohort nih=DIRECTORY"):
        sweep.main("task1", space="team_d", data=str(tmp_path), storage=str(tmp_path / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name != QUICK])
def test_every_recipe_runs_whole_in_small_within_minutes(name, ray, storage):
    started = time.monotonic()
    made = run_whole(name, storage)
    assert time.monotonic() - started < 60 * MINUTES
    assert (made / "submission.csv").is_file()


@pytest.mark.slow
def test_all_winners_run_in_small_on_task_2_too(ray, storage):
    assert (run_whole("all_winners", storage, "task2") / "submission.csv").is_file()
