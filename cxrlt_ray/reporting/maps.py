"""An attention map laid over its image, as a picture."""

from __future__ import annotations

import numpy as np

SHARE = 0.45  # of the map's colours in the picture


def laid_over(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Gray pixels uint8 [H, W] under a map float [h, w] in 0..1, from dark (0) to yellow (1): BGR uint8 [H, W, 3]."""
    import cv2

    size = (image.shape[1], image.shape[0])
    fine = cv2.resize(np.asarray(attention, np.float32), size, interpolation=cv2.INTER_LINEAR)
    heat = cv2.applyColorMap((255 * fine.clip(0, 1)).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.addWeighted(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), 1 - SHARE, heat, SHARE, 0))


def overlay(image: np.ndarray, attention: np.ndarray) -> bytes:
    """`laid_over` as a PNG.

    The scale is the same for all pictures: a finding that a model does not look for stays dark.
    """
    import cv2

    done, png = cv2.imencode(".png", laid_over(image, attention))
    assert done
    return png.tobytes()
