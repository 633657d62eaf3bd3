"""Attention as ML-Decoder, CheXFusion and KAD use it: torch's own layers, without the kernels that hide their cost.

torch.nn.MultiheadAttention takes a fused kernel in evaluation that its FLOP counter does not see; these layers always
take scaled_dot_product_attention.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import relu, scaled_dot_product_attention

ATTENTION_HEADS = 8
WIDTH = 768  # at most; the width of CheXFusion's ConvNeXt-S and of ML-Decoder


def width_for(features: int) -> int:
    """The width of attention over `features`: as many, up to WIDTH, in steps of 32."""
    return min(WIDTH, 32 * math.ceil(features / 32))


def inner_for(width: int) -> int:
    """The width of a feed-forward layer: 2,048 for 768, as in both papers' code."""
    return width * 8 // 3


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of queries [B, Q, D] to tokens [B, N, D] -> [B, Q, D]."""

    def __init__(self, width: int, heads: int = ATTENTION_HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attention of queries, the same for all where their B is 1, to tokens. mask: bool [Q, N], what is attended."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(queries), self.key(tokens), self.value(tokens))
        )
        attended = scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with ReLU between; `inner` features there, as many as `inner_for` says without it."""

    def __init__(self, width: int, drop_rate: float, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or inner_for(width)
        self.wide, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return self.narrow(self.drop(relu(self.wide(x))))


class EncoderLayer(nn.Module):
    """torch.nn.TransformerEncoderLayer in its default form: attention, feed-forward, a norm after each sum."""

    def __init__(self, width: int, drop_rate: float) -> None:
        super().__init__()
        self.attention, self.feed = MultiHeadAttention(width), FeedForward(width, drop_rate)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = self.norms[0](x + self.drop(self.attention(x, x)))
        return self.norms[1](x + self.drop(self.feed(x)))


class DecoderLayer(nn.Module):
    """ML-Decoder's layer (Ridnik et al. 2021, fig. 2): a transformer decoder's, without self-attention of queries."""

    def __init__(self, width: int, drop_rate: float) -> None:
        super().__init__()
        self.attention, self.feed = MultiHeadAttention(width), FeedForward(width, drop_rate)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.drop = nn.Dropout(drop_rate)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B, Q, D] of queries [1, Q, D] or [B, Q, D] and tokens [B, N, D]."""
        queries = self.norms[0](queries + self.drop(queries))
        queries = self.norms[1](queries + self.drop(self.attention(queries, tokens)))
        return self.norms[2](queries + self.drop(self.feed(queries)))


class PreNormDecoderLayer(nn.Module):
    """A transformer decoder's layer with its norms before each part, as KAD, UniChest and MedKLIP have it.

    x + self(norm x), if it has self-attention; + cross(norm x, tokens) + pooled * cross(norm x, mean token); +
    feed(norm x). pooled: the weight of the second term (UniChest: .4).
    """

    HEADS, INNER = 4, 1024  # of KAD and MedKLIP

    def __init__(self, width: int, drop_rate: float, self_attention: bool, pooled: float) -> None:
        super().__init__()
        self.pooled = pooled
        self.among = MultiHeadAttention(width, self.HEADS) if self_attention else None
        self.attention = MultiHeadAttention(width, self.HEADS)
        self.feed = FeedForward(width, drop_rate, min(self.INNER, 4 * width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if self_attention else 2))
        self.drop = nn.Dropout(drop_rate)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, Q, D] of queries [1, Q, D] or [B, Q, D] and tokens [B, N, D]. mask: bool [Q, Q], of self-attention."""
        *first, before_attention, before_feed = self.norms
        if self.among is not None:
            x = first[0](queries)
            queries = queries + self.drop(self.among(x, x, mask))
        x = before_attention(queries)
        attended = self.attention(x, tokens)
        if self.pooled:
            attended = attended + self.pooled * self.attention(x, tokens.mean(dim=1, keepdim=True))
        queries = queries + self.drop(attended)
        return queries + self.drop(self.feed(before_feed(queries)))


def positions(side: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Sine and cosine position embeddings of a square grid, float [side * side, width], width divisible by 4.

    Half encode the row, half the column, as a fraction of the image times 32: the same point of an image has the same
    embedding on a finer grid, so that a model can be carried over to another resolution.
    """
    steps = width // 4
    rates = torch.exp(-math.log(10_000) * torch.arange(steps, device=device) / steps)
    along = (torch.arange(side, device=device) + 0.5) / side * 32
    angles = along[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=2).flatten(0, 1)
