"""The settings of an earlier run's best trials are the first that a sweep tries, as far as its space allows them."""

from __future__ import annotations

import pytest
from conftest import write_images

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.metric import VAL_MAP, Metric
from cxrlt_ray.runs.records import RunRecord, TrialRecord
from cxrlt_ray.runs.store import create_run
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.search.warm_start import warm_points

SPACE = """
trials: 4
epochs: 3
parameters:
  backbone: {choices: [test_resnet, test_convnext]}
  pretrained: false
  resolution:
    - {when: {backbone: test_convnext}, choices: [64, 96]}
    - {choices: [32, 64]}
  lr: {low: 1.0e-3, high: 1.0e-2, log: true}
  loss: {choices: [bce, focal]}
  focal_gamma: {when: {loss: focal}, low: 1.0, high: 3.0}
start:
  - {backbone: test_resnet, lr: 4.0e-3}
"""


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    return load_space(str(tmp_path / "space.yaml"))


@pytest.fixture
def earlier(tmp_path):
    """A function that writes an earlier run of trials of these scores and settings."""
    manifest = write_images(tmp_path / "images", 8)

    def write(trials, name="earlier", metric=VAL_MAP):
        run = create_run(str(tmp_path / "runs"), RunRecord(name=name, task=Task("auto", ("Mass",))), manifest, {})
        for k, (score, state, settings) in enumerate(trials):
            config = TrialConfig(backbone="test_resnet", resolution=32, epochs=2, pretrained=False)
            config = TrialConfig.model_validate(config.model_dump() | settings)
            record = TrialRecord(name=f"T{k:04d}", state=state, config=config, score=score, metric=metric)
            record.write(run.store / "trials" / record.name, "trial.json")
        return str(tmp_path / "runs")

    return write


def points(storage, space, *names):
    return warm_points(storage, names or ("earlier",), space, VAL_MAP)


def test_the_best_finished_trials_come_first_each_settings_once(earlier, space):
    storage = earlier(
        [
            (0.1, "finished", {"lr": 2e-3}),
            (0.3, "finished", {"lr": 3e-3}),
            (0.9, "pruned", {"lr": 9e-3}),
            (0.2, "finished", {"lr": 3e-3}),
            (None, "failed", {"lr": 8e-3}),
        ]
    )
    assert [point["lr"] for point in points(storage, space)] == [3e-3, 2e-3]


def test_a_setting_takes_the_name_that_its_rule_has_here(earlier, space):
    settings = {"backbone": "test_convnext", "resolution": 96, "loss": "focal", "loss_settings": {"focal_gamma": 2.0}}
    storage = earlier([(0.3, "finished", settings)])
    assert points(storage, space) == [
        {"backbone": "test_convnext", "resolution": 96, "lr": 1e-3, "loss": "focal", "focal_gamma": 2.0}
    ]
    again = earlier([(0.3, "finished", {"resolution": 64})], name="other")
    assert points(again, space, "other")[0]["resolution@1"] == 64


def test_settings_that_the_space_does_not_allow_are_left_out(earlier, space):
    storage = earlier([(0.5, "finished", {"lr": 0.5}), (0.3, "finished", {"lr": 5e-3})])
    assert [point["lr"] for point in points(storage, space)] == [5e-3]


@pytest.mark.parametrize(
    ("trials", "metric", "words"),
    [
        ([(0.5, "finished", {"lr": 0.5})], VAL_MAP, "allows the settings of none"),
        ([(0.5, "pruned", {})], VAL_MAP, "no trial of this run is finished"),
        ([(0.5, "finished", {})], Metric(name="loss", title="loss", mode="min"), "judged by loss"),
    ],
)
def test_a_run_that_nothing_can_be_taken_from_is_refused(earlier, space, trials, metric, words):
    with pytest.raises(UsageError, match=f"--warm-from earlier: .*{words}"):
        points(earlier(trials, metric=metric), space)


def test_a_run_that_is_not_there_is_refused(earlier, space):
    with pytest.raises(UsageError, match="missing"):
        points(earlier([]), space, "missing")


def test_they_are_the_first_points_of_the_search(earlier, space, tmp_path):
    """Optuna is asked for them in their order, then for the space's own start points; a study made anew too."""
    import dataclasses

    from cxrlt_ray.runs.store import load_run
    from cxrlt_ray.search.optuna_study import OptunaStudy

    storage = earlier([(0.3, "finished", {"lr": 3e-3}), (0.2, "finished", {"lr": 2e-3})])
    warm = points(storage, space)
    earlier([], name="new")
    run = load_run(storage, "new")
    study = OptunaStudy(run, dataclasses.replace(space, start=(*warm, *space.start)), seed=0)
    rates = [study.next()[1]["lr"] for _ in range(2)]
    (tmp_path / "runs" / "new" / "optuna.db").unlink()
    study = OptunaStudy(run, dataclasses.replace(space, start=(*warm, *space.start)), seed=0)
    study.next(), study.next()
    rates.append(study.next()[1]["lr"])
    assert rates == [3e-3, 2e-3, 4e-3]
