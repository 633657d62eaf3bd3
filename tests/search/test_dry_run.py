"""Models built on paper: whatever a stage is trained for, a step of it goes through."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cxrlt_ray.models.heads import HEADS
from cxrlt_ray.objectives.registry import all_objectives
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.dry_run import stage_models


@pytest.mark.parametrize("objective", sorted(all_objectives()))
def test_a_step_of_every_objective_is_taken_on_paper_without_a_text_encoder(objective, monkeypatch):
    monkeypatch.setattr("cxrlt_ray.text.encoders.build_text_encoder", None)
    monkeypatch.setattr("cxrlt_ray.text.embeddings.embedded", None)
    needs = all_objectives()[objective].needs
    given = {"head": needs.heads[0]} if needs.heads else {"pool": "avg"}
    given |= {"text": "minilm"} if needs.texts or needs.places or needs.heads else {}
    backbone = "test_vit" if needs.eager else "test_resnet"  # those that mask patches
    config = TrialConfig(backbone=backbone, pretrained=False, resolution=64, epochs=1, objective=objective, **given)
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


@pytest.mark.parametrize("head", sorted(name for name, head in HEADS.items() if head.needs_embeddings))
def test_heads_that_read_text_are_built_on_paper_without_a_text_encoder(head, monkeypatch):
    monkeypatch.setattr("cxrlt_ray.text.finding_embeddings.finding_embeddings", None)
    config = TrialConfig(
        backbone="test_resnet",
        pretrained=False,
        resolution=64,
        epochs=1,
        head=head,
        text="cxr-bert",
        prompts="question",
    )
    (model,) = stage_models([config], ("Mass", "Nodule"))
    assert model.trained == model.parameters > 0


def test_stages_may_change_the_prompts_and_the_head():
    """G asks by short questions first, by descriptions then."""
    first = {"backbone": "test_resnet", "pretrained": False, "resolution": 64, "epochs": 1, "text": "minilm"}
    stages = ({"epochs": 1, "head": "pair", "prompts": "name"}, {"epochs": 1, "head": "film", "prompts": "question"})
    models = stage_models([TrialConfig(**first, head="pair", stages=stages)], ("Mass",))
    assert [(model.config.head, model.config.prompts) for model in models] == [("pair", "name"), ("film", "question")]


@pytest.mark.parametrize(
    "change",
    [{"query_layers": 0}, {"query_layers": 9}, {"query_outputs": 3}, {"query_pooled": -1}, {"query_width": 50}],
)
def test_settings_of_query_decoder_have_their_ranges(change):
    with pytest.raises(ValidationError):
        TrialConfig(backbone="test_resnet", resolution=64, epochs=1, **change)
