"""Backbones of hubs, folders and other libraries: built, filled, normalised and saved as their own library has them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models import ModelSpec, build, carry, check_weights, hub, load, save, size
from cxrlt_ray.models.backbones import find_recipe, known, suggestions
from cxrlt_ray.models.weights import source

torch.set_num_threads(1)
RAD_DINO = ModelSpec("transformers:microsoft/rad-dino", 518, pretrained=False)
XRV = ModelSpec("xrv:densenet121-res224-all", 64, pretrained=False)


@pytest.fixture
def offline(monkeypatch):
    """The hub's client asks its cache only, so that no test waits for a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def scores(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(x)


@pytest.fixture
def published(tmp_path: Path) -> tuple[str, torch.nn.Module]:
    """A model of timm's as its users publish it: a folder with config.json and weights."""
    from timm.models import save_for_hf

    model = timm.create_model("test_vit", img_size=96, num_classes=5)
    with torch.no_grad():
        model.pos_embed.normal_()
    config = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    save_for_hf(model, tmp_path / "published", model_config=config, model_args={"img_size": 96, "init_values": None})
    path = tmp_path / "published" / "config.json"
    written = json.loads(path.read_text())
    written["pretrained_cfg"].update(config)
    path.write_text(json.dumps(written))
    return f"local-dir:{tmp_path / 'published'}", model


def test_published_folder_is_built_filled_and_normalised_as_it_says(published):
    name, original = published
    model = build(ModelSpec(name, 96), 3)
    assert known(name)
    assert source(ModelSpec(name, 96)) == name
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(model.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    x = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(model.backbone.eval().forward_features(x), original.eval().forward_features(x))


def test_published_folder_is_fitted_to_another_resolution_and_to_gray(published):
    name, original = published
    model = build(ModelSpec(name, 64, in_chans=1), 3)
    assert model.backbone.pos_embed.shape[1] == 17
    summed = original.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(model.backbone.patch_embed.proj.weight, summed)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.2]))


def test_saved_model_of_a_published_folder_needs_the_folder_no_more(published, tmp_path: Path):
    name, _ = published
    spec = ModelSpec(name, 96)
    model, x = build(spec, 2), torch.rand(2, 96, 96)
    save(model, spec, ("A", "B"), tmp_path)
    shutil.rmtree(name.removeprefix("local-dir:"))
    again, its, _ = load(tmp_path)
    assert its == spec
    assert torch.equal(scores(again, x), scores(model, x))
    larger = carry(again, spec, dataclasses.replace(spec, resolution=64), 2)
    assert scores(larger, torch.rand(1, 64, 64)).shape == (1, 2)


def test_hub_that_cannot_be_asked_is_told_with_the_mend(offline):
    assert known("hf-hub:timm/resnet10t.c3_in1k")
    with pytest.raises(CxrltError, match=r"'hf-hub:timm/none-such': its config.json cannot be had .*local-dir:PATH"):
        build(ModelSpec("hf-hub:timm/none-such", 64), 2)
    with pytest.raises(UsageError, match=r"'local-dir:/nowhere': the folder holds no config.json"):
        build(ModelSpec("local-dir:/nowhere", 64), 2)
    assert not known("hf-hub:noowner")
    assert not known("timm/resnet10t")
    assert not known("other:resnet10t")


def test_names_of_other_libraries_are_known_or_told_with_those_near():
    assert known(XRV.backbone)
    assert known(RAD_DINO.backbone)
    assert not known("xrv:resnet50")
    assert not known("transformers:rad-dino")
    assert "transformers:microsoft/rad-dino" in suggestions("transformers:rad-dino")
    assert "xrv:densenet121-res224-nih" in suggestions("xrv:densenet121-res224-nihh")
    with pytest.raises(
        UsageError, match="torchxrayvision has no backbone 'xrv:densenet'; near it are xrv:densenet121-"
    ):
        build(ModelSpec("xrv:densenet", 64), 2)


