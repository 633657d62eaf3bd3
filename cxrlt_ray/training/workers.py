"""The workers of a trial: which one this process is, what they agree on, and what they put together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.training.job import Job

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Worker:
    """One process among a trial's: its rank, how many there are, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0


def worker_of(job: Job) -> Worker:
    """The process in a Train worker group, in local mode or outside of Ray."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from ray.train.torch import get_device

        return Worker(torch.distributed.get_rank(), torch.distributed.get_world_size(), get_device())
    return Worker(0, 1, torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu"))


def agree(value: bool, worker: Worker) -> bool:
    """Whether `value` is true for all workers: a file may appear, or fail to be read, between their reads of it."""
    if worker.world == 1:
        return value
    import torch

    flag = torch.tensor(float(value), device=worker.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag > 0)


def most(count: int, worker: Worker) -> int:
    """The largest `count` of all workers: shares of a batch differ by an image, and so may how many pieces they are."""
    if worker.world == 1:
        return count
    import torch

    number = torch.tensor(float(count), device=worker.device)
    torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
    return int(number)


def all_finite(value: float, worker: Worker) -> bool:
    """Whether the loss is finite on every worker: they must skip a step together, or all-reduces no longer match."""
    return agree(math.isfinite(value), worker)


def joined(scores: np.ndarray, worker: Worker) -> np.ndarray:
    """Scores float32 [N, ...] of all workers together; nan where none has scored a row. Each has scored its own."""
    if worker.world == 1:
        return scores
    import torch

    mine = ~np.isnan(scores)
    total = torch.from_numpy(np.where(mine, scores, 0).astype(np.float32)).to(worker.device)
    seen = torch.from_numpy(mine.astype(np.float32)).to(worker.device)
    for tensor in (total, seen):
        torch.distributed.all_reduce(tensor)
    return np.where(seen.cpu().numpy() > 0, total.cpu().numpy(), np.nan).astype(np.float32)


def wrap(network: torch.nn.Module, worker: Worker) -> torch.nn.Module:
    """The network as one worker of several trains it: gradients are of all, on GPUs batch norm's statistics too."""
    if worker.world == 1:
        return network
    import torch

    if worker.device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        network = convert_sync_batchnorm(network)  # torch's own drops the activations of timm's fused layers
    ids = [worker.device.index] if worker.device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(network, device_ids=ids)


def share_norms(network: torch.nn.Module, worker: Worker) -> torch.nn.Module:
    """The network that is judged, with the first worker's batch norm statistics on all: these are in the checkpoint.

    On CPUs each worker's are of the images that it saw last, so that every share of the validation images would be
    scored by another model than the one that is kept.
    """
    if worker.world == 1:
        return network
    import torch

    for norm in network.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            for buffer in norm.buffers():
                torch.distributed.broadcast(buffer, 0)
    return network


@contextmanager
def alone(network: torch.nn.Module) -> Iterator[None]:
    """While a worker tries the network by itself: batch norms take their running statistics, which stay as they are.

    Those of all workers would be waited for, by a worker of which the others have tried more, or less often, for ever.
    """
    import torch

    norms = [m for m in network.modules() if isinstance(m, torch.nn.SyncBatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
