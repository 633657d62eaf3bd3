"""Images and images: two views of a study, or two augmentations of one image, against those of other studies.

NT-Xent of SimCLR (Chen et al. 2020, eq. 1; C's code, tau .5; I's option, tau .1) and MoCo (He et al. 2020, eq. 1 and 2;
C's slides, 1,024 keys). Images of one study are no negatives of each other. C's code calls names in its SimCLR that
torch.distributed does not have, so that it ends at step 8,000 on several GPUs; ours gathers as the other terms do.
Barlow Twins has no negatives: it compares features, not images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from cxrlt_ray.objectives.terms.contrast import cross_entropies, distinct
from cxrlt_ray.objectives.terms.gather import gathered, joint_mean, share_of

VARIANCE = 1e-5  # added to a feature's variance, as batch norm does
EMPTY = -1  # among the studies of a queue's keys


def nt_xent(
    first: torch.Tensor, second: torch.Tensor, temperature: float, study: torch.Tensor | None = None
) -> torch.Tensor:
    """NT-Xent of both views [B, D]: each is to find the other among the 2 N - 1 other views of all workers.

    study: int64 [B], equal for pairs of one study, which are no negatives of each other; without it all differ.
    """
    first, second = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
    share = share_of(first)
    keys = gathered(first, share), gathered(second, share)
    own = share.own(first.device)
    if study is None:
        study = torch.arange(len(first), device=first.device) + share.first
    differs = distinct(study, share)
    alone = differs.clone()
    alone[torch.arange(len(first), device=first.device), own] = False  # a view is not compared with itself
    losses = []
    for query, same, other in ((first, *keys), (second, keys[1], keys[0])):
        logits = query @ torch.cat([other, same]).T / temperature  # its own column is among the first N
        losses.append(cross_entropies(logits, share, torch.cat([differs, alone], dim=1)))
    return (joint_mean(losses[0]) + joint_mean(losses[1])) / 2


def barlow_twins(first: torch.Tensor, second: torch.Tensor, redundancy: float) -> torch.Tensor:
    """Sum of (1 - C_ii)^2 + redundancy times the sum of C_ij^2, i != j (Zbontar et al. 2021, eq. 1 and 2).

    C: the correlation of both views' features [B, D] over all workers' rows, each brought to mean 0 and variance 1.
    lightly's is of each worker's own means and variances. Of one row C is 0.
    """
    share = share_of(first)
    one, other = (_standardised(gathered(view.float(), share)) for view in (first, second))
    correlation = one.T @ other / share.total
    own = correlation.diagonal()
    # every worker has the whole loss: the sum over workers in `gathered` and the mean over them in DDP cancel
    return (1 - own).square().sum() + redundancy * (correlation.square().sum() - own.square().sum())


def _standardised(features: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return (features - mean) / (variance + VARIANCE).sqrt()


class KeyQueue(nn.Module):
    """The last `size` keys of all workers, as buffers, so that a resume state holds them.

    keys: float [K, D], normalised. study: int64 [K], whose a key is, EMPTY before there is one. place: where the next
    goes.
    """

    keys: torch.Tensor
    study: torch.Tensor
    place: torch.Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, width))
        self.register_buffer("study", torch.full((size,), EMPTY))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: torch.Tensor, study: torch.Tensor) -> None:
        """Put in all workers' keys [B, D], of studies int64 [B], in the place of the oldest."""
        share = share_of(keys)
        keys = gathered(F.normalize(keys.float(), dim=-1), share)[-len(self.keys) :]
        study = gathered(study, share)[-len(self.keys) :]
        places = (int(self.place) + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[places], self.study[places] = keys, study
        self.place.fill_((int(self.place) + len(keys)) % len(self.keys))


def moco(
    query: torch.Tensor, key: torch.Tensor, queue: KeyQueue, temperature: float, study: torch.Tensor
) -> torch.Tensor:
    """Each query's key against the queue: -log softmax of its cosine / temperature among 1 + K.

    query, key: [B, D], of which keys have no gradient. study: int64 [B]: keys of the query's own study are left out,
    as are places that are still empty.
    """
    query, key = F.normalize(query.float(), dim=-1), F.normalize(key.detach().float(), dim=-1)
    positive = (query * key).sum(dim=1, keepdim=True) / temperature
    negative = query @ queue.keys.clone().T / temperature  # the queue changes before the gradients are computed
    kept = (queue.study.unsqueeze(0) != study.unsqueeze(1)) & (queue.study != EMPTY).unsqueeze(0)
    logits = torch.cat([positive, negative.masked_fill(~kept, -torch.inf)], dim=1)
    return joint_mean(logits.logsumexp(dim=1) - positive.squeeze(1))


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Move every parameter of `slow` to momentum slow + (1 - momentum) fast. Buffers are each module's own."""
    for target, source in zip(slow.parameters(), fast.parameters(), strict=True):
        target.lerp_(source.to(target.dtype), 1 - momentum)
