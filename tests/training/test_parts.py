"""Stages that train a part: adapters of the backbone (image_lora), or some of the findings (learns)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import write_images
from cut_training import train_with_cuts
from safetensors.torch import load_file
from small_job import job_in

from cxrlt_ray import models
from cxrlt_ray.data.prepare import prepare
from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import ModelSpec, TrainedPart
from cxrlt_ray.objectives.multilabel import MultiLabel
from cxrlt_ray.objectives.registry import ObjectiveSpec
from cxrlt_ray.runs.store import read_trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.rates import gain_of_frozen
from cxrlt_ray.training.trial import train

VIT = {"backbone": "test_vit", "pretrained": False, "resolution": 32, "epochs": 2, "batch_size": 16, "lr": 1e-2}


@pytest.fixture(scope="module")
def cohort(ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    manifest = write_images(folder / "images", 64)
    return manifest, prepare(manifest, str(folder), [32], say=lambda text: None)


def tensors(folder):
    return load_file(folder / "trials/T0000/fold-0/model.safetensors")


def test_adapters_change_their_layers_alone_and_are_in_the_weights_that_are_left(cohort, tmp_path):
    trial = TrialConfig(**VIT, image_lora=2)
    train(job_in(tmp_path, cohort), "T0000", trial, {}, lambda report: None)
    torch.manual_seed(trial.seed)
    begun, left = models.build(trial.spec(), 2).state_dict(), tensors(tmp_path)
    assert set(left) == set(begun)  # no trace of adapters
    changed = {name for name, tensor in left.items() if name in begun and not torch.equal(tensor, begun[name])}
    of_backbone = {name for name in changed if name.startswith("backbone.")}
    assert of_backbone
    assert all(name.endswith("attn.qkv.weight") for name in of_backbone)
    assert any(name.startswith("head.") for name in changed)
    change = left["backbone.blocks.0.attn.qkv.weight"] - begun["backbone.blocks.0.attn.qkv.weight"]
    assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 2


def test_a_model_with_adapters_that_is_loaded_predicts_as_it_did_in_training(cohort, tmp_path):
    from cxrlt_ray.training.job import manifest_of, validation_images
    from cxrlt_ray.training.validation import predict_images

    job, trial = job_in(tmp_path, cohort), TrialConfig(**VIT, image_lora=2)
    train(job, "T0000", trial, {}, lambda report: None)
    stored = read_trial(job.run / "trials" / "T0000")
    images = validation_images(manifest_of(job.run), job, 0)
    scores = predict_images(job, trial, models.load(tmp_path / "trials/T0000/fold-0")[0], images)
    kept = stored.predictions("val").reindex(images.image_id)[list(job.findings)].to_numpy()
    np.testing.assert_allclose(scores, kept, atol=1e-5)


def test_a_cut_trial_with_adapters_goes_on_into_a_stage_without(cohort, tmp_path):
    stages = ({"epochs": 3, "image_lora": 2}, {"epochs": 1, "frozen_backbone": True, "image_lora": 0, "pool": "avg"})
    trial = TrialConfig(**VIT, stages=stages)
    train(job_in(tmp_path / "whole", cohort), "T0000", trial, {}, lambda report: None)
    train_with_cuts(job_in(tmp_path / "cut", cohort), trial)
    whole, cut = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name


def test_adapters_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match="which frozen_backbone forbids"):
        TrialConfig(**VIT, image_lora=2, frozen_backbone=True)
    with pytest.raises(UsageError, match="no layer is named 'qkv'; there are"):
        models.check_part(ModelSpec("test_convnext", 32, pretrained=False), TrainedPart(rank=2, targets=("qkv",)))
    models.check_part(ModelSpec("test_vit", 32, pretrained=False), TrainedPart(rank=2, targets=("qkv",)))


@pytest.mark.parametrize(("learns", "learnt"), [("head", [0, 1]), ("tail", [2])])
def test_a_part_of_the_findings_is_learnt_and_the_others_priors_are_said(learns, learnt):
    rng = np.random.default_rng(0)
    targets = (rng.random((2000, 3)) < [0.3, 0.05, 0.004]).astype(np.int8)
    objective = MultiLabel(ObjectiveSpec(learns=learns), targets)
    others = [c for c in range(3) if c not in learnt]
    assert (objective.table()[:, others] == -1).all()
    assert (objective.table()[:, learnt] == targets[:, learnt]).all()
    model = models.build(ModelSpec("test_vit", 32, pretrained=False), 3)
    network = objective.network(model).eval()
    images = torch.randint(0, 256, (4, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        probabilities = network(images).sigmoid().numpy()
    assert (probabilities[:, others] == probabilities[:1, others]).all()
    np.testing.assert_allclose(probabilities[0, others], targets[:, others].mean(0), atol=2e-3)
    assert len(np.unique(probabilities[:, learnt[0]])) == 4


def test_what_is_said_of_the_others_is_kept_with_the_model(cohort, tmp_path):
    trial = TrialConfig(**VIT, learns="head")
    train(job_in(tmp_path, cohort), "T0000", trial, {}, lambda report: None)
    assert "priors" in tensors(tmp_path)
    loaded = models.load(tmp_path / "trials/T0000/fold-0")[0]
    assert loaded.priors is not None
    assert loaded.priors.isnan().all()  # both findings are frequent


def test_a_part_that_has_no_finding_is_refused():
    with pytest.raises(UsageError, match="learns: tail, but the training labels have no such finding"):
        MultiLabel(ObjectiveSpec(learns="tail"), np.array([[0], [1]], np.int8))
    with pytest.raises(ValueError, match="zero_shot learns all findings of a task"):
        TrialConfig(**VIT, objective="zero_shot", head="pair", text="minilm", learns="tail")


RESNET = VIT | {"backbone": "test_resnet", "augment": 0.0}


@pytest.mark.parametrize("before", [{}, {"frozen_steps": 2}])
def test_the_first_layers_and_their_batch_norms_stay_as_they_were(before, cohort, tmp_path):
    trial = TrialConfig(**RESNET, frozen_layers=2, **before)
    train(job_in(tmp_path, cohort), "T0000", trial, {}, lambda report: None)
    torch.manual_seed(trial.seed)
    begun, left = models.build(trial.spec(), 2).state_dict(), tensors(tmp_path)
    first = {name for name in begun if name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))}
    assert any(name.endswith("running_mean") for name in first)
    assert all(torch.equal(left[name], begun[name]) for name in first)
    others = [name for name in set(begun) - first if name.endswith(("weight", "running_mean"))]
    assert not [name for name in others if torch.equal(left[name], begun[name])]


def test_a_cut_trial_whose_first_layers_are_frozen_goes_on_as_it_was(cohort, tmp_path):
    trial = TrialConfig(
        **RESNET, frozen_layers=2, ema_decay=0.9, stages=({"epochs": 2}, {"epochs": 1, "frozen_layers": 0})
    )
    train(job_in(tmp_path / "whole", cohort), "T0000", trial, {}, lambda report: None)
    train_with_cuts(job_in(tmp_path / "cut", cohort), trial)
    whole, cut = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("other", ["frozen_backbone", "image_lora"])
def test_first_layers_are_frozen_where_others_are_trained(other):
    with pytest.raises(ValueError, match=f"leave out {other}"):
        TrialConfig(**RESNET, frozen_layers=1, **{other: 1})


def test_more_first_layers_than_there_are_and_backbones_without_layers_are_refused():
    resnet = ModelSpec("test_resnet", 32, pretrained=False)
    models.check_part(resnet, TrainedPart(layers=4))
    with pytest.raises(UsageError, match=r"frozen_layers: 5, where the backbone .* has 5: leave one to train"):
        models.check_part(resnet, TrainedPart(layers=5))
    with pytest.raises(UsageError, match="does not name its layers: give it `frozen_layers: 0`"):
        models.train_part(torch.nn.Linear(2, 2), TrainedPart(layers=1))


def test_frozen_layers_save_their_share_of_the_backward_pass():
    spec = ModelSpec("resnet18", 64, pretrained=False)
    shares = [models.share_of_layers(spec, count) for count in range(5)]
    convnext = ModelSpec("test_convnext", 32, pretrained=False)  # whose blocks have parameters beside their layers'
    assert models.share_of_layers(convnext, 2) < models.share_of_layers(convnext, 5) <= 1
    assert shares[0] == 0
    assert shares == sorted(shares)
    # by hand, in multiplications: conv1 7*7*3*64 at 32 x 32 places, layer1 4 * 3*3*64*64 at 16 x 16
    stem, layer1 = 9408 * 32**2, 4 * 36864 * 16**2
    whole = models.flops(spec, 1) / 2
    assert shares[1] == pytest.approx(stem / whole, rel=1e-3)
    assert shares[2] == pytest.approx((stem + layer1) / whole, rel=1e-3)
    config = TrialConfig(backbone="resnet18", pretrained=False, resolution=64, epochs=1, frozen_layers=2)
    assert gain_of_frozen(config) == pytest.approx(3 / (3 - 2 * shares[2]))
    assert gain_of_frozen(config.model_copy(update={"frozen_layers": 0})) == 1
    assert gain_of_frozen(config.model_copy(update={"frozen_layers": 0, "frozen_backbone": True})) == 3
