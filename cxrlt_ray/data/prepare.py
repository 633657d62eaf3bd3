"""Originals to shards: resized gray images in Parquet, made once with Ray Data and reused.

    STORAGE/shards/KEY-SIZEpx/train-00000.parquet ...   image (encoded), image_id, path, offset, length ...
                             /index.parquet             image_id, file, offset, length: where each image lies
                             /quarantine.parquet        image_id, path, reason: what cannot be decoded
                             /summary.json              written last: the shards are whole

KEY is a hash of ids, paths and splits, so that new labels reuse the shards; a quality other than QUALITY
stands in the name as well. Originals are opened read-only and decoded once for all sizes. A shard is
SHARD_ROWS images squashed to SIZE x SIZE (as CXR-LT's winners do) with area interpolation; a killed run
redoes only the shards in flight. Images lie in a shard uncompressed and whole, at an offset that the
index knows: any image is one read, so that an epoch can take them in any order. The directory is its maker's
alone (mode 700), and what lies outside of the data's root, by a path or by a link, is not read.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.cluster.node_cache import ShardFiles
from cxrlt_ray.data.decode import DICOM_SUFFIXES, MAX_BYTES, decode, resize
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.readers.files import plain
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import LEADING_OUT, below, leads_out, private_dir
from cxrlt_ray.storage import Store

SHARD_ROWS = 256
QUALITY = 95  # of JPEG; LOSSLESS is PNG. benchmarks/prepare.py shows what each costs in disk, speed and mAP
LOSSLESS = 0
MAX_BAD = 0.05
SAMPLE = 24  # images that an estimate is made from
VERSION = 2  # of the shards' layout; part of KEY


@dataclass(frozen=True)
class Shards:
    """Prepared images: the directory, the edge in pixels, and summary counts."""

    store: Store
    size: int
    summary: dict[str, Any] = field(default_factory=dict, compare=False)

    def index(self) -> pd.DataFrame:
        """image_id -> file, offset, length: where the encoded image lies."""
        return _index(self)

    def name(self) -> str:
        """The directory's name below STORAGE/shards."""
        return self.store.uri.rpartition("/")[2]

    def files(self) -> ShardFiles:
        """These shards as the node cache knows them."""
        return ShardFiles(self.store, self.size, "" if self.store.local is not None else _version(self))


@lru_cache(maxsize=8)
def _index(shards: Shards) -> pd.DataFrame:
    table = pd.read_parquet(io.BytesIO(shards.store.read("index.parquet")))
    return table.astype({"file": "category"}).set_index("image_id")


@lru_cache(maxsize=8)
def _version(shards: Shards) -> str:
    """A hash of where each image lies: copies of shards that were mended meanwhile are not read."""
    return hashlib.sha256(shards.index()[["offset", "length"]].to_numpy(np.int64).tobytes()).hexdigest()[:12]


def nearest(shards: Sequence[Shards], resolution: int) -> Shards:
    """The smallest shards that `resolution` is no enlargement of; else the largest."""
    enough = [each for each in shards if each.size >= resolution]
    return min(enough, key=lambda each: each.size) if enough else max(shards, key=lambda each: each.size)


def prepare(
    manifest: Manifest,
    storage: str,
    sizes: Sequence[int],
    max_bad: float = MAX_BAD,
    quality: int = QUALITY,
    say: Any = print,
) -> tuple[Shards, ...]:
    """The shards of `manifest` at each of `sizes`, by size; what is not there yet is made in one decode.

    Raises CxrltError when more than the share `max_bad` of the images cannot be decoded, or when the disk
    will not hold them.
    """
    _check_dicom(manifest)
    _check_links(manifest)
    stores = {size: place_of(manifest, storage, size, quality) for size in sorted(set(sizes))}
    files = {chunk["file"] for chunk in _chunks(manifest)}
    lacking = {size: store for size, store in stores.items() if not {"summary.json", *files} <= set(store.list())}
    if lacking:
        _write_shards(manifest, lacking, quality, say)
    shards = tuple(Shards(store, size, store.read_json("summary.json")) for size, store in stores.items())
    for each in shards:
        bad, total = each.summary["quarantined"], each.summary["images"]
        if bad > max_bad * total:
            for store in stores.values():
                _forget(store)
            raise CxrltError(
                f"{bad} of {total} images cannot be decoded, more than the allowed share {max_bad:g}; "
                f"{each.store.uri}/quarantine.parquet says which and why. Mend them, or allow more with --max-bad."
            )
    return shards


