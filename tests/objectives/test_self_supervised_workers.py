"""DINOv2, MAE and Barlow Twins: two workers whose batches differ by an image come to the gradients of one worker."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP
from two_workers import process_group, run_two

from cxrlt_ray import models
from cxrlt_ray.models import ModelSpec
from cxrlt_ray.objectives.registry import ObjectiveSpec, find_objective
from cxrlt_ray.objectives.terms.gather import gathered, share_of
from cxrlt_ray.objectives.terms.views import barlow_twins

IMAGES = 7
DINO = {
    "dinov2_prototypes": 24,
    "dinov2_hidden": 16,
    "dinov2_bottleneck": 8,
    "dinov2_local_crops": 2,
    "dinov2_local_px": 32,
}
CASES = {
    "centre": ("dinov2", {**DINO, "dinov2_separate_head": 1}),
    "sinkhorn": ("dinov2", {**DINO, "dinov2_balance": 2}),
    "mae": ("mae", {"mae_width": 32, "mae_depth": 1}),
}


class Barlow(torch.nn.Module):
    """A projection without batch norm, whose statistics are a worker's own on a CPU, and the loss of two views."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.project = torch.nn.Linear(48 * 48, 6)

    def forward(self, pixels):
        x = pixels.flatten(1).float() / 255
        return barlow_twins(self.project(x), self.project(x.flip(1)), 0.0051).reshape(1)


def network_of(case):
    if case == "barlow":
        return None, Barlow()
    name, settings = CASES[case]
    torch.manual_seed(0)
    objective = find_objective(name)(ObjectiveSpec(name, settings), np.empty((0, 2), np.int8))
    network = objective.network(models.Classifier(ModelSpec("test_vit", 48, pretrained=False), 2))
    if case == "centre":
        with torch.no_grad():  # a teacher that differs, and a centre that is not zero
            network.image_centre.copy_(torch.linspace(-0.2, 0.2, 24))
            for parameter in network.teacher_heads.parameters():
                parameter.mul_(1.1)
    return objective, network.train()


def outcome(rows, case, wrapped):
    """The loss of these rows, the gradients after what DDP does to them, and the buffers."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 48, 48), dtype=torch.uint8, generator=generator)
    objective, network = network_of(case)
    module = DDP(network) if wrapped else network  # kept: its hooks end with it
    outputs = module(pixels[rows])
    loss = outputs.sum() if objective is None else objective.loss(outputs, [])
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}
    return loss.detach(), gradients, {name: buffer.clone() for name, buffer in network.named_buffers()}


def worker(rank, meeting, file):
    rows, results = slice(0, 3) if rank == 0 else slice(3, IMAGES), {}
    with process_group(rank, meeting):
        for case in [*CASES, "barlow"]:
            loss, *others = outcome(rows, case, True)
            losses = gathered(loss.reshape(1), share_of(loss.reshape(1)))
            results[case] = (losses.mean(), *others)
    torch.save(results, f"{file}-{rank}")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("self-supervised")
    run_two(worker, f"{folder}/meeting", f"{folder}/results")
    return [torch.load(f"{folder}/results-{rank}") for rank in range(2)]


@pytest.mark.parametrize("case", [*CASES, "barlow"])
def test_two_workers_have_the_loss_gradients_and_centres_of_one_on_the_joined_batch(case, two):
    loss, gradients, buffers = outcome(slice(0, IMAGES), case, False)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for rank in range(2):
        torch.testing.assert_close(two[rank][case][0], loss, rtol=1e-5, atol=1e-5)
        for wanted, values in ((gradients, two[rank][case][1]), (buffers, two[rank][case][2])):
            for name, tensor in wanted.items():
                torch.testing.assert_close(
                    values[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}"
                )
