"""A plan is of what is asked for: the same options as of the sweep, and of a run that goes on what is left."""

from __future__ import annotations

import pytest
from conftest import write_images

from cxrlt_ray import config, sweep
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.records import RunRecord, TrialRecord
from cxrlt_ray.runs.store import create_run
from cxrlt_ray.search.plan import Planner, TrialBytes
from cxrlt_ray.search.pricing import storage_of
from cxrlt_ray.search.rates import ModelRate
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.resources import plan_resources
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.search.workload import Workload
from cxrlt_ray.storage import Store

RATES = [ModelRate("test_resnet", 96, 100.0, "measured", 1000), ModelRate("test_resnet", 128, 50.0, "measured", 3000)]
WORK = Workload(train=1000, val=100, test=50, folds=3)
PREDICTIONS = 4 * 40 * 150


@pytest.mark.parametrize(("kept", "trials"), [(None, 60), (5, 5), (60, 60), (100, 60)])
def test_a_plan_counts_the_checkpoints_that_are_kept_and_the_predictions_of_all_trials(kept, trials):
    assert storage_of(RATES, WORK, 60, kept).trial_bytes == trials * 3 * 2000 + 60 * PREDICTIONS


def test_a_plan_counts_the_shards_that_are_asked_for():
    models, one = storage_of(RATES, WORK, 1), storage_of(RATES, WORK, 1, sizes=[512])
    assert (models.sizes, one.sizes) == ((96, 128), (512,))
    assert one.shard_bytes == pytest.approx(1150 * 77e3, rel=0.02)  # docs: 77 KB at q95
    by_quality = [
        storage_of(RATES, WORK, 1, sizes=[512], quality=quality).shard_bytes for quality in (50, 90, 95, 99, 0)
    ]
    assert by_quality == sorted(by_quality)
    assert by_quality[-1] > 2 * by_quality[2]


def test_the_disk_that_a_sweep_takes_is_that_of_what_is_to_come():
    size = TrialBytes(state=80.0, checkpoints=10.0, predictions=1.0)
    assert size.of_sweep(0, 4, 0) == 0
    assert size.of_sweep(6, 2, 6) == 2 * 91 + 6 * 11
    assert size.of_sweep(1, 4, 0) == 91 + 1


SPACE = """
trials: 2
parameters: {backbone: test_resnet, pretrained: false, resolution: 32, lr: 1e-3}
stages:
  - {epochs: 2, cohorts: nih}
  - {epochs: 1, cohorts: main}
"""


def test_a_search_is_fitted_to_a_budget_with_the_other_cohorts_that_it_trains_on(tmp_path):
    (tmp_path / "two.yaml").write_text(SPACE)
    space = load_space(str(tmp_path / "two.yaml"))
    planner = Planner(space, 2, 1, 0, plan_resources(2, 0), Store(str(tmp_path)))
    alone, both = (planner.fit(1e9, 10_000, measured=False, others=others) for others in ((), ("nih",)))
    assert both.seconds > alone.seconds + 1
    wall = planner.plan(10_000, ("nih",)).forecasts[0].pruned.wall
    assert both.seconds == pytest.approx(1.1 * wall)


def test_a_plan_heeds_how_the_sweep_is_to_prepare_and_keep(tmp_path, capsys):
    options = {"sizes": "512", "quality": "lossless", "keep_checkpoints": 2, "cache_gb": 0.0}
    sweep.main("task1", space="laptop", plan=True, images=10_000, storage=str(tmp_path / "runs"), **options)
    told = " ".join(capsys.readouterr().out.split())
    assert " to 512 px: " in told
    assert " of shards (lossless), " in told
    assert " of predictions and the checkpoints of the 2 best trials" in told
    assert "up to 0.0 KB of decoded images" in told


def test_the_plan_of_a_run_that_goes_on_is_of_the_trials_that_are_missing(tmp_path, capsys):
    manifest = write_images(tmp_path / "images", 8)
    files = {"space.yaml": config.find("search_spaces", "laptop").read_bytes()}
    record = RunRecord(name="mine", task=Task("auto", ("Mass",)), trials=3, epochs=4, space="laptop")
    run = create_run(str(tmp_path), record, manifest, files)

    def told():
        sweep.main("auto", resume=True, name="mine", plan=True, storage=str(tmp_path))
        return capsys.readouterr().out

    planned = told()
    assert "Done: 0 of 3 trials" in planned
    assert "Plan only" in planned
    for number, state in enumerate(("finished", "pruned", "failed")):  # by its surroundings: it is tried again
        TrialRecord(name=f"T000{number}", state=state).write(run.store / "trials" / f"T000{number}", "trial.json")
    assert "Done: 2 of 3 trials" in told()
    TrialRecord(name="T0002", state="finished").write(run.store / "trials" / "T0002", "trial.json")
    planned = told()
    assert "All 3 trials of mine are done" in planned
    assert "Plan only" not in planned


def test_what_follows_in_a_plan_are_the_same_trials(tmp_path):
    planner = Planner(load_space("laptop"), 6, 1, 0, plan_resources(2, 0), Store(str(tmp_path)))
    assert planner.following(4).configs == planner.configs[4:]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_bad": 1.5}, "--max-bad is a share from 0 to 1, not 1.5"),
        ({"max_bad": -0.1}, "--max-bad"),
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"epochs": 0, "resume": True}, "--epochs must be at least 1, not 0"),
        ({"cache_gb": float("nan")}, "--cache-gb is 0"),
        ({"features_gb": float("inf")}, "--features-gb is 0"),
        ({"plan": True, "price": float("nan")}, "--price is 0 or more"),
        (
            {"ask": "Bulla", "track": "mined", "choose_by": "mined", "finding_folds": 5},
            "--finding-folds choose where labels do not",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(options, told):
    with pytest.raises(UsageError, match=told):
        SweepRequest(task="task1", **options)


@pytest.mark.parametrize("option", ["gpus_per_trial", "cpus_per_trial"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_share_of_a_machine_is_a_number(option, value):
    with pytest.raises(UsageError):
        plan_resources(8, 2, **{option: value})
