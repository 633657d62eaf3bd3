"""Shards to batches: read, decode, crop and augment, in the trial's own threads or through Ray Data.

What a batch holds is a pure function of (seed, epoch, number), whichever engine makes it, so that both give
the same pixels and an epoch can be entered in its middle. Any image is one read, so local shards are
shuffled as a whole; those of an object store within a sliding window of WINDOW shards. Every image comes
exactly once an epoch, over all ranks together, and ranks take the same number of steps.

    threads    in the trial's process: nothing is copied between processes, the first batch is there in the
               time it takes to decode it. For one machine.
    ray        Ray Data tasks on any node with free CPUs: each makes some batches, a block is a batch, and
               encoded bytes never cross the object store. For clusters whose GPU nodes are short of cores.

Images stay uint8 until the device. benchmarks/stream.py compares both with torch's DataLoader.
"""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np

from cxrlt_ray.cluster import node_cache
from cxrlt_ray.cluster.start import DATA_CPUS, data_context
from cxrlt_ray.data.decode import decode, resize
from cxrlt_ray.data.shards import Shards

THREADS, RAY = "threads", "ray"
ENGINES = (THREADS, RAY)
WINDOW = 8  # shards of an object store that are mixed: 2,048 images
TASK_IMAGES = 512  # that one Ray Data task makes: some 0.4 s of decoding at 512 px


@dataclass(frozen=True)
class Ingest:
    """How images are streamed. threads: of the trial's process. memory: bytes of decoded images a machine keeps."""

    engine: str = THREADS
    threads: int = 2
    memory: int = 0


@dataclass(frozen=True)
class Batch:
    """rows: int64 [B], each image's place among the ids asked for; image_id: [B]; images: uint8 [B, H, W]."""

    rows: np.ndarray
    image_id: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class Recipe:
    """What is done to an image: resized to `resolution` / `crop`, cropped to `resolution`, with a seed augmented."""

    resolution: int
    crop: float = 1.0
    flip: float = 0.0
    augment: float = 0.0
    strong: float = 0.0
    seed: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Look:
    """One way to see an image: the share `crop` of its edge at `place` (down, right; 0 to 1), perhaps mirrored."""

    resolution: int
    crop: float = 1.0
    place: tuple[float, float] = (0.5, 0.5)
    mirrored: bool = False


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
    ingest: Ingest | None = None,
) -> Iterator[Batch]:
    """Batches of the images `image_ids` at `resolution` pixels: in storage order without a seed, shuffled with one.

    augment: strength 0 (none) to 1. flip: probability. crop: share of the edge that a crop keeps, at a random
    place with a seed, else from the centre. rank, world: this worker's share of each batch; each yields the same
    number of them. start: the first batch's number, to go on in the middle of an epoch. copy: streams that differ in
    it alone have the same images in the same order, augmented independently. Images in quarantine are left out.
    An id may stand several times. study: [N], then a batch is of `batch_size` studies, whole and each in one piece.
    strong: bool [N], the images that are augmented with `strength` instead.
    """
    ingest = ingest or Ingest()
    rows, file, offset, length, place = _located(shards, image_ids)
    window = 0 if shards.store.local is not None else WINDOW
    first, member = _units(len(rows) if study is None else study[rows])
    taken = order(file[first], None if seed is None else [seed, epoch], window)
    plan = [member(taken[share[rank]]) for share in steps(len(first), batch_size, world)]
    randomness = None if seed is None else (seed, epoch, rank, copy) if copy else (seed, epoch, rank)
    recipe = Recipe(resolution, crop, flip, augment, strength, randomness)
    names = shards.index()["file"].cat.categories
    more = (lambda at: ()) if strong is None else (lambda at: (strong[rows[at]],))
    work = [
        (step, names[file[at]].to_numpy(str), offset[at], length[at], place[at], *more(at))
        for step, at in ((step, plan[step]) for step in range(start, len(plan)))
    ]
    engine = _in_threads if ingest.engine == THREADS else _through_ray
    for (step, *_), images in zip(work, engine(shards, recipe, work, ingest), strict=True):
        chosen = rows[plan[step]]
        yield Batch(chosen, image_ids[chosen], images)


def _units(study: int | np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """What a batch is counted in: so many images, or studies of codes [n]: each one's first image, and all of some."""
    if not isinstance(study, np.ndarray):
        return np.arange(study), lambda units: units
    codes = np.unique(study, return_inverse=True)[1]
    within = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[within], prepend=-1))
    pieces = np.split(within, starts[1:])
    turn = np.argsort([piece[0] for piece in pieces], kind="stable")  # as they lie
    pieces = [pieces[k] for k in turn]
    none = np.empty(0, np.int64)
    return within[starts][turn], lambda units: np.concatenate([pieces[k] for k in units]) if len(units) else none


