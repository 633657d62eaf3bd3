"""Heatmaps: a class activation map adds up to its logit, Grad-CAM is its formula, weights are told from none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import Classifier, ModelSpec
from cxrlt_ray.models.heatmaps import class_activation_maps, grad_cam, heatmaps, likeness, method_of, randomised

torch.set_num_threads(1)


def model_of(backbone: str = "test_resnet", size: int = 64, **settings: object) -> Classifier:
    torch.manual_seed(3)
    return Classifier(ModelSpec(backbone, size, pretrained=False, **settings), 4).eval()


def pictures(count: int = 3, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit"])
def test_the_mean_of_a_class_activation_map_and_the_bias_are_the_logit(backbone):
    size = 160 if backbone == "test_vit" else 64
    model, images = model_of(backbone, size, pool="avg"), pictures(size=size)
    assert method_of(model) == "cam"
    with torch.inference_mode():
        maps = class_activation_maps(model.patches(images), model.head.linear.weight)
        logits = maps.mean(dim=(2, 3)) + model.head.linear.bias
        torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)
    assert maps.shape[2] == maps.shape[3] > 1
    findings = torch.tensor([0, 3, 1])
    expected = maps[torch.arange(3), findings].clamp(min=0)
    torch.testing.assert_close(heatmaps(model, images, findings), expected)


def test_grad_cam_of_a_mean_and_a_linear_layer_is_the_class_activation_map_over_its_places():
    """Selvaraju et al. 2017, section 3.1: Grad-CAM is CAM there, up to the number of places."""
    model, images, findings = model_of(pool="avg"), pictures(), torch.tensor([2, 0, 1])
    maps = heatmaps(model, images, findings)
    torch.testing.assert_close(grad_cam(model, images, findings) * maps[0].numel(), maps, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head", ["csra", "ml_decoder", "linear"])
def test_a_map_is_of_its_own_image_and_finding(head):
    model, images, findings = model_of(head=head), pictures(), torch.tensor([2, 0, 1])
    assert method_of(model) == "grad_cam"
    maps = heatmaps(model, images, findings)
    assert maps.shape == (3, maps.shape[1], maps.shape[1])
    assert (maps >= 0).all()
    alone = heatmaps(model, images[1:2], findings[1:2])
    torch.testing.assert_close(maps[1:2], alone, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_transformer_that_is_read_from_its_class_token_has_a_map():
    model = model_of("test_vit", 160)
    maps = heatmaps(model, pictures(size=160), torch.tensor([0, 1, 2]))
    assert maps.shape == (3, 10, 10)
    assert (maps.amax(dim=(1, 2)) > 0).any()


def test_heads_with_attention_show_it():
    model = Classifier(
        ModelSpec("test_resnet", 64, pretrained=False, head="film", text="gte"), 2, embeddings=torch.randn(2, 8)
    )
    maps = heatmaps(model.eval(), pictures(2), torch.tensor([0, 1]))
    assert method_of(model) == "attention"
    assert 0 <= maps.min() <= maps.max() <= 1


def test_a_fusion_has_no_map_of_an_image():
    with pytest.raises(UsageError, match="of a study"):
        method_of(model_of(fusion="attention"))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_randomised_weights_are_the_same_values_in_another_order(backbone):
    model, images = model_of(backbone), pictures()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = randomised(model, images, seed=0)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.flatten().sort().values, two.flatten().sort().values, msg=name)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in other.modules())
    assert torch.isfinite(other(images)).all()


def test_the_check_tells_a_map_of_the_image_from_a_map_of_the_weights():
    """A map that copies the image is the same under any weights; one of random weights is like no other's."""
    image = np.random.default_rng(0).random((12, 12))
    assert likeness(image, image**3) == pytest.approx(1)
    assert abs(likeness(image, np.random.default_rng(1).random((12, 12)))) < 0.3
    assert likeness(image, -image) == pytest.approx(-1)
    assert np.isnan(likeness(image, np.zeros((12, 12))))
    assert np.isnan(likeness(image, np.full((12, 12), np.nan)))
