"""Near-copies of training images: nearest neighbours in frozen features, judged by how near real patients' images are.

Features of D numbers are whitened by the training images' principal components (as for retrieval: Jegou & Chum 2012)
and scaled to length 1; what two chests have in common counts for little then. An image is compared as it is and
mirrored, with every training image as it is and cropped. It is a near-copy where it is nearer than all but the share
`false_alarms` of real images are to the nearest one of another subject. Arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.errors import CxrltError

DIMENSIONS = 256  # of whitened features, at most
FIT_IMAGES = 8192  # from which the components are computed
JUDGED = 4096  # real images of which the distance to their nearest neighbour is taken
ROWS = 1024  # images that are compared at a time
FAR = 4.0  # more than any squared distance of vectors of length 1


@dataclass(frozen=True)
class Whitening:
    """mean [D], directions [D, d]: (features - mean) @ directions has covariance 1 on what it was fitted to."""

    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Whitening:
        """Fitted to features [N, D] of real images. Raises CxrltError for fewer than three."""
        if len(features) < 3:
            raise CxrltError(f"near-copies need at least 3 training images to compare with, not {len(features)}.")
        rows = features[evenly(len(features), FIT_IMAGES)].astype(np.float64)
        mean = rows.mean(axis=0)
        _, spread, components = np.linalg.svd(rows - mean, full_matrices=False)
        # more components than few images can tell hold these apart, and let others seem near
        count = max(1, min(DIMENSIONS, len(rows) // 5, int((spread > 1e-6 * spread[0]).sum())))
        scale = np.sqrt(len(rows)) / np.maximum(spread[:count], 1e-12)
        return cls(mean.astype(np.float32), (components[:count].T * scale).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32 [N, d] of length 1."""
        white = (features.astype(np.float32) - self.mean) @ self.directions
        return white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Neighbours:
    """Of N images the cosine distance in 0..2 to the nearest training image, and which that is."""

    distance: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class CopyDetector:
    """Training images [R] to compare with, all by whitened features.

    views: V arrays [R, d]. subject: [R]. distance: below it is a near-copy. real: float [J], how near real images are
    to the nearest one of another subject.
    """

    views: tuple[np.ndarray, ...]
    subject: np.ndarray
    distance: float
    real: np.ndarray

    def nearest(self, own: np.ndarray, mirrored: np.ndarray) -> Neighbours:
        """The neighbours of images with features [N, d] as they are, and mirrored."""
        return _nearest([own, mirrored], self.views)

    def are_copies(self, own: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Which images are near-copies, bool [N]."""
        return self.nearest(own, mirrored).distance < self.distance


def evenly(count: int, most: int) -> np.ndarray:
    """Up to `most` of `count` rows, spread over all of them."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def fit_detector(
    views: Sequence[np.ndarray], mirrored: np.ndarray, subject: np.ndarray, false_alarms: float
) -> CopyDetector:
    """A detector by real images' whitened features: `views` [R, d], the first as they are, and `mirrored` [R, d].

    false_alarms: the share of real images that are to be taken for copies. Raises CxrltError for images of one subject.
    """
    if len(np.unique(subject)) < 2:
        raise CxrltError("near-copies are told by how near images of other subjects are: there is one subject only.")
    judged = evenly(len(subject), JUDGED)
    real = _nearest([views[0][judged], mirrored[judged]], views, subject[judged], subject).distance
    return CopyDetector(tuple(views), subject, float(np.quantile(real, false_alarms)), real)


def _nearest(
    queries: Sequence[np.ndarray],
    views: Sequence[np.ndarray],
    own: np.ndarray | None = None,
    subject: np.ndarray | None = None,
) -> Neighbours:
    """The nearest in any view to any form of N queries; own, subject: images of one's own subject do not count."""
    count = len(queries[0])
    distance, row = np.full(count, FAR, np.float32), np.zeros(count, np.int64)
    for first in range(0, count, ROWS):
        part = slice(first, first + ROWS)
        best = np.full((len(queries[0][part]), len(views[0])), FAR, np.float32)
        for query in queries:
            for view in views:
                np.minimum(best, 1 - query[part] @ view.T, out=best)
        if own is not None and subject is not None:
            best[own[part, None] == subject[None]] = FAR
        row[part] = best.argmin(axis=1)
        distance[part] = best[np.arange(len(best)), row[part]]
    return Neighbours(distance.clip(0), row)
