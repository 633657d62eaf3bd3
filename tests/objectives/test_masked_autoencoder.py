"""MAE: its error, its encoder's tokens against timm's and lightly's, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch

from cxrlt_ray import models
from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import ModelSpec
from cxrlt_ray.models.patch_tokens import patch_tokens, summary
from cxrlt_ray.objectives.registry import ObjectiveSpec, find_objective
from cxrlt_ray.objectives.terms.masking import masked_errors, patch_pixels
from cxrlt_ray.runs.trial_config import TrialConfig

SMALL = {"mae_width": 32, "mae_depth": 1, "mae_area": 1.0}


def made(backbone="test_vit", **settings):
    torch.manual_seed(0)
    objective = find_objective("mae")(ObjectiveSpec("mae", {**SMALL, **settings}), np.empty((0, 2), np.int8))
    model = models.Classifier(ModelSpec(backbone, 64, pretrained=False), 2)
    return objective, objective.network(model).train()


def pixels(count=6, edge=64):
    return torch.randint(0, 256, (count, edge, edge), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {}),
        ("test_vit", {"class_token": False, "global_pool": "avg"}),
        ("test_vit", {"reg_tokens": 4, "no_embed_class": True}),
        ("test_vit", {"reg_tokens": 2, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}),
    ],
)
@torch.no_grad()
def test_tokens_are_timms_own_at_the_models_size_and_at_others(name, options):
    vit = timm.create_model(name, img_size=64, num_classes=0, **options).eval()
    images = torch.randn(2, 3, 64, 64)
    # where a model pools by the mean, its last norm comes after that
    torch.testing.assert_close(patch_tokens(vit, images), vit.fc_norm(vit.forward_features(images)))
    dynamic = timm.create_model(name, img_size=64, num_classes=0, dynamic_img_size=True, **options).eval()
    dynamic.load_state_dict(vit.state_dict())
    small = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(patch_tokens(vit, small), vit.fc_norm(dynamic.forward_features(small)))
    count = vit.num_prefix_tokens
    first = patch_tokens(vit, images)
    wanted = first[:, 0] if vit.cls_token is not None else first[:, count:].mean(dim=1)
    assert torch.equal(summary(vit, first), wanted)


@torch.no_grad()
def test_masked_and_kept_tokens_are_lightlys():
    from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM

    vit = timm.create_model("test_vit", img_size=64, num_classes=0, reg_tokens=3).eval()
    token = torch.nn.Parameter(torch.randn(1, 1, vit.embed_dim))
    theirs = MaskedVisionTransformerTIMM(vit, token, weight_initialization="skip", pos_embed_initialization="skip")
    images, masked = torch.randn(2, 3, 64, 64), torch.rand(2, 16) < 0.5
    prefix = torch.zeros(2, 4, dtype=torch.bool)
    torch.testing.assert_close(
        patch_tokens(vit, images, masked, token), theirs.encode(images, mask=torch.cat([prefix, masked], dim=1))
    )
    kept = torch.tensor([[3, 0, 9], [15, 2, 7]])
    places = torch.cat([torch.arange(4).expand(2, -1), kept + 4], dim=1)
    torch.testing.assert_close(patch_tokens(vit, images, kept=kept), theirs.encode(images, idx_keep=places))


def test_the_error_is_of_masked_patches_alone_with_each_patchs_pixels_normalised():
    generator = np.random.default_rng(0)
    images, predicted = generator.random((3, 8, 8)), generator.normal(0, 1, (3, 4, 16))
    masked = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]], bool)
    wanted = []
    for k in range(3):
        errors = []
        for patch in np.flatnonzero(masked[k]):
            row, column = divmod(int(patch), 2)
            values = images[k, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(-1)
            target = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            errors.append(((predicted[k, patch] - target) ** 2).mean())
        wanted.append(np.mean(errors))
    arguments = torch.from_numpy(predicted), patch_pixels(torch.from_numpy(images), 4), torch.from_numpy(masked)
    np.testing.assert_allclose(masked_errors(*arguments), wanted, rtol=1e-5)
    other = arguments[0].clone()
    other[~arguments[2]] += 100.0
    torch.testing.assert_close(masked_errors(other, *arguments[1:]), masked_errors(*arguments))
    flat = masked_errors(torch.zeros(3, 4, 16), torch.full((3, 4, 16), 0.3), arguments[2])
    assert flat.abs().max() < 1e-6  # a black border has nothing to predict


def test_the_encoder_never_sees_a_masked_patch():
    _, network = made()
    network.eval()
    kept = torch.tensor([[1, 6, 11, 12]] * 6)
    images = pixels().float() / 255
    changed = images.clone()
    for patch in set(range(16)) - set(kept[0].tolist()):
        row, column = divmod(patch, 4)
        changed[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 0
    with torch.no_grad():
        torch.testing.assert_close(network.reconstruct(images, kept), network.reconstruct(changed, kept))


def test_reconstruction_does_not_depend_on_the_order_in_which_patches_are_kept():
    _, network = made()
    network.eval()
    images, kept = pixels().float() / 255, torch.tensor([[1, 6, 11, 12]] * 6)
    with torch.no_grad():
        one, other = network.reconstruct(images, kept), network.reconstruct(images, kept.flip(1))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("area", [1.0, 0.2])
def test_all_that_is_trained_has_a_gradient_and_it_learns(precision, area):
    objective, network = made(mae_area=area)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    images = pixels() // 8 + torch.arange(0, 192, 3, dtype=torch.uint8).view(1, 1, -1)  # a ramp under noise
    losses = []
    for _ in range(30 if precision == "fp32" and area == 1 else 1):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = network(images)
        assert outputs.dtype == torch.float32
        loss = objective.loss(outputs, [])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
    assert not any(p.requires_grad for p in network.model.head.parameters())
    assert objective.classifier(network) is network.model
    if len(losses) > 1:
        assert losses[-1] < 0.8 * losses[0]


def test_the_score_is_the_mean_error_of_validation_images_the_same_each_time():
    objective, network = made()
    network.eval()
    scores = [objective.score_network(network, iter([(pixels(5),), (pixels(3),)])) for _ in range(2)]
    assert scores[0] == scores[1] > 0
    assert math.isnan(objective.score_network(network, iter([])))


@pytest.mark.parametrize("name", ["mae", "dinov2"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "eva02_tiny_patch14_224"])
def test_what_is_no_plain_vision_transformer_is_refused_with_the_methods_that_fit(name, backbone):
    objective = find_objective(name)(ObjectiveSpec(name), np.empty((0, 2), np.int8))
    with torch.device("meta"):
        model = models.Classifier(ModelSpec(backbone, 56 if "14" in backbone else 64, pretrained=False), 2)
    with pytest.raises(UsageError, match=f"objective {name} .*'{backbone}' is not: take barlow, moco or simclr"):
        objective.check(model)


@pytest.mark.parametrize("options", [{"fusion": "attention"}, {"mix": "mixup"}, {"compile": "on"}])
def test_a_configuration_that_does_not_fit_is_refused(options):
    with pytest.raises(ValueError, match=r"objective: mae (masks patches of one image|draws its crops or masks)"):
        TrialConfig(backbone="test_vit", resolution=64, epochs=1, objective="mae", **options)
