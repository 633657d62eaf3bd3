"""Heads: tokens [B, N, D] of an image, or of a study's images together -> logits [B, C].

    linear       pooling and one linear layer; with `pool: own` the backbone pools
    csra, csra_6 class-specific residual attention, one head or six
    ml_decoder   one learned query for each finding attends to the tokens; ml_decoder_cls: and to the class token
    query_text   the same with label embeddings as queries; more heads that read texts are in text_heads.py

To add one: a subclass of `Head` like `Linear`, under `@register_head("name")`. `needs_map` says that it needs the
feature map's tokens, `needs_class` that a class token stands before
them, `needs_embeddings` that it needs label embeddings, `gives_maps` that `with_maps` returns its
attention too, `gives_queries` that it has `decoded` queries, `SETTINGS` names the fields of ModelSpec that no other
head reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.functional import relu

from cxrlt_ray.models.attention import DecoderLayer, width_for
from cxrlt_ray.models.features import POOLS
from cxrlt_ray.models.spec import OWN_POOL, ModelSpec


class Head(nn.Module):
    """The base of all heads. features: D. embeddings: label embeddings [C, E], for heads that need them."""

    needs_map = True
    needs_class = False
    needs_embeddings = False
    gives_maps = False
    gives_queries = False
    SETTINGS: tuple[str, ...] = ()

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__()

    def with_maps(self, tokens: torch.Tensor, phrases: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, C] and attention maps [B, C, N] in 0..1, of heads that give them; of `phrases` [K, E] too."""
        raise NotImplementedError


HEADS: dict[str, type[Head]] = {}
H = TypeVar("H", bound=type[Head])


def register_head(name: str) -> Callable[[H], H]:
    """Make a head known by `name` to search spaces and to the tests that all heads must pass."""

    def register(head: H) -> H:
        HEADS[name] = head
        return head

    return register


@register_head("linear")
class Linear(Head):
    """Pooling, dropout, one linear layer."""

    needs_map = False

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec)
        self.pool = POOLS[
            "avg" if spec.pool == OWN_POOL else spec.pool
        ]()  # of the one token that the backbone has pooled: itself
        self.drop = nn.Dropout(spec.drop_rate)
        self.linear = nn.Linear(features, findings)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        return self.linear(self.drop(self.pool(tokens)))


@register_head("csra")
class CSRA(Head):
    """Class-specific residual attention (Zhu & Wu 2021): y_c = m_c . (g + lam * a_c), g the mean over tokens, a_c their
    mean by softmax_j(T * x_j . m_c); summed over heads with temperatures T and classifiers of their own (eq. 3 to 9).

    One head and lam .1: the paper's choice for VOC 2007. Unlike its public code, |m_c| is free and there is a bias.
    """

    TEMPERATURES: tuple[float, ...] = (1,)  # infinity: the largest value
    LAM = 0.1

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec)
        self.drop = nn.Dropout(spec.drop_rate)
        self.linear = nn.Linear(features, findings * len(self.TEMPERATURES))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        scores = self.linear(self.drop(tokens)).float().unflatten(2, (len(self.TEMPERATURES), -1))  # [B, N, T, C]
        logits = []
        for temperature, score in zip(self.TEMPERATURES, scores.unbind(2), strict=True):
            if math.isinf(temperature):
                attended = score.amax(dim=1)
            else:
                # a bias shifts all tokens alike: the softmax does not change
                attended = ((temperature * score).softmax(dim=1) * score).sum(dim=1)
            logits.append(score.mean(dim=1) + self.LAM * attended)
        return torch.stack(logits).sum(dim=0)


@register_head("csra_6")
class CSRA6(CSRA):
    """With the six heads and lam .5 that the paper's authors give for COCO."""

    TEMPERATURES = (1, 2, 3, 4, 5, math.inf)
    LAM = 0.5


@register_head("ml_decoder")
class MLDecoder(Head):
    """ML-Decoder (Ridnik et al. 2021): learned queries attend to the tokens, each is decoded to a group of findings.

    One layer without self-attention; one query a finding up to GROUPS, beyond that findings share queries (group
    decoding, eq. 4).
    With 40 findings on ConvNeXt-S at 384 px: 6.2 million parameters (12 % of the model's) and 0.9 GFLOPs (1.7 %).
    """

    GROUPS = 100

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec)
        width, groups = width_for(features), min(self.GROUPS, findings)
        self.findings = findings
        self.embed = nn.Linear(features, width)
        self.queries = nn.Parameter(torch.randn(groups, width))
        self.decoder = DecoderLayer(width, spec.drop_rate)
        self.read = nn.Parameter(torch.empty(groups, width, math.ceil(findings / groups)))
        self.bias = nn.Parameter(torch.zeros(findings))
        nn.init.xavier_normal_(self.read)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        decoded = self.decoder(self.queries.unsqueeze(0), relu(self.embed(tokens)))  # [B, G, D]
        logits = torch.einsum("bgd,gdf->bgf", decoded, self.read).flatten(1)
        return logits[:, : self.findings] + self.bias


@register_head("ml_decoder_cls")
class MLDecoderWithClass(MLDecoder):
    """ML-Decoder whose keys and values are the class token, first, and the patch tokens (team E).

    A backbone without a class token has the mean over its tokens there.
    """

    needs_class = True


@register_head("query_text")
class QueryText(Head):
    """ML-Decoder with label embeddings [C, E], frozen, as queries (Ridnik et al. 2021, sec. 3.4, zero-shot).

    All queries are read out by the same vector: only its embedding identifies a finding, so that the model can be asked
    for findings that it was not trained on. The embeddings are part of the checkpoint.
    """

    needs_embeddings = True
    embeddings: torch.Tensor

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec)
        assert embeddings is not None
        width = width_for(features)
        self.register_buffer("embeddings", embeddings)
        self.embed, self.ask = nn.Linear(features, width), nn.Linear(embeddings.shape[1], width)
        self.decoder = DecoderLayer(width, spec.drop_rate)
        self.read = nn.Linear(width, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        queries = relu(self.ask(self.embeddings)).unsqueeze(0)
        return self.read(self.decoder(queries, relu(self.embed(tokens)))).squeeze(2)
