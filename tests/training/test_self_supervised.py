"""Stages of dinov2 and mae in a trial: how they go on after a cut, and what they leave to the next stage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import write_images
from cut_training import train_with_cuts
from safetensors.numpy import load_file
from small_job import job_in

from cxrlt_ray import models
from cxrlt_ray.data import prepare
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.damage import damage
from cxrlt_ray.runs.store import read_trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.dry_run import stage_models
from cxrlt_ray.storage import Store
from cxrlt_ray.training.clock import Clock
from cxrlt_ray.training.course import begin
from cxrlt_ray.training.job import manifest_of, training_images
from cxrlt_ray.training.optimizer import Average, optimizer_of, take_step
from cxrlt_ray.training.stage import train_stage
from cxrlt_ray.training.trial import train

SMALL = {
    "dinov2": {
        "dinov2_prototypes": 16,
        "dinov2_hidden": 16,
        "dinov2_bottleneck": 8,
        "dinov2_local_crops": 1,
        "dinov2_momentum": 0.9,
    },
    "mae": {"mae_width": 32, "mae_depth": 1},
    "barlow": {"barlow_width": 16},
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("self-supervised")
    manifest = write_images(folder / "images", 48)

    def here(manifest, chunks, stores, quality, say):
        for chunk in chunks:
            prepare._write_shard(chunk, stores, manifest.root, quality)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_run_tasks", here)  # a Ray would take longer to start than all these tests
        return manifest, prepare.prepare(manifest, str(folder), [32, 48], say=lambda text: None)


def config(objective, **options):
    plain = {"backbone": "test_vit", "pretrained": False, "resolution": 32, "epochs": 3, "batch_size": 12, "lr": 1e-3}
    plain |= {"objective": objective, "objective_settings": SMALL.get(objective, {}), "augment": 0.0, "flip": 0.0}
    return TrialConfig(**{**plain, **options})


@pytest.mark.parametrize("name", ["dinov2", "mae"])
def test_a_trial_that_is_cut_goes_on_to_the_last_bit_as_if_it_had_not_been(name, cohort, tmp_path):
    stages = (
        {"epochs": 2, "objective": name, **SMALL[name]},
        {"epochs": 2, "resolution": 48},  # the same objective on larger images
        {"epochs": 1, "objective": "multilabel"},
    )
    trial = config("multilabel", stages=stages, drop_path=0.2, objective_settings={})
    train(job_in(tmp_path / "whole", cohort), "T0000", trial, {}, lambda report: None)
    train_with_cuts(job_in(tmp_path / "cut", cohort), trial)
    one, two = (load_file(tmp_path / at / "trials/T0000/fold-0/model.safetensors") for at in ("whole", "cut"))
    for key, tensor in one.items():
        np.testing.assert_array_equal(two[key], tensor, err_msg=key)
    one, two = (read_trial(Store(str(tmp_path / at / "trials/T0000"))) for at in ("whole", "cut"))
    assert [epoch.score for epoch in one.record.epochs] == [epoch.score for epoch in two.record.epochs]
    assert [epoch.loss for epoch in one.record.epochs] == [epoch.loss for epoch in two.record.epochs]
    assert one.record.metric.name == "val_map"
    assert damage(one) == ""


@pytest.mark.parametrize(
    ("name", "backbone", "metric"),
    [
        ("dinov2", "test_vit", "val_view_mrr"),
        ("mae", "test_vit", "val_mae_error"),
        ("barlow", "test_convnext", "val_view_mrr"),
    ],
)
def test_a_trial_is_judged_by_its_own_metric_and_leaves_weights(name, backbone, metric, cohort, tmp_path):
    job, reports = job_in(tmp_path, cohort), []
    train(job, "T0000", config(name, backbone=backbone, epochs=2), {}, reports.append)
    stored = read_trial(job.run / "trials" / "T0000")
    assert [set(report) for report in reports] == [{metric, "epoch", "images_per_second"}] * 2
    assert not stored.has_predictions()
    model, _, _ = models.load(tmp_path / "trials/T0000/fold-0")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def stage_of(job, trial, carried=None):
    """The last epoch of a stage, and the model that it began with."""
    model = begin(job, trial, None, None)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = training_images(manifest_of(job.run), job, 0)
    for epoch in train_stage(job, trial, model, training, 0, Clock(None), None, carried):  # noqa: B007  the last one
        pass
    return epoch, first


def test_the_backbone_that_goes_on_is_the_teachers_and_the_heads_go_on_with_it(cohort, tmp_path):
    job = job_in(tmp_path, cohort)
    epoch, first = stage_of(job, config("dinov2", objective_settings={**SMALL["dinov2"], "dinov2_freeze": 0}))
    network = epoch.network
    assert epoch.model is network.teacher
    student, teacher = network.student.backbone.state_dict(), network.teacher.backbone.state_dict()
    name = "blocks.0.mlp.fc1.weight"
    assert not torch.equal(student[name], teacher[name])
    assert not torch.equal(teacher[name], first[f"backbone.{name}"])
    carried = epoch.carried()
    assert {key.split(".")[0] for key in carried} == {
        "heads",
        "teacher_heads",
        "mask_token",
        "image_centre",
        "patch_centre",
    }
    assert carried["image_centre"].abs().sum() > 0
    still = config("dinov2", epochs=1, lr=1e-12, weight_decay=0.0)
    after, _ = stage_of(job, still, carried)
    for key, tensor in epoch.network.heads.state_dict().items():
        torch.testing.assert_close(after.network.heads.state_dict()[key], tensor, rtol=0, atol=1e-6)
    other = config("dinov2", epochs=1, objective_settings={**SMALL["dinov2"], "dinov2_prototypes": 24})
    assert stage_of(job, other, carried)[0].network.image_centre.shape == (24,)  # what does not fit begins anew


def test_on_a_frozen_backbone_the_heads_alone_are_trained(cohort, tmp_path):
    settings = {**SMALL["dinov2"], "dinov2_freeze": 0}
    epoch, first = stage_of(
        job_in(tmp_path, cohort), config("dinov2", frozen_backbone=True, objective_settings=settings)
    )
    for name, tensor in epoch.model.backbone.state_dict().items():
        # a teacher that follows a student which stays where it is moves by rounding
        torch.testing.assert_close(tensor, first[f"backbone.{name}"], rtol=1e-6, atol=1e-7)
    heads = epoch.network.heads["image"].layers[0].weight
    assert not torch.equal(heads, epoch.network.teacher_heads["image"].layers[0].weight)


def test_weight_decay_goes_by_a_cosine_to_its_end_where_there_is_any():
    network = torch.nn.Linear(2, 2)
    trial = config("mae", weight_decay=0.04, weight_decay_end=0.4)
    optimizer, schedule = optimizer_of(network, trial, 10, network)
    seen = []
    for _ in range(10):
        network(torch.ones(1, 2)).sum().backward()
        take_step(network, optimizer, schedule, trial, Average(network, trial), steps=10)
        seen.append(sorted(group["weight_decay"] for group in optimizer.param_groups))
    for step, (bias, weight) in enumerate(seen):
        assert bias == 0
        assert weight == pytest.approx(0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 10)) / 2)
    with pytest.raises(ValueError, match="weight_decay_end needs a weight_decay above 0"):
        config("mae", weight_decay=0.0, weight_decay_end=0.4)


def test_a_plan_refuses_a_cnn_before_anything_is_trained():
    trial = config("mae", backbone="test_convnext")
    with pytest.raises(UsageError, match="backbone 'test_convnext' is not: take barlow, moco or simclr"):
        stage_models([trial], ["Mass", "Nodule"])
    assert stage_models([config("dinov2", resolution=48)], ["Mass", "Nodule"])[0].trained > 0
