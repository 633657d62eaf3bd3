"""Low-rank adapters (LoRA, Hu et al. 2022) through `peft`, in the attention of a text encoder or an image backbone.

A layer x -> W x + b of a target becomes x -> W x + b + (alpha / rank) B A dropout(x), A [rank, in] drawn at random,
B [out, rank] from 0: at first nothing changes. Only A and B train.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cxrlt_ray.errors import CxrltError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

# by model_type of transformers' configurations
TARGETS = {"bert": ("query", "key", "value"), "roberta": ("query", "key", "value"), "gpt2": ("c_attn",)}
ADAPTER = ".lora_"  # in the names of adapters' tensors


def with_lora(
    module: nn.Module, targets: Sequence[str], rank: int = 8, alpha: float = 32, dropout: float = 0.1
) -> nn.Module:
    """`module` itself, with adapters in its linear layers named `targets` or ending in .TARGET; only they train.

    timm's vision transformers: ("qkv",), as team G tunes its image encoder. Raises UsageError, listing the names that
    there are, where a target matches nothing; CxrltError where peft is not installed.
    """
    if not targets:
        raise UsageError("lora_targets is empty: name the layers to adapt.")
    layers = dict(_layers(module))
    for target in targets:
        if not any(_matches(name, target) for name in layers):
            names = sorted({name.rpartition(".")[2] for name in layers})
            raise UsageError(f"lora_targets: no layer is named '{target}'; there are {', '.join(names)}.")
    if importlib.util.find_spec("peft") is None:
        raise CxrltError("LoRA needs peft: pip install 'cxrlt-ray[text]'.")
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    chosen = [name for name in layers if any(_matches(name, target) for target in targets)]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # divided by the rank: it may be a fraction
        lora_dropout=dropout,
        target_modules=chosen,
        fan_in_fan_out=all(type(layers[name]).__name__ == "Conv1D" for name in chosen),
    )
    inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(ADAPTER in name)
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.train(layer.get_base_layer().training)  # peft's dropout would act in eval mode
    return module


def lora_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' tensors alone, by their names in `module`, which takes them by load_state_dict(strict=False)."""
    return {name: tensor for name, tensor in module.state_dict().items() if ADAPTER in name}


def merged_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that `module` would have without adapters, which are added to copies of their layers' weights."""
    state = module.state_dict()
    if not any(ADAPTER in name for name in state):
        return state
    from peft.tuners.lora import Linear

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, Linear)}
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ADAPTER not in name}
    for name, layer in layers.items():
        for adapter in layer.active_adapters:
            merged[f"{name}.weight"] = merged[f"{name}.weight"] + layer.get_delta_weight(adapter).detach()
    return merged


def merge_lora(module: nn.Module) -> nn.Module:
    """`module` itself, its adapters added to the weights: names and sizes are those from before `with_lora`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, layer.get_base_layer())
    return module


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers by name; GPT-2 has its own kind, Conv1D."""
    from torch import nn

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D":
            yield name, layer


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
