"""Shards to batches: read, decode, crop and augment, in the trial's own threads or through Ray Data.

What a batch holds is a pure function of (seed, epoch, number), whichever engine makes it, so that both give the same
pixels and an epoch can be entered in its middle. Any image is one read, so local shards are shuffled as a whole; those
of an object store within a sliding window of WINDOW shards. Every image comes exactly once an epoch, over all ranks
together, and ranks take the same number of steps.

    threads    in the trial's process: nothing is copied between processes, and the first batch takes no longer than its
               decoding. For one machine.
    ray        Ray Data tasks on any node with free CPUs: each makes some batches, a block is a batch, and encoded bytes
               never cross the object store. For clusters whose GPU nodes are short of cores.

Images stay uint8 until the device. benchmarks/stream.py compares both with torch's DataLoader. Where a frozen
backbone's features are stored (features.py), a batch has these in the images' place, by either engine's order.
"""

from __future__ import annotations

import pickle
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import TypeVar

import numpy as np
import pandas as pd

from cxrlt_ray.cluster import node_cache
from cxrlt_ray.cluster.node_cache import DecodedImages
from cxrlt_ray.cluster.start import DATA_CPUS, data_context
from cxrlt_ray.data.batching import order, steps, units
from cxrlt_ray.data.features import StoredFeatures
from cxrlt_ray.data.image_transform import AugmentedView, ImageTransform
from cxrlt_ray.data.shards import Shards, decoded

THREADS, RAY = "threads", "ray"
ENGINES = (THREADS, RAY)
WINDOW = 8  # shards of an object store that are mixed: 2,048 images
TASK_IMAGES = 512  # that one Ray Data task makes: some 0.4 s of decoding at 512 px
PREFETCH = 3  # blocks of Ray Data that are fetched before they are needed
COPY_RANDOM = 11  # keeps an augmented copy's random numbers apart from those of batches

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ingest:
    """How images are streamed. threads: of the trial's process. memory: bytes of decoded images a machine keeps."""

    engine: str = THREADS
    threads: int = 2
    memory: int = 0


@dataclass(frozen=True)
class Batch:
    """rows: int64 [B], each image's row among the ids asked for; image_id: [B].

    images: uint8 [B, H, W], or their stored features float16 [B, N, D].
    """

    rows: np.ndarray
    image_id: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class _Location:
    """Where N images lie: file [N] (a code, or a name), offset and length in it, slot among the decoded ones.

    place: which of the file's images each is, from 0.
    """

    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    slot: np.ndarray
    place: np.ndarray

    def at(self, rows: np.ndarray | slice, names: np.ndarray) -> _Location:
        """Some of the images, their files by name."""
        parts = (values[rows] for values in (self.offset, self.length, self.slot, self.place))
        return _Location(names[self.file[rows]], *parts)


@dataclass(frozen=True)
class _Work:
    """What makes one batch: its number in the epoch, its images, which of them are augmented strongly, and which not.

    alone: of each image a number of its own, where it is transformed by itself.
    """

    step: int
    images: _Location
    strong: np.ndarray | None = None
    alone: np.ndarray | None = None
    unchanged: np.ndarray | None = None