def order(file: np.ndarray, seed: list[int] | None, window: int = 0) -> np.ndarray:
    """In what order to take images [N] of which `file` [N] says in what shard they lie.

    Without a seed as they lie. With one, a uniform permutation; or, of more than `window` shards (0: of any number),
    shards are permuted and an image comes up to `window` shards after its shard: about that many are open at a time.
    """
    if seed is None:
        return np.arange(len(file))
    rng = np.random.default_rng(seed)
    names, dense = np.unique(file, return_inverse=True) if window else (file[:0], file)
    if len(names) <= window:
        return rng.permutation(len(file))
    turn = rng.permutation(len(names))
    return np.argsort(turn[dense] + window * rng.random(len(file)), kind="stable")


def steps(images: int, batch_size: int, world: int = 1) -> list[list[slice]]:
    """For every step of `batch_size` images, each rank's slice of an epoch's order: all once, no rank without any.

    A remainder that would leave a rank with fewer than two images (one alone breaks batch norm) joins the step before.
    """
    if not images:
        return []
    edges = list(range(0, images, batch_size))
    if len(edges) > 1 and images - edges[-1] < min(2 * world, batch_size):
        edges.pop()
    shares = []
    for first, last in zip(edges, [*edges[1:], images], strict=True):
        cuts = [first + (last - first) * r // world for r in range(world + 1)]
        shares.append([slice(a, b) for a, b in pairwise(cuts)])
    return shares


def pieces(images: int, size: int, study: np.ndarray | None = None) -> list[slice]:
    """Slices of at most `size` images; with `study` [n] they end where studies do, and may be larger for one study.

    A last one of a single image joins the one before, as in `steps`: alone it breaks batch norm. Of size 1 all are.
    """
    ends = range(1, images + 1) if study is None else [*(np.flatnonzero(np.diff(study)) + 1).tolist(), images]
    cuts = [0]
    for end, following in pairwise([*ends, images + size + 1]):
        if following - cuts[-1] > size:
            cuts.append(end)
    if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1 and size > 1:
        del cuts[-2]
    return [slice(a, b) for a, b in pairwise(cuts)]


def read(
    shards: Shards,
    recipe: Recipe,
    memory: int,
    step: int,
    files: np.ndarray,
    offsets: np.ndarray,
    lengths: np.ndarray,
    places: np.ndarray,
    strong: np.ndarray | None = None,
) -> np.ndarray:
    """The batch `step` as uint8 [B, resolution, resolution]; the same wherever and whenever it is made."""
    random = None if recipe.seed is None else np.random.default_rng([*recipe.seed, step])
    changes: dict[bool, Any] = {}
    for hard, strength in ((False, recipe.augment), (True, recipe.strong)):
        if random is not None and strength > 0 and (not hard or (strong is not None and strong.any())):
            changes[hard] = _augmentation(strength)
            changes[hard].set_random_seed(int(random.integers(2**32)))
    kept = _kept(shards, memory)
    spare = _edge(recipe.resolution, recipe.crop) - recipe.resolution
    corners = np.full((len(files), 2), spare // 2) if random is None else random.integers(0, spare + 1, (len(files), 2))
    flips = np.zeros(len(files), bool) if random is None else random.random(len(files)) < recipe.flip
    batch = np.empty((len(files), recipe.resolution, recipe.resolution), np.uint8)
    for k, where in enumerate(zip(files, offsets, lengths, places, strict=True)):
        image = _cropped(_decoded(shards, kept, *where), recipe.resolution, recipe.crop, corners[k])
        if change := changes.get(strong is not None and bool(strong[k])):
            image = change(image=image)["image"]
        batch[k] = image[:, ::-1] if flips[k] else image
    return batch


def views(
    shards: Shards, image_ids: np.ndarray, looks: list[Look], parts: Sequence[slice], threads: int = 2
) -> Iterator[list[np.ndarray]]:
    """For each of `parts` of `image_ids`, in their order, uint8 [B, H, W] for every look.

    Each image is decoded once. Looks that mirror are left to the device: they come as they are. The ids are those
    of prepared images.
    """
    index = shards.index().loc[image_ids]
    names, place = index["file"].astype(str).to_numpy(), np.zeros(len(index), np.int64)
    offset, length = index["offset"].to_numpy(), index["length"].to_numpy()

    def make(at: slice) -> list[np.ndarray]:
        found = [
            _decoded(shards, None, *where) for where in zip(names[at], offset[at], length[at], place[at], strict=True)
        ]
        return [
            np.stack([_cropped(image, look.resolution, look.crop, _corner(look)) for image in found]) for look in looks
        ]

    yield from _ahead(make, [(part,) for part in parts], threads)


def _corner(look: Look) -> np.ndarray:
    spare = _edge(look.resolution, look.crop) - look.resolution
    return np.array([int(spare * share) for share in look.place])


def _decoded(shards: Shards, kept: Any, file: str, offset: int, length: int, place: int) -> np.ndarray:
    image = kept.get(place) if kept else None
    if image is None:
        image = decode(node_cache.read(shards.files(), file, int(offset), int(length)))[0]
        if kept:
            kept.put(place, image)
    return image


def _edge(resolution: int, crop: float) -> int:
    """The edge from which `resolution` is the share `crop`."""
    return round(resolution / crop)


def _cropped(image: np.ndarray, resolution: int, crop: float, corner: np.ndarray | None = None) -> np.ndarray:
    """The image resized and cropped to `resolution`, from the centre unless a corner (top, left) is given."""
    edge = _edge(resolution, crop)
    image = resize(image, edge)
    top, left = corner if corner is not None else ((edge - resolution) // 2,) * 2
    return image[top : top + resolution, left : left + resolution]


def _located(shards: Shards, image_ids: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows of `image_ids` that were prepared, in storage order; their file's number, offset, length, place to keep."""
    index = shards.index()
    at = index.index.get_indexer(image_ids)
    rows = np.flatnonzero(at >= 0)
    rows = rows[np.argsort(at[rows], kind="stable")]
    at = at[rows]
    offset, length = (index[name].to_numpy()[at] for name in ("offset", "length"))
    return rows, index["file"].cat.codes.to_numpy()[at], offset, length, _places(shards)[at]


@lru_cache(maxsize=8)
def _places(shards: Shards) -> np.ndarray:
    """Each indexed image's place among the decoded ones: what is trained on first, should not all have one."""
    file = shards.index()["file"].cat
    turn = {"train": 0, "val": 1}
    wanted = np.array([turn.get(name.rpartition("-")[0], 2) for name in file.categories])[file.codes]
    places = np.empty(len(wanted), np.int64)
    places[np.argsort(wanted, kind="stable")] = np.arange(len(wanted))
    return places


def _kept(shards: Shards, memory: int) -> Any:
    if not memory:
        return None
    return node_cache.decoded_images(shards.files(), len(_places(shards)), memory)


_local = threading.local()


def _augmentation(strength: float) -> Any:
    """The transform of this thread: they hold random state, and cost 70 ms to make."""
    from cxrlt_ray.data.augment import augmentation

    made = _local.__dict__.setdefault("changes", {})
    if strength not in made:
        if len(made) >= 4:  # of trials gone by
            made.clear()
        made[strength] = augmentation(strength, 0)
    return made[strength]


def _in_threads(shards: Shards, recipe: Recipe, work: list[Any], ingest: Ingest) -> Iterator[np.ndarray]:
    """Batches made by threads of this process."""
    if recipe.augment > 0 or recipe.strong > 0:
        _augmentation(recipe.augment or recipe.strong)  # imported here, not by several threads at once
    return _ahead(partial(read, shards, recipe, ingest.memory), work, ingest.threads)


def _ahead(make: Callable[..., Any], work: list[Any], count: int) -> Iterator[Any]:
    """`make` of each item of `work` in `count` threads, in order, a few ahead of the one that is used."""
    import cv2

    cv2.setNumThreads(1)
    threads = ThreadPoolExecutor(count, thread_name_prefix="stream")
    ahead: deque[Any] = deque()
    todo = iter(work)
    try:
        for _ in range(len(work)):
            while len(ahead) < count + 2 and (item := next(todo, None)):
                ahead.append(threads.submit(make, *item))
            yield ahead.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _through_ray(shards: Shards, recipe: Recipe, work: list[Any], ingest: Ingest) -> Iterator[np.ndarray]:
    """Batches made by Ray Data tasks; a block is a batch."""
    if not work:
        return
    import ray

    context = data_context()
    context.execution_options.preserve_order = True  # batches are wanted in their order
    each = max(len(item[1]) for item in work)
    context.target_max_block_size = max(1, each * recipe.resolution**2)
    together = max(1, TASK_IMAGES // each)
    items = [{"work": pickle.dumps(work[k : k + together])} for k in range(0, len(work), together)]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _read_some,  # type: ignore[arg-type]
        batch_size=1,
        num_cpus=DATA_CPUS,
        fn_kwargs={"shards": shards, "recipe": recipe, "memory": ingest.memory},
    )
    for block in dataset.iter_batches(batch_size=None, prefetch_batches=3):
        yield from block["images"]


def _read_some(
    items: dict[str, np.ndarray], shards: Shards, recipe: Recipe, memory: int
) -> Iterator[dict[str, np.ndarray]]:
    import cv2

    cv2.setNumThreads(1)
    for item in pickle.loads(items["work"][0]):
        yield {"images": read(shards, recipe, memory, *item)[None]}
