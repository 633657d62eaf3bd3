"""The storage of runs, as the driver sees it: writable, files whole, locks, speed, and who may read it."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from cxrlt_ray.config import PACKAGE
from cxrlt_ray.doctor.check import FAIL, OK, WARN, Check, guarded, reason
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import PHANTOM_MARKER
from cxrlt_ray.runs.store import runs
from cxrlt_ray.storage import Store

REMOTE_SECONDS = 20.0  # until a server that does not answer has failed
SLOW = 5.0  # MB/s
_REACH = """
import sys
sys.path.append(sys.argv.pop())
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store
try:
    getattr(Store(sys.stdin.read()), sys.argv[1])(*sys.argv[2:])
except CxrltError as error:
    sys.exit(str(error))
"""


def reach(store: Store, *call: str) -> None:
    """Call a method of the store in a process of its own: pyarrow may wait for a server for ever, even at exit.

    Raises CxrltError where it fails or takes REMOTE_SECONDS.
    """
    # -P: a json.py of the working folder is not Python's
    command = [sys.executable, "-P", "-c", _REACH, *call, str(PACKAGE.parent)]
    try:
        done = subprocess.run(
            command, input=store.uri, capture_output=True, text=True, timeout=REMOTE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise CxrltError(f"{store.uri} does not answer within {REMOTE_SECONDS:.0f} s") from None
    if done.returncode:
        raise CxrltError(done.stderr)


def write(shared: Store, token: str, thorough: bool) -> Iterator[Check]:
    """Write the file `driver` that all machines read. The first check is whether that worked."""
    mend = "give --storage as a directory that you may write to, or as a URI for which this machine has keys"
    try:
        if thorough and shared.local is None:
            reach(shared, "check_writable")
        for content in ("", token):
            shared.write("driver", content.encode())
        if shared.read("driver").decode() != token:
            raise CxrltError("a file that was written anew is still the old one")
    except CxrltError as error:
        message = re.sub(rf"/{shared.uri.rpartition('/')[2]}[^ :]*", "", reason(error))
        yield Check("storage", FAIL, message, mend)
        return
    yield Check("storage", OK, "can be written to, files are replaced whole")
    if shared.local is not None:
        yield from _locks(shared.local)
    if thorough:
        yield from guarded("speed", lambda: _speed(shared))


def _locks(folder: Path) -> Iterator[Check]:
    try:
        with closing(sqlite3.connect(folder / "locks.db", timeout=5)) as database, database:
            database.execute("create table t (x)")
        with open(folder / "locks.db") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (sqlite3.Error, OSError) as error:
        message = f"files cannot be locked there, as the search's database is: {error}"
        yield Check("locks", FAIL, message, "give --storage on a file system with locks, or as a URI")


def _speed(store: Store) -> Iterator[Check]:
    """MB/s of a file, to the disk and from it (not from memory): of 16 MB if 1 MB is too fast to measure."""
    for megabytes in (1, 16):
        content = os.urandom(megabytes * 10**6)
        start = time.perf_counter()
        store.write("speed", content)
        if store.local is not None:
            with open(store.local / "speed", "rb") as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        written = time.perf_counter()
        store.read("speed")
        read = time.perf_counter()
        if read - start > 0.1:
            break
    rates = megabytes / (written - start), megabytes / (read - written)
    message = f"{rates[0]:,.0f} MB/s written, {rates[1]:,.0f} MB/s read"
    if min(rates) < SLOW:
        yield Check("speed", WARN, message, "checkpoints and shards will take long: give a faster --storage")
    else:
        yield Check("speed", OK, message)


def privacy(storage: Store) -> Iterator[Check]:
    """Whether other users of this machine can read runs on patients in a local storage."""
    if storage.local is None:
        return
    exposed = []
    if _readable(storage.local) and all(folder.stat().st_mode & 0o001 for folder in storage.local.parents):
        for run in filter(lambda run: _readable(Path(storage.uri, run)), runs(storage.uri)):
            data = storage.read_json(f"{run}/run.json").get("data")
            if data is None or not Path(data, PHANTOM_MARKER).exists():
                exposed.append(run)
    if exposed:
        message = f"every user of this machine can read {len(exposed)} of the runs there, with ids of patients"
        yield Check("privacy", WARN, message, f"chmod 700 {shlex.quote(storage.uri)}")
    else:
        yield Check("privacy", OK, "other users of this machine can read nothing of patients there")


def _readable(folder: Path) -> bool:
    return bool(folder.stat().st_mode & 0o005)
