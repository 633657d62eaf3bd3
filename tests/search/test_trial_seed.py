"""Trials of equal settings are not trained to the same weights twice; each keeps its seed when it goes on."""

from __future__ import annotations

from types import SimpleNamespace

from conftest import write_images

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.runs.records import RunRecord, TrialRecord
from cxrlt_ray.runs.store import Trial, create_run
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.optuna_study import OptunaStudy
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.search.stop import StopRequest
from cxrlt_ray.search.trial_states import trial_name, trial_seed
from cxrlt_ray.search.tuner import FaultPolicy, StudySearcher
from cxrlt_ray.storage import Store

ONE_POINT = """
trials: 3
epochs: 1
parameters:
  backbone: {choices: [test_resnet]}
  pretrained: false
  resolution: 32
  SEED
"""


def begun(number, params, seed=None):
    config = None if seed is None else TrialConfig(backbone="test_resnet", resolution=32, epochs=3, seed=seed)
    return Trial(Store("nowhere"), TrialRecord(name=trial_name(number), state="running", params=params, config=config))


def test_each_repeat_has_another_seed_and_a_trial_of_other_settings_the_runs():
    trials = [begun(0, {"lr": 1.0}), begun(1, {"lr": 2.0}), begun(2, {"lr": 1.0}), begun(3, {"lr": 1.0})]
    assert [trial_seed(trials, number, 7) for number in range(4)] == [(7, ""), (7, ""), (8, "T0000"), (9, "T0000")]


def test_a_seed_depends_on_no_later_trial_and_one_that_was_begun_keeps_its_own():
    first, second = begun(0, {"lr": 1.0}), begun(1, {"lr": 1.0}, seed=0)  # of a run made when all had one seed
    assert trial_seed([second, first], 0, 0) == (0, "")
    assert trial_seed([first, second], 1, 0) == (0, "T0000")


def points_of(tmp_path, capsys, line=""):
    path = tmp_path / "one.yaml"
    path.write_text(ONE_POINT.replace("SEED", line))
    space = load_space(str(path))
    record = RunRecord(name="mine", task=Task("auto", ("Mass",)), seed=5)
    run = create_run(str(tmp_path / "runs"), record, write_images(tmp_path / "images", 8), {})
    search = SimpleNamespace(run=run, pace=None, policy=FaultPolicy())
    searcher = StudySearcher(search, OptunaStudy(run, space, 5), StopRequest(), SimpleNamespace())
    points = [searcher.suggest(f"id{k}") for k in range(3)]
    return [space.to_config(point["params"], point["seed"]).seed for point in points], capsys.readouterr().out


def test_a_search_that_has_one_point_only_trains_it_with_a_seed_a_trial_and_says_so(tmp_path, capsys):
    seeds, told = points_of(tmp_path, capsys)
    assert seeds == [5, 6, 7]
    assert told == "".join(f"  T000{k} has the settings of T0000: it is trained with seed {5 + k}\n" for k in (1, 2))


def test_a_repeat_whose_seed_the_space_fixes_is_said(tmp_path, capsys):
    seeds, told = points_of(tmp_path, capsys, "seed: 3")
    assert seeds == [3, 3, 3]
    assert told.count("has the settings of T0000: the same weights are trained again") == 2
