"""Stored features: what a frozen backbone gives of each image, computed once and read as a memory map.

    STORAGE/features/KEY/features.json                    what they are of, and the bytes they may come to
                        /train-00000-STATE.safetensors    float16 [images, N, D] of the shard of that name, in its order

KEY is a hash of all that features depend on: the shards, the backbone's weights, the precision, and what is made of an
image (a view, or one of its augmented copies). Each file names its KEY, its images and its checksum, so that one that
was copied, cut short or changed is not read. Embeddings of texts have stores of their own beside them
(text/embedding_store.py). All stores together are bounded: the one that was used longest ago and is not in use makes
room. Where the shards are in an object store, each machine keeps features of its own in TMPDIR.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TextIO

import numpy as np

from cxrlt_ray.cluster.node_cache import PREFIX
from cxrlt_ray.data.image_transform import Look
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import own_dir, private_dir
from cxrlt_ray.storage import Store

VERSION = 3  # of the layout and of what is computed; part of KEY
FEATURES, DESCRIPTION, USE, SUFFIX = "features", "features.json", ".use", ".safetensors"
SHARE_OF_DISK = 0.25  # of what is free, for all stores together
KEEP_FREE = 5e9  # bytes of the disk that stores leave free


class StoreKey(Protocol):
    """A dataclass of all that the content of a store depends on."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str:
        """KEY: the store's directory."""


