"""Attention as ML-Decoder and CheXFusion use it: torch's own layers, without the paths that hide their cost.

torch.nn.MultiheadAttention takes a fused kernel in evaluation that its FLOP counter does not see; these take
scaled_dot_product_attention always.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import relu, scaled_dot_product_attention

HEADS = 8
WIDTH = 768  # at most; of CheXFusion's ConvNeXt-S, and ML-Decoder's


def width_for(features: int) -> int:
    """The width of attention over `features`: as many, up to WIDTH, in steps of 32."""
    return min(WIDTH, 32 * math.ceil(features / 32))


def inner_for(width: int) -> int:
    """The width of a feed-forward layer: 2,048 for 768, as in both papers' code."""
    return width * 8 // 3


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of queries [B, Q, D] to places [B, N, D] -> [B, Q, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Attention of queries, with B = 1 the same for all, to places."""
        q, k, v = (
            each.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for each in (self.query(queries), self.key(places), self.value(places))
        )
        found = scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v)
        return self.out(found.transpose(1, 2).flatten(2))


class Feed(nn.Module):
    """Two linear layers with ReLU between."""

    def __init__(self, width: int, drop_rate: float) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, inner_for(width)), nn.Linear(inner_for(width), width)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return self.narrow(self.drop(relu(self.wide(x))))


class Encoder(nn.Module):
    """A layer of torch.nn.TransformerEncoder in its default form: attention, feed-forward, norm after each sum."""

    def __init__(self, width: int, drop_rate: float) -> None:
        super().__init__()
        self.attention, self.feed = Attention(width), Feed(width, drop_rate)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = self.norms[0](x + self.drop(self.attention(x, x)))
        return self.norms[1](x + self.drop(self.feed(x)))


class Decoder(nn.Module):
    """ML-Decoder's layer (Ridnik et al. 2021, fig. 2): a transformer decoder's, without self-attention of queries."""

    def __init__(self, width: int, drop_rate: float) -> None:
        super().__init__()
        self.attention, self.feed = Attention(width), Feed(width, drop_rate)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.drop = nn.Dropout(drop_rate)

    def forward(self, queries: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """[B, Q, D] of queries [1, Q, D] or [B, Q, D] and places [B, N, D]."""
        queries = self.norms[0](queries + self.drop(queries))
        queries = self.norms[1](queries + self.drop(self.attention(queries, places)))
        return self.norms[2](queries + self.drop(self.feed(queries)))


def positions(side: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Sines and cosines of the places of a grid, float [side * side, width], width divisible by 4.

    Half tell the row, half the column, as a fraction of the image times 32: the same place of an image has the same
    code on a finer grid, so that a model is carried to another resolution.
    """
    steps = width // 4
    rates = torch.exp(-math.log(10_000) * torch.arange(steps, device=device) / steps)
    along = (torch.arange(side, device=device) + 0.5) / side * 32
    angles = along[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=2).flatten(0, 1)
