"""Multi-label losses: one function each, found by name.

Every loss takes logits float [B, C], targets float [B, C] with 1, 0 or -1 (not labelled) and class
weights [C] of the positives, and returns the mean over labelled entries as a scalar; entries that are
not labelled have no gradient. All compute in float32 at least, from log-sigmoids, so that they are
stable in bfloat16. To add one: a function with `@register_loss("name")`; its keyword arguments are
its settings, to be searched by these names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

Loss = Callable[..., torch.Tensor]
LOSSES: dict[str, Loss] = {}
MAX_WEIGHT = 100.0


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Make a loss known by `name` to search spaces, training and the tests that all losses must pass."""

    def register(loss: Loss) -> Loss:
        LOSSES[name] = loss
        return loss

    return register


def settings(name: str) -> dict[str, float]:
    """The settings of loss `name` with their defaults."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def class_weights(positives: np.ndarray, labelled: np.ndarray, exponent: float) -> np.ndarray:
    """Weights [C] of positives: ((labelled - positives) / positives) ** exponent, at most MAX_WEIGHT.

    positives, labelled: counts [C] in training. Exponent 0 weighs all alike; 1 balances positives and
    negatives of a finding (King & Zeng 2001; `pos_weight` of BCE). Without positives: 1.
    """
    positives, labelled = np.asarray(positives, float), np.asarray(labelled, float)
    ratio = (labelled - positives) / np.maximum(positives, 1)
    weights = np.where(positives > 0, np.maximum(ratio, 1e-6) ** exponent, 1.0)
    return np.minimum(weights, MAX_WEIGHT)


@register_loss("bce")
def bce(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy; class weights do not enter."""
    return _mean(_bce(logits, targets), targets)


@register_loss("weighted_bce")
def weighted_bce(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy with the positives' terms times their class weight."""
    return _mean(_bce(logits, targets) * _of_positives(targets, weights), targets)


@register_loss("focal")
def focal(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, focal_gamma: float = 2.0
) -> torch.Tensor:
    """Focal loss, (1 - p_t)^gamma times the cross entropy (Lin et al. 2017, eq. 4), positives times class weight."""
    cross = _bce(logits, targets)
    easy = torch.exp(-cross)  # p_t
    return _mean((1 - easy) ** focal_gamma * cross * _of_positives(targets, weights), targets)


@register_loss("asl")
def asl(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> torch.Tensor:
    """Asymmetric loss (Ridnik et al. 2021, eq. 7); class weights do not enter.

    Positives: (1 - p)^gamma_pos log p; negatives: p_m^gamma_neg log(1 - p_m), p_m = max(p - clip, 0).
    """
    return _mean(_asl(logits, targets, gamma_neg, gamma_pos, clip), targets)


@register_loss("weighted_asl")
def weighted_asl(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> torch.Tensor:
    """Asymmetric loss with the positives' terms times their class weight."""
    return _mean(_asl(logits, targets, gamma_neg, gamma_pos, clip) * _of_positives(targets, weights), targets)


def bound(
    name: str, chosen: dict[str, float], weights: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Loss `name` with its `chosen` settings and class weights [C], as a function of (logits, targets)."""
    return lambda logits, targets: LOSSES[name](logits, targets, weights, **chosen)


def _bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(_float(logits), targets.clamp(min=0).to(_float(logits)), reduction="none")


def _asl(logits: torch.Tensor, targets: torch.Tensor, gamma_neg: float, gamma_pos: float, clip: float) -> torch.Tensor:
    logits = _float(logits)
    p = logits.sigmoid()
    positive = -F.logsigmoid(logits) * (1 - p) ** gamma_pos
    if clip:
        shifted = (p - clip).clamp(min=0)
        negative = -torch.log1p(-shifted)
    else:
        shifted, negative = p, -F.logsigmoid(-logits)
    # the floor keeps the power's gradient finite at 0 for gammas below 1
    negative = negative * shifted.clamp(min=1e-8) ** gamma_neg
    return torch.where(targets > 0, positive, negative)


def _of_positives(targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.where(targets > 0, weights, torch.ones_like(weights))


def _mean(terms: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    labelled = targets >= 0
    return torch.where(labelled, terms, torch.zeros_like(terms)).sum() / labelled.sum().clamp(min=1)


def _float(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
