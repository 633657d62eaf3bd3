"""What the processes of one machine share: decoded images in shared memory, and shards fetched from an object store.

Decoded images stand in a file of /dev/shm (memory, not disk), a byte for each image that says whether it is
there and then uint8 [capacity, size, size]. Whichever trial needs an image first decodes it; the others, and
later epochs, copy it. Files are removed at a sweep's end; one that a killed sweep left is removed by the next
(a live process holds a lock on its file).

Shards of an object store are copied to TMPDIR, by the first that needs one; the others wait. They stay for later
sweeps, and go, the oldest first, when the disk is short.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from cxrlt_ray.data.prepare import Shards
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import own_dir

SHARE_OF_MEMORY = 0.25  # of what is available, for decoded images
KEEP_FREE = 5e9  # bytes of the disk that fetched shards leave free
KEPT = 32  # shards that stay whatever the disk: some trials at once each mix a window of 8 of them
MEMORY = Path("/dev/shm")
PREFIX = f"cxrlt_ray-{os.getuid()}"


def memory_bound(gigabytes: float | None = None) -> int:
    """Bytes that decoded images may take on this machine: what is asked, else a share of the available memory."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return 0
    wanted = gigabytes * 1e9 if gigabytes is not None else SHARE_OF_MEMORY * _available()
    return int(min(wanted, 0.9 * shutil.disk_usage(MEMORY).free + _held()))


class Decoded:
    """Decoded images of `shards`, shared by this machine's processes; it holds those with a place below `capacity`."""

    def __init__(self, shards: Shards, images: int, bound: int) -> None:
        self.size = shards.size
        self.capacity, self._file = _open(_name(shards), images, shards.size**2 + 1, bound)
        if self.capacity:
            there = np.memmap(self._file, np.uint8, "r+")  # type: ignore[call-overload]
            self._known = there[: self.capacity]
            self._pixels = there[self.capacity :].reshape(self.capacity, shards.size, shards.size)

    def get(self, place: int) -> np.ndarray | None:
        """The image [size, size], not to be written to; None where it is not there."""
        return self._pixels[place] if place < self.capacity and self._known[place] else None

    def put(self, place: int, image: np.ndarray) -> None:
        """Keep an image, if it has a place."""
        if place < self.capacity:
            self._pixels[place] = image
            self._known[place] = 1


@lru_cache(maxsize=8)
def decoded(shards: Shards, images: int, bound: int) -> Decoded:
    """The machine's decoded images, opened once by a process."""
    return Decoded(shards, images, bound)


def forget() -> None:
    """Remove this user's decoded images from this machine; who still reads them keeps them until it ends."""
    for path in MEMORY.glob(f"{PREFIX}-*.u8"):
        path.unlink(missing_ok=True)


def fetched(shards: Shards, file: str) -> Path:
    """A shard as a local file: itself, or a copy of an object store's, kept for all processes while disk allows."""
    if shards.store.local is not None:
        return shards.store.local / file
    path = _folder(shards) / file
    if not path.exists():
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one thread of one process fetches it
            if not path.exists():
                _make_room(path.parent.parent)
                with shards.store.fetched(file) as there:  # in TMPDIR, too
                    os.replace(there, path)
    return path


def read(shards: Shards, file: str, offset: int, length: int) -> bytes:
    """Bytes of a shard; it is fetched anew where another process has made room of it in between."""
    for _ in range(3):
        try:
            descriptor = os.open(fetched(shards, file), os.O_RDONLY)
        except FileNotFoundError:
            if shards.store.local is not None:
                break
            continue
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
    raise CxrltError(f"{shards.store.uri}/{file} is gone, or {tempfile.gettempdir()} cannot hold it: make room there.")


@lru_cache(maxsize=8)
def _folder(shards: Shards) -> Path:
    """Where copies of these shards are, of this state of them: mended ones are others."""
    state = hashlib.sha256(shards.index()[["offset", "length"]].to_numpy(np.int64).tobytes()).hexdigest()[:12]
    return own_dir(own_dir(Path(tempfile.gettempdir(), PREFIX)) / f"{_name(shards)}-{state}")


def _make_room(folder: Path) -> None:
    """Remove the copies fetched longest ago until the disk has KEEP_FREE bytes free, but the last KEPT."""
    there = [(path.stat().st_mtime, path) for path in folder.glob("*/*.parquet")]
    for _, path in sorted(there)[: -KEPT or None]:
        if shutil.disk_usage(folder).free >= KEEP_FREE:
            break
        path.unlink(missing_ok=True)


def _open(name: str, images: int, each: int, bound: int) -> tuple[int, object]:
    """Capacity and open file of the machine's decoded images `name`; made if it is not there and there is room."""
    if not bound:
        return 0, None
    path = MEMORY / f"{PREFIX}-{name}.u8"
    with open(MEMORY / f"{PREFIX}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process at a time makes files, and takes away what no one holds
        _remove_stale()
        if not path.exists() and (bound - _held()) // each <= 0:
            return 0, None
        file = open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+b")  # noqa: SIM115  kept open: it is in use
        if not os.fstat(file.fileno()).st_size:
            file.truncate(min(images, (bound - _held()) // each) * each)
        fcntl.flock(file, fcntl.LOCK_SH)
    return os.fstat(file.fileno()).st_size // each, file


def _remove_stale() -> None:
    for path in MEMORY.glob(f"{PREFIX}-*.u8"):
        try:
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:
            continue  # in use, or gone


def _held() -> int:
    return sum(path.stat().st_size for path in MEMORY.glob(f"{PREFIX}-*.u8"))


def _name(shards: Shards) -> str:
    return hashlib.sha256(shards.store.uri.encode()).hexdigest()[:12] + f"-{shards.size}"


def _available() -> float:
    with open("/proc/meminfo") as lines:
        values = dict(line.split(":", 1) for line in lines)
    return float(values["MemAvailable"].split()[0]) * 1024
