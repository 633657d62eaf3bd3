"""Between backbone and head: a backbone's last features as places [B, N, D], and ways to pool them.

Feature maps come as [B, D, H, W] (most), [B, H, W, D] (Swin) or tokens [B, P + N, D] with P prefix tokens (class,
registers): heads see places only, row by row. timm's last norm or 1x1 convolution, where a backbone has it after its
pooling (ConvNeXt, MobileNet), is applied at each place: nothing that was pretrained is lost, nothing is left idle.
"""

from __future__ import annotations

from math import isqrt, log
from typing import Any

import torch
from torch import nn

from cxrlt_ray.errors import UsageError


def width_of(backbone: Any) -> int:
    """How many features a place, or the pooled image, has."""
    return int(getattr(backbone, "head_hidden_size", backbone.num_features))


def unpool(backbone: Any, name: str) -> None:
    """Make `forward_head` leave the places apart. Raises UsageError for a backbone that cannot."""
    try:
        backbone.reset_classifier(0, "")
    except (AssertionError, TypeError, ValueError, AttributeError):
        raise UsageError(_no_map(name)) from None


def pooled(backbone: Any, features: torch.Tensor) -> torch.Tensor:
    """The backbone's own pooling, as one place [B, 1, D]."""
    return backbone.forward_head(features, pre_logits=True).unsqueeze(1)


def places(backbone: Any, features: torch.Tensor, name: str) -> torch.Tensor:
    """The places [B, N, D] of an `unpool`ed backbone; N is a square, as images are."""
    found = backbone.forward_head(features, pre_logits=True)
    if found.ndim == 4 and getattr(backbone, "output_fmt", "NCHW") != "NHWC":
        return found.flatten(2).transpose(1, 2)
    if found.ndim == 4:
        return found.flatten(1, 2)
    if found.ndim != 3:
        raise UsageError(_no_map(name))
    prefix = getattr(backbone, "num_prefix_tokens", None)
    count = found.shape[1]
    return found[:, count - isqrt(count) ** 2 if prefix is None else prefix :]


def _no_map(name: str) -> str:
    return f"backbone '{name}' gives no feature map: take `head: linear` and `pool: own`, or another backbone."


class Mean(nn.Module):
    """The mean over places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, D]."""
        return x.mean(dim=1)


class Max(nn.Module):
    """The largest value over places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, D]."""
        return x.amax(dim=1)


class GeM(nn.Module):
    """Generalised mean, (mean of x^p)^(1/p), p learned from 3 (Radenovic et al. 2018, eq. 3).

    For features that are not negative: others count as EPS. By logarithms, since x^p underflows.
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
