"""Attention maps as pictures: of the image's size, bright where the map is high, plain gray under a map of zeros."""

from __future__ import annotations

import cv2
import numpy as np

from cxrlt_ray.reporting.maps import overlay


def test_a_picture_has_the_images_size_and_is_bright_where_the_map_is():
    image, attention = np.full((48, 64), 100, np.uint8), np.zeros((3, 4), np.float32)
    attention[0, 3] = 1
    picture = cv2.imdecode(np.frombuffer(overlay(image, attention), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (48, 64, 3)
    light = picture.astype(int).sum(axis=2)
    assert light[4, 60] > 1.5 * light[40, 4]
    dark = cv2.imdecode(np.frombuffer(overlay(image, 0 * attention), np.uint8), cv2.IMREAD_COLOR)
    assert np.ptp(dark.reshape(-1, 3), axis=0).max() == 0
