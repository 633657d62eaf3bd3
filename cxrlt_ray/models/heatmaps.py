"""Where in an image a finding's logit comes from: attention, class activation maps or Grad-CAM; and what that says.

    attention  a head's own maps (`Head.with_maps`)
    cam        linear head over the mean of the feature map: exact, the map's mean and the bias are the logit
    grad_cam   any other: feature map by its gradient's mean (Selvaraju et al. 2017, eq. 1 and 2)

A heatmap that is the same when the weights are not the trained ones shows the image, not the model: `randomised` gives
such a model (Adebayo et al. 2018, Sanity Checks for Saliency Maps) and `likeness` compares.
"""

from __future__ import annotations

import copy
from math import isqrt
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import relu
from torch.nn.modules.batchnorm import _BatchNorm

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models.classifier import Classifier
from cxrlt_ray.models.features import Mean
from cxrlt_ray.models.heads import Linear

Method = Literal["attention", "cam", "grad_cam"]


def method_of(model: Classifier) -> Method:
    """How the heatmaps of a model are made. Raises UsageError for one with a fusion, whose logits are a study's."""
    if model.fusion is not None:
        raise UsageError("a model with a fusion of views has no heatmap: its logits are of a study, not of an image.")
    if model.head.gives_maps:
        return "attention"
    return "cam" if isinstance(model.head, Linear) and isinstance(model.early_pool, Mean) else "grad_cam"


def heatmaps(model: Classifier, images: torch.Tensor, findings: torch.Tensor) -> torch.Tensor:
    """A map float32 [B, side, side] of each image [B, H, W] for one finding each, indices int64 [B].

    Of attention in 0..1; else in logits, of cam and grad_cam the part that speaks for the finding (not below 0). The
    model is in evaluation mode. Raises UsageError for a model that has none.
    """
    method, rows = method_of(model), torch.arange(len(images), device=images.device)
    if method == "attention":
        with torch.no_grad():
            return model.with_maps(images)[1][rows, findings].float()
    if method == "cam":
        assert isinstance(model.head, Linear)
        with torch.no_grad():
            maps = class_activation_maps(model.patches(images), model.head.linear.weight)
        return relu(maps[rows, findings]).float()
    return grad_cam(model, images, findings)


def class_activation_maps(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Maps [B, C, side, side] of tokens [B, side * side, D] under a linear layer's weight [C, D] (Zhou et al. 2016).

    Their mean and the layer's bias are the logit of a head that averages tokens.
    """
    side = isqrt(tokens.shape[1])
    return (tokens @ weight.T).transpose(1, 2).unflatten(2, (side, side))


def grad_cam(model: Classifier, images: torch.Tensor, findings: torch.Tensor) -> torch.Tensor:
    """The Grad-CAM float32 [B, side, side] of each image's finding on the backbone's last feature map.

    Where a transformer's logit is read from the class token alone, no other token of the last layer has a gradient:
    then on what its last block was given. Raises UsageError where that is not known either.
    """
    with torch.enable_grad():
        pixels = model.normalised(images)
        given: list[torch.Tensor] = []
        blocks = getattr(model.backbone, "blocks", None)
        hook = blocks[-1].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) if blocks else None
        try:
            features = model.backbone.forward_features(pixels.requires_grad_())
        finally:
            if hook is not None:
                hook.remove()
        logits = model.logits(model.read(features), len(images))
        chosen = logits[torch.arange(len(images), device=images.device), findings].sum()
        for activations in (features, *given):
            (slope,) = torch.autograd.grad(chosen, activations, retain_graph=True, allow_unused=True)
            if slope is None:
                continue
            maps = _weighed(_as_map(activations, model), _as_map(slope, model))
            if maps is not None:
                return maps.detach().float()
    raise UsageError(f"backbone '{model.name}' has no feature map that its logits have a gradient in: no heatmap.")


def _as_map(features: torch.Tensor, model: Classifier) -> torch.Tensor:
    """Features in any of the forms of features.py as [B, D, side, side], class and register tokens left out."""
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if getattr(model.backbone, "output_fmt", "NCHW") == "NHWC" else features
    if features.ndim != 3:
        raise UsageError(f"backbone '{model.name}' gives no feature map: no heatmap.")
    count = features.shape[1]
    prefix = getattr(model.backbone, "num_prefix_tokens", None)
    side = isqrt(count if prefix is None else count - prefix)
    return features[:, count - side**2 :].transpose(1, 2).unflatten(2, (side, side))


def _weighed(activations: torch.Tensor, slope: torch.Tensor) -> torch.Tensor | None:
    """The positive part of the sum over channels, each by its mean gradient; None where there is no gradient."""
    if not slope.abs().max() > 0:
        return None
    return relu((activations * slope.mean(dim=(2, 3), keepdim=True)).sum(dim=1))


def randomised(model: Classifier, images: torch.Tensor, seed: int) -> Classifier:
    """A copy whose parameters, tensor by tensor, have their values in random order: as large, of no meaning.

    Batch norms are given the statistics of images [B, H, W] anew, without which a deep one may overflow.
    """
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            values = parameter.flatten()
            order = torch.randperm(len(values), generator=generator).to(values.device)
            parameter.copy_(values[order].view_as(parameter))
        norms = [module for module in other.modules() if isinstance(module, _BatchNorm)]
        _measure(other, norms, images)
    return other


def _measure(model: Classifier, norms: list[_BatchNorm], images: torch.Tensor) -> None:
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    model.backbone.forward_features(model.normalised(images))
    nn.Module.eval(model)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two maps [side, side]; nan where one is constant or not finite."""
    from scipy.stats import rankdata

    if not (np.isfinite(one).all() and np.isfinite(other).all()) or one.shape != other.shape:
        return float("nan")
    first, second = rankdata(one.ravel()), rankdata(other.ravel())
    if first.std() == 0 or second.std() == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
