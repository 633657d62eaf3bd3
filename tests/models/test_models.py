"""Models: every head fits every kind of backbone, saved is what is loaded, and weights are real or refused."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models import ModelSpec, build, check_weights, load, save
from cxrlt_ray.models.backbones import known, make_backbone, suggestions
from cxrlt_ray.models.heads import HEADS
from cxrlt_ray.models.weights import OFFLINE, PACKAGED, installed, source

torch.set_num_threads(1)

CNN = ModelSpec("resnet10t", 64, pretrained=False)
VIT = ModelSpec("test_vit", 128, pretrained=False)
LITE = ModelSpec("tf_efficientnet_lite0", 64)
needs_package = pytest.mark.skipif(not installed(LITE.backbone), reason=f"needs {OFFLINE}")


def images(spec: ModelSpec, count: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, spec.resolution, spec.resolution), generator=rng, dtype=torch.uint8)


def logits(model: torch.nn.Module, spec: ModelSpec) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(images(spec))


def write(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """`state` as a file of weights."""
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def package_file(backbone: str = LITE.backbone) -> Path:
    """Where the package keeps its weights."""
    from cxrlt_ray.models.weights import _file_of

    return _file_of(PACKAGED[backbone])


@pytest.fixture
def offline(monkeypatch):
    """The hub's client asks its cache only, so that no test waits for a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def lite():
    return build(LITE, 4)


def headed(spec: ModelSpec, head: str, tmp_path: Path) -> ModelSpec:
    """`spec` with the head, and label embeddings of A to E where it asks for them."""
    path = tmp_path / "labels.npz"
    np.savez(path, names=np.array(list("ABCDE")), embeddings=np.eye(5, dtype=np.float32))
    return dataclasses.replace(spec, head=head, queries=str(path) if HEADS[head].needs_embeddings else None)


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize(
    "spec",
    [CNN, VIT, ModelSpec("mobilenetv3_small_050", 64, False)],
    ids=lambda s: s.backbone,
)
def test_every_head_gives_a_logit_per_finding_and_a_gradient_on_every_kind_of_backbone(head, spec, tmp_path: Path):
    model = build(headed(spec, head, tmp_path), "ABCDE")
    out = model(images(spec))
    assert out.shape == (3, 5)
    assert torch.isfinite(out).all()
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters())
    first = next(model.backbone.parameters())
    assert first.grad is not None


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_stays_finite_and_near_in_bfloat16(head, tmp_path: Path):
    model = build(headed(CNN, head, tmp_path), "ABCDE").eval()
    expected = logits(model, CNN)
    with torch.autocast("cpu", torch.bfloat16):
        result = logits(model, CNN)
    torch.testing.assert_close(result.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("spec", [CNN, dataclasses.replace(VIT, in_chans=1, drop_rate=0.2)], ids=lambda s: s.backbone)
def test_saved_model_is_the_model_loaded(head, spec, tmp_path: Path):
    spec = headed(spec, head, tmp_path)
    model = build(spec, ("A", "B", "C"))
    save(model, spec, ("A", "B", "C"), tmp_path)
    again, its_spec, findings = load(tmp_path)
    assert (its_spec, findings) == (spec, ("A", "B", "C"))
    assert not again.training
    assert torch.equal(logits(again, spec), logits(model, spec))


def test_loading_needs_no_pretrained_weights(tmp_path: Path, offline):
    spec = dataclasses.replace(CNN, pretrained=True, checkpoint="gone.safetensors")
    save(build(CNN, 2), spec, ("A", "B"), tmp_path)
    assert load(tmp_path)[1] == spec


def test_shift_is_subtracted_in_evaluation_only_and_saved(tmp_path: Path):
    model, x = build(VIT, 2), images(VIT)
    assert not model.shift.any()
    plain = model.eval()(x).detach()
    model.shift.copy_(torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(model(x), plain - torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(model.train()(x), plain)
    save(model, VIT, ("A", "B"), tmp_path)
    assert torch.equal(load(tmp_path)[0].shift, model.shift)


def test_models_of_before_shift_and_fusion_are_loaded(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    model = build(CNN, 2)
    save(model, CNN, ("A", "B"), tmp_path)
    state, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "model.json").read_text())
    del state["shift"]
    for name in ("pool", "fusion", "queries"):
        del config["spec"][name]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text(json.dumps(config))
    again, spec, _ = load(tmp_path)
    assert spec == CNN
    assert torch.equal(logits(again, CNN), logits(model, CNN))


def test_bytes_and_fractions_are_the_same_pixels():
    model = build(CNN, 2).eval()
    pixels = images(CNN)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), model(pixels.float() / 255))


