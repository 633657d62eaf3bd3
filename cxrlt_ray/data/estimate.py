"""What shards will cost in bytes, seconds and quality, from a sample of the images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.data.decode import decode, resize
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.originals import read_original
from cxrlt_ray.data.shards import encode, inverted
from cxrlt_ray.errors import CxrltError

SAMPLE = 24  # images that an estimate is made from


@dataclass(frozen=True)
class Estimate:
    """What shards will cost, from a sample.

    images, original_bytes, read_seconds: of all originals, the last on one core. kinds: for each (size, quality) bytes
    of all shards, seconds of one core, and PSNR in dB against the resized pixels.
    """

    images: int
    original_bytes: float
    read_seconds: float
    kinds: dict[tuple[int, int], tuple[float, float, float]]

    def seconds(self, cpus: float) -> float:
        """Time of all kinds together on `cpus` cores: each image is decoded once."""
        return (self.read_seconds + sum(seconds for _, seconds, _ in self.kinds.values())) / cpus


def estimate(
    manifest: Manifest, sizes: Sequence[int], qualities: Sequence[int], sample: int = SAMPLE
) -> Estimate | None:
    """What shards of these sizes and qualities will cost, from `sample` images; None where none can be decoded."""
    import cv2

    rows = manifest.table.sample(min(sample, len(manifest.table)), random_state=0)
    read_seconds, original_bytes, decoded = 0.0, 0, 0
    sums = {(size, quality): np.zeros(3) for size in sizes for quality in qualities}  # bytes, seconds, squared error
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for path, invert in zip(rows["path"], inverted(rows), strict=True):
        try:
            start = time.perf_counter()
            content = read_original(manifest.root, path)
            image, _ = decode(content, max(sizes), invert)
            read_seconds += time.perf_counter() - start
        except (CxrltError, ValueError, cv2.error):
            continue
        original_bytes, decoded = original_bytes + len(content), decoded + 1
        for (size, quality), costs in sums.items():
            costs += _costs(image, size, quality)
    cv2.setNumThreads(threads)
    if not decoded:
        return None
    images = len(manifest.table)
    share = images / decoded
    kinds = {kind: (costs[0] * share, costs[1] * share, psnr(costs[2] / decoded)) for kind, costs in sums.items()}
    return Estimate(images, original_bytes * share, read_seconds * share, kinds)


def _costs(image: np.ndarray, size: int, quality: int) -> tuple[int, float, float]:
    """Bytes, seconds and mean squared error of one image's resizing and encoding."""
    start = time.perf_counter()
    resized = resize(image, size)
    encoded = encode(resized, quality)
    seconds = time.perf_counter() - start
    return len(encoded), seconds, np.square(resized.astype(float) - decode(encoded)[0]).mean()


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of 8-bit pixels; inf for none."""
    return float(10 * np.log10(255**2 / squared_error)) if squared_error else float("inf")
