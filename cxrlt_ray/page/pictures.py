"""Pictures within a page: small JPEGs as data URIs."""

from __future__ import annotations

import base64

import numpy as np

EDGE = 160  # pixels of the longer edge at most
QUALITY = 80


def smaller(image: np.ndarray, edge: int = EDGE) -> np.ndarray:
    """uint8 [H, W] brought to `edge` pixels at most; never enlarged."""
    import cv2

    share = edge / max(image.shape[:2])
    if share >= 1:
        return image
    size = (max(round(image.shape[1] * share), 1), max(round(image.shape[0] * share), 1))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def data_uri(image: np.ndarray) -> str:
    """uint8 [H, W], or BGR [H, W, 3], as a JPEG's data URI, without metadata."""
    import cv2

    done, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done
    return f"data:image/jpeg;base64,{base64.b64encode(content.tobytes()).decode()}"
