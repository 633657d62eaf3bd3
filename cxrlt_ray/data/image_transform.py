"""From decoded images to a batch: resized, augmented, cropped and mirrored, by a random state of the batch's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxrlt_ray.data.decode import resize

KEPT_AUGMENTATIONS = 4  # by a thread; those of other strengths are of trials that have ended
_local = threading.local()

Augmentation = Callable[..., dict[str, np.ndarray]]  # of albumentations: called with image=, returns {"image": ...}


@dataclass(frozen=True)
class ImageTransform:
    """What is done to images: resized to `resolution` / `crop`, augmented, cropped to `resolution`, by a seed.

    What a rotation or a shift brings in from beyond the border falls outside most crops.

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
        augmentations: dict[bool, Any] = {}
        for is_strong, strength in ((False, self.augment), (True, self.strong)):
            if random is not None and strength > 0 and (not is_strong or (strong is not None and strong.any())):
                augmentations[is_strong] = _augmentation(strength)
                augmentations[is_strong].set_random_seed(int(random.integers(2**32)))
        edge = edge_of(self.resolution, self.crop)
        spare = edge - self.resolution
        corners = np.full((count, 2), spare // 2) if random is None else random.integers(0, spare + 1, (count, 2))
        flips = np.zeros(count, bool) if random is None else random.random(count) < self.flip
        if unchanged is None:
            unchanged = np.zeros(count, bool)
        corners[unchanged], flips[unchanged] = spare // 2, False
        batch = np.empty((count, self.resolution, self.resolution), np.uint8)
        for k, original in enumerate(images):
            image = resize(original, edge)
            augmentation = augmentations.get(strong is not None and bool(strong[k]))
            if augmentation and not unchanged[k]:
                image = augmentation(image=image)["image"]
            image = _part(image, self.resolution, corners[k])
            batch[k] = image[:, ::-1] if flips[k] else image
        return batch

    def import_augmentation(self) -> None:
        """Import what `batch` needs now, rather than in several threads at once."""
        if strength := self.augment or self.strong:
            _augmentation(strength)


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
        return _part(resize(image, self.edge), self.resolution, corner)


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


def _part(image: np.ndarray, resolution: int, corner: np.ndarray) -> np.ndarray:
    """The image's part of edge `resolution` from the corner (top, left)."""
    top, left = corner
    return image[top : top + resolution, left : left + resolution]


def _augmentation(strength: float) -> Any:
    """The thread's own transform of this strength: it holds random state, and costs 70 ms to make."""
    from cxrlt_ray.data.augment import augmentation

    augmentations = _local.__dict__.setdefault("augmentations", {})
    if strength not in augmentations:
        if len(augmentations) >= KEPT_AUGMENTATIONS:
            augmentations.clear()
        augmentations[strength] = augmentation(strength, 0)
    return augmentations[strength]
