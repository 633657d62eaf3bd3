"""Originals to shards: resized grayscale JPEGs in Parquet, made once with Ray Data and reused.

    STORAGE/shards/KEY-SIZEpx/train-00000.parquet ...   image_id, jpeg
                             /index.parquet             image_id, file, row: which shard holds what
                             /quarantine.parquet        image_id, path, reason: what cannot be decoded
                             /summary.json              written last: the shards are whole

KEY is a hash of ids, paths and splits, so that new labels reuse the shards. Originals are opened
read-only. A shard is SHARD_ROWS images squashed to SIZE x SIZE (as CXR-LT's winners do) with area
interpolation at JPEG quality 95 (46.8 dB, a quarter of the bytes of raw pixels); a killed run redoes
only the shards in flight.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.manifest import Manifest
from cxrlt_ray.storage import Store

SHARD_ROWS = 256
QUALITY = 95
MAX_BAD = 0.05


@dataclass(frozen=True)
class Shards:
    """Prepared images: the directory, the edge in pixels, and summary counts."""

    store: Store
    size: int
    summary: dict[str, Any]

    def index(self) -> pd.DataFrame:
        """image_id -> file, row."""
        return pd.read_parquet(io.BytesIO(self.store.read("index.parquet"))).set_index("image_id")


def prepare(manifest: Manifest, storage: str, size: int, max_bad: float = MAX_BAD, say: Any = print) -> Shards:
    """The shards of `manifest` at `size` x `size` pixels, made if they are not there yet.

    Raises CxrltError when more than the share `max_bad` of the images cannot be decoded.
    """
    store = Store(storage).absolute() / "shards" / f"{_key(manifest)}-{size}px"
    if not store.exists("summary.json"):
        _write_shards(manifest, store, size, say)
    shards = Shards(store, size, store.read_json("summary.json"))
    bad, total = shards.summary["quarantined"], shards.summary["images"]
    if bad > max_bad * total:
        _forget(store)
        raise CxrltError(
            f"{bad} of {total} images cannot be decoded, more than the allowed share {max_bad:g}; "
            f"{store.uri}/quarantine.parquet says which and why. Mend them, or allow more with --max-bad."
        )
    return shards


def decode(content: bytes) -> tuple[np.ndarray, str]:
    """An encoded image as uint8 grayscale [H, W], and what had to be converted ('', 'colour', '16 bit').

    Raises ValueError saying why it cannot be decoded. OpenCV decodes a truncated file without a word,
    hence the look for its end marker.
    """
    import cv2

    if content.startswith(b"\xff\xd8"):
        whole = b"\xff\xd9" in content[-1024:]
    elif content.startswith(b"\x89PNG"):
        whole = b"IEND" in content[-1024:]
    else:
        whole = True
    if not content:
        raise ValueError("empty file")
    if not whole:
        raise ValueError("truncated")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("not an image that OpenCV decodes")
    converted = ""
    if image.dtype == np.uint16:
        # the used range, since 10- and 12-bit radiographs come in 16-bit files
        low, high = int(image.min()), max(int(image.max()), int(image.min()) + 1)
        image = ((image.astype(np.float32) - low) * (255 / (high - low))).round().astype(np.uint8)
        converted = "16 bit"
    if image.dtype != np.uint8:
        raise ValueError(f"pixels of type {image.dtype}")
    if image.ndim == 3:
        code = cv2.COLOR_BGRA2GRAY if image.shape[2] == 4 else cv2.COLOR_BGR2GRAY
        image = cv2.cvtColor(image, code) if image.shape[2] > 1 else image[..., 0]
        converted = converted or "colour"
    return image, converted


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W] to [size, size]: area interpolation down, linear up."""
    import cv2

    if image.shape == (size, size):
        return image
    down = min(image.shape) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if down else cv2.INTER_LINEAR)


def _key(manifest: Manifest) -> str:
    columns = manifest.table[["image_id", "path", "split"]].astype(str)
    rows = pd.util.hash_pandas_object(columns, index=False).to_numpy()
    return hashlib.sha256(manifest.root.encode() + rows.tobytes()).hexdigest()[:12]