def encode(image: np.ndarray, quality: int = QUALITY) -> bytes:
    """uint8 [H, W] as JPEG of `quality` 1 to 100, or as PNG where it is LOSSLESS."""
    import cv2

    if quality == LOSSLESS:
        return cv2.imencode(".png", image)[1].tobytes()
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@dataclass(frozen=True)
class Estimate:
    """What shards will cost, from a sample: images and bytes of all originals, and for each (size, quality) of
    `kinds` (bytes of all shards, seconds of one core, PSNR in dB against the resized pixels).
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
    read, length, done = 0.0, 0, 0
    kinds = {(size, quality): np.zeros(3) for size in sizes for quality in qualities}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for path, inverted in zip(rows["path"], _inverted(rows), strict=True):
        try:
            start = time.perf_counter()
            content = original(manifest.root, path)
            image, _ = decode(content, max(sizes), inverted)
            read += time.perf_counter() - start
        except (CxrltError, ValueError, cv2.error):
            continue
        length, done = length + len(content), done + 1
        for (size, quality), costs in kinds.items():
            start = time.perf_counter()
            small = resize(image, size)
            encoded = encode(small, quality)
            seconds = time.perf_counter() - start
            error = np.square(small.astype(float) - decode(encoded)[0]).mean()
            costs += len(encoded), seconds, error
    cv2.setNumThreads(threads)
    if not done:
        return None
    images = len(manifest.table)
    made = {kind: (c[0] / done * images, c[1] / done * images, psnr(c[2] / done)) for kind, c in kinds.items()}
    return Estimate(images, length / done * images, read / done * images, made)


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of 8-bit pixels; inf for none."""
    return float(10 * np.log10(255**2 / squared_error)) if squared_error else float("inf")


def quality_name(quality: int) -> str:
    """q95, q90 ... or lossless."""
    return "lossless" if quality == LOSSLESS else f"q{quality}"


def place_of(manifest: Manifest, storage: str, size: int, quality: int) -> Store:
    """Where the shards of these images are, made or not."""
    about = "" if quality == QUALITY else f"-{quality_name(quality)}"
    return Store(storage).absolute() / "shards" / f"{_key(manifest)}-{size}px{about}"


def _key(manifest: Manifest) -> str:
    table = manifest.table[["image_id", "path", "split"]].astype(str)
    rows = pd.util.hash_pandas_object(table.assign(inverted=_inverted(manifest.table)), index=False).to_numpy()
    return hashlib.sha256(f"{VERSION} {manifest.root}".encode() + rows.tobytes()).hexdigest()[:12]


def _inverted(table: pd.DataFrame) -> np.ndarray:
    """Which images [N] were exported from MONOCHROME1 and are to be inverted."""
    if "photometric" not in table:
        return np.zeros(len(table), bool)
    return (table["photometric"] == "MONOCHROME1").fillna(False).to_numpy(bool)


def _check_dicom(manifest: Manifest) -> None:
    if find_spec("pydicom") is None and manifest.table["path"].str.lower().str.endswith(DICOM_SUFFIXES).any():
        raise UsageError("the images are DICOM files, which need pydicom: pip install 'cxrlt-ray[dicom]'.")


def original(root: str, path: str) -> bytes:
    """An image's file below the directory or URI `root`.

    Raises CxrltError where it cannot be read, ValueError where it is not to be: it lies elsewhere, by its path or by a
    link, or is larger than any image.
    """
    store = Store(plain(root))
    if store.local is None:
        if leads_out(path):
            raise ValueError(LEADING_OUT)
        return store.read(path)
    real = below(str(store.local), path)
    if os.path.exists(real) and os.path.getsize(real) > MAX_BYTES:
        raise ValueError(f"a file of more than {MAX_BYTES:,} bytes")
    folder, _, name = real.rpartition("/")
    return Store(folder or "/").read(name)


def _check_links(manifest: Manifest) -> None:
    """Refuse at once, rather than image by image, data whose first image a link leads to from elsewhere."""
    if not manifest.table.empty and "://" not in plain(manifest.root):
        try:
            below(plain(manifest.root), manifest.table["path"].iloc[0])
        except ValueError as error:
            raise UsageError(f"the images below {manifest.root} cannot be read: of the first, {error}.") from None


