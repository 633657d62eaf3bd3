"""The node cache: decoded images, and shards fetched from an object store, shared by the processes of one machine.

Decoded images stand in a file of /dev/shm (memory, not disk): one byte for each slot that says whether it is filled,
then uint8 [capacity, size, size]. Whichever trial needs an image first decodes it; the others, and later epochs, copy
it. Files are removed at a sweep's end; one that a killed sweep left is removed by the next (a live process holds a lock
on its file).

Shards of an object store are copied to TMPDIR by the first process that needs one; the others wait. Copies stay for
later sweeps. Where the disk is short, the oldest ones are evicted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cxrlt_ray.cluster.memory import available_memory
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import own_dir
from cxrlt_ray.storage import Store

SHARE_OF_MEMORY = 0.25  # of the available memory, for decoded images
KEEP_FREE = 5e9  # bytes of the disk that fetched shards leave free
KEEP_COPIES = 32  # shards that stay even where the disk is short: concurrent trials each mix a window of 8
FETCHES = 3  # of a shard whose copy is evicted before it is opened
MEMORY = Path("/dev/shm")
PREFIX = f"cxrlt_ray-{os.getuid()}"


@dataclass(frozen=True)
class ShardFiles:
    """What the cache needs to know of shards: their directory, the images' edge in pixels, and their content's version.

    version: what is kept of another version is not read.
    """

    store: Store
    size: int
    version: str = ""

    @property
    def name(self) -> str:
        """A file name of this version of the shards."""
        return hashlib.sha256(self.store.uri.encode()).hexdigest()[:12] + f"-{self.size}-{self.version}"


def memory_bound(gigabytes: float | None = None) -> int:
    """Bytes that decoded images may take on this machine: `gigabytes`, else a share of the available memory."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return 0
    bound = gigabytes * 1e9 if gigabytes is not None else SHARE_OF_MEMORY * (available_memory() or 0)
    return int(min(bound, 0.9 * shutil.disk_usage(MEMORY).free + _bytes_written()))


class DecodedImages:
    """Decoded images of shards, shared by this machine's processes: a slot each for the first `capacity` of them."""

    def __init__(self, shards: ShardFiles, images: int, bound: int) -> None:
        """images: how many there are. bound: bytes that all of this user's decoded images may take."""
        self.size = shards.size
        self.capacity, self._file = _open(shards.name, images, shards.size**2 + 1, bound)
        if self.capacity:
            content = np.memmap(self._file, np.uint8, "r+")  # type: ignore[call-overload]
            self._filled = content[: self.capacity]
            self._pixels = content[self.capacity :].reshape(self.capacity, shards.size, shards.size)

    def get(self, slot: int) -> np.ndarray | None:
        """The image [size, size], not to be written to; None where the slot is empty or beyond the capacity."""
        return self._pixels[slot] if slot < self.capacity and self._filled[slot] else None

    def put(self, slot: int, image: np.ndarray) -> None:
        """Keep an image, if the slot is within the capacity."""
        if slot < self.capacity:
            self._pixels[slot] = image
            self._filled[slot] = 1


@lru_cache(maxsize=8)
def decoded_images(shards: ShardFiles, images: int, bound: int) -> DecodedImages:
    """The machine's decoded images, opened once by a process."""
    return DecodedImages(shards, images, bound)


def forget() -> None:
    """Remove this user's decoded images from this machine; processes that still read them keep them until they end."""
    for path in MEMORY.glob(f"{PREFIX}-*.u8"):
        path.unlink(missing_ok=True)


def fetch(shards: ShardFiles, file: str) -> Path:
    """A shard as a local file: itself, or a copy of an object store's, kept for all processes while disk allows."""
    if shards.store.local is not None:
        return shards.store.local / file
    path = _directory(shards) / file
    if not path.exists():
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one thread of one process fetches it
            if not path.exists():
                _evict(path.parent.parent)
                with shards.store.fetched(file) as download:  # in TMPDIR, too
                    os.replace(download, path)
    return path


