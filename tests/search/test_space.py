"""Search spaces: what is sampled keeps to the file, and every mistake in the file is told."""

from __future__ import annotations

import dataclasses

import optuna
import pytest

from cxrlt_ray import config, models
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import weights
from cxrlt_ray.runs.records import RunRecord, TrialRecord
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search import plan
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.storage import Store

optuna.logging.set_verbosity(optuna.logging.ERROR)
MINE = """
trials: 3
epochs: 2
parameters:
  backbone: {choices: [test_convnext, test_vit]}
  pretrained: false
  resolution: {choices: [32, 64]}
  batch_size:
    - {when: {resolution: 64}, choices: [4, 8]}
    - {value: 16}
  lr:
    - {when: {backbone: test_vit}, low: 1e-5, high: 1e-4, log: true}
    - {low: 1e-3, high: 1e-2, log: true}
  accumulation: {low: 1, high: 3, int: true}
  loss: {choices: [bce, focal]}
  focal_gamma: {when: {loss: focal}, low: 1.0, high: 3.0}
start:
  - {backbone: test_vit, lr: 2e-5, resolution: 64, batch_size: 8}
"""


@pytest.fixture
def space(tmp_path):
    def write(content=MINE):
        path = tmp_path / "mine.yaml"
        path.write_text(content)
        return str(path)

    return write


def sampled(space, count=40):
    return plan.draw_trials(dataclasses.replace(space, start=()), count)


def test_every_sampled_trial_keeps_to_choices_ranges_and_conditions(space):
    found = sampled(load_space(space()))
    for each in found:
        assert each.batch_size in ((4, 8) if each.resolution == 64 else (16,))
        assert (1e-5 <= each.lr <= 1e-4) if each.backbone == "test_vit" else (1e-3 <= each.lr <= 1e-2)
        assert each.accumulation in (1, 2, 3)
        assert each.loss_settings == {} or (each.loss == "focal" and 1 <= each.loss_settings["focal_gamma"] <= 3)
    assert {each.batch_size for each in found} == {4, 8, 16}
    assert {each.backbone for each in found} == {"test_convnext", "test_vit"}


def test_a_start_point_is_tried_first_with_the_rest_sampled(space):
    loaded = load_space(space())
    study = optuna.create_study()
    for point in loaded.start:
        study.enqueue_trial(point)
    trial = study.ask()
    loaded.define(trial)
    first = loaded.to_config(trial.params)
    assert (first.backbone, first.lr, first.resolution, first.batch_size) == ("test_vit", 2e-5, 64, 8)


def test_specs_are_all_the_models_a_space_can_make(space):
    specs = load_space(space()).specs()
    assert {(s.backbone, s.resolution) for s in specs} == {
        (backbone, size) for backbone in ("test_convnext", "test_vit") for size in (32, 64)
    }
    assert len(specs) == 4


def test_epochs_given_on_the_command_line_win(space):
    loaded = load_space(space(), epochs=7)
    assert {each.epochs for each in sampled(loaded, 3)} == {7}
    with pytest.raises(UsageError, match="--epochs must be at least 1"):
        load_space(space(), epochs=0)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("loss:", "los:", "unknown key 'parameters.los'; allowed: .*loss"),
        ("trials: 3", "trails: 3", "'trials' is missing; unknown key 'trails'; allowed at the top: "),
        ("test_vit]", "test_vt]", "'test_vt': timm has no such backbone; near it are .*test_vit"),
        ("low: 1e-3, high: 1e-2", "low: 1e-2, high: 1e-3", "parameters.lr.*upside down: low 0.01 is above high 0.001"),
        ("low: 1e-3, high: 1e-2", "low: 0, high: 1e-2", "log range needs low above 0"),
        ("low: 1.0, high: 3.0", "low: 1.0", "needs both `low` and `high`"),
        ("low: 1.0, high: 3.0", "low: 1.0, high: 3.0, value: 2", "one of `choices"),
        ("{loss: focal}", "{los: focal}", "`when` names 'los'"),
        ("focal]", "focla]", "'focla': there is no such loss; there are bce"),
        ("pretrained: false", "pretrained: false\n  head: lnear", "'lnear': there is no such head"),
        ("pretrained: false", "pretrained: false\n  drop_rate: 1.5", "parameters.drop_rate.*1.5.*less than 1"),
        ("lr: 2e-5", "lr: 2e-2", "start.0.*'lr': given 0.02"),
        ("lr: 2e-5", "rl: 2e-5", "start.0.rl.*not one of the parameters"),
    ],
)
def test_a_mistake_names_file_key_given_and_allowed(space, old, new, told):
    assert old in MINE
    path = space(MINE.replace(old, new, 1))
    with pytest.raises(UsageError, match=told) as refusal:
        load_space(path)
    assert "\n" not in str(refusal.value)
    assert path in str(refusal.value)