@pytest.mark.parametrize(
    ("package", "spec", "extra"),
    [("transformers", RAD_DINO, "transformers"), ("torchxrayvision", dataclasses.replace(XRV, pretrained=True), "xrv")],
)
def test_without_the_library_its_extra_is_told(package, spec, extra, monkeypatch):
    find = hub.importlib.util.find_spec
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(CxrltError, match=rf"'{spec.backbone}' needs {package}: pip install 'cxrlt-ray\[{extra}\]'"):
        build(spec, 2)


@pytest.fixture(scope="module")
def xrv():
    return pytest.importorskip("torchxrayvision", reason=hub.EXTRAS["torchxrayvision"])


@pytest.fixture(scope="module")
def densenet(xrv):
    """A DenseNet of torchxrayvision with weights of its own and running statistics that are not the start's."""
    torch.manual_seed(0)
    model = xrv.models.DenseNet(num_classes=18, in_channels=1)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def test_xrvs_pixels_are_those_of_its_own_normalize(xrv):
    model, gray = build(XRV, 2), np.random.default_rng(0).integers(0, 256, (5, 5)).astype(np.uint8)
    expected = xrv.utils.normalize(gray, 255)
    result = (torch.from_numpy(gray).float() / 255 - model.mean) / model.std
    np.testing.assert_allclose(result[0, 0].numpy(), expected, atol=1e-3)
    assert expected.min() >= -1024
    assert expected.max() <= 1024


@pytest.mark.parametrize("in_chans", [1, 3])
def test_xrvs_weights_give_xrvs_features_through_one_channel_and_three(xrv, densenet, in_chans, monkeypatch):
    asked = []

    def published(weights):
        asked.append(weights)
        return densenet

    monkeypatch.setattr(xrv.models, "DenseNet", published)
    spec = dataclasses.replace(XRV, pretrained=True, in_chans=in_chans)
    model = build(spec, 2).eval()
    gray = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    values = torch.from_numpy(np.stack([xrv.utils.normalize(each, 255) for each in gray.numpy()])).unsqueeze(1)
    with torch.inference_mode():
        expected = densenet.features2(values)
        pixels = (gray.float().unsqueeze(1) / 255 - model.mean) / model.std
        result = model.backbone.forward_head(model.backbone.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert asked == ["densenet121-res224-all"]
    assert source(spec) == "torchxrayvision densenet121-res224-all"


def test_xrvs_weights_are_loaded_from_a_file_too(densenet, tmp_path: Path):
    torch.save(densenet.state_dict(), tmp_path / "xrv.pth")
    spec = dataclasses.replace(XRV, pretrained=True, checkpoint=str(tmp_path / "xrv.pth"))
    model = build(spec, 2)
    assert torch.equal(model.backbone.features.norm5.running_var, densenet.features.norm5.running_var)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason=hub.EXTRAS["transformers"])


@pytest.fixture
def folder(transformers, tmp_path: Path):
    """A small DINOv2 as the hub has it: config, weights, preprocessor."""
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    about = {"image_processor_type": "BitImageProcessor", "image_mean": [0.5307] * 3, "image_std": [0.2583] * 3}
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(about))
    return tmp_path / "dino", model


@pytest.mark.parametrize("resolution", [70, 98])
def test_an_encoder_of_transformers_says_what_it_says_there(folder, resolution):
    path, theirs = folder
    spec = ModelSpec(f"transformers:{path}", resolution)
    model, gray = build(spec, 2).eval(), torch.rand(2, resolution, resolution)
    with torch.inference_mode():
        expected = theirs(((gray - 0.5307) / 0.2583).unsqueeze(1).expand(-1, 3, -1, -1)).last_hidden_state
        torch.testing.assert_close(model(gray), model.head.linear(expected[:, 0]), rtol=1e-4, atol=1e-5)
        places = build(dataclasses.replace(spec, head="csra"), 2).eval()
        places.head.load_state_dict(model.head.state_dict())
        torch.testing.assert_close(places(gray), places.head(expected[:, 1:]), rtol=1e-4, atol=1e-5)