def _write_shards(manifest: Manifest, stores: dict[int, Store], quality: int, say: Any) -> None:
    import ray

    from cxrlt_ray.cluster.start import data_context

    chunks = _chunks(manifest)
    for store in stores.values():
        if store.local is not None:
            private_dir(store.local)
    done = set.intersection(*(set(store.list()) for store in stores.values()))
    missing = [chunk for chunk in chunks if chunk["file"] not in done]
    images, left = len(manifest.table), sum(len(chunk["image_id"]) for chunk in missing)
    at = ", ".join(f"{size}" for size in stores)
    say(f"Preparing {images:,} images at {at} px from {manifest.root} (once; later runs reuse the shards)")
    started, finished = time.monotonic(), 0
    if missing:
        cpus = ray.cluster_resources().get("CPU", 1)
        _tell_estimate(manifest, stores, quality, cpus, left / images, say)
        data_context()
        dataset = ray.data.from_items(missing, override_num_blocks=len(missing)).map(
            _write_shard,  # type: ignore[arg-type]
            fn_kwargs={"stores": stores, "root": manifest.root, "quality": quality},
        )
        said = started
        for row in dataset.iter_rows():
            finished += row["images"]
            if time.monotonic() - said > 10:
                said = time.monotonic()
                rate = finished / (said - started)
                told = cli.duration((left - finished) / rate)
                say(f"  {finished:,} of {left:,} images, {rate:,.0f} images/s, {told} left")
    seconds = time.monotonic() - started
    for size, store in stores.items():
        summary = _close(store, chunks, size, quality, seconds)
    say(f"  {images:,} images prepared, {left / max(seconds, 1e-9):,.0f} images/s; {tell_quarantine(summary)}")


def _close(store: Store, chunks: list[dict[str, Any]], size: int, quality: int, seconds: float) -> dict[str, Any]:
    """Index, quarantine and, last, the summary of shards that are all there."""
    columns = ["image_id", "path", "reason", "converted", "offset", "length"]  # not the pixels: 40 GB
    frames = [_read_columns(store, chunk["file"], columns) for chunk in chunks]
    for chunk, frame in zip(chunks, frames, strict=True):
        frame["file"] = chunk["file"]
    table = pd.concat(frames, ignore_index=True)
    good = table["reason"] == ""
    _write_parquet(store, "index.parquet", table.loc[good, ["image_id", "file", "offset", "length"]])
    _write_parquet(store, "quarantine.parquet", table.loc[~good, ["image_id", "path", "reason"]])
    summary = {
        "images": len(table),
        "quarantined": int((~good).sum()),
        "converted": {k: int(v) for k, v in table["converted"].value_counts().items() if k},
        "size": size,
        "quality": quality_name(quality),
        "bytes": int(table["length"].sum()),
        "seconds": round(seconds, 1),
    }
    store.write_json("summary.json", summary)
    _version.cache_clear()
    _index.cache_clear()  # shards of that name may have been read before they were mended
    return summary


def _tell_estimate(
    manifest: Manifest, stores: dict[int, Store], quality: int, cpus: float, share: float, say: Any
) -> None:
    """One line of what it will cost; raises CxrltError where the disk will not hold it."""
    found = estimate(manifest, list(stores), [quality])
    if found is None:
        return
    size = share * sum(cost[0] for cost in found.kinds.values())
    say(
        f"  about {cli.size(size)} at {quality_name(quality)} from {cli.size(share * found.original_bytes)}, "
        f"{cli.duration(share * found.seconds(cpus))} on {cpus:g} CPU (from {min(SAMPLE, found.images)} images)"
    )
    local = next(iter(stores.values())).local
    if local is not None:
        free = room_at(local)
        if size > free:
            raise CxrltError(
                f"the shards need about {cli.size(size)} and {local.parent} has {cli.size(free)} free: give "
                "--storage a larger disk, fewer or smaller --sizes, or a lower --quality."
            )


def room_at(folder: Path) -> int:
    """Bytes free on the disk where `folder` is or will be."""
    here = folder.resolve()
    return shutil.disk_usage(next(each for each in (here, *here.parents) if each.exists())).free


def _read_columns(store: Store, name: str, columns: list[str]) -> pd.DataFrame:
    with store.fetched(name) as path:
        return pd.read_parquet(path, columns=columns)


