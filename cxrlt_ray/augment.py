"""Training augmentation with albumentations: one strength from 0 (none) to 1 scales all of it."""

from __future__ import annotations

import sys
from typing import Any


def augmentation(strength: float, seed: int) -> Any:
    """A transform of uint8 [H, W] images; call it as `transform(image=image)["image"]`.

    At strength 1: rotation up to 15 degrees, shift up to 8 %, zoom up to
    15 %, brightness and contrast up to 20 %; ranges that CXR-LT's teams used, kept label-preserving.
    """
    # its optional part for tensors, which we don't use, would import torch: 3 to 6 s in every data process
    sys.modules.setdefault("albumentations.pytorch", None)  # type: ignore[arg-type]
    import albumentations as A

    s = strength
    return A.Compose(
        [
            A.Affine(
                rotate=(-15 * s, 15 * s),
                translate_percent=(-0.08 * s, 0.08 * s),
                scale=(1 - 0.15 * s, 1 + 0.15 * s),
                p=0.8,
            ),
            A.RandomBrightnessContrast(brightness_limit=0.2 * s, contrast_limit=0.2 * s, p=0.5),
        ],
        seed=seed,
    )
