"""Which part of a backbone a stage trains: all of it, all but its first layers, none, or adapters (LoRA).

Adapters exist in training only: a saved model, and the model of the next stage, have them added to their weights.
"""

from __future__ import annotations

import torch
from torch import nn

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models.backbones import find_recipe, make_backbone
from cxrlt_ray.models.spec import ModelSpec, TrainedPart
from cxrlt_ray.text.lora import merged_state, with_lora


def train_part(backbone: nn.Module, part: TrainedPart) -> None:
    """Let `part` of the backbone train alone.

    Raises UsageError where a target matches no layer or there are not so many layers, CxrltError without peft.
    """
    backbone.requires_grad_(not part.frozen)
    for name in first_layers(backbone, part.layers):
        backbone.get_parameter(name).requires_grad_(False)
    if part.rank:
        with_lora(backbone, part.targets, part.rank, part.alpha, dropout=0.0)


def first_layers(backbone: nn.Module, count: int) -> list[str]:
    """The names of the parameters of the backbone's first `count` layers, as timm counts them: the stem is the first,
    then come the stages of a convolutional network or the blocks of a transformer.

    Raises UsageError where it does not name its layers, or has no more than `count`.
    """
    from timm.models import group_parameters

    if not count:
        return []
    kind = type(backbone).__name__
    if not hasattr(backbone, "group_matcher"):
        raise UsageError(f"the backbone ({kind}) does not name its layers: give it `frozen_layers: 0`.")
    layers = group_parameters(backbone, backbone.group_matcher(coarse=True))  # type: ignore[operator]
    if count >= len(layers):
        raise UsageError(f"frozen_layers: {count}, where the backbone ({kind}) has {len(layers)}: leave one to train.")
    return [name for number in range(count) for name in layers[number]]


def hold(backbone: nn.Module, count: int) -> None:
    """Keep the batch norms of the first `count` layers, in a network in training, as they are in evaluation."""
    for name in first_layers(backbone, count):
        module = backbone.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def check_part(spec: ModelSpec, part: TrainedPart) -> None:
    """Raises as `train_part` does, before any weights are loaded."""
    with torch.device("meta"):
        train_part(make_backbone(spec, find_recipe(spec.backbone))[0], part)


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of `module` as if it had never had adapters: they are added to the weights, in copies."""
    return merged_state(module)
