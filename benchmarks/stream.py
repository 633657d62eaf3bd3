"""Shards to batches, against torch's DataLoader: the same decode, crop, flip, shuffle and batch.

512 px JPEGs (q95), a random 384 px crop, a flip, batches of 64 uint8 images, an epoch a turn, page cache hot.
Two worker processes or two threads on two cores; all in turn, `--rounds` rounds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from cache import shards
from report import options, publish, ratios, spread, turns

if TYPE_CHECKING:
    from cxrlt_ray.data.shards import Shards

SIZE, CROP, BATCH, WORKERS = 512, 384, 64, 2


def torch_loader(source: Shards, ids: np.ndarray, augment: float) -> Callable[[], float]:
    """Torch's DataLoader over the same shards: an epoch's images/s at each call."""
    import torch

    from cxrlt_ray.data.decode import decode

    transforms: list = []

    index = source.index().loc[ids]
    file, offset, length = index["file"].astype(str).to_numpy(), index["offset"].to_numpy(), index["length"].to_numpy()
    folder = source.store.local

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(ids)

        def __getitem__(self, k: int):
            import cv2

            cv2.setNumThreads(1)
            descriptor = os.open(folder / file[k], os.O_RDONLY)
            image = decode(os.pread(descriptor, int(length[k]), int(offset[k])))[0]
            os.close(descriptor)
            rng = np.random.default_rng()
            top, left = rng.integers(0, SIZE - CROP + 1, 2)
            image = image[top : top + CROP, left : left + CROP]
            if augment:
                if not transforms:  # once in a worker
                    transforms.append(augmentation(augment, int(rng.integers(2**31))))
                image = transforms[0](image=image)["image"]
            return torch.from_numpy(np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.5 else image))

    loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    return lambda: epoch(batch.numpy() for batch in loader)


def augmentation(strength: float, seed: int):
    """By albumentations, what our own stream does at this strength: of images [H, W], as transform(image=image)."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would look for a newer version on the internet
    import albumentations
    import cv2

    from cxrlt_ray.data.augment import LIMITS, MOVED, TONED

    degrees, shift, _, zoom, contrast, brightness = (LIMITS * strength).tolist()
    moves = albumentations.Affine(
        rotate=(-degrees, degrees),
        translate_percent=(-shift, shift),
        scale=(1 - zoom, 1 + zoom),
        keep_ratio=True,
        border_mode=cv2.BORDER_REPLICATE,
        p=MOVED,
    )
    tones = albumentations.RandomBrightnessContrast(brightness, contrast, p=TONED)
    return albumentations.Compose([moves, tones], seed=seed)


def epoch(stream: Iterable[np.ndarray]) -> float:
    """Images/s of one pass, which reads from each batch."""
    start, count = time.perf_counter(), 0
    for batch in stream:
        count += len(batch)
        batch[:, 0, 0].sum()
    return count / (time.perf_counter() - start)


def ours(source: Shards, ids: np.ndarray, engine: str, augment: float = 0.0, memory: int = 0) -> Callable[[], float]:
    """Our stream: an epoch's images/s at each call."""
    from cxrlt_ray.data.stream import Ingest, batches

    number = iter(range(10**6))
    ingest = Ingest(engine, WORKERS, memory)

    def run() -> float:
        stream = batches(
            source,
            ids,
            CROP,
            BATCH,
            seed=0,
            epoch=next(number),
            crop=CROP / SIZE,
            flip=0.5,
            augment=augment,
            ingest=ingest,
        )
        return epoch(batch.images for batch in stream)

    return run


def first_batch(source: Shards, ids: np.ndarray, engine: str) -> float:
    """Seconds from the start of an epoch to its first batch."""
    from cxrlt_ray.data.stream import Ingest, batches

    start = time.perf_counter()
    stream = batches(source, ids, CROP, BATCH, seed=0, crop=CROP / SIZE, flip=0.5, ingest=Ingest(engine, WORKERS, 0))
    next(stream)
    seconds = time.perf_counter() - start
    stream.close()
    return seconds


