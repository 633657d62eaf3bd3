"""Small drawn images for a generator to learn, as `prepare` would leave them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cxrlt_ray.data.shards import Shards, encode, pack
from cxrlt_ray.generation.config import GeneratorConfig
from cxrlt_ray.generation.records import Learnt
from cxrlt_ray.generation.training import Lesson
from cxrlt_ray.generation.training_rows import TrainingRows, subjects_fingerprint
from cxrlt_ray.storage import Store

FINDINGS = ("Mass", "Nodule", "Edema")
CONFIG = GeneratorConfig(
    resolution=16, channels=(8, 16), groups=4, steps=6, batch_size=4, lr=1e-3, warmup=2, noise_steps=50, ema_decay=0.5
)


def write_shards(folder: Path, images: np.ndarray, ids: list[str]) -> Shards:
    """Shards of images uint8 [N, H, W], as `prepare` leaves them, without Ray."""
    store, size = Store(str(folder)), images.shape[1]
    rows = pd.DataFrame({"image": [encode(image) for image in images], "image_id": ids})
    content = pack(rows)
    store.write("train-00000-0.parquet", content)
    path = folder / "train-00000-0.parquet"
    index = pd.read_parquet(path)[["image_id", "offset", "length"]].assign(file=path.name)
    index.to_parquet(folder / "index.parquet")
    store.write_json("summary.json", {"images": len(ids), "quarantined": 0})
    return Shards(store, size)


def drawn_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures, uint8 [count, size, size]."""
    coarse = np.random.default_rng(seed).integers(20, 230, (count, 5, 5), dtype=np.uint8)
    return np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse])


def lesson_of(folder: Path, count: int = 10) -> Lesson:
    """`count` images of a subject each to learn: the first two have a Mass, the third alone an Edema."""
    ids = [f"i{k:03d}" for k in range(count)]
    targets = np.zeros((count, 3), np.int8)
    targets[:2, 0] = targets[2:6, 1] = targets[2:3, 2] = 1
    targets[5:6, 2] = -1
    subject = np.array([f"p{k}" for k in range(count)], object)
    rows = TrainingRows(np.array(ids, object), subject, targets, FINDINGS)
    shards = write_shards(folder, drawn_images(count, 16), ids)
    learnt = Learnt(
        data="drawn", task="auto", findings=FINDINGS, images=count, subjects_count=count, cohort="c",
        subjects=subjects_fingerprint(subject), shards=shards.store.uri, size=16, view="PA",
    )  # fmt: skip
    return Lesson(rows, shards, learnt)
