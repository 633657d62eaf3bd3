"""What a frozen network sees in prepared images: coarse maps to compare pictures, pooled features to compare sets.

The network is the packaged tf_efficientnet_lite0 with ImageNet weights unless another is named. Pictures are compared
by the maps of a middle level, which say where something is, at a resolution at which noise and compression are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.data.image_transform import AugmentedView
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.stream import stream_views
from cxrlt_ray.errors import UsageError

if TYPE_CHECKING:
    import torch

BACKBONE = "tf_efficientnet_lite0"
EDGE, SHOWN = 128, 64  # pixels that the network is given, and that are left of the image in them
STRIDE, GRID = 16, 4  # of the level whose maps are taken, and of what they are pooled to
CROP = 0.9  # of the edge, of the crops of training images
PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
WHOLE = AugmentedView(SHOWN)
VIEWS = (WHOLE, *(AugmentedView(SHOWN, CROP, place) for place in PLACES))  # of training images
BATCH = 64

Describe = Callable[["torch.Tensor"], "torch.Tensor"]  # uint8 [B, H, W] -> float [B, D]


def describer(backbone: str = BACKBONE, pooled: bool = False) -> Describe:
    """A function of images uint8 [B, H, W] that gives their features float [B, D], on the GPU if there is one.

    pooled: the last level's, averaged over the image. Raises UsageError for a network without such levels, CxrltError
    where its weights cannot be had.
    """
    import torch
    from torch.nn import functional

    from cxrlt_ray import models
    from cxrlt_ray.models import ModelSpec

    model = models.build(ModelSpec(backbone, EDGE, pool="avg"), 1).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    network = model.backbone
    if not pooled and not hasattr(network, "forward_intermediates"):
        raise UsageError(f"--features {backbone}: it does not give the maps of its levels; take another network.")

    def describe(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            pixels = functional.interpolate(images.to(device).float().unsqueeze(1), size=(EDGE, EDGE), mode="bilinear")
            inputs = model.normalised(pixels.squeeze(1) / 255)
            if pooled:
                return model.patches(pixels.squeeze(1) / 255).mean(dim=1).float().cpu()
            levels = network.forward_intermediates(inputs, intermediates_only=True)
            maps = min(levels, key=lambda level: abs(EDGE // STRIDE - level.shape[-1]))
            return functional.adaptive_avg_pool2d(maps, GRID).flatten(1).float().cpu()

    return describe


def whitened(describe: Describe, whitening: Callable[[np.ndarray], np.ndarray]) -> Describe:
    """`describe`, its features whitened (copies.Whitening)."""
    import torch

    return lambda images: torch.from_numpy(whitening(describe(images).numpy()))


def features_of(
    shards: Shards,
    image_id: np.ndarray,
    describe: Describe,
    views: Sequence[AugmentedView] = (WHOLE,),
    mirrored: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[np.ndarray]:
    """Features float32 [N, D] of N prepared images for each of `views`, and of the first one mirrored if asked for.

    The result has the order of `views`, the mirrored one last. Every image is decoded once.
    """
    import torch

    parts = [slice(first, first + BATCH) for first in range(0, len(image_id), BATCH)]

    def described() -> Iterator[list[np.ndarray]]:
        for pictures in stream_views(shards, image_id, list(views), parts):
            tensors = [torch.from_numpy(picture) for picture in pictures]
            tensors += [tensors[0].flip(-1)] if mirrored else []
            yield [describe(tensor).numpy() for tensor in tensors]

    made = described() if say is None else cli.with_progress(described(), len(image_id), say, lambda of: len(of[0]))
    columns = list(zip(*made, strict=True))
    return [np.concatenate(column).astype(np.float32) for column in columns]
