"""Heads: features [B, ...] of a backbone -> logits [B, C].

To add one: a module whose `__init__(features, findings, drop_rate)` and `forward(features, backbone)`
follow `Linear`, with `@register_head("name")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

HEADS: dict[str, Callable[[int, int, float], nn.Module]] = {}


def register_head(name: str) -> Callable[[Any], Any]:
    """Make a head known by `name` to search spaces and to the tests that all heads must pass."""

    def register(head: Any) -> Any:
        HEADS[name] = head
        return head

    return register


@register_head("linear")
class Linear(nn.Module):
    """The backbone's own pooling, dropout, one linear layer."""

    def __init__(self, features: int, findings: int, drop_rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.linear = nn.Linear(features, findings)

    def forward(self, features: torch.Tensor, backbone: nn.Module) -> torch.Tensor:
        """Logits [B, C]."""
        return self.linear(self.drop(backbone.forward_head(features, pre_logits=True)))  # type: ignore[operator]
