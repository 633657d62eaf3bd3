"""What training does to images: one at a time (albumentations, one strength for all of it), or two mixed (torch)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def augmentation(strength: float, seed: int) -> Any:
    """A transform of uint8 [H, W] images; call it as `transform(image=image)["image"]`.

    At strength 1: rotation up to 15 degrees, shift up to 8 %, zoom up to 15 %, brightness and contrast up to 20 %;
    ranges that CXR-LT's teams used, kept label-preserving. Beyond the border its pixels are repeated.
    """
    # its optional part for tensors, which we don't use, would import torch: 3 to 6 s in every data process
    sys.modules.setdefault("albumentations.pytorch", None)  # type: ignore[arg-type]
    import albumentations as A
    import cv2

    s = strength
    return A.Compose(
        [
            A.Affine(
                rotate=(-15 * s, 15 * s),
                translate_percent=(-0.08 * s, 0.08 * s),
                scale=(1 - 0.15 * s, 1 + 0.15 * s),
                border_mode=cv2.BORDER_REPLICATE,
                p=0.8,
            ),
            A.RandomBrightnessContrast(brightness_limit=0.2 * s, contrast_limit=0.2 * s, p=0.5),
        ],
        seed=seed,
    )


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
