"""All workers' features with their gradients, and means over all workers' rows.

Let worker w hold B_w of N rows and give the loss L_w = W / N times the sum over its rows. The mean over workers that
DistributedDataParallel takes of the gradients of L_w is then the gradient of the mean over N rows, whatever the B_w
are. A plain mean over a worker's own rows weighs rows by 1 / B_w: another loss where workers' batches differ in size.

A row's loss depends on other workers' features. Their gradient goes back to the worker that computed them, where the
gradients of all workers are summed. torch.distributed.nn.all_gather does the same, but for equal sizes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Share:
    """A worker's rows among those of all. rank: of this worker. sizes: how many rows each worker has."""

    rank: int = 0
    sizes: tuple[int, ...] = ()

    @property
    def first(self) -> int:
        """The place of the worker's first row among those of all."""
        return sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        """All workers' rows."""
        return sum(self.sizes)

    def own(self, device: torch.device) -> torch.Tensor:
        """The places of this worker's rows among those of all: int64 [B]."""
        return torch.arange(self.first, self.first + self.sizes[self.rank], device=device)


def workers() -> int:
    """How many workers train together; 1 outside of a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share_of(rows: torch.Tensor) -> Share:
    """The share of the calling worker, from its own rows [B, ...]. All workers call it together."""
    if workers() == 1:
        return Share(0, (len(rows),))
    sizes = torch.zeros(workers(), dtype=torch.int64, device=rows.device)
    sizes[dist.get_rank()] = len(rows)
    dist.all_reduce(sizes)
    return Share(dist.get_rank(), tuple(sizes.tolist()))


def gathered(rows: torch.Tensor, share: Share) -> torch.Tensor:
    """All workers' rows [N, ...], from this worker's [B, ...]; gradients flow back to the worker a row is of.

    Dimensions but the first are equal on all workers (`padded_alike`).
    """
    return rows if len(share.sizes) == 1 else _Gather.apply(rows, share)


def padded_alike(rows: torch.Tensor) -> torch.Tensor:
    """[B, L, ...] padded with zeros to the largest L of all workers."""
    if workers() == 1:
        return rows
    longest = torch.tensor(rows.shape[1], device=rows.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - rows.shape[1]
    return torch.cat([rows, rows.new_zeros(len(rows), missing, *rows.shape[2:])], 1) if missing else rows


def joint_mean(values: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """A worker's part of the mean over all workers' values [B]: W / (sum of all weights) times its weighted sum.

    weights: float or bool [B], 1 without. Where all weights are 0, the mean is 0, with a gradient of 0.
    """
    kept = torch.ones_like(values) if weights is None else weights.to(values.dtype)
    total = kept.detach().sum()
    if workers() > 1:
        dist.all_reduce(total)
    # a weight of 0 also leaves out what is not finite
    summed = torch.where(kept > 0, values, 0.0).mul(kept).sum()
    return workers() * summed / torch.where(total > 0, total, 1.0)


class _Gather(torch.autograd.Function):
    """All-gather of rows of differing number; backward sums all workers' gradients and keeps the own rows'."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, share: Share) -> torch.Tensor:
        ctx.share = share
        largest = max(share.sizes)
        filled = rows.new_zeros(largest, *rows.shape[1:])
        filled[: len(rows)] = rows
        parts = [torch.empty_like(filled) for _ in share.sizes]
        dist.all_gather(parts, filled)
        return torch.cat([part[:size] for part, size in zip(parts, share.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        share = ctx.share
        return gradient[share.first : share.first + share.sizes[share.rank]], None
