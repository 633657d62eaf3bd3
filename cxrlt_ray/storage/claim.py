"""A directory claimed by one process: whoever comes second learns so before the work, not after it.

local     A lock on its file .claim. The kernel gives it back when the process ends, however it ends.
remote    A file of the process's own in its directory .claims, written and then listed. Who sees another's takes its
          own back and tries again after a pause, so that of two at most one goes on. What a killed process left counts
          until a day has passed, or on its own machine until the next process looks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import private_dir
from cxrlt_ray.storage import Store, local
from cxrlt_ray.storage.messages import explained
from cxrlt_ray.storage.whole import ABANDONED

CLAIM, CLAIMS = ".claim", ".claims"
ATTEMPTS = 4  # to write a claim beside which there is no other
PAUSE = 1.0  # seconds at most between two of them


class Taken(CxrltError):
    """Another process has the claim; the message says which."""


def claim(store: Store) -> AbstractContextManager[None]:
    """Have the directory for this process alone while the context lasts; one that is left without a file is removed.

    Raises Taken where another process has it, CxrltError where the storage has no locks or does not answer.
    """
    return _listed(store) if store.local is None else _locked(store.local)


@contextmanager
def in_turn(store: Store, name: str) -> Iterator[None]:
    """One process at a time, of those that ask for the turn `name` in a directory; each waits for the others.

    For moments, such as to read a file and write it again. Storage without locks lets all in at once.
    """
    if store.local is None:
        yield
        return
    with explained(f"{store.uri} cannot be made"):
        private_dir(store.local)
        file = open(store.local / name, "a", encoding="utf-8")  # noqa: SIM115  it is locked while it is open
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_claimed(store: Store) -> bool | None:
    """Whether a process, of any machine, has the claim on the directory; None where that cannot be told.

    Nothing is written. Raises CxrltError where the storage does not answer.
    """
    if store.local is None:
        return any(not _is_abandoned(store, name) for name in store.list(CLAIMS))
    try:
        with open(store.local / CLAIM, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back as the file is closed, at once
    except FileNotFoundError:
        return False
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with _lock(folder) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            if os.listdir(folder) == [CLAIM]:
                with suppress(OSError):
                    (folder / CLAIM).unlink()
                    folder.rmdir()


def _lock(folder: Path) -> TextIO:
    """The open, locked file .claim of a directory, which is made where it is missing."""
    path = folder / CLAIM
    while True:
        with explained(f"{folder} cannot be made"):
            try:
                private_dir(folder)
                file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  it is locked while it is open
            except (FileNotFoundError, FileExistsError):
                if folder.is_symlink() or folder.is_file():
                    raise
                continue  # who had the claim has just removed the directory
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise CxrltError(
                    f"{path} cannot be locked ({os.strerror(error.errno or 0)}): give --storage on a file system with "
                    "locks, or as a URI."
                ) from None
            file.seek(0)
            raise Taken(file.read().strip() or "unknown") from None
        if _is_at(path, file):
            return file
        file.close()  # who had it before removed it


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _listed(store: Store) -> Iterator[None]:
    own = f"{platform.node()}-{os.getpid()}-{os.urandom(4).hex()}"
    for _ in range(ATTEMPTS):
        store.write(f"{CLAIMS}/{own}", b"")
        others = [name for name in store.list(CLAIMS) if name != own and not _is_abandoned(store, name)]
        if not others:
            break
        store.delete(f"{CLAIMS}/{own}")
        time.sleep(PAUSE * random.random())
    else:
        machine, process, _ = others[0].rsplit("-", 2)
        raise Taken(f"process {process} on {machine}")
    try:
        yield
    finally:
        with suppress(CxrltError):
            store.delete(f"{CLAIMS}/{own}")


def _is_abandoned(store: Store, name: str) -> bool:
    """Whether a claim on an object store is of a process of this machine that has ended, or a day old."""
    machine, _, process = name.rpartition("-")[0].rpartition("-")
    if machine == platform.node() and process.isdigit():
        return not local.is_alive(int(process))
    filesystem, path = store.opened(f"{CLAIMS}/{name}")
    changed = filesystem.get_file_info(path).mtime_ns
    return changed is not None and time.time() - changed / 1e9 > ABANDONED
