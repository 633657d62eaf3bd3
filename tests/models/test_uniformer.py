"""UniFormer computes what the published layout does, at any multiple of 32, and reads its files or refuses them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, linear

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models import ModelSpec, build
from cxrlt_ray.models.backbones import known, make_backbone
from cxrlt_ray.models.cost import feature_shape, size
from cxrlt_ray.models.uniformer import checkpoint_filter_fn
from cxrlt_ray.models.weights import saw_mimic, source

torch.set_num_threads(1)

NAME = "test_uniformer"
DEPTHS, WIDTHS, HEAD = (1, 1, 2, 1), (16, 32, 64, 128), 64
SPEC = ModelSpec(NAME, 64, pretrained=False)


def as_published(seed: int) -> dict[str, torch.Tensor]:
    """Tensors of the small backbone under the names of Sense-X/UniFormer, with a classifier of three."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def affine(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator) / np.prod(shape[1:]) ** 0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    def norm(name: str, width: int, batch: bool) -> None:
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)
        if batch:
            state[f"{name}.running_mean"] = 0.1 * torch.randn(width, generator=generator)
            state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=generator)
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    channels = 3
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True), 1):
        edge, wide = (4 if stage == 1 else 2), stage > 2
        norm(f"patch_embed{stage}.norm", width, batch=False)
        affine(f"patch_embed{stage}.proj", width, channels, edge, edge)
        channels = width
        for k in range(depth):
            at, ones = f"blocks{stage}.{k}", () if wide else (1, 1)
            affine(f"{at}.pos_embed", width, 1, 3, 3)
            norm(f"{at}.norm1", width, batch=not wide)
            norm(f"{at}.norm2", width, batch=not wide)
            if wide:
                affine(f"{at}.attn.qkv", 3 * width, width)
                affine(f"{at}.attn.proj", width, width)
            else:
                affine(f"{at}.conv1", width, width, 1, 1)
                affine(f"{at}.attn", width, 1, 5, 5)
                affine(f"{at}.conv2", width, width, 1, 1)
            affine(f"{at}.mlp.fc1", 4 * width, width, *ones)
            affine(f"{at}.mlp.fc2", width, 4 * width, *ones)
    norm("norm", WIDTHS[3], batch=True)
    affine("head", 3, WIDTHS[3])
    return state


def plain_forward(state: dict[str, torch.Tensor], pixels: torch.Tensor, head: int = HEAD) -> torch.Tensor:
    """The paper's formulas written out, in evaluation: the feature map of normalised pixels."""

    def affine(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def depthwise(x: torch.Tensor, name: str, pad: int) -> torch.Tensor:
        return conv2d(x, *affine(name), padding=pad, groups=x.shape[1])

    def batched(x: torch.Tensor, name: str) -> torch.Tensor:
        return batch_norm(x, state[f"{name}.running_mean"], state[f"{name}.running_var"], *affine(name))

    def attended(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = linear(x, *affine(f"{name}.qkv")).chunk(3, -1)
        outputs = []
        for k in range(x.shape[2] // head):
            q, key, value = (part[..., k * head : (k + 1) * head] for part in parts)
            outputs.append((q @ key.mT / head**0.5).softmax(-1) @ value)
        return linear(torch.cat(outputs, -1), *affine(f"{name}.proj"))

    x = pixels
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True), 1):
        x = conv2d(x, *affine(f"patch_embed{stage}.proj"), stride=4 if stage == 1 else 2)
        x = layer_norm(x.movedim(1, 3), (width,), *affine(f"patch_embed{stage}.norm")).movedim(3, 1)
        for at in (f"blocks{stage}.{k}" for k in range(depth)):
            x = x + depthwise(x, f"{at}.pos_embed", 1)
            if stage < 3:
                inner = conv2d(batched(x, f"{at}.norm1"), *affine(f"{at}.conv1"))
                x = x + conv2d(depthwise(inner, f"{at}.attn", 2), *affine(f"{at}.conv2"))
                inner = gelu(conv2d(batched(x, f"{at}.norm2"), *affine(f"{at}.mlp.fc1")))
                x = x + conv2d(inner, *affine(f"{at}.mlp.fc2"))
                continue
            height = x.shape[2]
            x = x.flatten(2).mT
            x = x + attended(layer_norm(x, (width,), *affine(f"{at}.norm1"), 1e-6), f"{at}.attn")
            inner = gelu(linear(layer_norm(x, (width,), *affine(f"{at}.norm2"), 1e-6), *affine(f"{at}.mlp.fc1")))
            x = (x + linear(inner, *affine(f"{at}.mlp.fc2"))).mT.unflatten(2, (height, -1))
    return batched(x, "norm")


@pytest.mark.parametrize("nesting", ["", "model.", "encoder.uniformer."])
def test_a_file_of_the_published_layout_computes_what_the_paper_s_formulas_do(nesting, tmp_path):
    published = as_published(1)
    file = {nesting + name: tensor for name, tensor in published.items()}
    if nesting == "encoder.uniformer.":  # the report generator that aehrc/cxrmate-rrg24 is
        file = {name: tensor for name, tensor in file.items() if "head" not in name}
        file |= {"encoder.projection_head.layer_norm.weight": torch.ones(WIDTHS[3]), "decoder.x": torch.ones(5)}
    torch.save(file, tmp_path / "w.pth")
    spec = dataclasses.replace(SPEC, pretrained=True, checkpoint=str(tmp_path / "w.pth"))
    model = build(spec, 3).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = plain_forward(published, pixels)
        torch.testing.assert_close(model.backbone.forward_features(pixels), expected, atol=1e-4, rtol=1e-4)
        pooled = model.features(torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(4)))
    assert pooled.shape == (2, 1, WIDTHS[3])


