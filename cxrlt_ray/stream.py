"""Shards to batches with Ray Data: read, decode, resize and augment in one fused operator.

Encoded bytes never cross the object store, and blocks are one shard's images (256), so the first
batch is there when the first shard is. Order is a pure function of (seed, epoch): shards are
shuffled, the rows within each, and then the images of MIX shards among each other; every image
comes exactly once an epoch, over all ranks together. Images stay uint8 until the device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxrlt_ray.errors import UsageError
from cxrlt_ray.prepare import Shards, decode, resize

ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",  # its lines for every epoch of every trial would flood ours
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # warnings of Ray's own core, on every actor pool
    # Ray ends idle processes after a second; a data task's costs 5 to 15 s of imports to start again
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_num_workers_soft_limit": "8",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it would look for a newer version on the internet
}
MIX = 8  # shards in the shuffle buffer: 2,048 images, 33 MB at 128 px


@dataclass(frozen=True)
class Batch:
    """image_id: [B] strings; images: uint8 [B, H, W]."""

    image_id: np.ndarray
    images: np.ndarray


def batches(
    shards: Shards,
    image_ids: np.ndarray,
    resolution: int,
    batch_size: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    augment: float = 0.0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Batches of the images `image_ids` at `resolution` pixels; in order without a seed, shuffled with one.

    augment: strength 0 (none) to 1. rank, world: this worker's share; with several workers each yields
    the same number of batches. Images in quarantine are left out.
    """
    plan = _plan(shards, image_ids, seed, epoch, rank, world)
    limit = _steps(plan, batch_size, world) if world > 1 else None
    rng = None if seed is None else np.random.default_rng([seed, epoch, rank])
    blocks = _blocks(shards, plan[rank], resolution, augment, [seed or 0, epoch])
    for step, batch in enumerate(_rebatch(blocks, batch_size, rng)):
        if limit is not None and step >= limit:
            return
        yield batch


def _plan(
    shards: Shards, image_ids: np.ndarray, seed: int | None, epoch: int, rank: int, world: int
) -> list[list[tuple[str, np.ndarray]]]:
    """For every rank, the shards it reads in order, each with the rows it takes."""
    index = shards.index()
    index = index[index.index.isin(image_ids)]
    files = [(name, rows["row"].to_numpy()) for name, rows in index.groupby("file", sort=True)]
    if seed is not None:
        rng = np.random.default_rng([seed, epoch])
        files = [(name, rng.permutation(rows)) for name, rows in files]
        files = [files[k] for k in rng.permutation(len(files))]
    return [[(name, rows[r::world]) for name, rows in files if len(rows) > r] for r in range(world)]


def _steps(plan: list[list[tuple[str, np.ndarray]]], batch_size: int, world: int) -> int:
    return min(-(-sum(len(rows) for _, rows in share) // batch_size) for share in plan)


def _blocks(
    shards: Shards, share: list[tuple[str, np.ndarray]], resolution: int, augment: float, seed: list[int]
) -> Iterator[Batch]:
    if not share:
        return
    dataset = block_dataset(shards, share, resolution, augment, seed)
    for block in dataset.iter_batches(batch_size=None, prefetch_batches=2):
        yield Batch(block["image_id"], block["image"])


def block_dataset(
    shards: Shards,
    share: list[tuple[str, np.ndarray]],
    resolution: int,
    augment: float = 0.0,
    seed: list[int] | None = None,
) -> Any:
    """A Ray Dataset of `image_id` and uint8 `image` [H, W]; one block for each (file, rows) of `share`, in order."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True  # determinism by seed
    items = [{"file": name, "rows": rows.tolist()} for name, rows in share]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _read_decode_augment,  # type: ignore[arg-type]
        batch_size=1,
        num_cpus=0.5,
        fn_kwargs={"shards": shards, "resolution": resolution, "augment": augment, "seed": seed or [0]},
    )


def _read_decode_augment(
    items: dict[str, np.ndarray], shards: Shards, resolution: int, augment: float, seed: list[int]
) -> dict[str, np.ndarray]:
    import cv2
    import pyarrow.parquet as pq

    cv2.setNumThreads(1)
    rows = np.asarray(items["rows"][0], np.int64)
    with shards.store.fetched(str(items["file"][0])) as path:
        table = pq.read_table(path, columns=["image_id", "jpeg"]).take(rows)
    images = np.stack([resize(decode(jpeg.as_buffer().to_pybytes())[0], resolution) for jpeg in table["jpeg"]])
    if augment > 0:
        from cxrlt_ray.augment import augmentation

        change = augmentation(augment, _seed(seed, str(items["file"][0]), int(rows[0])))
        images = np.stack([change(image=image)["image"] for image in images])
    return {"image_id": np.array(table["image_id"].to_pylist(), dtype=object), "image": images}


def _seed(seed: list[int], file: str, row: int) -> int:
    """A stream of random numbers of its own for every (seed, epoch, shard, rank)."""
    return int(np.random.SeedSequence([*seed, *file.encode(), row]).generate_state(1)[0])


def _rebatch(blocks: Iterator[Batch], batch_size: int, rng: np.random.Generator | None) -> Iterator[Batch]:
    """Batches of exactly `batch_size` (the last may be smaller), shuffled over MIX blocks where there is `rng`."""
    ids: list[np.ndarray] = []
    images: list[np.ndarray] = []
    hold = 0 if rng is None else MIX
    for block in blocks:
        ids.append(block.image_id)
        images.append(block.images)
        if len(ids) <= hold:
            continue
        # emit one block's worth, keep the rest to be mixed with what comes
        all_ids, all_images = np.concatenate(ids), np.concatenate(images)
        if rng is not None:
            order = rng.permutation(len(all_ids))
            all_ids, all_images = all_ids[order], all_images[order]
        cut = (len(all_ids) if rng is None else len(block.image_id)) // batch_size * batch_size
        for k in range(0, cut, batch_size):
            yield Batch(all_ids[k : k + batch_size], all_images[k : k + batch_size])
        ids, images = [all_ids[cut:]], [all_images[cut:]]
        hold = 0 if rng is None else 1
    if not ids:
        return
    all_ids, all_images = np.concatenate(ids), np.concatenate(images)
    order = np.arange(len(all_ids)) if rng is None else rng.permutation(len(all_ids))
    for k in range(0, len(order), batch_size):
        take = order[k : k + batch_size]
        yield Batch(all_ids[take], all_images[take])


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep what Ray's core says to file descriptor 2 while it starts: that it heeds RAY_BACKEND_LOG_LEVEL."""
    sys.stderr.flush()
    kept = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(silence)
        os.close(kept)


def start_ray(address: str | None = None) -> Any:
    """Start Ray here, or join the cluster at `address` ('auto' from its head). Raises UsageError for ray://."""
    if address is not None and address.startswith("ray://"):
        raise UsageError(
            "--address ray://... is not supported: run the command on the cluster's head with --address auto "
            "(`ray attach cluster.yaml`, or `ray exec cluster.yaml 'python -m cxrlt_ray.sweep ... --address auto'`)."
        )
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"include_dashboard": False}
    try:
        with _unheard():
            ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError) as error:
        raise UsageError(f"no Ray cluster answers at --address {address}: {error}") from None
    return ray
