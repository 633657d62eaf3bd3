"""A sweep from Python: what it returns; soft targets that it learns; a time budget that it fits itself to."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
from conftest import write_images

from cxrlt_ray import sweep
from cxrlt_ray.cluster.start import BARRIERS
from cxrlt_ray.data.soft_targets import SoftTargets, read_soft_targets
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.store import load_run
from cxrlt_ray.search import plan, rates
from cxrlt_ray.storage import Store

SPACE = """
trials: 4
epochs: 5
parameters:
  backbone: test_convnext
  pretrained: false
  resolution: {{choices: [32, 48, 64]}}
  batch_size: 8
  lr: {{low: 1e-3, high: 1e-2}}
  objective: {objective}
start:
  - {{resolution: 64, lr: 1e-3}}
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """48 images of 48 subjects as a plain labels.csv."""
    folder = tmp_path_factory.mktemp("cohort")
    manifest = write_images(folder, 48)
    columns = ["image_id", "path", "subject_id", "study_id", "view", "split", "Mass", "Nodule"]
    manifest.table[columns].to_csv(folder / "labels.csv", index=False)
    return folder, manifest


def asked(cohort, tmp_path, objective="multilabel", **options):
    (tmp_path / "tiny.yaml").write_text(SPACE.format(objective=objective))
    given = {"task": "auto", "data": str(cohort[0]), "space": str(tmp_path / "tiny.yaml"), "name": "mine"}
    return sweep.SweepRequest(**{**given, "storage": str(tmp_path / "runs"), **options})


def test_a_plan_from_python_starts_nothing(cohort, tmp_path, capsys):
    assert sweep.run(asked(cohort, tmp_path, plan=True)) is None
    assert "Plan only: nothing was started" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def soft(cohort):
    """A teacher's predictions of half of the training images, as a file."""
    manifest = cohort[1]
    training = manifest.table.loc[manifest.table["split"] == "train", "image_id"].to_numpy()[::2]
    values = np.random.default_rng(0).random((len(training), 2), np.float32)
    table = pd.DataFrame(values, pd.Index(training, name="image_id"), ["Mass", "Nodule"])
    SoftTargets(table, "a teacher of this test").write(Store(str(cohort[0].parent)), "soft.parquet")
    return str(cohort[0].parent / "soft.parquet")


def test_a_sweep_learns_soft_targets_and_keeps_them_with_where_they_came_from(ray, cohort, soft, tmp_path, capsys):
    request = asked(cohort, tmp_path, "distill", soft_targets=soft, trials=1, epochs=1)
    run = sweep.run(request)
    assert "Soft targets: 12 of 24 training images, 2 of 2 findings" in capsys.readouterr().out
    assert run.record.soft_targets == "a teacher of this test"
    kept = read_soft_targets(f"{run.store.uri}/soft_targets.parquet")
    pd.testing.assert_frame_equal(kept.table, read_soft_targets(soft).table)
    (trial,) = run.trials()
    assert trial.state == "finished"
    assert trial.record.soft_targets == "a teacher of this test"
    assert trial.record.config.objective == "distill"
    assert run.record == load_run(request.storage, "mine").record


def test_soft_targets_and_objectives_that_do_not_fit_each_other_are_refused(cohort, soft, tmp_path):
    with pytest.raises(UsageError, match="has objective distill, which learns stored predictions: give them by --soft"):
        sweep.run(asked(cohort, tmp_path, "distill"))
    with pytest.raises(UsageError, match="--soft-targets: search space tiny has no objective that learns them"):
        sweep.run(asked(cohort, tmp_path, soft_targets=soft))
    with pytest.raises(UsageError, match=r"--soft-targets .*nothing\.parquet cannot be read"):
        sweep.run(asked(cohort, tmp_path, "distill", soft_targets=str(tmp_path / "nothing.parquet")))
    strange = pd.DataFrame({"Mass": [0.5]}, pd.Index(["elsewhere"], name="image_id"))
    SoftTargets(strange, "another cohort").write(Store(str(tmp_path)), "strange.parquet")
    with pytest.raises(UsageError, match="none of the cohort's training images"):
        sweep.run(asked(cohort, tmp_path, "distill", soft_targets=str(tmp_path / "strange.parquet")))
    assert not (tmp_path / "runs" / "mine").exists()


def test_on_a_slow_machine_a_sweep_fits_itself_to_its_time_budget_and_goes_on_so(
    ray, cohort, tmp_path, capsys, monkeypatch
):
    """The probe says that the machine is slow; trials are longer than planned, as the first epochs show it is not."""

    def slow(configs, findings, threads, gpu, seconds):
        (config,) = configs
        return rates.Probe(f"cpu-{threads}", {(config.backbone, config.resolution): 2.0})

    monkeypatch.setattr(plan, "probe", slow)
    run = sweep.run(asked(cohort, tmp_path, time_budget="150s", trials=2))
    told = capsys.readouterr().out
    assert "Fitted to 2 min: 2 trials of up to " in told
    assert "at 32 px (2 images/s measured)" in told
    record = run.record
    assert (record.trials, record.pixels, record.prune) == (2, 32, False)
    assert 1 <= record.epochs < 5
    first, second = (trial.record for trial in run.trials())
    assert (first.state, second.state) == ("finished", "finished")
    assert (first.config.resolution, second.config.resolution) == (32, 32)
    assert record.epochs <= len(first.epochs) <= 7  # 3 images/s and one epoch are enough to grow within the first
    assert record.epochs < len(second.epochs) <= 7
    assert run.trials()[0].record.params["lr"] == 1e-3  # the start point was tried first still
    sweep.run(sweep.SweepRequest(task="auto", name="mine", storage=str(tmp_path / "runs"), resume=True, trials=3))
    third = run.trials()[2].record
    assert (third.state, len(third.epochs), third.config.resolution) == ("finished", record.epochs, 32)


@pytest.mark.parametrize("address", [None, "auto"])
def test_what_measures_rates_shares_the_processors_as_trials_do(cohort, tmp_path, monkeypatch, address):
    """A probe whose threads spin at barriers is ten times too slow beside another program."""
    for name in BARRIERS:
        monkeypatch.delenv(name, raising=False)
    seen = []
    monkeypatch.setattr(sweep, "_sweep", lambda *_: seen.append({name: os.environ.get(name) for name in BARRIERS}))
    sweep.run(asked(cohort, tmp_path, plan=True, address=address))
    assert seen == [dict.fromkeys(BARRIERS) if address else BARRIERS]
