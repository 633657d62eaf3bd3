"""Heads: places [B, N, D] of an image, or of a study's images together -> logits [B, C].

    linear       pooled, one linear layer; with `pool: own` the backbone pools
    csra, csra_6 class-specific residual attention, one head or six
    ml_decoder   a query a finding looks at the places
    query_text   the same with given label embeddings as queries

To add one: a module with `__init__(features, findings, spec, given)` and `forward(places)` like `Linear`, with
`@register_head("name")`; `reads_map` says that it needs the places apart, `reads_queries` that it needs `given`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import relu

from cxrlt_ray.models.attention import Decoder, width_for
from cxrlt_ray.models.features import POOLS

if TYPE_CHECKING:
    from cxrlt_ray.models import ModelSpec

HEADS: dict[str, Any] = {}


def register_head(name: str) -> Callable[[Any], Any]:
    """Make a head known by `name` to search spaces and to the tests that all heads must pass."""

    def register(head: Any) -> Any:
        HEADS[name] = head
        return head

    return register


class Head(nn.Module):
    """What all heads have. features: D. given: label embeddings [C, E] of heads that read queries."""

    reads_map = True
    reads_queries = False

    def __init__(self, features: int, findings: int, spec: ModelSpec, given: torch.Tensor | None = None) -> None:
        super().__init__()


@register_head("linear")
class Linear(Head):
    """Pooling, dropout, one linear layer."""

    reads_map = False

    def __init__(self, features: int, findings: int, spec: ModelSpec, given: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec)
        self.pool = POOLS["avg" if spec.pool == "own" else spec.pool]()  # of what the backbone has pooled: itself
        self.drop = nn.Dropout(spec.drop_rate)
        self.linear = nn.Linear(features, findings)

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        return self.linear(self.drop(self.pool(places)))


@register_head("csra")
class CSRA(Head):
    """Class-specific residual attention (Zhu & Wu 2021): y_c = m_c . (g + lam * a_c), g the mean over places, a_c their
    mean by softmax_j(T * x_j . m_c); summed over heads with temperatures T and classifiers of their own (eq. 3 to 9).

    One head and lam .1: the paper's choice for VOC 2007. Unlike its public code, |m_c| is free and there is a bias.
    """

    TEMPERATURES: tuple[float, ...] = (1,)  # infinity: the largest value
    LAM = 0.1

    def __init__(self, features: int, findings: int, spec: ModelSpec, given: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec)
        self.drop = nn.Dropout(spec.drop_rate)
        self.linear = nn.Linear(features, findings * len(self.TEMPERATURES))

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        scores = self.linear(self.drop(places)).float().unflatten(2, (len(self.TEMPERATURES), -1))  # [B, N, T, C]
        found = []
        for temperature, score in zip(self.TEMPERATURES, scores.unbind(2), strict=True):
            if math.isinf(temperature):
                attended = score.amax(dim=1)
            else:
                # a bias moves all places alike: the softmax does not see it
                attended = ((temperature * score).softmax(dim=1) * score).sum(dim=1)
            found.append(score.mean(dim=1) + self.LAM * attended)
        return torch.stack(found).sum(dim=0)


@register_head("csra_6")
class CSRA6(CSRA):
    """With the six heads and lam .5 that the paper's authors give for COCO."""

    TEMPERATURES = (1, 2, 3, 4, 5, math.inf)
    LAM = 0.5


@register_head("ml_decoder")
class MLDecoder(Head):
    """ML-Decoder (Ridnik et al. 2021): learned queries attend to the places, each is decoded to a group of findings.

    One layer without self-attention; a query a finding up to GROUPS, more findings share them (group decoding, eq. 4).
    With 40 findings on ConvNeXt-S at 384 px: 6.2 million parameters (12 % of the model's) and 0.9 GFLOPs (1.7 %).
    """

    GROUPS = 100

    def __init__(self, features: int, findings: int, spec: ModelSpec, given: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec)
        width, groups = width_for(features), min(self.GROUPS, findings)
        self.findings = findings
        self.embed = nn.Linear(features, width)
        self.queries = nn.Parameter(torch.randn(groups, width))
        self.decoder = Decoder(width, spec.drop_rate)
        self.read = nn.Parameter(torch.empty(groups, width, math.ceil(findings / groups)))
        self.bias = nn.Parameter(torch.zeros(findings))
        nn.init.xavier_normal_(self.read)

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        found = self.decoder(self.queries.unsqueeze(0), relu(self.embed(places)))  # [B, G, D]
        logits = torch.einsum("bgd,gdf->bgf", found, self.read).flatten(1)
        return logits[:, : self.findings] + self.bias


@register_head("query_text")
class QueryText(Head):
    """ML-Decoder with given label embeddings [C, E], frozen, as queries (Ridnik et al. 2021, sec. 3.4, zero-shot).

    All queries are read by the same vector: a finding is told by its embedding alone, so that others can be asked for.
    The embeddings stand in the checkpoint.
    """

    reads_queries = True
    embeddings: torch.Tensor

    def __init__(self, features: int, findings: int, spec: ModelSpec, given: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec)
        assert given is not None
        width = width_for(features)
        self.register_buffer("embeddings", given)
        self.embed, self.ask = nn.Linear(features, width), nn.Linear(given.shape[1], width)
        self.decoder = Decoder(width, spec.drop_rate)
        self.read = nn.Linear(width, 1)

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        queries = relu(self.ask(self.embeddings)).unsqueeze(0)
        return self.read(self.decoder(queries, relu(self.embed(places)))).squeeze(2)
