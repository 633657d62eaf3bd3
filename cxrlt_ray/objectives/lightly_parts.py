"""What self-supervised pretraining takes from lightly (extra `pretrain`): heads and a decoder.

Its losses are not taken: of several workers they average the means over each one's rows, which is another loss where
workers' batches differ in size, and none has Sinkhorn-Knopp. The tests hold ours against them on one worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, cast

from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from cxrlt_ray.errors import UsageError

HEAD_WIDTH = 32  # of an attention head of the decoder: 16 of them in MAE's 512


def dino_head(objective: str, features: int, hidden: int, bottleneck: int, prototypes: int) -> nn.Module:
    """DINOv2's head, [B, features] -> logits [B, prototypes]: three layers, a unit vector, prototypes with norms apart.

    The last layer has torch's present weight normalisation, for a module with lightly's (torch's older one) cannot be
    copied once it has been called. The norms begin at 1, as there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the older weight normalisation, which does not stay
        head = _modules(objective).DINOv2ProjectionHead(features, hidden, bottleneck, prototypes)
    head.last_layer = weight_norm(nn.Linear(bottleneck, prototypes, bias=False))
    nn.init.ones_(head.last_layer.parametrizations.weight.original0)
    return cast("nn.Module", head)


def prototypes_of(head: nn.Module) -> Iterator[nn.Parameter]:
    """What the last layer of a `dino_head` learns."""
    return cast("nn.Module", head.last_layer).parameters()


def mae_decoder(objective: str, patches: int, prefix: int, width: int, depth: int) -> nn.Module:
    """MAE's decoder: transformer blocks over [B, prefix + patches, width], with fixed sine-cosine positions."""
    _modules(objective)
    from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM

    return MaskedVisionTransformerDecoderTIMM(patches, width, depth, width // HEAD_WIDTH, num_prefix_tokens=prefix)


def barlow_projector(objective: str, features: int, width: int) -> nn.Module:
    """Barlow Twins' projector, [B, features] -> [B, width]: three layers of `width`, batch norm between them."""
    return cast("nn.Module", _modules(objective).BarlowTwinsProjectionHead(features, width, width))


def _modules(objective: str) -> Any:
    try:
        from lightly.models import modules
    except ImportError:
        raise UsageError(f"objective {objective} needs lightly: pip install 'cxrlt-ray[pretrain]'.") from None
    return modules
