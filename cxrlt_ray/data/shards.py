"""Shards: the prepared images of a cohort at one size, as resized gray images in Parquet.

    STORAGE/shards/KEY-SIZEpx/train-00000-STATE.parquet ...   image (encoded), image_id, path, synthetic, offset ...
                             /index.parquet        image_id, file, offset, length: where an image lies; its original's
                                                   state and perceptual hash
                             /quarantine.parquet   image_id, path, reason: what cannot be decoded; its file's state
                             /summary.json         written last: the shards are whole

KEY is a hash of ids, paths and splits, so that new labels reuse the shards; a quality other than QUALITY stands in the
name as well. STATE is a hash of the originals' sizes and times (file_states.py): images that were replaced or mended
have another shard. Images lie in a shard uncompressed and whole, at an offset that the index knows: any image is one
read, so that an epoch can take them in any order.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypedDict

import numpy as np
import pandas as pd

from cxrlt_ray.cluster.node_cache import ShardFiles
from cxrlt_ray.data.duplicates import HASH
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import Store

INDEX, QUARANTINE, SUMMARY = "index.parquet", "quarantine.parquet", "summary.json"
QUALITY = 95  # of JPEG; LOSSLESS is PNG. benchmarks/prepare.py shows what each costs in disk, speed and mAP
LOSSLESS = 0
MAX_BAD = 0.05  # share of images that may be in quarantine
VERSION = 3  # of the shards' layout; part of KEY
SIZES = (16, 4096)  # the smallest and the largest edge in pixels


class Summary(TypedDict, total=False):
    """The content of summary.json: images, converted and suspect ones by kind, encoded bytes, seconds it took.

    synthetic: how many of the images are generated; absent where none is.
    """

    images: int
    quarantined: int
    converted: dict[str, int]
    suspect: dict[str, int]
    synthetic: int
    size: int
    quality: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Shards:
    """Prepared images: the directory, the edge in pixels, and summary counts."""

    store: Store
    size: int
    summary: Summary = field(default_factory=Summary, compare=False)

    def index(self) -> pd.DataFrame:
        """image_id -> file, offset, length: where the encoded image lies."""
        return _index(self)

    def places(self) -> np.ndarray:
        """Which of its file's images each indexed one is, from 0; int64 [N]."""
        return _places(self)

    def images_in(self, file: str) -> np.ndarray:
        """The ids of the images of one file, in its order."""
        return self.index().index.to_numpy()[_members(self)[file]]

    def name(self) -> str:
        """The directory's name below STORAGE/shards."""
        return self.store.uri.rpartition("/")[2]

    def files(self) -> ShardFiles:
        """These shards as the node cache knows them."""
        return ShardFiles(self.store, self.size, _version(self))


@lru_cache(maxsize=8)
def _index(shards: Shards) -> pd.DataFrame:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(shards.store.read(INDEX)))
    names = [name for name in file.schema_arrow.names if name != HASH]  # every training process keeps the rest
    table = file.read(names).to_pandas()
    return table.astype({"file": "category"}).set_index("image_id")


@lru_cache(maxsize=8)
def _version(shards: Shards) -> str:
    """A hash of where each image lies: what is cached of shards that were made anew meanwhile is not read."""
    index = shards.index()
    digest = hashlib.sha256(" ".join(index["file"].cat.categories).encode())
    digest.update(index[["offset", "length"]].to_numpy(np.int64).tobytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=8)
def _places(shards: Shards) -> np.ndarray:
    return shards.index().groupby("file", observed=True).cumcount().to_numpy(np.int64)


@lru_cache(maxsize=8)
def _members(shards: Shards) -> dict[str, np.ndarray]:
    """The rows of the index that are of each file."""
    return dict(shards.index().groupby("file", observed=True).indices)


def forget_indexes() -> None:
    """Read indexes anew: shards of a name that was read before may have been mended."""
    _members.cache_clear()
    _index.cache_clear()
    _places.cache_clear()
    _version.cache_clear()


