"""The optimiser of a stage: its schedule, rates by layer, averages of the weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import ModelSpec, build
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training.optimizer import Average, optimizer_of, take_step


def config(**options):
    return TrialConfig(backbone="test_convnext", resolution=32, epochs=4, **options)


def rates_of(settings, steps):
    """The rate of each step."""
    optimizer, schedule = optimizer_of(torch.nn.Linear(2, 2), settings, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_the_rate_rises_to_lr_and_falls_to_zero():
    rates = rates_of(config(lr=0.1, warmup_fraction=0.2), 50)
    assert max(rates) == pytest.approx(0.1)
    assert np.argmax(rates) in (9, 10)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] < 0.001


def test_a_stable_rate_stays_and_falls_to_zero_at_the_end():
    rates = rates_of(config(lr=0.1, warmup_fraction=0.1, schedule="stable", decay_fraction=0.3), 100)
    assert (np.diff(rates[:10]) > 0).all()
    assert rates[10:70] == pytest.approx([0.1] * 60)
    assert np.diff(rates[71:]) == pytest.approx([-0.1 / 30] * 28)
    assert rates[-1] == pytest.approx(0.1 / 30)
    constant = rates_of(config(lr=0.1, warmup_fraction=0.1, schedule="stable", decay_fraction=0.0), 100)
    assert constant[10:] == pytest.approx([0.1] * 90)


def test_norms_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer, _ = optimizer_of(model, config(weight_decay=0.5), 10)
    decayed, plain = optimizer.param_groups
    assert [p.ndim for p in decayed["params"]] == [2]
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)


def test_the_average_of_the_weights_leaves_the_random_start_behind_within_an_epoch():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 100.0)
    settings = config(ema_decay=0.999)
    optimizer, schedule = optimizer_of(model, settings, 100)
    average = Average(model, settings)
    torch.nn.init.constant_(model.weight, 1.0)  # as if training had moved it at once
    for _ in range(20):
        model.weight.grad = torch.zeros_like(model.weight)
        take_step(model, optimizer, schedule, settings, average)
    assert abs(float(average.ema.module.weight.detach()) - 1.0) < 0.05


def test_rates_fall_by_layer_from_the_head_to_the_stem():
    model = build(ModelSpec("test_convnext", 32, pretrained=False), 2)
    optimizer, _ = optimizer_of(model, config(lr=1.0, layer_decay=0.5, warmup_fraction=0.0), 10)
    rate = {p: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert set(rate) == set(named.values())
    stem = next(p for name, p in named.items() if "stem" in name)
    assert rate[named["head.linear.weight"]] == 1.0
    assert rate[stem] == min(rate.values()) < 0.2
    powers = np.log2(np.array(list(rate.values())))
    assert np.allclose(powers, powers.round())  # each a power of the decay
    flat, _ = optimizer_of(model, config(lr=1.0), 10)
    assert {group["initial_lr"] for group in flat.param_groups} == {1.0}


def test_a_backbone_without_named_layers_is_refused():
    model = torch.nn.Module()
    model.backbone = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="does not name its layers: give it `layer_decay: 1`"):
        optimizer_of(model, config(layer_decay=0.7), 10)


def test_swa_is_the_mean_of_the_epochs_weights_with_batch_norm_of_its_own():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = Average(model, config(swa_start=0.5))
    data = [(torch.randn(64, 3),) for _ in range(4)]
    seen = []
    for epoch in range(4):
        with torch.no_grad():
            model[0].weight.copy_(torch.full((4, 3), float(epoch)))
        before = copy.deepcopy(model.state_dict())
        judged = average.judged(model, epoch, iter(data), lambda: torch.autocast("cpu", enabled=False))
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        seen.append(judged)
    assert seen[0] is model
    assert seen[1] is model
    assert torch.allclose(seen[2][0].weight, torch.tensor(2.0))
    assert torch.allclose(seen[3][0].weight, torch.tensor(2.5))
    outputs = torch.cat([seen[3][0](x) for (x,) in data]).detach()
    assert torch.allclose(seen[3][1].running_mean, outputs.mean(0), atol=1e-4)


def test_under_swa_the_rate_stays_where_averaging_began():
    rates = rates_of(config(lr=1.0, swa_start=0.5), 40)
    assert len(set(rates[20:])) == 1
    assert 0.3 < rates[-1] < 0.7
