"""Workers whose shares of a batch differ: cut into 1 and 2 pieces (5 and 6 images, in fours), and in batch norms."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP
from two_workers import process_group, run_two

from cxrlt_ray.data.batching import pieces
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training.step import Forward, backward
from cxrlt_ray.training.workers import Worker, share_norms, wrap

IMAGES, PIECE = 11, 4
SHARES = (slice(0, 5), slice(5, 11))


class Squares:
    """The mean square of what the network gives: an objective as `backward` needs one."""

    def loss(self, outputs, targets):
        return outputs.square().mean()


def gradient(rows, rank=0, world=1):
    """Of a linear layer on some of the images, by `backward`, after what DDP does to it; and the loss."""
    torch.manual_seed(1)
    images, layer = torch.randn(IMAGES, 3), torch.nn.Linear(3, 2)
    worker = Worker(rank, world, torch.device("cpu"))
    config = TrialConfig(backbone="test_resnet", resolution=32, epochs=1)
    forward = Forward(DDP(layer) if world > 1 else layer, "off", worker.device, PIECE, 1)
    inputs, targets = (images[rows],), [(1.0, torch.zeros(len(images[rows]), 0))]
    loss = backward(forward, inputs, targets, Squares(), config, PIECE, contextlib.nullcontext, worker)
    return loss, layer.weight.grad.clone()


def work(rank, meeting, file):
    with process_group(rank, meeting):
        torch.save(gradient(SHARES[rank], rank, 2), f"{file}{rank}")


def test_they_take_as_many_passes_as_each_other_and_come_to_the_mean_of_their_gradients(tmp_path):
    assert [len(pieces(rows.stop - rows.start, PIECE)) for rows in SHARES] == [1, 2]
    run_two(work, str(tmp_path / "meeting"), str(tmp_path / "rank"))
    alone = [gradient(rows) for rows in SHARES]
    expected = (alone[0][1] + alone[1][1]) / 2
    for rank in range(2):
        loss, own = torch.load(f"{tmp_path}/rank{rank}")
        assert loss == pytest.approx(alone[rank][0])
        assert torch.allclose(own, expected, atol=1e-6)


def norms(rank, meeting, file):
    """Train on a share by a batch norm; what a judged image comes to before and after the statistics are shared."""
    worker, network, scores = Worker(rank, 2, torch.device("cpu")), torch.nn.BatchNorm1d(3), []
    with process_group(rank, meeting):
        wrap(network, worker)(torch.randn(8, 3, generator=torch.Generator().manual_seed(rank)))
        for share in (False, True):
            if share:
                share_norms(network, worker)
            scores.append(network.eval()(torch.ones(1, 3)).detach())
    torch.save(scores, f"{file}{rank}")


def test_all_workers_judge_by_the_batch_norms_that_the_first_one_keeps(tmp_path):
    run_two(norms, str(tmp_path / "meeting"), str(tmp_path / "rank"))
    first, second = (torch.load(f"{tmp_path}/rank{rank}") for rank in range(2))
    assert not torch.allclose(first[0], second[0])
    assert torch.equal(first[0], second[1])
    assert torch.equal(first[1], second[1])
