"""Objectives: what all of them must do, and what distillation computes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.losses import LOSSES
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.objectives.registry import ObjectiveSpec, all_objectives, fault_of, find_objective, settings_of
from cxrlt_ray.runs.trial_config import TrialConfig

RNG = np.random.default_rng(0)
LABELLED = [name for name, kind in all_objectives().items() if kind.predicts and not kind.needs.heads]
TARGETS = RNG.choice([-1, 0, 1], (40, 3), p=[0.2, 0.5, 0.3]).astype(np.int8)
SOFT = np.where(RNG.random((40, 3)) < 0.2, np.nan, RNG.random((40, 3))).astype(np.float32)


def objective(name, targets=TARGETS, soft=SOFT, **spec):
    return find_objective(name)(ObjectiveSpec(objective=name, **spec), targets, soft)


def rows(made, count=8):
    return [(1.0, torch.from_numpy(made.table()[:count]))]


@pytest.mark.parametrize("name", LABELLED)
def test_an_objective_has_a_finite_loss_with_a_gradient_in_both_precisions(name):
    made = objective(name)
    assert made.table().shape[0] == len(TARGETS)
    assert made.table().dtype == np.float32
    logits = torch.randn(8, 3, requires_grad=True)
    for kind in (torch.float32, torch.bfloat16):
        loss = made.loss(logits.to(kind).float(), rows(made))
        assert loss.ndim == 0
        assert torch.isfinite(loss)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LABELLED)
def test_a_mixed_image_has_the_loss_of_both_its_labels_by_their_shares(name):
    made, logits = objective(name), torch.randn(8, 3)
    first, second = torch.from_numpy(made.table()[:8]), torch.from_numpy(made.table()[8:16])
    mixed = made.loss(logits, [(0.3, first), (0.7, second)])
    alone = 0.3 * made.loss(logits, [(1.0, first)]) + 0.7 * made.loss(logits, [(1.0, second)])
    assert float(mixed) == pytest.approx(float(alone), rel=1e-5)


@pytest.mark.parametrize("name", all_objectives())
def test_a_setting_out_of_range_or_unknown_is_refused_with_what_is_allowed(name):
    assert fault_of(name, settings_of(name)) == ""
    assert f"Objective {name} has no setting 'nope'" in fault_of(name, {"nope": 1.0})
    for setting in settings_of(name):
        assert f"{setting} is nan, but must be" in fault_of(name, {setting: math.nan})
        with pytest.raises(UsageError, match=f"{setting} is -1, but must be"):
            objective(name, objective_settings={setting: -1.0})


def test_an_unknown_objective_is_refused_naming_those_there_are():
    with pytest.raises(UsageError, match="there is no objective 'nope'; there are barlow, clip, dinov2, distill"):
        find_objective("nope")
    with pytest.raises(ValueError, match="there is no objective 'nope'"):
        TrialConfig(backbone="test_resnet", resolution=32, epochs=1, objective="nope")


def reference(logits, labels, soft, temperature, share):
    """The mixture, cell by cell, from its formula."""
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    cross = lambda p, q: -(p * math.log(q) + (1 - p) * math.log(1 - q))  # noqa: E731
    hard, gentle = [], []
    for z, y, p in zip(logits.flat, labels.flat, soft.flat, strict=True):
        if y >= 0:
            hard.append(cross(float(y), sigmoid(z)))
        if not math.isnan(p):
            teacher = sigmoid(math.log(p / (1 - p)) / temperature)
            gentle.append(temperature**2 * cross(teacher, sigmoid(z / temperature)))
    return (1 - share) * np.mean(hard) + share * np.mean(gentle)


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.5), (3.0, 0.2), (2.0, 1.0), (2.0, 0.0)])
def test_distillation_is_hintons_formula_for_independent_labels(temperature, share):
    settings = {"distill_temperature": temperature, "distill_share": share}
    made = objective("distill", objective_settings=settings, class_weight_exponent=0.0)
    logits = RNG.normal(0, 2, (40, 3))
    loss = float(made.loss(torch.from_numpy(logits).float(), [(1.0, torch.from_numpy(made.table()))]))
    assert loss == pytest.approx(reference(logits, TARGETS, SOFT.astype(float), temperature, share), rel=1e-4)


def test_a_student_that_agrees_with_its_teacher_is_left_alone_and_without_soft_targets_nothing_is_learnt_from_them():
    made = objective("distill", objective_settings={"distill_share": 1.0})
    teacher = torch.from_numpy(np.nan_to_num(SOFT, nan=0.5))
    logits = torch.logit(teacher).requires_grad_()
    made.loss(logits, [(1.0, torch.from_numpy(made.table()))]).backward()
    assert logits.grad.abs().max() < 1e-6
    far = torch.full((40, 3), 5.0, requires_grad=True)
    made.loss(far, [(1.0, torch.from_numpy(made.table()))]).backward()
    assert ((far.grad == 0).numpy() == np.isnan(SOFT)).all()
    none = objective("distill", soft=np.full((40, 3), np.nan, np.float32), objective_settings={"distill_share": 1.0})
    assert none.loss(far.detach(), [(1.0, torch.from_numpy(none.table()))]).item() == 0.0


def test_a_hot_teachers_gradient_is_as_large_as_a_cool_ones():
    """At a high temperature it is the difference of logits over 4, whatever T (Hinton et al., section 2.1)."""
    soft = np.full((1, 1), 0.8, np.float32)
    for temperature in (20.0, 50.0):
        settings = {"distill_temperature": temperature, "distill_share": 1.0}
        made = objective("distill", np.zeros((1, 1), np.int8), soft, objective_settings=settings)
        logit = torch.tensor([[-1.0]], requires_grad=True)
        made.loss(logit, [(1.0, torch.from_numpy(made.table()))]).backward()
        assert float(logit.grad) == pytest.approx((-1.0 - math.log(4)) / 4, rel=0.01)


def test_distillation_without_soft_targets_says_where_to_give_them():
    with pytest.raises(UsageError, match="objective distill learns stored predictions: give them by `sweep --soft-tar"):
        objective("distill", soft=None)


def test_a_share_of_none_is_the_plain_objective():
    logits = torch.randn(40, 3)
    made = objective("distill", objective_settings={"distill_share": 0.0}, loss="focal")
    plain = objective("multilabel", loss="focal")
    loss = made.loss(logits, [(1.0, torch.from_numpy(made.table()))])
    assert float(loss) == pytest.approx(float(plain.loss(logits, [(1.0, torch.from_numpy(plain.table()))])), rel=1e-6)
    assert "focal" in LOSSES


def test_an_unknown_score_is_never_better_and_always_beaten():
    up, down = Metric(), Metric("val_loss", "min", "val loss")
    for metric, better in ((up, 0.4), (down, 0.2)):
        assert metric.better(better, 0.3)
        assert not metric.better(0.3, better)
        assert not metric.better(0.3, 0.3)
        assert metric.better(0.3, None)
        assert metric.better(0.3, math.nan)
        assert not metric.better(None, 0.3)
        assert not metric.better(math.nan, math.nan)
