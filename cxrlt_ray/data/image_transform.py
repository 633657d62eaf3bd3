"""From decoded images to a batch: resized, augmented, cropped and mirrored, by a random state of the batch's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.data import augment
from cxrlt_ray.data.decode import resize

AS_IT_IS = np.zeros(len(augment.LIMITS))  # an image that nothing is done to


@dataclass(frozen=True)
class ImageTransform:
    """What is done to images: resized to `resolution` / `crop`, augmented, cropped to `resolution`, by a seed.

    crop: share of the edge that is kept; at a random position with a seed, else from the centre. flip: probability of
    being mirrored. augment: strength 0 (none) to 1; strong: that of the images which are marked so. seed: without one
    nothing is random, and augment, strong and flip count for nothing.
    """

    resolution: int
    crop: float = 1.0
    flip: float = 0.0
    augment: float = 0.0
    strong: float = 0.0
    seed: tuple[int, ...] | None = None

    def alone(self, images: Iterable[np.ndarray], numbers: np.ndarray) -> np.ndarray:
        """uint8 [B, resolution, resolution], each a function of its image, the seed and its own one of `numbers` [B]:
        of whatever batch it is part, it is the same.
        """
        made = [self.batch([image], 1, int(number)) for image, number in zip(images, numbers, strict=True)]
        return np.concatenate([self.batch((), 0, 0), *made])

    def batch(
        self,
        images: Iterable[np.ndarray],
        count: int,
        step: int,
        strong: np.ndarray | None = None,
        unchanged: np.ndarray | None = None,
    ) -> np.ndarray:
        """uint8 [B, resolution, resolution] of `count` images: a function of them, the seed and the step alone.

        strong: bool [B], the images that are augmented with the strength `strong`. unchanged: bool [B], those that are
        as without a seed: the crop from the centre, neither mirrored nor augmented.
        """
        random = None if self.seed is None else np.random.default_rng([*self.seed, step])
        edge = edge_of(self.resolution, self.crop)
        spare = edge - self.resolution
        corners = np.full((count, 2), spare // 2) if random is None else random.integers(0, spare + 1, (count, 2))
        flips = np.zeros(count, bool) if random is None else random.random(count) < self.flip
        if unchanged is None:
            unchanged = np.zeros(count, bool)
        strength = np.full(count, self.augment)
        if strong is not None:
            strength[strong] = self.strong
        corners[unchanged], flips[unchanged], strength[unchanged] = spare // 2, False, 0
        changes = np.zeros((count, len(AS_IT_IS))) if random is None else augment.draw(random, strength)
        batch = np.empty((count, self.resolution, self.resolution), np.uint8)
        for k, image in enumerate(images):
            batch[k] = augment.view(resize(image, edge), self.resolution, corners[k], flips[k], changes[k])
        return batch


@dataclass(frozen=True)
class AugmentedView:
    """A view for test-time augmentation: the share `crop` of the edge at `position` (down, right; 0 to 1).

    mirrored: left for the device to do.
    """

    resolution: int
    crop: float = 1.0
    position: tuple[float, float] = (0.5, 0.5)
    mirrored: bool = False

    @property
    def edge(self) -> int:
        """Of the image before the crop, in pixels."""
        return edge_of(self.resolution, self.crop)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The view of an image, uint8 [resolution, resolution]."""
        spare = self.edge - self.resolution
        corner = np.array([int(spare * share) for share in self.position])
        return augment.view(resize(image, self.edge), self.resolution, corner, False, AS_IT_IS)


@dataclass(frozen=True)
class ImageCopy:
    """One of an image's augmented copies, `number` from 0; the others as in ImageTransform."""

    resolution: int
    crop: float
    flip: float
    augment: float
    number: int


Look = AugmentedView | ImageCopy  # what is made of an image, by itself alone


def edge_of(resolution: int, crop: float) -> int:
    """The edge of the image, in pixels, from which a part of edge `resolution` is cropped."""
    return round(resolution / crop)
