"""What the files of original images are now: size, time of the last change and, on request, a checksum.

Shards are made anew where an image is no longer what was prepared (prepare.py). Sizes and times of local files are 16
stats at a time, of an object store one listing; a checksum reads every file.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from pyarrow import fs

from cxrlt_ray.data.originals import read_original
from cxrlt_ray.data.readers.files import plain
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import leads_out
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.messages import explained

THREADS, AT_A_TIME = 16, 256  # a task of one file would cost more than its stat
ABSENT = -1  # of a file that is not there, or must not be read
STATE = ["bytes", "modified"]  # modified: nanoseconds since 1970
CHECKSUM = "checksum"


def file_states(root: str, paths: Sequence[str], checksum: bool = False) -> pd.DataFrame:
    """STATE of the files `paths` below the directory or URI `root`, int64 [N, 2]; CHECKSUM too where it is asked for.

    Raises CxrltError where an object store cannot be listed.
    """
    store = Store(plain(root))
    states = _of_bucket(store, paths) if store.local is None else _of_disk(str(store.local), paths)
    table = pd.DataFrame(states, columns=STATE)
    if checksum:
        with ThreadPoolExecutor(THREADS) as threads:
            table[CHECKSUM] = np.fromiter(threads.map(lambda path: _checksum(root, path), paths), np.int64, len(paths))
    return table


def checksum_of(content: bytes) -> int:
    """CRC-32 of a file's content: it tells whether a file was changed, not whether someone forged it."""
    return zlib.crc32(content)


def _checksum(root: str, path: str) -> int:
    try:
        return checksum_of(read_original(root, path))
    except (CxrltError, ValueError):
        return ABSENT


def _of_disk(root: str, paths: Sequence[str]) -> np.ndarray:
    def states(start: int) -> list[tuple[int, int]]:
        return [_state(os.path.join(root, path)) for path in paths[start : start + AT_A_TIME]]

    with ThreadPoolExecutor(THREADS) as threads:
        parts = list(threads.map(states, range(0, len(paths), AT_A_TIME)))
    return np.array([state for part in parts for state in part], np.int64).reshape(len(paths), 2)


def _state(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ABSENT, ABSENT
    return status.st_size, status.st_mtime_ns


def _of_bucket(store: Store, paths: Sequence[str]) -> np.ndarray:
    tops = sorted({path.partition("/")[0] if "/" in path else "" for path in paths if not leads_out(path)})
    with explained(f"{store.uri} cannot be listed"):
        filesystem, root = store.opened()
        known = {}
        for top in tops:
            selector = fs.FileSelector(f"{root}/{top}".rstrip("/"), recursive=top != "", allow_not_found=True)
            for info in filesystem.get_file_info(selector):
                known[info.path[len(root) :].lstrip("/")] = (info.size or 0, info.mtime_ns or ABSENT)
    return np.array([known.get(path, (ABSENT, ABSENT)) for path in paths], np.int64).reshape(len(paths), 2)
