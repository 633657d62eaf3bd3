"""Which part of a backbone a stage trains: all of it, none, or low-rank adapters (LoRA) in its attention.

Adapters exist in training only: a saved model, and the model of the next stage, have them added to their weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from cxrlt_ray.models.backbones import find_recipe, make_backbone
from cxrlt_ray.models.spec import ModelSpec
from cxrlt_ray.text.lora import merged_state, with_lora


def train_part(backbone: nn.Module, frozen: bool, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Let `backbone` train whole, not at all, or, where rank > 0, by adapters in its layers named `targets` alone.

    Raises UsageError where a target matches no layer, CxrltError where peft is not installed.
    """
    backbone.requires_grad_(not frozen)
    if rank:
        with_lora(backbone, targets, rank, alpha, dropout=0.0)


def check_targets(spec: ModelSpec, targets: Sequence[str]) -> None:
    """Raises as `train_part` does, before any weights are loaded."""
    with torch.device("meta"):
        with_lora(make_backbone(spec, find_recipe(spec.backbone))[0], targets)


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of `module` as if it had never had adapters: they are added to the weights, in copies."""
    return merged_state(module)
