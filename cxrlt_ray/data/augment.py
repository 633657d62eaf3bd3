"""What training does to images: one at a time (moved, and their grey levels changed), or two mixed (torch)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

LIMITS = np.array([15, 0.08, 0.08, 0.15, 0.2, 0.2])  # at strength 1, of the columns that `draw` gives
MOVED, TONED = 0.8, 0.5  # shares of the images


def draw(random: np.random.Generator, strength: np.ndarray) -> np.ndarray:
    """What is done to images, float64 [B, 6]: the columns are uniform within +-LIMITS times the image's strength.

    strength: [B], 0 (nothing) to 1. Columns: degrees of rotation; shift right and down, as shares of the edge; what is
    added to a zoom and to a contrast of 1; brightness, as a share of white. The first four are 0 but for the share
    MOVED of the images, the last two but for TONED. CXR-LT's teams used such ranges; they keep labels true.
    """
    changes = random.uniform(-1, 1, (len(strength), len(LIMITS))) * LIMITS * np.asarray(strength)[:, None]
    changes[random.random(len(strength)) >= MOVED, :4] = 0
    changes[random.random(len(strength)) >= TONED, 4:] = 0
    return changes


def view(image: np.ndarray, resolution: int, corner: np.ndarray, mirrored: bool, change: np.ndarray) -> np.ndarray:
    """The part of edge `resolution` from the corner (top, left) of a changed image [H, H], mirrored or not; uint8.

    One interpolation does all: of what lies outside the part nothing is computed, and what moves into it from beyond
    is the image's own. Beyond the image's border its pixels are repeated. change: a row of `draw`.
    """
    import cv2

    degrees, right, down, zoom, contrast, brightness = change.tolist()
    top, left = corner.tolist()
    if change[:4].any():
        centre = (len(image) - 1) / 2
        matrix = cv2.getRotationMatrix2D((centre, centre), degrees, 1 + zoom)
        matrix[:, 2] += right * len(image) - left, down * len(image) - top
        if mirrored:
            matrix[0] = -matrix[0]
            matrix[0, 2] += resolution - 1
        part = cv2.warpAffine(image, matrix, (resolution, resolution), borderMode=cv2.BORDER_REPLICATE)
    else:
        part = image[top : top + resolution, left : left + resolution][:, :: -1 if mirrored else 1]
    if change[4:].any():
        levels = (np.arange(256) * (1 + contrast) + 255 * brightness).clip(0, 255)
        part = levels.astype(np.uint8)[part]
    return part


def mixed(
    kind: str,
    images: torch.Tensor,
    targets: torch.Tensor,
    alpha: float,
    random: np.random.Generator,
    beside: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, list[tuple[float, torch.Tensor]]]:
    """Images mixed with others, float [B, H, W] in 0..1, and the targets [B, C] of both with their shares.

    images: uint8 [B, H, W]. The loss is the sum of share x loss over both targets, so that what one image has no
    label for is not learned from it.

    mixup            x = l a + (1 - l) b, l ~ Beta(alpha, alpha); b: the batch shuffled (Zhang et al. 2018)
    cutmix           a rectangle of b of area 1 - l in a; the shares are those of the area (Yun et al. 2019)
    balanced_mixup   b: `beside`, images and targets drawn class-aware; 1 - l ~ Beta(alpha, 1) (Galdran et al. 2021)
    """
    import torch

    first = images.float() / 255
    if kind == "balanced_mixup":
        assert beside is not None
        count = min(len(images), len(beside[0]))  # quarantine may leave one stream an image short
        first, other, second = first[:count], beside[0][:count].float() / 255, beside[1][:count]
        targets, share = targets[:count], 1 - float(random.beta(alpha, 1))
    else:
        order = torch.from_numpy(random.permutation(len(images))).to(images.device)
        other, second, share = first[order], targets[order], float(random.beta(alpha, alpha))
    if kind != "cutmix":
        return share * first + (1 - share) * other, [(share, targets), (1 - share, second)]
    height, width = images.shape[1:]
    edge = np.sqrt(1 - share)
    row, column = random.integers(height), random.integers(width)
    top, bottom = (int(np.clip(row + sign * edge * height / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(column + sign * edge * width / 2, 0, width)) for sign in (-1, 1))
    pasted = first.clone()
    pasted[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return pasted, [(share, targets), (1 - share, second)]