def shuffle_quality(source: Shards, ids: np.ndarray) -> list[str]:
    """How far from each other storage's neighbours come, duplicates, coverage, and shards a batch."""
    from cxrlt_ray.data.batching import order, steps
    from cxrlt_ray.data.stream import WINDOW

    file = source.index()["file"].cat.codes.to_numpy()
    file = file[np.sort(source.index().index.get_indexer(ids))]
    count = len(file)
    lines = [
        "| order | images twice | images never | neighbours' distance / uniform | shards in a batch |",
        "|---|---|---|---|---|",
    ]
    uniform = np.random.default_rng(0).permutation(count)
    orders = {
        "torch's RandomSampler": uniform,
        "ours, local shards": order(file, [0, 0]),
        f"ours, an object store (window of {WINDOW} shards)": order(file, [0, 0], WINDOW),
        "ours, local shards, 4 ranks": np.concatenate(
            [order(file, [0, 0])[share[rank]] for rank in range(4) for share in steps(count, BATCH, 4)]
        ),
    }
    for name, rows in orders.items():
        times = np.bincount(rows, minlength=count)
        distance = np.abs(np.diff(np.argsort(rows))).mean() / ((count + 1) / 3)
        mixed = np.mean([len(np.unique(file[rows[k : k + BATCH]])) for k in range(0, count - BATCH, BATCH)])
        lines.append(f"| {name} | {(times > 1).sum()} | {(times == 0).sum()} | {distance:.3f} | {mixed:.1f} |")
    return lines


def processor_time() -> dict[str, float]:
    """CPU seconds so far of this process and of all of Ray's, by kind."""
    seconds: dict[str, float] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            name, fields = open(f"/proc/{pid}/stat").read().split("(", 1)[1].rsplit(")", 1)  # noqa: SIM115
        except OSError:
            continue
        if int(pid) == os.getpid():
            kind = "the consumer's process (Ray Data's scheduling, fetching blocks)"
        elif name.startswith("ray::") or name.startswith("ray:"):
            kind = "Ray Data's tasks (read, decode, crop, write the block)"
        elif name in ("raylet", "gcs_server"):
            kind = "raylet (with the object store) and gcs_server"
        else:
            continue
        ticks = sum(map(int, fields.split()[11:13]))
        seconds[kind] = seconds.get(kind, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return seconds


def ray_profile(source: Shards, ids: np.ndarray) -> list[str]:
    """Where an epoch through Ray Data spends CPU time, against what decoding alone takes."""
    run = ours(source, ids, "ray")
    run()
    before = processor_time()
    start = time.perf_counter()
    run()
    wall = time.perf_counter() - start
    used = {kind: value - before.get(kind, 0.0) for kind, value in processor_time().items()}
    own_before = time.process_time()
    ours(source, ids, "threads")()
    alone = time.process_time() - own_before
    parts = "; ".join(f"{kind} {1000 * value / len(ids):.2f}" for kind, value in used.items())
    total = 1000 * sum(used.values()) / len(ids)
    return [
        f"An epoch through Ray Data, CPU s per 1,000 images: {parts}; in sum {total:.2f} "
        f"in {wall:.1f} s on 2 cores. The same batches in threads take {1000 * alone / len(ids):.2f}."
    ]


def side_by_side(trials: int, count: int, memory: int) -> tuple[float, float]:
    """(images/s of all trials together, CPU seconds per 1,000 images) of `trials` processes, two epochs each."""
    from cxrlt_ray.cluster import node_cache

    node_cache.forget()
    command = [sys.executable, __file__, "--one-trial", str(count), str(memory)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(trials)]
    results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    seconds = max(result["ended"] for result in results) - min(result["began"] for result in results)
    node_cache.forget()
    images = 2 * count * trials
    return images / seconds, 1000 * sum(result["cpu"] for result in results) / images


def one_trial(count: int, memory: int) -> None:
    """Two epochs of one trial's stream; prints when and with how much CPU time."""
    from cache import BUILD, images, manifest

    from cxrlt_ray.data.shards import QUALITY, Shards, shards_store

    cohort = manifest(images(count))
    source = Shards(shards_store(cohort, str(BUILD), SIZE, QUALITY), SIZE)
    run = ours(source, cohort.table["image_id"].to_numpy(), "threads", memory=memory)
    source.index()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.time()
    run(), run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"began": began, "ended": time.time(), "cpu": cpu}))


