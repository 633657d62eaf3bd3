"""Presence and place of findings (H, MedKLIP: Wu et al. 2023, eq. 6 and 7).

A finding's query gives two logits, of absence and presence, and a vector that is to point to the text of where the
finding is ("It is located at {place}"): one place where it is, against seven at random where it is not, out of some 51.
Dot products without temperature, as in the code. Cells without a label have no loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cxrlt_ray.objectives.terms.gather import joint_mean

NEGATIVES = 7
HERE, ELSEWHERE = 1, 0  # in a table of places; -1: not known


def presence(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits [B, C, 2] (absent, present): the mean over labelled cells of all workers.

    labels: [B, C], 1, 0 or -1 (no label).
    """
    flat = labels.flatten()
    losses = F.cross_entropy(logits.float().flatten(0, 1), flat.clamp(min=0).long(), reduction="none")
    return joint_mean(losses, flat >= 0)


def drawn_places(
    places: torch.Tensor, negatives: int = NEGATIVES, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates for each cell with a known place: cells int64 [M, 2], indices int64 [M, 1 + K], and bool [M, 1 + K].

    places: [B, C, P] of HERE, ELSEWHERE, -1 (not known, or overlapping one that is here). The first candidate is one of
    the cell's places at random, the others are random places of ELSEWHERE, all of these where there are fewer than
    `negatives`. The last tensor says which candidates there are.
    """
    cells = (places == HERE).any(dim=2).nonzero()
    of_cells = places[cells[:, 0], cells[:, 1]]
    here, elsewhere = of_cells == HERE, of_cells == ELSEWHERE
    order = torch.rand(here.shape, generator=generator, device=places.device)
    positive = order.masked_fill(~here, -1.0).argmax(dim=1, keepdim=True)
    count = min(negatives, places.shape[2] - 1)
    chance, others = order.masked_fill(~elsewhere, -1.0).topk(count, dim=1)
    there = torch.cat([torch.ones_like(positive, dtype=torch.bool), chance >= 0], dim=1)
    return cells, torch.cat([positive, others], dim=1), there


def location_contrast(
    vectors: torch.Tensor,
    embeddings: torch.Tensor,
    places: torch.Tensor,
    negatives: int = NEGATIVES,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Cross-entropy of each present finding's place among `drawn_places`: the mean over cells; 0 without any.

    vectors: [B, C, E], the queries' outputs projected to the texts' width. embeddings: [P, E], of the places' texts.
    places: [B, C, P] as of `drawn_places`.
    """
    return place_contrast(vectors.float() @ embeddings.float().T, places, negatives, generator)


def place_contrast(
    scores: torch.Tensor,
    places: torch.Tensor,
    negatives: int = NEGATIVES,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """`location_contrast` of dot products that are computed already: scores [B, C, P] of queries and places' texts."""
    cells, candidates, there = drawn_places(places, negatives, generator)
    chosen = scores.float()[cells[:, 0], cells[:, 1]]
    return joint_mean(_cross_entropy(chosen.gather(1, candidates), there))


def _cross_entropy(logits: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Of the first of the candidates that there are: [M] of logits [M, K]."""
    return logits.masked_fill(~there, -torch.inf).logsumexp(dim=1) - logits[:, 0]