@needs_package
def test_gray_images_give_the_same_logits_through_three_channels_and_one(lite):
    spec = dataclasses.replace(LITE, in_chans=1)
    one = build(spec, 4)
    one.head.load_state_dict(lite.head.state_dict())
    torch.testing.assert_close(logits(one, spec), logits(lite, LITE), rtol=1e-3, atol=1e-4)


@needs_package
def test_packaged_weights_are_loaded_under_timms_names(lite):
    packaged = torch.load(package_file(), map_location="cpu", weights_only=True)
    state = lite.backbone.state_dict()
    assert len(packaged) == len(state) + 2  # the package's classifier is cut off
    assert torch.equal(state["conv_stem.weight"], packaged["_conv_stem.weight"])
    assert torch.equal(state["blocks.0.0.conv_dw.weight"], packaged["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(state["bn2.running_var"], packaged["_bn1.running_var"])
    fresh = make_backbone(LITE)[0].state_dict()
    assert not torch.allclose(state["conv_stem.weight"], fresh["conv_stem.weight"])


@pytest.mark.parametrize(
    ("backbone", "photograph", "label"),
    [
        *((f"tf_efficientnet_lite{k}", "china.jpg", 698) for k in range(3)),
        *((f"tf_efficientnet_lite{k}", "flower.jpg", 985) for k in range(2)),  # in gray it is a honeycomb to lite2
    ],
)
def test_packaged_weights_tell_a_daisy_and_a_palace(backbone, photograph, label):
    """985 is ImageNet's daisy, 698 its palace: names, normalisation and pooling are all right, or this fails."""
    import cv2
    from sklearn.datasets import load_sample_image

    if not installed(backbone):
        pytest.skip(f"needs the package {PACKAGED[backbone]}")
    model = build(ModelSpec(backbone, 224), 1000).eval()
    packaged = torch.load(package_file(backbone), map_location="cpu", weights_only=True)
    model.head.linear.load_state_dict({"weight": packaged["_fc.weight"], "bias": packaged["_fc.bias"]})
    image = load_sample_image(photograph)
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = cv2.resize(image[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
    gray = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    with torch.inference_mode():
        best = model(gray[None])[0].topk(2).indices.tolist()
    assert label in best


@needs_package
def test_source_of_weights_is_recorded():
    assert source(LITE) == f"{PACKAGED['tf_efficientnet_lite0']} (ImageNet)"
    assert source(CNN) == "none"
    assert source(dataclasses.replace(CNN, pretrained=True)) == "timm resnet10t"
    assert source(dataclasses.replace(CNN, pretrained=True, checkpoint="s3://b/w.pth")) == "s3://b/w.pth"


def test_weights_that_cannot_be_had_stop_with_the_backbones_name(offline):
    name = "convnext_small.fb_in22k_ft_in1k_384"
    start = time.monotonic()
    with pytest.raises(CxrltError, match=re.escape(f"backbone '{name}' cannot be had")) as caught:
        build(ModelSpec(name, 64), 2)
    assert "checkpoint: PATH" in str(caught.value)
    assert "pretrained: false" in str(caught.value)
    assert time.monotonic() - start < 50  # the hub's client would retry for a minute


def test_hub_without_an_address_is_not_waited_for(monkeypatch):
    import socket
    import urllib.request

    from huggingface_hub import constants

    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(CxrltError, match="cannot be had"):
        build(ModelSpec("convnext_atto.d2_in1k", 64), 2)
    assert time.monotonic() - start < 50
    assert constants.HF_HUB_OFFLINE is False


def test_without_the_package_its_install_command_is_told(monkeypatch, offline):
    monkeypatch.setitem(PACKAGED, "tf_efficientnet_lite0", "no_such_package")
    with pytest.raises(CxrltError, match=re.escape(OFFLINE)):
        build(LITE, 2)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "model."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoint_file_is_loaded_whatever_its_prefix_and_classifier(prefix, suffix, tmp_path: Path):
    backbone = make_backbone(CNN)[0]
    state = {prefix + name: tensor for name, tensor in backbone.state_dict().items()}
    path = write(tmp_path / f"w{suffix}", {**state, f"{prefix}fc.weight": torch.zeros(7, 512)})
    model = build(dataclasses.replace(CNN, pretrained=True, checkpoint=str(path)), 2)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)


def test_our_own_saved_model_can_be_a_checkpoint(tmp_path: Path):
    first = build(CNN, 2)
    save(first, CNN, ("A", "B"), tmp_path)
    spec = dataclasses.replace(CNN, pretrained=True, checkpoint=str(tmp_path / "model.safetensors"))
    second = build(spec, 5)
    assert torch.equal(second.backbone.conv1[0].weight, first.backbone.conv1[0].weight)


def test_checkpoint_in_a_training_script_s_wrapping_is_found(tmp_path: Path):
    backbone = make_backbone(CNN)[0]
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "state_dict": backbone.state_dict()}, path)
    model = build(dataclasses.replace(CNN, pretrained=True, checkpoint=str(path)), 2)
    assert torch.equal(model.backbone.conv1[0].weight, backbone.conv1[0].weight)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_checkpoint_that_lacks_tensors_is_named_with_what_it_lacks(prefix, tmp_path: Path):
    state = {prefix + name: tensor for name, tensor in make_backbone(CNN)[0].state_dict().items()}
    del state[f"{prefix}bn1.weight"]
    path = write(tmp_path / "w.safetensors", state)
    with pytest.raises(
        CxrltError, match=r"w\.safetensors does not hold .* 'resnet10t', .* it lacks bn1\.weight; it has"
    ):
        build(dataclasses.replace(CNN, pretrained=True, checkpoint=str(path)), 2)
    del state[f"{prefix}bn1.bias"]
    write(path, state)
    with pytest.raises(CxrltError, match=r"it lacks bn1\.weight, bn1\.bias; it has"):
        build(dataclasses.replace(CNN, pretrained=True, checkpoint=str(path)), 2)


def test_checkpoint_of_another_shape_is_named_with_both(tmp_path: Path):
    state = make_backbone(CNN)[0].state_dict()
    state["bn1.weight"] = torch.zeros(3)
    path = write(tmp_path / "w.safetensors", state)
    with pytest.raises(CxrltError, match=r"bn1\.weight is \(3,\), not \(\d+,\)"):
        build(dataclasses.replace(CNN, pretrained=True, checkpoint=str(path)), 2)


def test_checkpoint_that_is_not_there_or_no_weights_is_named(tmp_path: Path):
    spec = dataclasses.replace(CNN, pretrained=True, checkpoint=str(tmp_path / "none.pth"))
    with pytest.raises(CxrltError, match=r"none\.pth cannot be read"):
        build(spec, 2)
    (tmp_path / "none.pth").write_bytes(b"not weights")
    with pytest.raises(CxrltError, match=r"none\.pth is neither a \.safetensors file nor one of torch\.save"):
        build(spec, 2)


def test_three_channel_checkpoint_fits_one_channel_by_adding_the_colours_filters(tmp_path: Path):
    state = make_backbone(CNN)[0].state_dict()
    path = write(tmp_path / "w.safetensors", state)
    spec = dataclasses.replace(CNN, in_chans=1, pretrained=True, checkpoint=str(path))
    first = build(spec, 2).backbone.conv1[0].weight
    torch.testing.assert_close(first, state["conv1.0.weight"].sum(dim=1, keepdim=True))


def test_transformer_is_built_for_the_resolution_asked_for():
    model = build(VIT, 2)
    assert model.backbone.pos_embed.shape[1] == (128 // 16) ** 2 + 1
    assert logits(model, VIT).shape == (3, 2)


def test_timms_weights_are_fitted_to_resolution_and_channels(tmp_path: Path, monkeypatch):
    """Timm's own loading, with its file given: position embeddings are interpolated, not refused."""
    original = timm.create_model(VIT.backbone, pretrained=False)
    path = write(tmp_path / "w.safetensors", original.state_dict())
    create = timm.create_model

    def from_file(name, pretrained=False, **options):
        overlay = {"pretrained_cfg_overlay": {"file": str(path)}} if pretrained else {}
        return create(name, pretrained=pretrained, **options, **overlay)

    monkeypatch.setattr(timm, "create_model", from_file)
    spec = dataclasses.replace(VIT, pretrained=True, in_chans=1)
    backbone = build(spec, 2).backbone
    assert torch.equal(backbone.blocks[3].mlp.fc1.weight, original.blocks[3].mlp.fc1.weight)
    assert backbone.pos_embed.shape[1] == 65
    torch.testing.assert_close(backbone.pos_embed[:, 0], original.pos_embed[:, 0])
    summed = original.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(backbone.patch_embed.proj.weight, summed)


def test_unknown_backbone_is_told_with_those_near_it():
    assert not known("convnext_smal")
    assert "convnext_small" in suggestions("convnext_smal.fb_in22k")
    with pytest.raises(UsageError, match=r"no backbone 'convnext_smal'; near it are .*convnext_small"):
        build(ModelSpec("convnext_smal", 64), 2)


def test_unknown_tag_of_weights_is_told_with_those_there_are():
    assert known("convnext_small.fb_in22k_ft_in1k_384")
    assert not known("convnext_small.fb_in22k_ft")
    with pytest.raises(UsageError, match=r"no backbone 'convnext_small.fb_in22k_ft'; near it are convnext_small\.fb"):
        build(ModelSpec("convnext_small.fb_in22k_ft", 64), 2)


@pytest.mark.parametrize(
    ("backbone", "resolution", "told"),
    [
        ("vit_small_patch14_dinov2", 512, "'vit_small_patch14_dinov2' has patches of 14 px.* are 504 and 518"),
        ("vit_tiny_patch16_224", 10, "has patches of 16 px, .* are 16"),
        (
            "xcit_nano_12_p16_224",
            100,
            r"'xcit_nano_12_p16_224' cannot be built at 100 px .*patch_size.* takes: 96 and 112",
        ),
        ("maxvit_rmlp_pico_rw_256", 250, "takes no images of 250 px .* the nearest it takes: 224 and 256 px"),
        ("test_convnext", 24, "'test_convnext' takes no images of 24 px .* the nearest it takes: 32 px"),
    ],
)
def test_resolution_that_a_backbone_cannot_have_is_told_with_the_nearest_it_can(backbone, resolution, told):
    spec = ModelSpec(backbone, resolution, pretrained=False)
    with pytest.raises(UsageError, match=told):
        check_weights([spec])
    for near in re.findall(r"\d+", told.split("are ")[-1].split("takes: ")[-1]):
        check_weights([dataclasses.replace(spec, resolution=int(near))])


def test_maxvit_is_built_at_any_size_its_windows_fill():
    """By its name it is for 384 px; timm fits windows and bias tables to another size if it is told when building."""
    check_weights([ModelSpec("maxvit_tiny_tf_384", size, pretrained=False) for size in (224, 384, 512)])


def test_overlapping_patches_need_not_fill_the_image():
    check_weights([ModelSpec("pvt_v2_b0", 64, pretrained=False)])


def test_architecture_published_without_weights_is_told_with_its_family(offline):
    messages = r"timm has no pretrained weights for backbone 'convnextv2_small': .*convnextv2_tiny.*checkpoint: PATH"
    with pytest.raises(CxrltError, match=messages):
        build(ModelSpec("convnextv2_small", 64), 2)
    with pytest.raises(CxrltError, match=messages):
        check_weights([ModelSpec("convnextv2_small", 64)])


def test_file_of_another_resolution_is_fitted(tmp_path: Path):
    """A DINOv2 file of 518 px serves 336 and 448: position embeddings are resampled as timm does it."""
    original = timm.create_model("test_vit", img_size=96, num_classes=0)
    path = write(tmp_path / "w.safetensors", original.state_dict())
    spec = ModelSpec("test_vit", 64, checkpoint=str(path))
    backbone = build(spec, 2).backbone
    expected = timm.layers.resample_abs_pos_embed(original.pos_embed, (4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(backbone.pos_embed, expected)
    assert torch.equal(backbone.blocks[1].mlp.fc1.weight, original.blocks[1].mlp.fc1.weight)


def test_file_of_one_channel_gives_each_of_three_a_third(tmp_path: Path):
    state = make_backbone(dataclasses.replace(CNN, in_chans=1))[0].state_dict()
    path = write(tmp_path / "w.safetensors", state)
    first = build(dataclasses.replace(CNN, pretrained=True, checkpoint=str(path)), 2).backbone.conv1[0].weight
    torch.testing.assert_close(first, state["conv1.0.weight"].expand(-1, 3, -1, -1) / 3)


def test_check_weights_names_the_first_that_cannot_be_had_before_anything_is_trained(tmp_path: Path, offline):
    check_weights([CNN, VIT])
    missing = ModelSpec("convnext_atto.d2_in1k", 64)
    with pytest.raises(CxrltError, match="convnext_atto"):
        check_weights([CNN, missing])


def test_dropout_and_drop_path_are_on_in_training_only():
    spec = dataclasses.replace(CNN, drop_rate=0.5, drop_path=0.3)
    model = build(spec, 4)
    assert np.allclose(logits(model, spec), logits(model, spec))
    model.train()
    assert not torch.allclose(model(images(spec)), model(images(spec)))


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "swin_tiny_patch4_window7_224"]
)
def test_a_model_made_without_random_weights_is_the_same_once_they_are_loaded(backbone, tmp_path):
    """What is skipped is initialisation only: buffers that no checkpoint holds are as they should be."""
    from cxrlt_ray import models

    spec = models.ModelSpec(backbone, 224 if "swin" in backbone else 64, pretrained=False)
    built = models.build(spec, 3).eval()
    models.save(built, spec, ("a", "b", "c"), tmp_path)
    again = models.load(tmp_path)[0]
    images = torch.randint(0, 255, (2, spec.resolution, spec.resolution), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(built(images), again(images))
    assert built.state_dict().keys() == again.state_dict().keys()


PARTS = {
    ("linear", "none"): "linear",
    ("csra_6", "none"): "linear",
    ("ml_decoder", "transformer"): "bias decoder.attention.key decoder.attention.out decoder.attention.query "
    "decoder.attention.value decoder.feed.narrow decoder.feed.wide decoder.norms.0 decoder.norms.1 decoder.norms.2 "
    "embed queries read | halve layers.0.attention.key layers.0.attention.out layers.0.attention.query "
    "layers.0.attention.value layers.0.feed.narrow layers.0.feed.wide layers.0.norms.0 layers.0.norms.1 "
    "layers.1.attention.key layers.1.attention.out layers.1.attention.query layers.1.attention.value "
    "layers.1.feed.narrow layers.1.feed.wide layers.1.norms.0 layers.1.norms.1 project segment view",
    ("linear", "attention"): "linear | gate look view weigh",
}


@pytest.mark.parametrize(("head", "fusion"), PARTS)
def test_tensors_keep_the_names_under_which_checkpoints_hold_them(head, fusion):
    """Class names may change; a tensor that is renamed makes every checkpoint of before unreadable."""
    model = build(dataclasses.replace(CNN, pretrained=False, head=head, fusion=fusion), 3)
    names: dict[str, set[str]] = {}
    for part, _, name in (name.partition(".") for name in model.state_dict()):
        names.setdefault(part, set()).add(name.removesuffix(".weight").removesuffix(".bias"))
    in_head, _, in_fusion = PARTS[head, fusion].partition(" | ")
    assert names["head"] == set(in_head.split())
    assert names.get("fusion", set()) == set(in_fusion.split())
    assert {"backbone", "mean", "std", "shift"} <= set(names)


def test_initialisation_is_skipped_only_inside():
    from cxrlt_ray.models.backbones import skip_init

    with skip_init():
        pass
    assert float(torch.nn.Linear(50, 50).weight.detach().std()) > 0


def test_skipped_initialisation_ends_whatever_memory_held():
    """Torch's trunc_normal_ draws until all lie within bounds: on memory that held large numbers it never ended."""
    from cxrlt_ray.models.backbones import skip_init

    weight = torch.nn.Parameter(torch.full((64,), 1e6))
    with skip_init():
        torch.nn.init.trunc_normal_(weight, std=0.02)
        torch.nn.init.trunc_normal_(weight, std=9.0)
    assert weight.detach().abs().max() <= 2


def test_a_backbone_without_drop_path_is_told_before_a_sweep_starts():
    with pytest.raises(UsageError, match="densenet121' has no drop path"):
        check_weights([ModelSpec("densenet121", 64, pretrained=False, drop_path=0.1)])


@pytest.mark.parametrize("name", ["laptop", "task1", "task2"])
def test_every_kind_of_model_of_our_spaces_can_be_built(name):
    """At both ends of what shapes a model, drop path included: no trial fails where it is built."""
    from cxrlt_ray.search.space_file import load_space

    check_weights([dataclasses.replace(spec, pretrained=False) for spec in load_space(name).specs()])