def _forget(store: Store) -> None:
    """Shards with images in quarantine are made anew the next time, as their originals may be mended."""
    bad = set(pd.read_parquet(io.BytesIO(store.read("quarantine.parquet")))["image_id"])
    for name in store.list():
        if (
            name.endswith(".parquet")
            and "-" in name
            and bad & set(_read_columns(store, name, ["image_id"])["image_id"])
        ):
            store.delete(name)
    store.delete("summary.json")


def tell_quarantine(summary: dict[str, Any]) -> str:
    converted = "".join(f", {count} {what} converted" for what, count in summary["converted"].items())
    return f"{summary['quarantined']} in quarantine{converted}"


def _chunks(manifest: Manifest) -> list[dict[str, Any]]:
    chunks = []
    for split, rows in manifest.table.assign(inverted=_inverted(manifest.table)).groupby("split", sort=True):
        # neighbours in a release are of one subject: shards mix them, so that a window of shards does too
        rows = rows.sample(frac=1, random_state=0)
        for k in range(0, len(rows), SHARD_ROWS):
            part = rows.iloc[k : k + SHARD_ROWS]
            name = f"{split}-{k // SHARD_ROWS:05d}.parquet"
            chunks.append({"file": name, **{key: part[key].tolist() for key in ("image_id", "path", "inverted")}})
    return chunks


def _write_shard(chunk: dict[str, Any], stores: dict[int, Store], root: str, quality: int) -> dict[str, Any]:
    import cv2

    cv2.setNumThreads(1)  # a task has one CPU
    rows: dict[int, list[dict[str, Any]]] = {size: [] for size in stores}
    for image_id, path, inverted in zip(chunk["image_id"], chunk["path"], chunk["inverted"], strict=True):
        row = {"image_id": image_id, "path": path, "reason": "", "converted": ""}
        images = dict.fromkeys(stores, b"")
        try:
            image, row["converted"] = decode(original(root, path), max(stores), inverted)
            images = {size: encode(resize(image, size), quality) for size in stores}
        except CxrltError:
            row["reason"] = "cannot be read (not on disk?)"
        except (ValueError, cv2.error) as error:
            row["reason"] = str(error)
        for size in stores:
            rows[size].append({"image": images[size], **row})
    for size, store in stores.items():
        store.write(chunk["file"], shard(pd.DataFrame(rows[size])))
    return {"file": chunk["file"], "images": len(chunk["image_id"])}


def shard(rows: pd.DataFrame) -> bytes:
    """A Parquet file of `rows` (image first, as bytes) with the columns offset and length of each image in the file.

    Parquet keeps uncompressed plain byte arrays as they are, one after the other, so an image can be read
    without Parquet; the offsets are looked for in the file itself and do not rest on its format's details.
    """
    lengths = rows["image"].map(len).to_numpy(np.int64)
    written = _parquet(rows.assign(offset=np.int64(0), length=lengths))
    offsets, at = np.zeros(len(rows), np.int64), 0
    for k, image in enumerate(rows["image"]):
        if image:
            offsets[k] = at = written.find(image, at)
            at += len(image)
    whole = _parquet(rows.assign(offset=offsets, length=lengths))
    for offset, image in zip(offsets, rows["image"], strict=True):
        if whole[offset : offset + len(image)] != image:
            raise CxrltError("Parquet did not keep the images as they are: this version of pyarrow cannot be used.")
    return whole


def _parquet(frame: pd.DataFrame) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return sink.getvalue()


def _write_parquet(store: Store, name: str, frame: pd.DataFrame) -> None:
    with store.place(name) as path:
        frame.to_parquet(path, index=False)


def parse_sizes(text: str) -> list[int]:
    """'224,384' as whole numbers from 16 to 4096. Raises UsageError."""
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not all(16 <= size <= 4096 for size in sizes):
        raise UsageError(f"--sizes is pixels from 16 to 4096 with commas between, such as 224,384; not '{text}'.")
    return sizes


def parse_quality(text: str) -> int:
    """'95' or 'lossless'. Raises UsageError."""
    if text == "lossless":
        return LOSSLESS
    if text.isdigit() and 1 <= int(text) <= 100:
        return int(text)
    raise UsageError(f"--quality is 1 to 100 (of JPEG) or lossless, not '{text}'.")