def test_an_unknown_space_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"no search_spaces file 'nope'.*laptop, .*task1, task2"):
        load_space("nope")


@pytest.mark.parametrize("name", config.names("search_spaces"))
def test_a_shipped_space_is_valid_and_samples(name):
    loaded = load_space(name)
    assert {each.backbone for each in sampled(loaded, 200)} == {spec.backbone for spec in loaded.specs()}
    for spec in loaded.specs():
        models.check(spec)


def test_without_its_package_the_pretrained_backbone_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(weights, "installed", lambda backbone: False)
    loaded = load_space("laptop")
    assert "tf_efficientnet_lite0" not in {spec.backbone for spec in loaded.specs()}
    assert not any(spec.pretrained for spec in loaded.specs())
    assert any("pip install" in note and "tf_efficientnet_lite0" in note for note in loaded.notes)
    assert len(loaded.start) == 1


@pytest.mark.parametrize("name", ["laptop", "laptop_text"])
def test_fallback_backbones_are_only_tried_where_the_optional_ones_cannot_be_had(name, monkeypatch):
    monkeypatch.setattr(weights, "installed", lambda backbone: True)
    assert {each.backbone for each in sampled(load_space(name), 50)} == {"tf_efficientnet_lite0"}
    assert {point["backbone"] for point in load_space(name).start} == {"tf_efficientnet_lite0"}
    monkeypatch.setattr(weights, "installed", lambda backbone: False)
    assert {each.backbone for each in sampled(load_space(name), 50)} >= {"test_convnext"}


def test_fallback_backbones_need_optional_ones(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("trials: 1\nepochs: 1\nfallback_backbones: [test_resnet]\nparameters: {backbone: test_resnet}\n")
    with pytest.raises(UsageError, match=r"fallback_backbones.*without.*optional_backbones"):
        load_space(str(path))


def test_a_fallback_backbone_stays_where_no_optional_one_is_tried_and_must_be_one_of_the_space(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "installed", lambda backbone: True)
    text = config.find("search_spaces", "laptop_text").read_text()
    choices = "{choices: [tf_efficientnet_lite0, test_convnext]}"
    assert choices in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(choices, "test_convnext").partition("start:")[0])
    assert {spec.backbone for spec in load_space(str(path)).specs()} == {"test_convnext"}
    path.write_text(text.replace("fallback_backbones: [test_convnext]", "fallback_backbones: [test_convnexd]"))
    with pytest.raises(UsageError, match="'fallback_backbones': 'test_convnexd' is no value of backbone"):
        load_space(str(path))


STAGED = """
trials: 4
parameters:
  system: {choices: [plain, fused]}
  backbone: {choices: [test_convnext, test_resnet]}
  pretrained: false
  resolution: 64
  lr: {low: 1e-4, high: 1e-2, log: true}
  loss: asl
stages:
  - {epochs: 1, frozen_backbone: true}
  - {epochs: 3, frozen_backbone: false, lr: {low: 1e-5, high: 1e-3, log: true}, gamma_neg: 2.0}
  - epochs: 2
    when: {system: fused}
    fusion: attention
    resolution: [{when: {backbone: test_resnet}, value: 96}, {value: 80}]
start:
  - {system: fused, backbone: test_resnet, stages.1.lr: 1e-4}
  - {system: fused, backbone: test_convnext, stages.1.lr: 1e-4}
smoke:
  backbones: {test_resnet: test_convnext}
  resolutions: {64: 32, 80: 40, 96: 40}
  parameters: {lr: 0.01, loss: bce}
  trials: 2
  images: 250
"""