def test_an_encoder_is_filled_from_a_file_gray_and_saved(folder, tmp_path: Path):
    path, theirs = folder
    spec = ModelSpec(f"transformers:{path}", 70, checkpoint=str(path / "model.safetensors"), in_chans=1)
    model = build(spec, 2)
    first = theirs.embeddings.patch_embeddings.projection.weight
    summed = first.sum(dim=1, keepdim=True)
    torch.testing.assert_close(model.backbone.model.embeddings.patch_embeddings.projection.weight, summed)
    save(model, spec, ("A", "B"), tmp_path)
    second = build(dataclasses.replace(spec, checkpoint=str(tmp_path / "model.safetensors")), 3)
    assert torch.equal(second.backbone.model.layernorm.weight, model.backbone.model.layernorm.weight)
    shutil.rmtree(path)
    x = torch.rand(1, 70, 70)
    assert torch.equal(scores(load(tmp_path)[0], x), scores(model, x))


@pytest.mark.parametrize("by", ["file", "folder"])
def test_an_encoders_missing_weights_are_told_and_never_made_up(folder, by):
    from safetensors.torch import load_file, save_file

    path, _ = folder
    state = load_file(path / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = str(path / "model.safetensors") if by == "file" else None
    with pytest.raises(
        CxrltError, match=r"not hold the weights .*: of 42 tensors it lacks model\.layernorm\.weight; it has"
    ):
        build(ModelSpec(f"transformers:{path}", 70, checkpoint=checkpoint), 2)


def test_an_encoders_layers_are_told_apart_and_all_of_it_is_trained(folder):
    from timm.optim import param_groups_layer_decay

    path, _ = folder
    model = build(ModelSpec(f"transformers:{path}", 70, drop_path=0.1), 2)
    scales = {group["lr_scale"] for group in param_groups_layer_decay(model.backbone, layer_decay=0.5)}
    assert scales == {0.25, 0.5, 1.0}  # the stem, the first layer, the last one with the norm after it
    model(torch.rand(2, 70, 70)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_an_encoder_without_drop_path_or_normalisation_is_told(transformers, tmp_path: Path):
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    spec = ModelSpec(f"transformers:{tmp_path}", 64, drop_path=0.1)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CxrltError, match="has no image_mean and image_std"):
        build(spec, 2)
    about = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match="has no drop path: give it `drop_path: 0`"):
        build(spec, 2)
    model = build(dataclasses.replace(spec, drop_path=0.0, head="csra"), 2)
    assert scores(model, torch.rand(1, 64, 64)).shape == (1, 2)


def test_rad_dino_is_known_without_the_hub(transformers, offline):
    """A ViT-B/14 at 518 px: 86.6 million parameters; 37 x 37 patches of 14 px and no others."""
    flops, numbers = size(RAD_DINO, 40)
    assert numbers == pytest.approx(86.6e6, rel=0.001)
    assert flops == pytest.approx(303e9, rel=0.01)
    recipe = find_recipe(RAD_DINO.backbone)
    assert (recipe.mean, recipe.std) == ((0.5307,) * 3, (0.2583,) * 3)
    check_weights([RAD_DINO])
    with pytest.raises(UsageError, match=r"has patches of 14 px, which do not fill 512 px: .* are 504 and 518"):
        check_weights([dataclasses.replace(RAD_DINO, resolution=512)])


def test_rad_dinos_weights_that_cannot_be_had_are_told(transformers, offline):
    with pytest.raises(
        CxrltError, match=r"weights of backbone 'transformers:microsoft/rad-dino' cannot be had .*checkpoint"
    ):
        build(dataclasses.replace(RAD_DINO, pretrained=True), 2)


def test_an_encoder_that_no_hub_tells_of_is_told_with_the_mend(transformers, offline):
    with pytest.raises(CxrltError, match=r"'transformers:facebook/none-such': its config.json .*transformers:FOLDER"):
        build(ModelSpec("transformers:facebook/none-such", 56), 2)
