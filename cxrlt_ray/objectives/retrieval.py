"""How well one side of pairs finds the other, whatever the number of pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CANDIDATES = 64
SEED = 0


def reciprocal_rank(
    queries: torch.Tensor, keys: torch.Tensor, number: torch.Tensor, candidates: int = CANDIDATES
) -> float:
    """The mean reciprocal rank of each query's own key by cosine, among `candidates` at most; nan without a pair.

    queries, keys: [N, D], pair i in row i of both. number: int64 [N]: keys of one number are one key, and do not stand
    against each other. The pairs are divided at random, always alike, into groups of `candidates`, so that the score
    does not depend on how many pairs there are; pairs beyond full groups are left out, unless there is no full group.
    Equal cosines share their ranks. By chance about .074 among 64.
    """
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(SEED)).to(queries.device)
    groups = [group for group in order.split(candidates) if len(group) == candidates] or [order]
    if not len(order):
        return float("nan")
    ranks = []
    for group in groups:
        one, other = (F.normalize(side[group].float(), dim=1) for side in (queries, keys))
        similar = one @ other.T
        others = number[group].unsqueeze(1) != number[group].unsqueeze(0)
        own = similar.diagonal().unsqueeze(1)
        above, level = ((part & others).sum(dim=1) for part in (similar > own, similar == own))
        ranks.append(1 + above + level / 2)
    return float((1 / torch.cat(ranks)).mean())