@dataclass(frozen=True)
class FeatureKey:
    """All that stored features depend on.

    shards: their directory's name. weights: Classifier.fingerprint. precision: bf16 or fp32. backbone: its name, for
    whoever looks.
    """

    shards: str
    weights: str
    backbone: str
    precision: str
    look: Look

    @property
    def name(self) -> str:
        """KEY: the directory's name."""
        content = [VERSION, type(self.look).__name__, dataclasses.asdict(self)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StoredFeatures:
    """Features of the images of some shards, by the shard's file: float16 [images, N, D], memory maps.

    use: while it is open the store is not removed to make room.
    """

    parts: Mapping[str, np.ndarray]
    use: TextIO

    def at(self, file: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Those of B images, float16 [B, N, D]. file, place: [B], each one's shard and which of its images it is."""
        chosen = [self.parts[name][row] for name, row in zip(file.tolist(), place.tolist(), strict=True)]
        return np.stack(chosen) if chosen else next(iter(self.parts.values()))[:0]


def part_name(file: str) -> str:
    """The file of features of the shard `file`."""
    return file.rpartition(".")[0] + SUFFIX


def write_part(store: Store, key: FeatureKey, shards: Shards, file: str, features: np.ndarray) -> None:
    """Write the features float16 [images, N, D] of a shard's images, whole or not at all; raises CxrltError."""
    import torch
    from safetensors.torch import save_file

    metadata = {"key": key.name, "images": _digest(shards, file), "checksum": _checksum(features)}
    with store.place(part_name(file)) as path:
        save_file({FEATURES: torch.from_numpy(features)}, path, metadata)


def read_part(store: Store, key: FeatureKey, shards: Shards, file: str, shape: Sequence[int]) -> np.ndarray | None:
    """The features of a shard's images as a memory map float16 [images, N, D]; None where there are none yet.

    shape: (N, D). Raises CxrltError, saying what is wrong, where the file is not what it should be.
    """
    from safetensors import SafetensorError, safe_open

    assert store.local is not None
    path = store.local / part_name(file)
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as content:
            metadata, features = content.metadata() or {}, content.get_tensor(FEATURES).numpy()
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise CxrltError(f"{path} is damaged ({type(error).__name__})") from None
    if metadata.get("key") != key.name:
        raise CxrltError(f"{path} holds features of other weights, another size or another view")
    images = len(shards.images_in(file))
    if (
        features.dtype != np.float16
        or features.shape != (images, *shape)
        or metadata["images"] != _digest(shards, file)
    ):
        raise CxrltError(f"{path} holds features of other images")
    if metadata.get("checksum") != _checksum(features):
        raise CxrltError(f"{path} is damaged (its checksum is another)")
    return features


def _digest(shards: Shards, file: str) -> str:
    return hashlib.sha256("\n".join(map(str, shards.images_in(file))).encode()).hexdigest()[:16]


def _checksum(features: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(features).data.cast('B')):08x}"


@dataclass(frozen=True)
class FeatureStorage:
    """The directory of all stores of features, and the bytes that they may take together."""

    folder: Path
    bound: int

    def store(self, key: StoreKey) -> Store:
        """The directory of one."""
        return Store(str(self.folder / key.name))

    def enter(self, key: StoreKey, missing: int) -> TextIO | None:
        """Take the store of `key` in use and reserve `missing` bytes more in it; None where there is no room for them.

        Others that are not in use are removed to make room, the one used longest ago first. What is returned is closed
        when the store is no longer in use.
        """
        with self._locked():
            folder = private_dir(self.folder / key.name)
            use = open(folder / USE, "a")  # noqa: SIM115  kept open: it is in use
            fcntl.flock(use, fcntl.LOCK_SH)
            wanted = _bytes_in(folder) + missing
            if missing and not self._make_room(folder, wanted, missing):
                use.close()
                return None
            description = {**dataclasses.asdict(key), "bytes": max(wanted, _reserved(folder) if missing else 0)}
            Store(str(folder)).write_json(DESCRIPTION, description)
            return use

    def held(self) -> int:
        """Bytes that all stores take, what is reserved in them included."""
        return sum(_held(folder) for folder in self._stores())

    def forget(self) -> tuple[int, int]:
        """Remove all stores that are not in use; how many, and their bytes."""
        if not self.folder.is_dir():
            return 0, 0
        with self._locked():
            sizes = [size for folder in self._stores() if (size := _removed(folder)) is not None]
        return len(sizes), sum(sizes)

    def _make_room(self, own: Path, wanted: int, missing: int) -> bool:
        """Whether the store `own` may come to `wanted` bytes, `missing` of which are not on the disk yet."""
        others = sorted((folder for folder in self._stores() if folder != own), key=_last_use)
        held = sum(_held(folder) for folder in others)
        free = shutil.disk_usage(self.folder).free - KEEP_FREE
        if wanted > self.bound or missing > free + held:
            return False  # however much is removed
        for folder in others:
            if held + wanted <= self.bound and missing <= free:
                break
            if (removed := _removed(folder)) is not None:
                held, free = held - removed, free + removed
        return held + wanted <= self.bound and missing <= free

    def _stores(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if path.is_dir()]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time enters stores and removes them."""
        with open(private_dir(self.folder) / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def features_folder(storage: Store) -> Path:
    """Where features are kept beside the shards of a storage; of an object store on each machine by itself."""
    if storage.local is not None:
        return storage.absolute().local / FEATURES  # type: ignore[operator]
    return own_dir(Path(tempfile.gettempdir(), PREFIX)) / FEATURES


def storage_of(shards: Shards) -> Store:
    """The storage in which the shards are: STORAGE of STORAGE/shards/NAME."""
    return Store(shards.store.uri.rpartition("/")[0].rpartition("/")[0])


def features_bound(storage: Store, gigabytes: float | None = None) -> int:
    """Bytes that all stores of features may take: `gigabytes`, else a share of the disk that is free without them."""
    if gigabytes is not None:
        return int(gigabytes * 1e9)
    folder = features_folder(storage)
    free = Store(str(folder)).free() or 0
    return int(SHARE_OF_DISK * max(0, free + FeatureStorage(folder, 0).held()))


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _reserved(folder: Path) -> int:
    """The bytes that a store may come to, as its last writer said; 0 where that cannot be read."""
    try:
        content: Any = json.loads((folder / DESCRIPTION).read_text())
        return int(content["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _held(folder: Path) -> int:
    return max(_bytes_in(folder), _reserved(folder))


def _last_use(folder: Path) -> float:
    with suppress(FileNotFoundError):
        return (folder / DESCRIPTION).stat().st_mtime
    return 0.0


def _removed(folder: Path) -> int | None:
    """Remove a store; its bytes, or None where it is in use."""
    with open(folder / USE, "a") as use:
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        size = _held(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return size
