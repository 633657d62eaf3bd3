"""A backbone as DINOv2's training code leaves it is read by file: chunks of blocks, registers, SwiGLU, nesting."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import silu

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.models import ModelSpec, build, load, save
from cxrlt_ray.models.backbones import known
from cxrlt_ray.models.weight_files import unchunked

NAME, WIDTH, DEPTH, HIDDEN = "test_vit_reg4_swiglu", 64, 4, 176  # (int(64 * 4 * 2 / 3) + 7) // 8 * 8


def as_published(seed: int, grid: int = 4) -> dict[str, torch.Tensor]:
    """Tensors of a small backbone under DINOv2's names, in two chunks of blocks."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    state = {
        "cls_token": drawn(1, 1, WIDTH),
        "pos_embed": drawn(1, 1 + grid**2, WIDTH),
        "register_tokens": drawn(1, 4, WIDTH),
        "mask_token": drawn(1, WIDTH),
        "patch_embed.proj.weight": drawn(WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": drawn(WIDTH),
        "norm.weight": drawn(WIDTH),
        "norm.bias": drawn(WIDTH),
    }
    for k in range(DEPTH):
        at = f"blocks.{k // 2}.{k}"
        state |= {f"{at}.{norm}.{part}": drawn(WIDTH) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        state |= {f"{at}.attn.qkv.weight": drawn(3 * WIDTH, WIDTH), f"{at}.attn.qkv.bias": drawn(3 * WIDTH)}
        state |= {f"{at}.attn.proj.weight": drawn(WIDTH, WIDTH), f"{at}.attn.proj.bias": drawn(WIDTH)}
        state |= {f"{at}.ls{n}.gamma": drawn(WIDTH) for n in (1, 2)}
        state |= {f"{at}.mlp.w12.weight": drawn(2 * HIDDEN, WIDTH), f"{at}.mlp.w12.bias": drawn(2 * HIDDEN)}
        state |= {f"{at}.mlp.w3.weight": drawn(WIDTH, HIDDEN), f"{at}.mlp.w3.bias": drawn(WIDTH)}
    return state


def plain_forward(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """DINOv2 with registers written out: the normalised tokens [B, 1 + 4 + N, D] of normalised pixels."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    patches = nn.functional.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 16)
    count = len(pixels)
    x = torch.cat([state["cls_token"].expand(count, -1, -1), patches.flatten(2).mT], 1) + state["pos_embed"]
    x = torch.cat([x[:, :1], state["register_tokens"].expand(count, -1, -1), x[:, 1:]], 1)
    for k in range(DEPTH):
        at = f"blocks.{k // 2}.{k}"
        q, key, v = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv").unflatten(2, (3, 2, WIDTH // 2)).unbind(2)
        weights = torch.einsum("bnhd,bmhd->bhnm", q, key) / (WIDTH // 2) ** 0.5
        attended = torch.einsum("bhnm,bmhd->bnhd", weights.softmax(-1), v).flatten(2)
        x = x + state[f"{at}.ls1.gamma"] * linear(attended, f"{at}.attn.proj")
        gate, value = linear(norm(x, f"{at}.norm2"), f"{at}.mlp.w12").chunk(2, -1)
        x = x + state[f"{at}.ls2.gamma"] * linear(silu(gate) * value, f"{at}.mlp.w3")
    return norm(x, "norm")


@pytest.mark.parametrize("nesting", ["teacher.backbone.", "", "model.teacher.backbone."])
def test_a_backbone_of_dinov2_s_training_code_computes_what_the_published_layout_does(nesting, tmp_path):
    published = as_published(1)
    file = {nesting + name: tensor for name, tensor in published.items()}
    if nesting:
        file |= {nesting.replace("teacher", "student") + name: tensor for name, tensor in as_published(2).items()}
        file["teacher.dino_head.last_layer.weight"] = torch.ones(3, 3)
    torch.save(file, tmp_path / "teacher.pth")
    spec = ModelSpec(NAME, 64, checkpoint=str(tmp_path / "teacher.pth"), head="ml_decoder_cls")
    model = build(spec, 3).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = plain_forward(published, pixels)
        torch.testing.assert_close(model.backbone.forward_features(pixels), expected, atol=1e-5, rtol=1e-4)
        images = torch.rand(2, 64, 64)
        seen = plain_forward(published, model.normalised(images))
        torch.testing.assert_close(model.features(images)[:, 0], seen[:, 0], atol=1e-5, rtol=1e-4)  # the class token
        torch.testing.assert_close(model.features(images)[:, 1:], seen[:, 5:], atol=1e-5, rtol=1e-4)  # no registers
    save(model, spec, ("a", "b", "c"), tmp_path)
    again, _, _ = load(tmp_path)
    assert torch.equal(again(images), model(images))


def test_the_teacher_alone_without_the_mask_s_token_is_read_too_and_at_another_resolution(tmp_path):
    published = as_published(1)
    del published["mask_token"]
    save_file(published, tmp_path / "w.safetensors")
    spec = ModelSpec(NAME, 64, checkpoint=str(tmp_path / "w.safetensors"))
    assert build(spec, 2).backbone.reg_token.shape == (1, 4, WIDTH)
    larger = build(dataclasses.replace(spec, resolution=96), 2)
    assert larger.backbone.pos_embed.shape == (1, 36, WIDTH)


def test_a_file_of_other_sizes_is_refused_by_name(tmp_path):
    published = as_published(1)
    published["blocks.1.3.mlp.w3.weight"] = torch.ones(WIDTH, HIDDEN + 8)
    save_file(published, tmp_path / "w.safetensors")
    spec = ModelSpec(NAME, 64, checkpoint=str(tmp_path / "w.safetensors"))
    with pytest.raises(CxrltError, match=r"another architecture.*blocks\.3\.mlp\.fc2\.weight is \(64, 184\)"):
        build(spec, 2)


def test_blocks_of_a_backbone_that_has_stages_keep_their_names():
    own = ["blocks.0.0.conv.weight"]
    assert list(unchunked({"blocks.0.0.conv.weight": torch.ones(1)}, own)) == own


def test_the_large_one_is_a_vit_l_16_with_2736_hidden_units():
    assert known("vit_large_patch16_reg4_swiglu")
    with torch.device("meta"):
        large = timm.create_model("vit_large_patch16_reg4_swiglu", num_classes=0, img_size=512)
    block = large.blocks[23]
    assert (block.mlp.fc1.out_features, block.mlp.fc2.in_features, block.attn.num_heads) == (5472, 2736, 16)
    assert large.pos_embed.shape == (1, 1024, 1024)
