"""The seam between training and what is trained: an objective of another kind, and the weights it hands on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_images
from cut_training import train_with_cuts
from safetensors.numpy import load_file

from cxrlt_ray.data.prepare import prepare
from cxrlt_ray.data.soft_targets import SoftTargets
from cxrlt_ray.objectives import registry
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.objectives.registry import Needs, Objective
from cxrlt_ray.runs.damage import damage
from cxrlt_ray.runs.store import read_trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.training.job import Job
from cxrlt_ray.training.trial import train


class Twins(torch.nn.Module):
    """A student and its slower teacher: two crops of an image should have the same projection."""

    def __init__(self, model):
        super().__init__()
        self.model, self.project = model, torch.nn.Linear(model.backbone.num_features, 8)
        self.teacher = torch.nn.Linear(model.backbone.num_features, 8)
        self.teacher.load_state_dict(self.project.state_dict())
        self.teacher.requires_grad_(False)

    def features(self, images):
        pixels = (images.float().unsqueeze(1) / 255 - self.model.mean) / self.model.std
        return self.model.backbone(pixels)

    def forward(self, first, second):
        assert not torch.equal(first, second)  # augmented independently
        one, two = self.features(first), self.features(second)
        return self.project(one) - self.teacher(two.detach())


class Agreement(Objective):
    """Self-supervised: judged by the distance of two crops on validation images, where less is better."""

    needs = Needs(labels=False, crops=2)
    metric = Metric("val_distance", "min", "val distance")
    predicts = False

    def network(self, model):
        return Twins(model)

    def classifier(self, network):
        return network.model

    def after_step(self, network):
        with torch.no_grad():
            for slow, fast in zip(network.teacher.parameters(), network.project.parameters(), strict=True):
                slow.lerp_(fast, 0.1)

    def loss(self, outputs, targets):
        assert targets[0][1].shape[1] == 0  # no labels were asked for
        return outputs.square().mean()

    def score_network(self, network, batches):
        with torch.no_grad():
            return float(np.mean([network(*inputs).square().mean().item() for inputs in batches]))


@pytest.fixture
def agreement(monkeypatch):
    monkeypatch.setitem(registry._OBJECTIVES, "agreement", Agreement)


@pytest.fixture(scope="module")
def cohort(ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seam")
    manifest = write_images(folder / "images", 48)
    return manifest, prepare(manifest, str(folder), [32], say=lambda text: None)


def job_in(folder, cohort, **options):
    manifest, shards = cohort
    with Store(str(folder)).place("manifest.parquet") as path:
        manifest.write(path)
    findings = options.pop("findings", manifest.findings)
    return Job(Store(str(folder)), shards, findings, manifest.fingerprint, threads=1, **options)


def config(**options):
    plain = {"backbone": "test_convnext", "pretrained": False, "resolution": 32, "epochs": 2, "batch_size": 8}
    return TrialConfig(**{**plain, **options})


def test_a_self_supervised_trial_is_judged_by_its_own_metric_and_leaves_weights_but_no_predictions(
    cohort, tmp_path, agreement
):
    job, reports = job_in(tmp_path, cohort), []
    train(job, "T0000", config(objective="agreement", epochs=3), {}, reports.append)
    assert [set(report) for report in reports] == [{"val_distance", "epoch", "images_per_second"}] * 3
    trial = read_trial(job.run / "trials" / "T0000")
    assert (trial.state, trial.record.metric.name, trial.record.metric.mode) == ("finished", "val_distance", "min")
    scores = [epoch.score for epoch in trial.record.epochs]
    assert trial.score == min(scores) == [report["val_distance"] for report in reports][-1]
    assert trial.record.best_epoch == int(np.argmin(scores))
    assert not trial.has_predictions()
    assert trial.checkpoints == ["fold-0"]
    assert damage(trial) == ""


def test_the_weights_of_a_self_supervised_stage_go_on_into_the_next(cohort, tmp_path, agreement):
    stages = (
        {"epochs": 1, "objective": "agreement", "lr": 1e-2},
        {"epochs": 1, "objective": "multilabel", "lr": 1e-12, "weight_decay": 0.0},
    )
    job, reports = job_in(tmp_path, cohort), []
    train(job, "T0000", config(stages=stages), {}, reports.append)
    assert ["val_distance" in report for report in reports] == [True, False]
    assert reports[1]["val_map"] > 0
    trial = read_trial(job.run / "trials" / "T0000")
    assert trial.record.metric.name == "val_map"
    assert trial.has_predictions()
    train(job, "T0001", config(objective="agreement", epochs=1, lr=1e-2), {}, lambda report: None)
    train(job, "T0002", config(epochs=1, lr=1e-12, weight_decay=0.0), {}, lambda report: None)
    both, alone, never = (load_file(f"{job.run.uri}/trials/T000{k}/fold-0/model.safetensors") for k in range(3))
    name = next(name for name in both if name.startswith("backbone.") and both[name].ndim == 4)
    np.testing.assert_allclose(both[name], alone[name], atol=1e-6)  # the second stage's rate moves nothing
    assert np.abs(both[name] - never[name]).max() > 1e-4


def test_a_self_supervised_trial_that_is_cut_goes_on_with_its_teacher(cohort, tmp_path, agreement):
    trial = config(objective="agreement", epochs=3)
    train(job_in(tmp_path / "whole", cohort), "T0000", trial, {}, lambda report: None)
    train_with_cuts(job_in(tmp_path / "cut", cohort), trial)
    one, two = (load_file(tmp_path / at / "trials/T0000/fold-0/model.safetensors") for at in ("whole", "cut"))
    for name, tensor in one.items():
        np.testing.assert_array_equal(two[name], tensor, err_msg=name)
    one, two = (read_trial(Store(str(tmp_path / at / "trials/T0000"))).record for at in ("whole", "cut"))
    assert [epoch.score for epoch in one.epochs] == [epoch.score for epoch in two.epochs]


def test_an_objective_of_several_crops_refuses_what_it_cannot_be_combined_with(agreement):
    for options in ({"fusion": "attention"}, {"mix": "mixup"}):
        with pytest.raises(ValueError, match="agreement takes several crops of an image: leave fusion and mix at none"):
            config(objective="agreement", **options)


def test_a_student_learns_a_stored_teacher_where_there_are_no_labels(cohort, tmp_path):
    """The teacher knows a finding that no training image is labelled for."""
    manifest, shards = cohort
    silent = type(manifest)(manifest.table.copy(), manifest.findings, manifest.source, manifest.root)
    truth = silent.table["Mass"].astype(float).to_numpy()
    silent.table.loc[silent.table["split"] == "train", "Mass"] = pd.NA
    teacher = pd.DataFrame(
        {"Mass": np.where(truth == 1, 0.95, 0.05)}, pd.Index(silent.table["image_id"]), dtype="float32"
    )
    scores = {}
    for objective in ("multilabel", "distill"):
        job = job_in(tmp_path / objective, (silent, shards), soft_targets=objective == "distill")
        SoftTargets(teacher, "a teacher").write(job.run)
        trial = config(objective=objective, epochs=12, lr=3e-3, augment=0.0, flip=0.0)
        train(job, "T0000", trial, {}, lambda report: None)
        stored = read_trial(job.run / "trials" / "T0000")
        assert stored.record.soft_targets == ("a teacher" if objective == "distill" else None)
        scores[objective] = stored.score
        predictions = stored.predictions()["Mass"]
        positive = predictions.index.map(dict(zip(silent.table["image_id"], truth, strict=True))).to_numpy() == 1
        scores[objective] = predictions[positive].mean() - predictions[~positive].mean()
    assert scores["distill"] > 0.3
    assert abs(scores["multilabel"]) < 0.2


def test_a_trial_predicts_its_findings_whatever_else_it_was_trained_on(cohort, tmp_path):
    job = job_in(tmp_path, cohort, findings=("Nodule",), trained_findings=("Mass", "Nodule"))
    train(job, "T0000", config(), {}, lambda report: None)
    both = job_in(tmp_path / "both", cohort)
    train(both, "T0000", config(), {}, lambda report: None)
    one, two = (read_trial(j.run / "trials" / "T0000") for j in (job, both))
    assert (one.record.findings, one.record.trained_findings) == (("Nodule",), ("Mass", "Nodule"))
    assert list(one.predictions().columns) == ["Nodule"]
    if one.record.best_epoch == two.record.best_epoch:
        np.testing.assert_array_equal(one.predictions()["Nodule"], two.predictions()["Nodule"])
