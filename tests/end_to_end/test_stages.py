"""A trial of stages, folds, a refit and test-time augmentation: what it leaves, and what goes on from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cxrlt_ray import ensemble, predict, sweep
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.phantom import write_phantom
from cxrlt_ray.runs import store
from cxrlt_ray.search.space_file import load_space

SPACE = """
trials: 1
folds: 2
prune: false
parameters:
  backbone: test_resnet
  pretrained: false
  resolution: 32
  lr: 4e-3
  layer_decay: 0.9
  loss: class_balanced
  smooth_pos: 0.05
  logit_adjust: 0.5
  tta: flip+zooms
  refit: true
  seed: {choices: [1]}
stages:
  - {epochs: 1, frozen_backbone: true}
  - {epochs: 1, frozen_backbone: false, mix: mixup, cohorts: all}
  - {epochs: 2, mix: none, cohorts: main, resolution: 48, sampler: sqrt, swa_start: 0.5, fusion: attention}
"""
AFTER = """
trials: 1
epochs: 1
parameters: {backbone: BACKBONE, init_from: SOURCE, resolution: 32, head: csra, tail_augment: 0.8, augment: 0.1}
"""


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "tree"
    write_phantom(str(folder), images=300, size=64, seed=0, say=lambda _: None)
    return str(folder)


@pytest.fixture(scope="module")
def storage(ray, phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("storage")
    (folder / "staged.yaml").write_text(SPACE)
    other = str(folder / "other")
    write_phantom(other, images=200, size=64, seed=1, say=lambda _: None)
    sweep.main(
        "task1",
        data=phantom,
        space=str(folder / "staged.yaml"),
        name="staged",
        storage=str(folder),
        cohort=[f"nih=phantom:{other}"],
    )
    return folder


def test_folds_are_validated_out_of_fold_and_the_refit_model_scores_new_images(storage):
    run = store.load_run(str(storage), "staged")
    table = run.manifest().of_cohort("main").table
    ran = [(fold, stage) for fold in (0, 1) for stage in (0, 1, 2, 2)]
    for trial in run.trials():
        assert trial.state == "finished"
        assert sorted(name for name in trial.store.list() if name.startswith("fold-")) == ["fold-0", "fold-1"]
        assert trial.checkpoints == ["refit"]
        assert 1 <= trial.record.refit.epochs <= 2
        assert set(trial.predictions().index) == set(table.loc[table["split"] == "train", "image_id"])
        assert [(epoch.fold, epoch.stage) for epoch in trial.record.epochs] == ran
        assert (trial.config.resolution, trial.config.fusion) == (48, "attention")
        assert len(run.store.list("stages")) == 2  # where other cohorts' images have led, for each fold


def test_the_checkpoint_is_of_the_last_stage_and_holds_its_logit_adjustment(storage):
    from cxrlt_ray import models

    trial = store.load_run(str(storage), "staged").trials()[0]
    for name in ("fold-0", "refit"):
        model, spec, _ = models.load(Path(trial.store.uri) / name)
        assert spec.resolution == 48
        assert (model.shift < 0).any()


def test_test_time_augmentation_is_scored_on_validation_with_its_gain_and_price(storage):
    for trial in store.load_run(str(storage), "staged").trials():
        assert trial.record.tta.augmentations == 6
        assert trial.record.tta.price > 1
        plain, looked = trial.predictions(), trial.predictions("val-tta")
        assert (plain.index == looked.index).all()
        difference = np.abs(plain.to_numpy() - looked.to_numpy())
        assert 0 < difference.mean() < 0.1


def test_an_ensemble_takes_it_where_asked(storage, tmp_path):
    about = asked_for(storage, tmp_path)
    assert [member["tta"] for member in about["members"]] == [True]
    assert all(list(member["checkpoints"]) == ["refit"] for member in about["members"])


def asked_for(storage, tmp_path):
    """What an ensemble with test-time augmentation and joined views leaves, as ensemble.json says."""
    (tmp_path / "on.yaml").write_text("selector: mean\ntta: on\naggregation: mean\nviews: {PA: 2, AP: 2}\n")
    ensemble.main(select=str(tmp_path / "on.yaml"), run="staged", storage=str(storage), rounds=20)
    return json.loads((storage / "staged" / "ensembles" / "on" / "ensemble.json").read_text())


@pytest.mark.slow
def test_new_images_are_predicted_as_the_test_images_were(storage, phantom, tmp_path):
    import pandas as pd

    asked_for(storage, tmp_path)
    folder, out = storage / "staged" / "ensembles" / "on", tmp_path / "again"
    predict.main(ensemble=str(folder / "ensemble.json"), data=phantom, split="test", out=str(out), storage=str(storage))
    first, again = (pd.read_csv(path / "submission.csv").set_index("dicom_id") for path in (folder, out))
    assert np.abs(first.to_numpy() - again.loc[first.index].to_numpy()).max() < 1e-4


def after(folder, backbone, source):
    (folder / "after.yaml").write_text(AFTER.replace("BACKBONE", backbone).replace("SOURCE", source))
    return str(folder / "after.yaml")


def test_a_later_run_begins_from_an_earlier_ones_best_trial(storage, tmp_path):
    from cxrlt_ray import models

    (config,) = load_space(after(tmp_path, "test_resnet", "staged"), storage=str(storage)).kinds()
    best = max(store.load_run(str(storage), "staged").trials(), key=lambda each: each.score)
    assert config.checkpoint.endswith(f"staged/trials/{best.name}/refit/model.safetensors")
    begun = models.build(config.spec(), 40).backbone.state_dict()
    left = models.load(Path(best.store.uri) / "refit")[0].backbone.state_dict()
    assert all(torch.equal(begun[name], left[name]) for name in left)


@pytest.mark.slow
def test_it_is_trained_on_and_tells_where_it_began(storage, phantom, tmp_path):
    sweep.main("task1", data=phantom, space=after(tmp_path, "test_resnet", "staged"), name="on", storage=str(storage))
    (trial,) = store.load_run(str(storage), "on").trials()
    assert trial.state == "finished"
    assert trial.record.weights.endswith("which began from none")


def test_weights_that_are_not_there_are_refused_before_anything_starts(storage, phantom, tmp_path):
    for backbone, source, reason in [
        ("test_convnext", "staged", "has no weights of backbone 'test_convnext'; it has test_resnet"),
        ("test_resnet", "staged/T0009", "run staged has no trial T0009; it has T0000"),
        ("test_resnet", "nowhere", "no run 'nowhere'"),
    ]:
        with pytest.raises(UsageError, match=reason):
            sweep.main("task1", data=phantom, space=after(tmp_path, backbone, source), storage=str(storage))
    with pytest.raises(UsageError, match="at least 2 folds"):
        sweep.main("task1", data=phantom, space=str(storage / "staged.yaml"), folds=1, storage=str(storage))
    with pytest.raises(CxrltError, match=r"--folds 5000: there are \d+ subjects to divide into folds"):
        sweep.main("task1", data=phantom, space=str(storage / "staged.yaml"), folds=5000, storage=str(storage))