def nearest(shards: Sequence[Shards], resolution: int) -> Shards:
    """The smallest shards that `resolution` is no enlargement of; else the largest."""
    enough = [candidate for candidate in shards if candidate.size >= resolution]
    if enough:
        return min(enough, key=lambda candidate: candidate.size)
    return max(shards, key=lambda candidate: candidate.size)


def shards_store(manifest: Manifest, storage: str, size: int, quality: int) -> Store:
    """Where the shards of these images are, prepared or not."""
    suffix = "" if quality == QUALITY else f"-{quality_name(quality)}"
    return Store(storage).absolute() / "shards" / f"{_key(manifest)}-{size}px{suffix}"


def _key(manifest: Manifest) -> str:
    table = manifest.table[["image_id", "path", "split"]].astype(str)
    rows = pd.util.hash_pandas_object(table.assign(inverted=inverted(manifest.table)), index=False).to_numpy()
    return hashlib.sha256(f"{VERSION} {manifest.root}".encode() + rows.tobytes()).hexdigest()[:12]


def inverted(table: pd.DataFrame) -> np.ndarray:
    """Which images of a manifest's table were exported from MONOCHROME1 and are to be inverted, bool [N]."""
    if "photometric" not in table:
        return np.zeros(len(table), bool)
    return (table["photometric"] == "MONOCHROME1").fillna(False).to_numpy(bool)


def encode(image: np.ndarray, quality: int = QUALITY) -> bytes:
    """uint8 [H, W] as JPEG of `quality` 1 to 100, or as PNG where it is LOSSLESS."""
    import cv2

    if quality == LOSSLESS:
        return cv2.imencode(".png", image)[1].tobytes()
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def decoded(content: bytes) -> np.ndarray:
    """What `encode` was given, uint8 [H, W]; these files are our own: nothing of them is checked, as in every epoch."""
    import cv2

    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) if content else None
    if image is None:
        raise CxrltError("an image of the shards is damaged: remove their directory, and --resume prepares it again.")
    return image


def pack(rows: pd.DataFrame) -> bytes:
    """A Parquet file of `rows` (image first, as bytes) with the columns offset and length of each image in the file.

    Parquet keeps uncompressed plain byte arrays as they are, one after the other, so an image can be read without
    Parquet; the offsets are searched for in the file itself and do not rest on its format's details. Raises CxrltError
    where this version of pyarrow writes them otherwise.
    """
    lengths = rows["image"].map(len).to_numpy(np.int64)
    draft = _parquet(rows.assign(offset=np.int64(0), length=lengths))
    offsets, end = np.zeros(len(rows), np.int64), 0
    for k, image in enumerate(rows["image"]):
        if image:
            offsets[k] = end = draft.find(image, end)
            end += len(image)
    content = _parquet(rows.assign(offset=offsets, length=lengths))
    for offset, image in zip(offsets, rows["image"], strict=True):
        if content[offset : offset + len(image)] != image:
            raise CxrltError("Parquet did not keep the images as they are: this version of pyarrow cannot be used.")
    return content


def _parquet(frame: pd.DataFrame) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return sink.getvalue()


def quality_name(quality: int) -> str:
    """q95, q90 ... or lossless."""
    return "lossless" if quality == LOSSLESS else f"q{quality}"


def parse_sizes(text: str) -> list[int]:
    """'224,384' as whole numbers from 16 to 4096. Raises UsageError."""
    least, most = SIZES
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not all(least <= size <= most for size in sizes):
        raise UsageError(
            f"--sizes is pixels from {least} to {most} with commas between, such as 224,384; not '{text}'."
        )
    return sizes


def parse_quality(text: str) -> int:
    """'95' or 'lossless'. Raises UsageError."""
    if text == "lossless":
        return LOSSLESS
    if text.isdigit() and 1 <= int(text) <= 100:
        return int(text)
    raise UsageError(f"--quality is 1 to 100 (of JPEG) or lossless, not '{text}'.")


def check_max_bad(share: float) -> None:
    """Raises UsageError for what is no share of images that may be in quarantine."""
    if not 0 <= share <= 1:
        raise UsageError(f"--max-bad is a share from 0 to 1, not {share:g}: 0.05 allows 5 in 100.")
