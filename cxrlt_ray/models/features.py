"""Between backbone and head: a backbone's feature map as tokens [B, N, D], and ways to pool them.

Features come as [B, D, H, W] (most backbones), [B, H, W, D] (Swin) or tokens [B, P + N, D] with P prefix tokens (class,
registers). Heads see the N tokens of the image only, row by row. timm's last norm or 1x1 convolution, where a backbone
has it after its pooling (ConvNeXt, MobileNet), is applied to each token: no pretrained weight is lost or left unused.
"""

from __future__ import annotations

from math import isqrt, log
from typing import Any

import torch
from torch import nn

from cxrlt_ray.errors import UsageError


def width_of(backbone: Any) -> int:
    """How many features a token, or the pooled image, has."""
    return int(getattr(backbone, "head_hidden_size", backbone.num_features))


def unpool(backbone: Any, name: str) -> None:
    """Make `forward_head` keep the feature map. Raises UsageError for a backbone that cannot."""
    try:
        backbone.reset_classifier(0, "")
    except (AssertionError, TypeError, ValueError, AttributeError):
        raise UsageError(_no_map(name)) from None


def pooled(backbone: Any, features: torch.Tensor) -> torch.Tensor:
    """The features as the backbone itself pools them, as one token [B, 1, D]."""
    return backbone.forward_head(features, pre_logits=True).unsqueeze(1)


def with_class_token(backbone: Any, features: torch.Tensor, name: str) -> torch.Tensor:
    """The class token and, after it, `to_tokens`: [B, 1 + N, D]. Without a class token, the mean over the others."""
    tokens = to_tokens(backbone, features, name)
    if getattr(backbone, "cls_token", None) is None:
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    return torch.cat([backbone.forward_head(features, pre_logits=True)[:, :1], tokens], dim=1)


def to_tokens(backbone: Any, features: torch.Tensor, name: str) -> torch.Tensor:
    """The tokens [B, N, D] of a backbone after `unpool`; N is a square, as images are."""
    x = backbone.forward_head(features, pre_logits=True)
    if x.ndim == 4 and getattr(backbone, "output_fmt", "NCHW") != "NHWC":
        return x.flatten(2).transpose(1, 2)
    if x.ndim == 4:
        return x.flatten(1, 2)
    if x.ndim != 3:
        raise UsageError(_no_map(name))
    prefix = getattr(backbone, "num_prefix_tokens", None)
    count = x.shape[1]
    return x[:, count - isqrt(count) ** 2 if prefix is None else prefix :]


def _no_map(name: str) -> str:
    return f"backbone '{name}' gives no feature map: take `head: linear` and `pool: own`, or another backbone."


class Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, D]."""
        return x.mean(dim=1)


class Max(nn.Module):
    """The largest value over tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, D]."""
        return x.amax(dim=1)


class GeM(nn.Module):
    """Generalised mean, (mean of x^p)^(1/p), p learned from 3 (Radenovic et al. 2018, eq. 3).

    For features that are not negative: others count as EPS. Computed from logarithms, since x^p underflows.
    """

    EPS = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, D]."""
        logs = x.float().clamp(min=self.EPS).log()
        mean = torch.logsumexp(self.p.float() * logs, dim=1) - log(x.shape[1])
        return (mean / self.p).exp().to(x.dtype)


POOLS: dict[str, type[nn.Module]] = {"avg": Mean, "max": Max, "gem": GeM}
