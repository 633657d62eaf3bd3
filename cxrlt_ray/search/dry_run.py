"""The models of a search space, built without memory: parameters, cost, and whether one training step goes through.

`sweep --dry-run` shows it: everything of a trial but the weights and the images is as it will be, on torch's meta
device, so that ConvNeXt-B at 1,024 px takes seconds on a laptop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.trial_config import TrialConfig


@dataclass(frozen=True)
class Print:
    """One stage of one kind of trial. parameters: trained and all; flops: to score an image."""

    system: str
    stage: int
    config: TrialConfig
    trained: int
    parameters: int
    flops: int
    weights: str


def prints(configs: Sequence[TrialConfig], findings: Sequence[str]) -> list[Print]:
    """Every stage of `configs`, each kind once; raises what building, the loss or the backward pass raises."""
    found: dict[Any, Print] = {}
    for config in configs:
        for number, (stage, spec) in enumerate(zip(config.staged(), config.specs(), strict=True)):
            key = (config.system, number, spec, stage.loss, stage.frozen_backbone)
            if key not in found:
                found[key] = _print(config.system, number, stage, spec, findings)
    return list(found.values())


def _print(system: str, number: int, stage: TrialConfig, spec: Any, findings: Sequence[str]) -> Print:
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.models import weights
    from cxrlt_ray.objectives import losses
    from cxrlt_ray.training.optimizer import optimizer_of

    with torch.device("meta"):
        model = models.Classifier(spec, tuple(findings))
        model.backbone.requires_grad_(not stage.frozen_backbone)
        model.train()
        optimizer_of(model, stage, 100)
        images = torch.empty(2, spec.resolution, spec.resolution, dtype=torch.uint8)
        codes = [torch.zeros(2, dtype=torch.int64)] * 2 if spec.fusion != "none" else []
        logits = model(images, *codes)
        if logits.shape != (2, len(findings)):
            raise CxrltError(
                f"backbone '{spec.backbone}' with head {spec.head} gives logits of shape {tuple(logits.shape)}, not "
                f"{(2, len(findings))}."
            )
        counts = [torch.ones(len(findings))] * 3
        losses.bound(stage.loss, stage.loss_settings, *counts)(logits.float(), torch.zeros_like(logits)).backward()
    everything = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops, _ = models.size(spec, len(findings))
    source = weights.source(stage.spec()) if number == 0 else "the stage before"
    return Print(system, number, stage, trained, everything, flops, source)


def table(found: Sequence[Print]) -> Any:
    """A rich table of them."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    staged = any(each.stage for each in found)
    systems = any(each.system for each in found)
    heads = (*(["system"] if systems else []), *(["stage"] if staged else []), "backbone", "px", "head", "fusion")
    for column in (*heads, "loss", "cohorts", "epochs", "parameters", "trained", "GFLOPs"):
        made.add_column(column, no_wrap=True)
    for each in found:
        config = each.config
        row = [*([each.system] if systems else []), *([str(each.stage + 1)] if staged else [])]
        row += [config.backbone, str(config.resolution), config.head, config.fusion, config.loss, config.cohorts]
        row += [str(config.epochs), f"{each.parameters / 1e6:,.1f} M", f"{each.trained / 1e6:,.1f} M"]
        made.add_row(*row, f"{each.flops / 1e9:,.1f}")
    return made


def sources(found: Sequence[Print]) -> list[str]:
    """A line for each backbone: where its weights come from, in a first stage."""
    lines = (f"Weights of {each.config.backbone}: {each.weights}" for each in found if each.stage == 0)
    return list(dict.fromkeys(lines))