def batches(
    shards: Shards,
    image_ids: np.ndarray,
    resolution: int,
    batch_size: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    augment: float = 0.0,
    flip: float = 0.0,
    crop: float = 1.0,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    copy: int = 0,
    study: np.ndarray | None = None,
    strong: np.ndarray | None = None,
    strength: float = 0.0,
    copies: int | None = None,
    features: StoredFeatures | None = None,
    instead: np.ndarray | None = None,
    unchanged: np.ndarray | None = None,
    ingest: Ingest | None = None,
) -> Iterator[Batch]:
    """Batches of the images `image_ids` at `resolution` pixels: in storage order without a seed, shuffled with one.

    augment: strength 0 (none) to 1. flip: probability. crop: share of the edge that a crop keeps, at a random
    position with a seed, else from the centre. rank, world: this worker's share of each batch; each yields the same
    number of them. start: the first batch's number, to go on in the middle of an epoch. copy: streams that differ in
    it alone have the same images in the same order, augmented independently. Images in quarantine are left out.
    An id may occur several times. study: [N], then a batch is of `batch_size` studies, whole and each in one piece.
    strong: bool [N], the images that are augmented with `strength` instead. copies: K, each image has K augmented
    copies, whatever the seed, the rank and the batch, and an epoch shows number epoch mod K of all; 0: the image as
    without a seed. features: stored ones, which batches have in the images' place, in the same order. instead: ids [N]
    of the images that are shown in the place of `image_ids`, whose order and `rows` stay; of one in quarantine the own.
    unchanged: bool [N], the images that are as without a seed; not with `copies`.
    """
    ingest = ingest or Ingest()
    rows, location = _located(shards, image_ids)
    shown = location if instead is None else _shown(shards, image_ids[rows], instead[rows])
    window = 0 if shards.store.local is not None else WINDOW
    first, members = units(len(rows) if study is None else study[rows])
    shuffled = order(location.file[first], None if seed is None else [seed, epoch], window)
    plan = [members(shuffled[share[rank]]) for share in steps(len(first), batch_size, world)]
    randomness: tuple[int, ...] | None = None
    if copies:
        randomness = (COPY_RANDOM, epoch % copies)
    elif seed is not None and copies is None:
        randomness = (seed, epoch, rank, copy) if copy else (seed, epoch, rank)
    transform = ImageTransform(resolution, crop, flip, augment, strength, randomness)
    names = shards.index()["file"].cat.categories.to_numpy(str)
    numbers = _numbers(image_ids[rows]) if copies else None
    work = [
        _Work(
            step,
            shown.at(plan[step], names),
            None if strong is None else strong[rows[plan[step]]],
            None if numbers is None else numbers[plan[step]],
            None if unchanged is None else unchanged[rows[plan[step]]],
        )
        for step in range(start, len(plan))
    ]
    if features is not None:
        made = _ahead(partial(_read, features), work, ingest.threads)
    else:
        engine = _in_threads if ingest.engine == THREADS else _through_ray
        made = engine(shards, transform, work, ingest)
    for item, images in zip(work, made, strict=True):
        chosen = rows[plan[item.step]]
        yield Batch(chosen, image_ids[chosen], images)


def stream_views(
    shards: Shards,
    image_ids: np.ndarray,
    augmented: Sequence[AugmentedView],
    parts: Sequence[slice],
    threads: int = 2,
) -> Iterator[list[np.ndarray]]:
    """For each of `parts` of `image_ids`, in their order, uint8 [B, H, W] for every augmented view.

    Each image is decoded once. Mirroring is left to the device: those views come as they are. The ids are those of
    prepared images.
    """
    index = shards.index().loc[image_ids]
    file, offset, length = _columns(index)
    unused = np.zeros(len(index), np.int64)  # neither the node cache nor stored features are read
    location = _Location(file, offset, length, unused, unused)
    names = index["file"].cat.categories.to_numpy(str)

    def make(part: slice) -> list[np.ndarray]:
        images = list(_images(shards, location.at(part, names), None))
        return [np.stack([view.apply(image) for image in images]) for view in augmented]

    yield from _ahead(make, parts, threads)


def _located(shards: Shards, image_ids: np.ndarray) -> tuple[np.ndarray, _Location]:
    """Rows of `image_ids` that were prepared, in storage order, and where these images lie."""
    index = shards.index()
    positions = index.index.get_indexer(image_ids)
    rows = np.flatnonzero(positions >= 0)
    rows = rows[np.argsort(positions[rows], kind="stable")]
    return rows, _locations(shards, positions[rows])


def _shown(shards: Shards, image_ids: np.ndarray, instead: np.ndarray) -> _Location:
    """Where the images `instead` lie, or those of `image_ids` where they were not prepared."""
    index = shards.index().index
    positions = index.get_indexer(instead)
    return _locations(shards, np.where(positions >= 0, positions, index.get_indexer(image_ids)))


def _locations(shards: Shards, positions: np.ndarray) -> _Location:
    """Where the images at `positions` of the index lie."""
    file, offset, length = (column[positions] for column in _columns(shards.index()))
    return _Location(file, offset, length, _slots(shards)[positions], shards.places()[positions])


def _numbers(image_ids: np.ndarray) -> np.ndarray:
    """A number of each image's own, of its id alone; int64 [N]."""
    return np.array([zlib.crc32(str(image_id).encode()) for image_id in image_ids], np.int64)