def staged(tmp_path, text=STAGED, **options):
    path = tmp_path / "staged.yaml"
    path.write_text(text)
    return load_space(str(path), **options)


def test_a_space_with_stages_makes_trials_whose_stages_hold_where_their_when_does(tmp_path):
    space = staged(tmp_path)
    assert space.epochs == 6
    found = {}
    for seed in range(30):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
        space.define(trial)
        config = space.to_config(trial.params)
        found.setdefault((config.system, config.backbone), config)
        assert 1e-5 <= config.staged()[1].lr <= 1e-3
        assert config.staged()[1].loss_settings["gamma_neg"] == 2.0
        assert config.staged()[0].loss_settings["gamma_neg"] == 4.0
        assert "stages.1.lr" in trial.params
    assert len(found) == 4
    assert found["plain", "test_resnet"].total_epochs == 4
    assert [stage.fusion for stage in found["fused", "test_resnet"].staged()] == ["none", "none", "attention"]
    assert [stage.resolution for stage in found["fused", "test_resnet"].staged()] == [64, 64, 96]
    assert [stage.resolution for stage in found["fused", "test_convnext"].staged()] == [64, 64, 80]


def test_a_smoke_run_takes_small_text_encoders_one_for_one_in_stages_too(tmp_path):
    text = """
trials: 1
parameters:
  backbone: test_resnet
  resolution: 64
  head: query_text
  text: {choices: [pubmedbert, cxr-bert, minilm]}
stages:
  - {epochs: 1, text: cxr-bert}
  - {epochs: 2, head: linear, text: null}
start: [{text: cxr-bert}]
smoke:
  texts: {pubmedbert: minilm, cxr-bert: FOLDER}
"""
    (config,) = staged(tmp_path, text, smoke=True).kinds()[:1]
    space = staged(tmp_path, text, smoke=True)
    assert space.domains["text"][0].choices == ("minilm", "FOLDER")
    assert space.start == ({"text": "FOLDER"},)
    assert [stage.text for stage in config.staged()] == ["FOLDER", None]
    assert [stage.text for stage in staged(tmp_path, text).kinds()[0].staged()] == ["cxr-bert", None]


def test_a_spaces_models_are_those_of_all_its_stages(tmp_path):
    kinds = {(spec.backbone, spec.resolution, spec.fusion) for spec in staged(tmp_path).specs()}
    assert kinds == {
        ("test_convnext", 64, "none"),
        ("test_convnext", 80, "attention"),
        ("test_resnet", 64, "none"),
        ("test_resnet", 96, "attention"),
    }


def test_trials_with_stages_are_compared_in_their_last_stage_only(tmp_path):
    space = staged(tmp_path)
    assert space.grace(space.epochs) == 4 + 1
    assert load_space("laptop").grace(6) == 2


def test_start_points_may_name_a_stages_parameter(tmp_path):
    assert staged(tmp_path).start[0]["stages.1.lr"] == 1e-4


def test_smoke_keeps_the_structure_with_small_models_and_one_epoch_a_stage(tmp_path):
    space = staged(tmp_path, smoke=True)
    assert (space.trials, space.images, space.epochs) == (2, 250, 3)
    assert len(space.start) == 1  # both points begin with the same small backbone
    configs = space.kinds()
    assert {config.backbone for config in configs} == {"test_convnext"}
    assert {len(config.staged()) for config in configs} == {2, 3}
    assert {stage.resolution for config in configs for stage in config.staged()} == {32, 40}
    assert {(config.loss, config.lr) for config in configs} == {("bce", 0.01)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 1, frozen", "frozen", r"key 'stages\.0' has no `epochs`"),
        ("fusion: attention", "fusion: sum", r"key 'stages\.2\.fusion': given 'sum': there is no such fusion"),
        ("fusion: attention", "backbone: test_vit", r"key 'stages\.2\.backbone': it is the trial's as a whole"),
        ("fusion: attention", "colour: red", r"unknown key 'stages\.2\.colour'; allowed: .*epochs"),
        ("when: {system: fused}", "when: {sistem: fused}", "`when` names 'sistem', which is not a parameter above it"),
        ("trials: 4", "trials: 4\nepochs: 3", "`epochs` and `stages` are both given"),
        ("loss: asl", "loss: asl\n  ema_decay: 0.9\n  swa_start: 0.5", "average weights twice"),
        ("loss: asl", "loss: asl\n  tta: spin", "tta: 'spin' is none of flip, crops, zooms"),
    ],
)
def test_a_mistake_in_stages_is_named_with_its_key(tmp_path, old, new, message):
    assert old in STAGED
    with pytest.raises(UsageError, match=message):
        staged(tmp_path, STAGED.replace(old, new)).specs()