def _write_shards(manifest: Manifest, store: Store, size: int, say: Any) -> None:
    import time

    import ray

    chunks = _chunks(manifest)
    done = set(store.list())
    missing = [chunk for chunk in chunks if chunk["file"] not in done]
    images = len(manifest.table)
    say(f"Preparing {images:,} images at {size} px from {manifest.root} (once; later runs reuse the shards)")
    started, finished = time.monotonic(), 0
    if missing:
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_items(missing, override_num_blocks=len(missing)).map(
            _write_shard,  # type: ignore[arg-type]
            fn_kwargs={"store": store, "root": manifest.root, "size": size},
        )
        said = started
        for row in dataset.iter_rows():
            finished += row["images"]
            if time.monotonic() - said > 10:
                said = time.monotonic()
                rate = finished / (said - started)
                left = (sum(len(c["image_id"]) for c in missing) - finished) / rate
                say(f"  {finished:,} images, {rate:,.0f} images/s, {left:,.0f} s left")
    columns = ["image_id", "path", "reason", "converted"]  # without the pixels: 40 GB of a real cohort
    frames = [_read_columns(store, chunk["file"], columns) for chunk in chunks]
    for chunk, frame in zip(chunks, frames, strict=True):
        frame["file"], frame["row"] = chunk["file"], np.arange(len(frame))
    table = pd.concat(frames, ignore_index=True)
    good = table["reason"] == ""
    _write_parquet(store, "index.parquet", table.loc[good, ["image_id", "file", "row"]])
    _write_parquet(store, "quarantine.parquet", table.loc[~good, ["image_id", "path", "reason"]])
    summary = {
        "images": images,
        "quarantined": int((~good).sum()),
        "converted": {k: int(v) for k, v in table["converted"].value_counts().items() if k},
        "size": size,
        "seconds": round(time.monotonic() - started, 1),
    }
    store.write_json("summary.json", summary)
    rate = images / max(time.monotonic() - started, 1e-9)
    say(f"  {images:,} images prepared, {rate:,.0f} images/s; {_told(summary)}")


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


def _told(summary: dict[str, Any]) -> str:
    converted = "".join(f", {count} {what} converted" for what, count in summary["converted"].items())
    return f"{summary['quarantined']} in quarantine{converted}"


def _chunks(manifest: Manifest) -> list[dict[str, Any]]:
    chunks = []
    for split, rows in manifest.table.groupby("split", sort=True):
        # neighbours in a release are of one subject: shards mix them, so that a batch does too
        rows = rows.sample(frac=1, random_state=0)
        for k in range(0, len(rows), SHARD_ROWS):
            part = rows.iloc[k : k + SHARD_ROWS]
            name = f"{split}-{k // SHARD_ROWS:05d}.parquet"
            chunks.append({"file": name, "image_id": part["image_id"].tolist(), "path": part["path"].tolist()})
    return chunks


def _write_shard(chunk: dict[str, Any], store: Store, root: str, size: int) -> dict[str, Any]:
    import cv2

    source, rows = Store(root), []
    for image_id, path in zip(chunk["image_id"], chunk["path"], strict=True):
        row = {"image_id": image_id, "path": path, "jpeg": b"", "reason": "", "converted": ""}
        try:
            image, row["converted"] = decode(source.read(path))
            small = resize(image, size)
            row["jpeg"] = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        except CxrltError:
            row["reason"] = "cannot be read (not on disk?)"
        except (ValueError, cv2.error) as error:
            row["reason"] = str(error)
        rows.append(row)
    _write_parquet(store, chunk["file"], pd.DataFrame(rows))
    return {"file": chunk["file"], "images": len(rows)}


def _write_parquet(store: Store, name: str, frame: pd.DataFrame) -> None:
    with store.place(name) as path:
        frame.to_parquet(path, index=False)


def main(
    data: Annotated[str, cli.argument("the data's directory or URI")],
    size: Annotated[int, cli.option("edge of the shards' images, pixels")] = 512,
    task: Annotated[str, cli.option("task1, task2, task3, auto or a YAML file")] = "auto",
    format: Annotated[str | None, cli.option("the data's format; found by looking without it")] = None,
    storage: Annotated[str, cli.option("where to keep the shards: a directory or URI")] = "runs",
    max_bad: Annotated[float, cli.option("the share of images that may be undecodable")] = MAX_BAD,
) -> None:
    """Resize originals to shards, once; a sweep does it by itself where it was not done.

    python -m cxrlt_ray.prepare /data/mimic --size 512
    """
    from cxrlt_ray.cohort import read_cohort
    from cxrlt_ray.stream import start_ray

    cohort = read_cohort(data, format=format, task=task)
    store = Store(storage)
    store.check_writable()
    start_ray()
    shards = prepare(cohort.manifest, storage, size, max_bad)
    print(f"{shards.store.uri}: {shards.summary['images']:,} images; {_told(shards.summary)}")


if __name__ == "__main__":
    cli.run("prepare")
