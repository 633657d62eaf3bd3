"""Phrases, attention maps and boxes (team I: slides, and the code of MedVQA).

A phrase is true of an image, false, or unknown. A model gives it a logit and a map of where it looks. Terms:

    phrases   2 x the mean of focal loss (alpha .25, gamma 2), BCE, and BCE balanced between true and false phrases
    area      true phrases: mean of max(0, .4 - mean a); false phrases: mean of mean a
    boxes     2 x (1.5 x mean |a - m| inside of the boxes + mean |a - m| outside)

I's code also rescales each of the three phrase losses by their total over its own value, so that a pair's gradient
depends on the batch it is in, and near a loss of 0 has no bound; ours does not. Cells without a label have no loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.terms.gather import joint_mean

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
LEAST_AREA = 0.4  # of the map, where a phrase is true
INSIDE = 1.5

Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the image's edges


def phrase_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """2 x the mean of the three losses of logits [B, K] and labels [B, K], 1, 0 or -1 (not known); 0 without labels.

    Focal: Lin et al. 2017, eq. 5. Balanced: the mean of the means over true and over false phrases.
    """
    logits, known, true = logits.float(), labels >= 0, labels == 1
    bce = F.binary_cross_entropy_with_logits(logits, true.float(), reduction="none")
    alpha = torch.where(true, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    focal = alpha * (1 - (-bce).exp()) ** FOCAL_GAMMA * bce
    plain, focused = (joint_mean(values.flatten(), known.flatten()) for values in (bce, focal))
    halves = [joint_mean(bce.flatten(), some.flatten()) for some in (true, known & ~true)]
    return 2 * (focused + plain + (halves[0] + halves[1]) / 2) / 3


def area_loss(attention: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The area term of maps [B, K, H, W] in [0, 1], with labels [B, K] as in `phrase_loss`."""
    area, known, true = attention.float().flatten(2).mean(dim=2), labels >= 0, labels == 1
    missing = (LEAST_AREA - area).clamp(min=0)
    return joint_mean(missing.flatten(), true.flatten()) + joint_mean(area.flatten(), (known & ~true).flatten())


def mask_loss(attention: torch.Tensor, masks: torch.Tensor, boxed: torch.Tensor) -> torch.Tensor:
    """The boxes' term of maps and masks [B, K, H, W] in [0, 1], of the phrases that have boxes, bool [B, K].

    Inside: cells of which the mask is above 0.
    """
    distance = (attention.float() - masks.float()).abs()
    inside, given = masks > 0, boxed[..., None, None].expand_as(masks)
    means = [joint_mean(distance.flatten(), (given & some).flatten()) for some in (inside, ~inside)]
    return 2 * (INSIDE * means[0] + means[1])


def boxes_to_mask(boxes: Sequence[Box], grid: tuple[int, int]) -> torch.Tensor:
    """The share of each cell that the boxes cover, float [H, W] of a grid (H, W); of several boxes the largest share.

    boxes: (left, top, right, bottom) in shares of the image's width and height, from 0 to 1. Raises UsageError for a
    box that is outside of the image, or has no area.
    """
    mask = torch.zeros(grid)
    for number, box in enumerate(boxes, 1):
        left, top, right, bottom = box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise UsageError(
                f"box {number} is ({', '.join(f'{edge:g}' for edge in box)}): left, top, right and bottom must be "
                "shares of the image's edges from 0 to 1, left below right and top below bottom."
            )
        rows, columns = (_covered(a, b, n) for a, b, n in ((top, bottom, grid[0]), (left, right, grid[1])))
        mask = torch.maximum(mask, rows[:, None] * columns[None, :])
    return mask


def _covered(start: float, end: float, cells: int) -> torch.Tensor:
    """The share of each of `cells` equal parts of [0, 1] that lies between start and end: [cells]."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    return ((edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)).clamp(min=0) * cells).float()