def _columns(index: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """File code, offset and length of each indexed image."""
    return index["file"].cat.codes.to_numpy(), index["offset"].to_numpy(), index["length"].to_numpy()


@lru_cache(maxsize=8)
def _slots(shards: Shards) -> np.ndarray:
    """Each indexed image's slot among the decoded ones: first those that are trained on, should not all have one."""
    file = shards.index()["file"].cat
    precedence = {"train": 0, "val": 1}
    turn = np.array([precedence.get(name.partition("-")[0], 2) for name in file.categories])[file.codes]
    slots = np.empty(len(turn), np.int64)
    slots[np.argsort(turn, kind="stable")] = np.arange(len(turn))
    return slots


def _images(shards: Shards, location: _Location, cache: DecodedImages | None) -> Iterator[np.ndarray]:
    """The images decoded, uint8 [size, size], from the node cache where it has them."""
    columns = (location.file, location.offset, location.length, location.slot)
    for file, offset, length, slot in zip(*columns, strict=True):
        image = cache.get(slot) if cache else None
        if image is None:
            image = decoded(node_cache.read(shards.files(), file, int(offset), int(length)))
            if cache:
                cache.put(slot, image)
        yield image


def _cache(shards: Shards, memory: int) -> DecodedImages | None:
    """The node's decoded images, where they may take memory."""
    return node_cache.decoded_images(shards.files(), len(_slots(shards)), memory) if memory else None


def _make(shards: Shards, transform: ImageTransform, memory: int, work: _Work) -> np.ndarray:
    """A batch as uint8 [B, resolution, resolution]; the same wherever and whenever it is made."""
    images = _images(shards, work.images, _cache(shards, memory))
    if work.alone is not None:
        return transform.alone(images, work.alone)
    return transform.batch(images, len(work.images.file), work.step, work.strong, work.unchanged)


def _read(features: StoredFeatures, work: _Work) -> np.ndarray:
    """A batch's stored features, float16 [B, N, D]."""
    return features.at(work.images.file, work.images.place)


def _in_threads(shards: Shards, transform: ImageTransform, work: list[_Work], ingest: Ingest) -> Iterator[np.ndarray]:
    """Batches made by threads of this process."""
    return _ahead(partial(_make, shards, transform, ingest.memory), work, ingest.threads)


def _ahead(make: Callable[[Item], Result], work: Sequence[Item], count: int) -> Iterator[Result]:
    """`make` of each item of `work` in `count` threads, in order, a few ahead of the one that is used."""
    import cv2

    cv2.setNumThreads(1)
    threads = ThreadPoolExecutor(count, thread_name_prefix="stream")
    pending: deque[Future[Result]] = deque()
    remaining = iter(work)
    try:
        for _ in range(len(work)):
            pending.extend(threads.submit(make, item) for item in islice(remaining, count + 2 - len(pending)))
            yield pending.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _through_ray(shards: Shards, transform: ImageTransform, work: list[_Work], ingest: Ingest) -> Iterator[np.ndarray]:
    """Batches made by Ray Data tasks; a block is a batch."""
    if not work:
        return
    import ray

    data_context()
    largest = max(len(item.images.file) for item in work)
    together = max(1, TASK_IMAGES // largest)
    items = [{"work": pickle.dumps(work[k : k + together])} for k in range(0, len(work), together)]
    source = ray.data.from_items(items, override_num_blocks=len(items))
    # of this data set alone: the process's own settings serve whatever else it does with Ray Data
    source.context.execution_options.preserve_order = True  # batches are needed in their order
    source.context.target_max_block_size = max(1, largest * transform.resolution**2)
    dataset = source.map_batches(
        _make_some,  # type: ignore[arg-type]
        batch_size=1,
        num_cpus=DATA_CPUS,
        fn_kwargs={"shards": shards, "transform": transform, "memory": ingest.memory},
    )
    for block in dataset.iter_batches(batch_size=None, prefetch_batches=PREFETCH):
        yield from block["images"]


def _make_some(
    items: dict[str, np.ndarray], shards: Shards, transform: ImageTransform, memory: int
) -> Iterator[dict[str, np.ndarray]]:
    import cv2

    cv2.setNumThreads(1)
    for work in pickle.loads(items["work"][0]):
        yield {"images": _make(shards, transform, memory, work)[None]}
