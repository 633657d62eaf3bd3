"""Random crops of images on the device: batched tensor operations, each image with draws of its own.

As DINOv2 makes them (Oquab et al. 2023; data/augmentations.py of its code) of gray images: an area and a ratio of
edges, mirrored, brightness and contrast, blur, solarised. Hue and saturation do nothing there. A crop is cut from the
image at the stage's resolution and brought to its size: a small one is enlarged, which a larger image would spare.
Unlike torchvision's, a box that is longer than the image is cut to it rather than drawn again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from cxrlt_ray.objectives.draws import Draws

RATIOS = (3 / 4, 4 / 3)  # of width to height
KERNEL, SIGMAS = 9, (0.1, 2.0)  # of the blur, in pixels
JITTERED = 0.8  # probability of brightness and contrast being changed


@dataclass(frozen=True)
class Look:
    """How the crops of one kind are made. size: their edge in pixels. areas: least and largest share of the image.

    flip, blur, solarise: probabilities. jitter: brightness and contrast are multiplied by 1 - jitter to 1 + jitter.
    """

    size: int
    areas: tuple[float, float]
    flip: float = 0.5
    jitter: float = 0.4
    blur: float = 0.0
    solarise: float = 0.0


@torch.no_grad()
def random_crops(images: torch.Tensor, look: Look, draws: Draws) -> torch.Tensor:
    """Float [B, size, size] in 0..1 of images float [B, H, W] in 0..1."""
    crops = _boxed(images, look, draws)
    crops = torch.where(_each(draws.chance(look.flip)), crops.flip(-1), crops)
    if look.jitter:
        crops = _jittered(crops, look.jitter, draws)
    if look.blur:
        crops = torch.where(_each(draws.chance(look.blur)), _blurred(crops, draws), crops)
    if look.solarise:
        crops = torch.where(_each(draws.chance(look.solarise)) & (crops >= 0.5), 1 - crops, crops)
    return crops


def _boxed(images: torch.Tensor, look: Look, draws: Draws) -> torch.Tensor:
    """Boxes of random area, ratio and place, each averaged to `size` pixels: nothing is aliased."""
    height, width = images.shape[-2:]
    area = draws.uniform(low=look.areas[0], high=look.areas[1]) * height * width
    ratio = draws.uniform(low=math.log(RATIOS[0]), high=math.log(RATIOS[1])).exp()
    wide, high = (area * ratio).sqrt().clamp(max=width), (area / ratio).sqrt().clamp(max=height)
    left, top = draws.uniform() * (width - wide), draws.uniform() * (height - high)
    number = torch.arange(len(images), device=images.device, dtype=images.dtype)
    boxes = torch.stack([number, left, top, left + wide, top + high], dim=1)
    return roi_align(images.unsqueeze(1), boxes, look.size, aligned=True).squeeze(1)


def _jittered(crops: torch.Tensor, jitter: float, draws: Draws) -> torch.Tensor:
    chosen = _each(draws.chance(JITTERED))
    brightness, contrast = (_each(draws.uniform(low=1 - jitter, high=1 + jitter)) for _ in range(2))
    bright = (crops * brightness).clamp(0, 1)
    mean = bright.mean(dim=(1, 2), keepdim=True)
    return torch.where(chosen, (mean + (bright - mean) * contrast).clamp(0, 1), crops)


def _blurred(crops: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Each crop under a Gaussian of its own width."""
    sigma = draws.uniform(low=SIGMAS[0], high=SIGMAS[1]).unsqueeze(1)
    offsets = torch.arange(KERNEL, device=crops.device) - KERNEL // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum(dim=1, keepdim=True)
    x = F.pad(crops.unsqueeze(0), (KERNEL // 2,) * 4, mode="replicate")
    x = F.conv2d(x, weights.view(-1, 1, KERNEL, 1), groups=len(crops))
    return F.conv2d(x, weights.view(-1, 1, 1, KERNEL), groups=len(crops)).squeeze(0)


def _each(values: torch.Tensor) -> torch.Tensor:
    """Values [B] by image: [B, 1, 1]."""
    return values.view(-1, 1, 1)
