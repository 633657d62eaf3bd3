"""What a sweep takes besides time on a device: preparing the images, disk and memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cxrlt_ray.data.shards import QUALITY
from cxrlt_ray.search.rates import FINDINGS, ModelRate
from cxrlt_ray.search.workload import Workload

PROCESS = 1.5e9  # bytes of a trial's process on the CPU's side: Python, torch, Ray and the batches under way
DECODE = 2.9e-9  # seconds a pixel to decode a q95 JPEG, one core: 1,320 images/s at 512 px (benchmarks/stream.py)
SHARD_BYTES = {90: 0.19, 95: 0.29, 100: 0.7}  # a pixel of the shards, up to a quality (q95: 77 KB at 512 px); lossless
ORIGINAL_BYTES = 1.5e6  # MIMIC-CXR-JPG's mean file
# seconds of a core from an original of 2544 x 3056 px to shards, measured (benchmarks/prepare.py): decoding, by the
# largest size; resizing to each further size; encoding a pixel
ORIGINAL = {318: 1 / 80, 636: 1 / 65, 1272: 1 / 50, 4096: 1 / 27}
FURTHER, ENCODE = 3e-3, 1.6e-9


@dataclass(frozen=True)
class Storage:
    """What a sweep prepares and writes. sizes: edges of the shards; prepare_seconds: of one core.

    trial_bytes: of all trials' predictions and of the checkpoints that are kept.
    """

    images: int
    sizes: tuple[int, ...]
    original_bytes: float
    shard_bytes: float
    trial_bytes: float
    prepare_seconds: float


def prepare_seconds(sizes: Sequence[int]) -> float:
    """Seconds of a core to bring one original of a usual radiograph's size to shards of these sizes."""
    decoding = next(seconds for most, seconds in ORIGINAL.items() if max(sizes) <= most)
    return decoding + FURTHER * (len(sizes) - 1) + ENCODE * sum(size**2 for size in sizes)


def shard_bytes(quality: int) -> float:
    """Bytes of a pixel in shards of a JPEG quality; 0: lossless."""
    return next(size for most, size in SHARD_BYTES.items() if (quality or 100) <= most)


def storage_of(
    rates: Iterable[ModelRate],
    workload: Workload,
    trials: int,
    kept: int | None = None,
    sizes: Sequence[int] = (),
    quality: int = QUALITY,
) -> Storage:
    """What a sweep of so many trials writes: shards, checkpoints and predictions.

    kept: of how many trials checkpoints are kept; None: of all. sizes: of the shards, the models' without. quality: of
    JPEG; 0: lossless.
    """
    rates = list(rates)
    sizes = tuple(sizes) or tuple(sorted({rate.resolution for rate in rates}))
    pixel = shard_bytes(quality)
    checkpoint = statistics.mean(rate.checkpoint for rate in rates)
    predictions = 4 * FINDINGS * (workload.val + workload.test)
    return Storage(
        workload.images,
        sizes,
        workload.images * ORIGINAL_BYTES,
        sum(workload.images * size**2 * pixel for size in sizes),
        min(trials, kept or trials) * max(workload.folds, 1) * checkpoint + trials * predictions,
        workload.images * prepare_seconds(sizes),
    )


def decoding_cores(rate: ModelRate) -> float:
    """Cores that decode for one device that trains at that rate, from shards of the trial's size."""
    return rate.rate * rate.resolution**2 * DECODE
