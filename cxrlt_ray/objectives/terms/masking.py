"""Masks over the patches of images, and the error of patches that were masked.

block_masks: rectangles of patches, for self-distillation (iBOT; masking.py of DINOv2's code). kept_patches: a random
part of an image's patches is seen, all others are masked (MAE: He et al. 2022).
"""

from __future__ import annotations

import math

import torch

from cxrlt_ray.objectives.draws import Draws

TRIES = 10  # rectangles an image
LEAST = 4  # patches of a rectangle
ASPECT = 0.3  # of height to width at least; at most 1 / ASPECT
FLAT = 1e-6  # added to a patch's variance


def block_masks(side: int, draws: Draws, probability: float, ratios: tuple[float, float]) -> torch.Tensor:
    """Bool [B, side * side]: the share `probability` of all workers' images is masked, by rectangles of patches.

    The masked images have shares of masked patches that are spread evenly over `ratios`. What rectangles leave is
    filled up by single patches, so that a share is met to a patch. Drawn batchwise; lightly's draws from Python's
    global generator, image by image, and no resume would repeat it.
    """
    wanted = _wanted(side * side, draws, probability, ratios)
    masked = torch.zeros(len(wanted), side, side, dtype=torch.bool, device=wanted.device)
    line = torch.arange(side, device=wanted.device)
    for _ in range(TRIES):
        left = wanted - masked.sum(dim=(1, 2))
        area = LEAST + draws.uniform() * (left - LEAST).clamp(min=0)
        aspect = draws.uniform(low=math.log(ASPECT), high=-math.log(ASPECT)).exp()
        high, wide = ((area * factor).sqrt().round().clamp(1, side) for factor in (aspect, 1 / aspect))
        top, start = ((draws.uniform() * (side - edge + 1)).floor() for edge in (high, wide))
        rows, columns = (
            (line >= at.unsqueeze(1)) & (line < (at + edge).unsqueeze(1)) for at, edge in ((top, high), (start, wide))
        )
        block = rows.unsqueeze(2) & columns.unsqueeze(1)
        fits = (block & ~masked).sum(dim=(1, 2)) <= left
        masked |= block & fits.view(-1, 1, 1)
    order = (2 * masked.flatten(1) + draws.uniform(side * side)).argsort(dim=1, descending=True)
    return order.argsort(dim=1) < wanted.unsqueeze(1)


def _wanted(patches: int, draws: Draws, probability: float, ratios: tuple[float, float]) -> torch.Tensor:
    """How many patches of each image are masked: int64 [B]."""
    rank, chosen = draws.rank(), int(draws.share.total * probability)
    share = ratios[0] + (ratios[1] - ratios[0]) * (rank + draws.uniform()) / max(1, chosen)
    return torch.where(rank < chosen, share * patches, 0.0).long()


def kept_patches(patches: int, draws: Draws, ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches that are seen, int64 [B, M], and bool [B, patches]: those that are masked, the share `ratio`.

    At least one is seen, and one is masked.
    """
    count = min(patches - 1, max(1, patches - round(ratio * patches)))
    kept = draws.uniform(patches).argsort(dim=1)[:, :count]
    masked = torch.ones(len(kept), patches, dtype=torch.bool, device=kept.device)
    return kept, masked.scatter(1, kept, False)


def patch_pixels(images: torch.Tensor, edge: int) -> torch.Tensor:
    """Images [B, H, W] as the pixels of their patches, row by row: [B, N, edge * edge]."""
    patches = images.unfold(1, edge, edge).unfold(2, edge, edge)
    return patches.flatten(3).flatten(1, 2)


def masked_errors(predicted: torch.Tensor, pixels: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Each image's mean squared error over its masked patches: [B].

    predicted, pixels: [B, N, P]. A patch's pixels are first brought to mean 0 and variance 1 (section 3 of the paper,
    "normalized pixel values").
    """
    pixels = pixels.float()
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    errors = (predicted.float() - (pixels - mean) / (variance + FLAT).sqrt()).square().mean(dim=-1)
    return (errors * masked).sum(dim=1) / masked.sum(dim=1)
