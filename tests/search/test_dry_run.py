"""Models built on paper: whatever a stage is trained for, a step of it goes through."""

from __future__ import annotations

import pytest

from cxrlt_ray.objectives.registry import all_objectives
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.dry_run import stage_models


@pytest.mark.parametrize("objective", sorted(all_objectives()))
def test_a_step_of_every_objective_is_taken_on_paper(objective):
    reading = {"text": "minilm", "pool": "avg"} if all_objectives()[objective].needs.texts else {}
    config = TrialConfig(
        backbone="test_resnet", pretrained=False, resolution=64, epochs=1, objective=objective, **reading
    )
    (model,) = stage_models([config], ("Mass", "Nodule", "Normal"))
    assert model.parameters == model.trained > 0
    assert model.flops > 0


def test_stages_of_different_objectives_are_different_kinds():
    config = TrialConfig(
        backbone="test_resnet",
        pretrained=False,
        resolution=64,
        epochs=1,
        stages=({"epochs": 1}, {"epochs": 1, "objective": "distill"}),
    )
    models = stage_models([config, config], ("Mass",))
    assert [(model.stage, model.config.objective) for model in models] == [(0, "multilabel"), (1, "distill")]