def main() -> None:
    if sys.argv[1:2] == ["--one-trial"]:
        one_trial(int(sys.argv[2]), int(sys.argv[3]))
        return
    args = options(__doc__, {"images": 8192, "rounds": 5}).parse_args()
    from cxrlt_ray.cluster import node_cache

    source, ids = shards(args.images)
    memory = args.images * (SIZE**2 + 1)
    groups = [
        {
            "torch DataLoader": torch_loader(source, ids, 0.0),
            "threads": ours(source, ids, "threads"),
            "ray": ours(source, ids, "ray"),
        },
        {
            "torch DataLoader, augmented": torch_loader(source, ids, 0.3),
            "threads, augmented": ours(source, ids, "threads", 0.3),
            "ray, augmented": ours(source, ids, "ray", 0.3),
        },
        {
            "torch DataLoader, again": torch_loader(source, ids, 0.0),
            "threads, decoded kept": ours(source, ids, "threads", memory=memory),
        },
    ]
    rates, peers = {}, {}
    for group in groups:  # one after the other: idle loaders, and memory that one fills, slow the next
        measured = turns(group, args.rounds + 1)
        rates |= {name: values[1:] for name, values in measured.items()}  # the first round starts processes
        peers |= dict.fromkeys(group, next(iter(group)))
    node_cache.forget()
    names = {
        "threads": "threads of the trial's process (the default on one machine)",
        "ray": "Ray Data (the default on a cluster of several)",
        "threads, decoded kept": "threads, decoded images kept in memory (from the second epoch on)",
        "threads, augmented": "threads, with rotation, shift, zoom, contrast (torch: albumentations)",
        "ray, augmented": "Ray Data, with the same",
    }
    lines = [
        "| loader | images/s | times torch's DataLoader |",
        "|---|---|---|",
    ]
    rows = []
    for name, values in rates.items():
        peer = rates[peers[name]]
        lines.append(f"| {names.get(name, name)} | {spread(values)} | {ratios(values, peer)} |")
        if name in ("threads", "ray"):
            work = f"stream 512 px JPEG to 384 px crops: {names[name]}"
            rows.append((work, "torch DataLoader, 2 workers", ratios(values, peer), "1.0"))
    lines += ["", "First batch after the start of an epoch, s: "]
    for engine in ("threads", "ray"):
        first = [first_batch(source, ids, engine) for _ in range(args.rounds)]
        lines[-1] += f"{engine} {spread(first, 3)}; "
        rows.append((f"first batch of an epoch, {engine}", "goal in s", f"{spread(first, 3)} s", "2 s"))
    lines += ["", *ray_profile(source, ids), "", *shuffle_quality(source, ids), ""]
    lines += [
        "Trials side by side, two epochs each, processes of their own (decoded images in memory: as a sweep does it):",
        "",
        "| trials | images/s together | CPU s per 1,000 images | without: images/s | without: CPU s per 1,000 |",
        "|---|---|---|---|---|",
    ]
    for count in (1, 2, 4):
        cached = [side_by_side(count, args.images, memory) for _ in range(3)]
        plain = [side_by_side(count, args.images, 0) for _ in range(3)]
        cells = [spread([pair[k] for pair in pairs], 2 * k) for pairs in (cached, plain) for k in (0, 1)]
        lines.append(f"| {count} | {' | '.join(cells)} |")
        if count == 1:
            alone = [cpu for _, cpu in cached]
        rates_cpu = ratios([count * cpu for _, cpu in cached], alone)
        if count > 1:
            rows.append((f"decoding CPU of {count} trials side by side", "one trial", rates_cpu, f"below {count}"))
    conditions = (
        f": {args.images:,} images, {SIZE} px q95 -> random {CROP} px crop, flip, shuffle, batches of {BATCH}, "
        f"2 workers or threads on 2 cores; {args.rounds} rounds in turn after one to warm up."
    )
    publish("stream", "Streaming: shards to batches", conditions, lines, args.write, rows)


if __name__ == "__main__":
    main()
