"""A trial's record: stages change what they name, mixtures that make no sense are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cxrlt_ray.runs.trial_config import TrialConfig


def config(**options):
    return TrialConfig(**{"backbone": "test_convnext", "resolution": 64, "epochs": 3, **options})


def test_a_trial_without_stages_is_its_own_only_stage():
    trial = config()
    assert trial.staged() == [trial]
    assert trial.total_epochs == 3


def test_a_stage_changes_what_it_names_and_the_next_goes_on_from_there():
    trial = config(
        lr=0.1,
        stages=(
            {"epochs": 1, "frozen_backbone": True, "lr": 0.2},
            {"epochs": 2, "frozen_backbone": False, "resolution": 96},
            {"epochs": 4, "fusion": "attention"},
        ),
    )
    first, second, third = trial.staged()
    assert (first.frozen_backbone, first.lr, first.resolution, first.epochs) == (True, 0.2, 64, 1)
    assert (second.frozen_backbone, second.lr, second.resolution, second.fusion) == (False, 0.2, 96, "none")
    assert (third.resolution, third.fusion, third.epochs) == (96, "attention", 4)
    assert trial.total_epochs == 7
    assert not any(stage.stages for stage in trial.staged())


def test_a_new_head_is_of_its_stage_alone():
    trial = config(stages=({"epochs": 1}, {"epochs": 1, "fresh_head": True}, {"epochs": 1}))
    assert [stage.fresh_head for stage in trial.staged()] == [False, True, False]


def test_a_stages_loss_brings_its_own_settings():
    stages = ({"epochs": 1}, {"epochs": 1, "loss": "asl", "gamma_neg": 2.0}, {"epochs": 1, "loss": "bce"})
    trial = config(loss="focal", loss_settings={"focal_gamma": 1.0}, stages=stages)
    first, second, third = (stage.loss_settings for stage in trial.staged())
    assert first == {"focal_gamma": 1.0}
    assert second == {"gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.05}
    assert third == {}


def test_only_the_first_stage_takes_pretrained_weights():
    trial = config(checkpoint="w.pth", stages=({"epochs": 1}, {"epochs": 1, "resolution": 96}))
    first, second = trial.specs()
    assert (first.pretrained, first.checkpoint, first.resolution) == (True, "w.pth", 64)
    assert (second.pretrained, second.checkpoint, second.resolution) == (False, None, 96)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ema_decay": 0.9, "swa_start": 0.5}, "average weights twice"),
        ({"fusion": "attention", "mix": "mixup"}, "which a study's views cannot be"),
        ({"tta": "flip+rotate"}, "'rotate' is none of flip, crops, zooms"),
        ({"stages": ({"lr": 1.0},)}, r"stages\.0 has no `epochs`"),
        ({"stages": ({"epochs": 1, "lr": -1.0},)}, "greater than 0"),
        ({"stages": ({"epochs": 1, "fusion": "attention", "mix": "cutmix"},)}, "views cannot be"),
        ({"smooth_pos": 0.6}, "less than 0.5"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(options, reason):
    with pytest.raises(ValidationError, match=reason):
        config(**options)


def test_a_fusion_on_a_frozen_backbone_wants_one_that_something_has_trained():
    frozen = {"fusion": "attention", "frozen_backbone": True, "pretrained": False}
    assert "put a stage that trains it first" in config(**frozen).beginning_fault()
    trained = config(pretrained=False, stages=({"epochs": 1}, {"epochs": 1, "fusion": "attention"}))
    assert not trained.beginning_fault()
    assert not config(**{**frozen, "checkpoint": "w.safetensors"}).beginning_fault()
    assert not config(**{**frozen, "pretrained": True}).beginning_fault()


def test_a_text_encoder_that_nothing_reads_is_a_fault_and_one_that_another_stage_reads_is_none():
    assert "neither head linear nor an objective reads" in config(text="minilm").text_fault()
    assert not config(text="minilm", head="pair").text_fault()
    stages = ({"objective": "clip", "epochs": 1}, {"objective": "multilabel", "epochs": 1})
    staged = config(text="minilm", flip=0.0, stages=stages)
    assert not staged.text_fault()
    assert [stage.spec().text for stage in staged.staged()] == [None, None]
    assert config(text="minilm", head="pair").spec().text == "minilm"
