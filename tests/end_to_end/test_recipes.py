"""Every published system runs whole in small, and its full size is built on paper, by the commands its page names."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import config, ensemble, sweep
from cxrlt_ray.data.tasks import TASK1
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs import store
from cxrlt_ray.search.space_file import load_space

RECIPES = [name for name in config.names("search_spaces") if name.startswith("team_") or name == "all_winners"]
QUICK = "team_d"  # other cohorts, three stages, ML-Decoder, fusion, test-time augmentation
MINUTES = 3
SHORT = ("team_d", "team_e")  # whose models are built on paper in every test run; the others' in the slow tests


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return str(tmp_path_factory.mktemp("recipes"))


def run_whole(name: str, storage: str, task: str = "task1", count: int | None = None) -> Path:
    """Sweep and ensemble of a recipe in small; the ensemble's directory."""
    sweep.main(task, space=name, smoke=True, name=f"{name}-{task}", storage=storage, trials=count)
    ensemble.main(select=name, run=f"{name}-{task}", storage=storage, rounds=20)
    return Path(storage) / f"{name}-{task}" / "ensembles" / name


def test_there_is_a_space_an_ensemble_and_a_page_for_each_of_the_teams():
    pages = Path(__file__).parents[2] / "docs" / "systems"
    for letter in "abcdefgh":
        assert f"team_{letter}" in RECIPES
        assert f"team_{letter}" in config.names("ensembles")
        assert (pages / f"team_{letter}.md").is_file()


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
    sweep.main("task1", space=name, dry_run=True, images=377_110, storage=str(tmp_path))
    told = capsys.readouterr().out
    assert "were built for 40 findings, and took a training step, on paper" in told
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
