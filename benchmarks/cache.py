"""A cohort of images for the ingest benchmarks, made once in build/: phantom pictures at 512 px, varied."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.data.shards import Shards
    from cxrlt_ray.training.job import Job

BUILD = Path(__file__).parent.parent / "build" / "ingest"


def images(count: int, size: int = 512, grain: float = 2.0) -> Path:
    """A folder with `count` different JPEGs (q95) of `size` px: 32 drawn chest X-rays, moved, toned and grained."""
    from cxrlt_ray.phantom.pictures import Picture, draw_picture

    folder = BUILD / f"images-{count}-{size}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [draw_picture(Picture(k, k, str(k), k % 4 == 0, False, {}), size, 0) for k in range(32)]
    rng = np.random.default_rng(0)
    for k in range(count):
        turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(-8, 8), rng.uniform(0.95, 1.1))
        image = cv2.GaussianBlur(cv2.warpAffine(pictures[k % 32], turn, (size, size)), (0, 0), 0.8)
        noisy = image * rng.uniform(0.8, 1.0) + rng.normal(0, grain, image.shape).astype(np.float32)
        cv2.imwrite(str(folder / f"{k:06d}.jpg"), noisy.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])
    (folder / "done").touch()
    return folder


def manifest(folder: Path) -> Manifest:
    """The images of a folder as a cohort of training images, a subject each."""
    import pandas as pd

    from cxrlt_ray.data.manifest import META, Manifest

    paths = sorted(path.name for path in folder.glob("*.jpg"))
    table = pd.DataFrame({name: [None] * len(paths) for name in META})
    table = table.assign(image_id=paths, study_id=paths, subject_id=paths, path=paths, view="PA", split="train")
    return Manifest(table, (), "images", str(folder))


def job(
    folder: Path,
    cohort: Manifest,
    prepared: tuple[Shards, ...],
    findings: tuple[str, ...] | None = None,
    threads: int = 2,
) -> Job:
    """What a trial needs to train outside of a sweep, its run in `folder`."""
    from cxrlt_ray.data.stream import Ingest
    from cxrlt_ray.storage import Store
    from cxrlt_ray.training.job import Job

    run = Store(str(folder))
    with run.place("manifest.parquet") as path:
        cohort.write(path)
    ingest = Ingest(threads=threads)
    return Job(run, prepared, findings or cohort.findings, cohort.fingerprint, threads=threads, ingest=ingest)


def shards(count: int, size: int = 512) -> tuple[Shards, np.ndarray]:
    """`count` images at `size` px as shards, and their ids."""
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.prepare import prepare

    start_ray()
    cohort = manifest(images(count, size))
    (prepared,) = prepare(cohort, str(BUILD), [size], say=lambda text: print(text, file=sys.stderr))
    return prepared, cohort.table["image_id"].to_numpy()