def test_epochs_of_a_space_with_stages_are_not_overridden(tmp_path):
    with pytest.raises(UsageError, match="has stages, which have epochs of their own"):
        staged(tmp_path, epochs=3)


def test_smoke_of_a_space_that_does_not_say_how_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no `smoke:` part"):
        staged(tmp_path, STAGED[: STAGED.index("smoke:")], smoke=True)


def test_choices_that_lengthen_a_trial_are_seen_before_it_is_run(tmp_path):
    text = STAGED.replace("epochs: 3, frozen", "epochs: {choices: [3, 7]}, frozen").replace("loss: asl", REFIT)
    assert text.count("choices: [3, 7]") == text.count("refit") == 1
    space = staged(tmp_path, text)
    assert space.epochs == 1 + 7 + 2
    assert {config.refit for config in space.kinds()} == {True, False}


REFIT = "loss: asl\n  refit: {choices: [false, true]}"


DISTILLED = MINE.replace(
    "  pretrained: false\n", "  pretrained: false\n  objective: {choices: [multilabel, distill]}\n"
)


def test_an_objective_and_its_settings_are_searched_like_a_loss_and_its(space):
    content = DISTILLED.replace(
        "start:", "  distill_share: {when: {objective: distill}, low: 0.2, high: 0.8}\nstart:", 1
    )
    loaded = load_space(space(content))
    for trial in sampled(loaded):
        expected = {"distill_temperature", "distill_share"} if trial.objective == "distill" else set()
        assert set(trial.objective_settings) == expected
        if expected:
            assert 0.2 <= trial.objective_settings["distill_share"] <= 0.8
            assert trial.objective_settings["distill_temperature"] == 2.0
    assert loaded.learns_soft_targets() == "distill"
    assert loaded.metric.name == "val_map"
    assert load_space(space()).learns_soft_targets() == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  objective: nothing", "there is no such objective; there are .*multilabel"),
        ("  distill_share: 2.0", "distill_share is 2, but must be from 0 to 1"),
    ],
)
def test_an_objective_or_setting_that_cannot_be_is_refused(space, line, message):
    with pytest.raises(UsageError, match=message):
        load_space(space(MINE.replace("start:", f"{line}\nstart:")))


def test_trials_that_are_judged_by_different_metrics_are_refused(space, monkeypatch):
    from cxrlt_ray.objectives.distill import Distill
    from cxrlt_ray.objectives.metric import Metric

    monkeypatch.setattr(Distill, "metric", Metric("val_loss", "min", "val loss"))
    with pytest.raises(UsageError, match="its trials are judged by val loss and val mAP, which do not compare"):
        _ = load_space(space(DISTILLED)).metric


def test_init_from_means_the_storage_of_the_sweep_wherever_the_trial_is_trained(tmp_path, monkeypatch):
    """Tune changes a trial's directory, and the default storage is a relative one."""
    run, path = tmp_path / "runs" / "before", tmp_path / "space.yaml"
    path.write_text(
        "trials: 1\nepochs: 1\n"
        "parameters: {backbone: test_resnet, pretrained: false, resolution: 32, init_from: before}"
    )
    RunRecord(name="before", task=Task("auto", ("Mass",))).write(Store(str(run)), "run.json")
    config = TrialConfig(backbone="test_resnet", resolution=32, epochs=1)
    record = TrialRecord(name="T0000", state="finished", config=config, score=0.5)
    record.write(Store(str(run / "trials" / "T0000")), "trial.json")
    (run / "trials" / "T0000" / "fold-0").mkdir()
    monkeypatch.chdir(tmp_path)
    space = load_space("space.yaml", storage="runs")
    (tmp_path / "trial").mkdir()
    monkeypatch.chdir(tmp_path / "trial")
    assert space.to_config({}).checkpoint == f"{run}/trials/T0000/fold-0/model.safetensors"
