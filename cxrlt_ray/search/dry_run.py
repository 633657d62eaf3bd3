"""The models of a search space, built without memory: parameters, cost, and whether one training step goes through.

`sweep --dry-run` shows it: everything of a trial but the weights and the images is as it will be, on torch's meta
device, so that ConvNeXt-B at 1,024 px takes seconds on a laptop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.trial_config import TrialConfig

if TYPE_CHECKING:
    from cxrlt_ray.models import ModelSpec


@dataclass(frozen=True)
class StageModel:
    """A stage of a kind of trial, built. parameters: trained and all; flops: to score an image; weights: from where."""

    system: str
    stage: int
    config: TrialConfig
    trained: int
    parameters: int
    flops: int
    weights: str


def stage_models(configs: Sequence[TrialConfig], findings: Sequence[str]) -> list[StageModel]:
    """Every stage of `configs`, each kind once; raises what building, the loss or the backward pass raises."""
    models: dict[Any, StageModel] = {}
    for config in configs:
        for number, (stage, spec) in enumerate(zip(config.staged(), config.specs(), strict=True)):
            key = (config.system, number, spec, stage.objective, stage.loss, stage.trained_part)
            if key not in models:
                models[key] = _build(config.system, number, stage, spec, findings)
    return list(models.values())


def _build(system: str, number: int, stage: TrialConfig, spec: ModelSpec, findings: Sequence[str]) -> StageModel:
    """Build a stage's model on the meta device and take a training step of its objective."""
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.models import weights
    from cxrlt_ray.objectives.registry import Evidence, find_objective
    from cxrlt_ray.training.optimizer import optimizer_of

    labels, soft = np.ones((2, len(findings)), np.int8), np.full((2, len(findings)), 0.5, np.float32)
    objective = find_objective(stage.objective)(stage.objective_spec(), labels, soft, Evidence(tuple(findings)))
    with torch.device("meta"):
        # a file is read, a text encoder is not loaded for it
        model = models.Classifier(spec, len(findings) if spec.text else tuple(findings))
        models.train_part(model.backbone, stage.trained_part)
        model.train()
        objective.check(model)
        # a contrast reads a text encoder's weights and what its batch holds: the classifier alone takes the step
        alone = objective.needs.whole
        network = model if alone else objective.network(model)
        optimizer_of(network, stage, 100, model.backbone)
        images = [torch.empty(2, spec.resolution, spec.resolution, dtype=torch.uint8)] * objective.needs.crops
        codes = [torch.zeros(2, dtype=torch.int64)] * 2 if spec.fusion != "none" else []
        outputs = network(*images, *codes)
        if objective.predicts and outputs.shape != (2, len(findings)):
            raise CxrltError(
                f"backbone '{spec.backbone}' with head {spec.head} gives logits of shape {tuple(outputs.shape)}, not "
                f"{(2, len(findings))}."
            )
        targets = torch.zeros(2, objective.table().shape[1])
        loss = outputs.sum() if alone else objective.loss(outputs.float(), [(1.0, targets)])
        loss.backward()
    everything = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops, _ = models.size(spec, len(findings))
    source = weights.source(stage.spec()) if number == 0 else "the stage before"
    return StageModel(system, number, stage, trained, everything, flops, source)
