"""Vision transformers that timm has the parts of but no name for: those that DINOv2's code trains on chest X-rays.

    vit_large_patch16_reg4_swiglu    ViT-L/16, 4 registers, SwiGLU (CheXFound, Yang et al. 2025)
    test_vit_reg4_swiglu             the same layout in small

Importing this module makes the names known to timm. There are no weights for them but in files (`checkpoint:`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SwiGLUPacked
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn


def _config(edge: int) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 0,
        "input_size": (3, edge, edge),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {"vit_large_patch16_reg4_swiglu": _config(512), "test_vit_reg4_swiglu": _config(64)}
)


def swiglu_ratio(width: int) -> float:
    """Timm's mlp_ratio for DINOv2's SwiGLU: two thirds of four widths, up to a multiple of 8, for gate and value each.

    >>> swiglu_ratio(1024) * 1024
    5472.0
    """
    return 2 * ((int(width * 4 * 2 / 3) + 7) // 8 * 8) / width


def _create(name: str, pretrained: bool, width: int, depth: int, heads: int, options: dict[str, Any]) -> Any:
    layout = {
        "patch_size": 16,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "init_values": 1e-5,
        "mlp_ratio": swiglu_ratio(width),
        "mlp_layer": SwiGLUPacked,
        "act_layer": nn.SiLU,
        "reg_tokens": 4,
        "no_embed_class": True,
        "dynamic_img_size": True,
    }
    fitted = partial(checkpoint_filter_fn, antialias=True)
    return build_model_with_cfg(
        VisionTransformer, name, pretrained, pretrained_filter_fn=fitted, **{**layout, **options}
    )


@register_model
def vit_large_patch16_reg4_swiglu(pretrained: bool = False, **options: Any) -> Any:
    """ViT-L/16 with 4 registers and SwiGLU, as DINOv2's code builds it."""
    return _create("vit_large_patch16_reg4_swiglu", pretrained, 1024, 24, 16, options)


@register_model
def test_vit_reg4_swiglu(pretrained: bool = False, **options: Any) -> Any:  # noqa: PT028  it is no test
    """The same layout, 64 wide and 4 deep."""
    return _create("test_vit_reg4_swiglu", pretrained, 64, 4, 2, options)