def read(shards: ShardFiles, file: str, offset: int, length: int) -> bytes:
    """Bytes of a shard; a copy that another process evicts before it is opened is fetched anew.

    Raises CxrltError where the shard cannot be read, or each of FETCHES copies is evicted.
    """
    for _ in range(FETCHES):
        try:
            descriptor = os.open(fetch(shards, file), os.O_RDONLY)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and shards.store.local is None:
                _directory.cache_clear()  # the whole of it may have been removed
                continue
            raise CxrltError(_unreadable(shards, file, error)) from None
        try:
            content = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        if len(content) < length:
            raise CxrltError(f"shard {shards.store.uri}/{file} is cut short: remove it; --resume prepares it again.")
        return content
    raise CxrltError(f"{shards.store.uri}/{file} is gone, or {tempfile.gettempdir()} cannot hold it: make room there.")


def _unreadable(shards: ShardFiles, file: str, error: OSError) -> str:
    problem = "is gone" if isinstance(error, FileNotFoundError) else "cannot be read"
    remedy = "" if shards.store.local is None else "; --resume prepares what is missing again"
    return f"shard {shards.store.uri}/{file} {problem}: {os.strerror(error.errno or 0)}{remedy}."


@lru_cache(maxsize=8)
def _directory(shards: ShardFiles) -> Path:
    """Where copies of this version of the shards are."""
    return own_dir(own_dir(Path(tempfile.gettempdir(), PREFIX)) / shards.name)


def _evict(directory: Path) -> None:
    """Remove the copies fetched longest ago until the disk has KEEP_FREE bytes free, but the last KEEP_COPIES."""
    copies = sorted((status.st_mtime, path) for path, status in _statuses(directory, "*/*.parquet"))
    for _, path in copies[: -KEEP_COPIES or None]:
        if shutil.disk_usage(directory).free >= KEEP_FREE:
            break
        path.unlink(missing_ok=True)


def _open(name: str, images: int, slot_bytes: int, bound: int) -> tuple[int, object]:
    """Capacity and open file of the machine's decoded images `name`; made if it does not exist and there is room."""
    if not bound:
        return 0, None
    path = MEMORY / f"{PREFIX}-{name}.u8"
    bound = min(bound, _most())
    with open(MEMORY / f"{PREFIX}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process at a time makes files, and removes those that no one holds
        _remove_stale()
        if not path.exists() and (bound - _bytes_held()) // slot_bytes <= 0:
            return 0, None
        file = open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+b")  # noqa: SIM115  kept open: it is in use
        if not os.fstat(file.fileno()).st_size:
            file.truncate(min(images, (bound - _bytes_held()) // slot_bytes) * slot_bytes)
        fcntl.flock(file, fcntl.LOCK_SH)
    return os.fstat(file.fileno()).st_size // slot_bytes, file


def _remove_stale() -> None:
    for path in MEMORY.glob(f"{PREFIX}-*.u8"):
        try:
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:
            continue  # in use, or gone


def _most() -> int:
    """Bytes that decoded images may take here whatever was asked for: the bound may be of another, larger machine.

    Who writes to /dev/shm more than it holds is killed by the kernel.
    """
    available, free = available_memory(), shutil.disk_usage(MEMORY).free
    return int(0.9 * (free if available is None else min(free, available))) + _bytes_written()


def _bytes_written() -> int:
    """Of the slots that are filled: files take no memory before."""
    return sum(512 * status.st_blocks for _, status in _statuses(MEMORY, f"{PREFIX}-*.u8"))


def _bytes_held() -> int:
    return sum(status.st_size for _, status in _statuses(MEMORY, f"{PREFIX}-*.u8"))


def _statuses(directory: Path, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    """Files and their status; another process may remove one between its listing and this."""
    for path in directory.glob(pattern):
        with suppress(FileNotFoundError):
            yield path, path.stat()