def test_what_timm_downloads_of_either_source_is_brought_to_the_model_s_names():
    published, model = as_published(1), timm.create_model(NAME, num_classes=0)
    expected = set(model.state_dict())
    for in1k in (published, {"model": published}):
        read = set(checkpoint_filter_fn(in1k, model))
        assert read == expected | {"head.weight", "head.bias"}  # timm drops a classifier of another size
    generator = {f"encoder.uniformer.{name}": published[name] for name in expected} | {"decoder.norm.weight": 1}
    assert set(checkpoint_filter_fn(generator, model)) == expected


def test_a_file_of_other_sizes_or_with_layer_scales_is_refused_by_name(tmp_path):
    spec = dataclasses.replace(SPEC, pretrained=True, checkpoint=str(tmp_path / "w.pth"))
    wide = {**as_published(1), "blocks3.1.mlp.fc1.weight": torch.ones(264, 64)}
    torch.save({"model": wide}, tmp_path / "w.pth")
    with pytest.raises(CxrltError, match=r"another architecture.*blocks3\.1\.mlp\.fc1\.weight is \(264, 64\)"):
        build(spec, 2)
    scaled = {**as_published(1), "blocks3.0.gamma_1": torch.ones(64), "blocks3.0.gamma_2": torch.ones(64)}
    torch.save({"model": scaled}, tmp_path / "w.pth")
    for channels in (1, 3):  # of the file's three, which are summed for one
        with pytest.raises(CxrltError, match=r"layer scales \(blocks3\.0\.gamma_1, blocks3\.0\.gamma_2\)"):
            build(dataclasses.replace(spec, in_chans=channels), 2)
    short = {name: tensor for name, tensor in as_published(1).items() if not name.startswith("blocks4")}
    torch.save({"model": short}, tmp_path / "w.pth")
    with pytest.raises(CxrltError, match=r"lacks blocks4\.0\.pos_embed\.weight"):
        build(spec, 2)


@pytest.mark.parametrize(
    ("backbone", "millions", "billions"), [("uniformer_small", 21.5, 3.6), ("uniformer_base", 49.8, 8.3)]
)
def test_parameters_and_operations_are_those_that_are_published(backbone, millions, billions):
    """Li et al. 2022, table 3: with a classifier of 1,000, multiply-adds of an image of 224 px."""
    with torch.device("meta"):
        model = timm.create_model(backbone)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    operations, _ = size(ModelSpec(backbone, 224, pretrained=False), 1000)
    assert operations / 2e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize(("edge", "positions"), [(32, 1), (96, 9), (384, 144), (416, 169)])
def test_the_feature_map_has_a_position_every_32_pixels_and_any_multiple_of_32_is_taken(edge, positions):
    assert feature_shape(dataclasses.replace(SPEC, resolution=edge, head="ml_decoder")) == (positions, 128)
    with torch.device("meta"):
        backbone = make_backbone(dataclasses.replace(SPEC, resolution=edge, in_chans=1))[0]
        assert backbone.forward_features(torch.empty(2, 1, edge, edge)).shape == (2, 128, edge // 32, edge // 32)


def test_a_resolution_between_is_refused_with_the_nearest_that_are_taken():
    with pytest.raises(UsageError, match=r"built at 100 px \(.*32 px apart.*\); the nearest it takes: 96 and 128 px"):
        build(dataclasses.replace(SPEC, resolution=100), 2)


def test_rates_by_layer_follow_the_image_s_way_through_the_stages():
    from timm.models._manipulate import group_parameters

    model = timm.create_model(NAME)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    way = ["patch_embed1.proj", "blocks1.0.attn", "patch_embed2.proj", "blocks2.0.attn", "patch_embed3.norm"]
    way += ["blocks3.0.attn.qkv", "blocks3.1.attn.qkv", "patch_embed4.proj", "blocks4.0.attn.qkv", "head"]
    assert [layers[f"{name}.weight"] for name in way] == list(range(len(way)))
    assert layers["norm.weight"] == layers["blocks4.0.attn.qkv.weight"]


def test_its_names_say_where_weights_come_from_and_what_they_have_seen():
    assert all(map(known, ("uniformer_small", "uniformer_base.in1k", "uniformer_base.cxrmate_rrg24")))
    assert not known("uniformer_base.imagenet")
    assert saw_mimic(source(ModelSpec("uniformer_base.cxrmate_rrg24", 384)))
    assert not saw_mimic(source(ModelSpec("uniformer_base.in1k", 384)))


def test_layer_scales_and_drop_path_train():
    with torch.device("meta"):
        scaled = timm.create_model("uniformer_base_ls", num_classes=0, drop_path_rate=0.2)
        assert scaled(torch.empty(1, 3, 64, 64)).shape == (1, 512)
    assert scaled.blocks3[0].gamma_1.shape == (320,)
    model = build(dataclasses.replace(SPEC, drop_path=0.2), 3).train()
    model(torch.randint(0, 256, (4, 64, 64), dtype=torch.uint8)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
