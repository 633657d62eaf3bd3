"""Pieces of the training loop: the schedule, the average of the weights, what validates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import write_images

from cxrlt_ray import train
from cxrlt_ray.search import TrialConfig
from cxrlt_ray.storage import Store


def config(**options):
    return TrialConfig(backbone="test_convnext", resolution=32, epochs=2, **options)


def test_the_rate_rises_to_lr_and_falls_to_zero():
    model = torch.nn.Linear(2, 2)
    optimizer, schedule = train._optimizer(model, config(lr=0.1, warmup_fraction=0.2), 50)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.1)
    assert np.argmax(rates) in (9, 10)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] < 0.001


def test_norms_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer, _ = train._optimizer(model, config(weight_decay=0.5), 10)
    decayed, plain = optimizer.param_groups
    assert [p.ndim for p in decayed["params"]] == [2]
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)


def test_the_average_of_the_weights_leaves_the_random_start_behind_within_an_epoch():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 100.0)
    settings = config(ema_decay=0.999)
    optimizer, schedule = train._optimizer(model, settings, 100)
    average = train._average(model, settings)
    torch.nn.init.constant_(model.weight, 1.0)  # as if training had moved it at once
    for _ in range(20):
        model.weight.grad = torch.zeros_like(model.weight)
        train._step(model, optimizer, schedule, settings, average)
    assert abs(float(average.module.weight.detach()) - 1.0) < 0.05


@pytest.mark.parametrize("folds", [0, 3])
def test_training_and_validation_share_no_subject_and_views_limit_training_only(tmp_path, folds):
    manifest = write_images(tmp_path, 40)
    manifest.table.loc[::2, "view"] = "LATERAL"
    shards = None
    validated = []
    for fold in range(max(folds, 1)):
        job = train.Job(Store(str(tmp_path)), shards, manifest.findings, "", "frontal", folds)
        training, validation = train.parts(manifest, job, fold)
        subject = manifest.table.set_index("image_id")["subject_id"]
        view = manifest.table.set_index("image_id")["view"]
        assert not set(subject[training.image_id]) & set(subject[validation.image_id])
        assert set(view[training.image_id]) == {"PA"}
        assert training.targets.shape == (len(training.image_id), 2)
        validated += list(validation.image_id)
    split = "train" if folds else "val"
    assert sorted(validated) == sorted(manifest.of_split(split).table["image_id"])


def test_a_trial_ended_from_outside_is_not_written_over(tmp_path):
    store = Store(str(tmp_path))
    store.write_json("trial.json", {"state": "pruned"})
    train._note(store, {"state": "running"})
    assert store.read_json("trial.json") == {"state": "pruned"}
