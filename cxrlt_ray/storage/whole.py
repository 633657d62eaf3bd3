"""What makes a write whole: parts written beside their target, and the sign that says which directory counts.

A part is NAME.HOST-PID-X.part. A sign is a file NAME.whole with a part's name: until it is gone, readers of the
directory NAME take the part.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from cxrlt_ray.storage import local, remote
from cxrlt_ray.storage.filesystem import files_below, names_in, version_of

PART, WHOLE = ".part", ".whole"
ABANDONED = 86400.0  # seconds after which a part of another machine's writer is no longer being written
CHUNK = 1 << 24  # bytes of a request, of a file that is fetched
_writing: set[str] = set()  # parts that this process writes at present


@contextmanager
def new_part(name: str) -> Iterator[str]:
    """A name under which to write what is to become `name`; the writer's machine and process stand in it."""
    part = f"{name}.{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}{PART}"
    _writing.add(part)
    try:
        yield part
    finally:
        _writing.discard(part)


def whole_path(filesystem: fs.FileSystem, path: str) -> str:
    """The path at which the directory `path` is whole: beside it while it is being replaced."""
    if "/" not in path:  # a bucket
        return path
    try:
        with filesystem.open_input_file(path + WHOLE) as file:
            part = f"{path.rpartition('/')[0]}/{file.read().decode()}"
    except (FileNotFoundError, NotADirectoryError):
        return path
    # locally the part is moved to its target before the sign is removed
    return part if filesystem.get_file_info(part).type == fs.FileType.Directory else path


def present(filesystem: fs.FileSystem, path: str) -> fs.FileInfo:
    """The file or the whole directory that a reader of `path` is to take; of type NotFound where there is none."""
    info = filesystem.get_file_info(path)
    parent, _, name = path.rpartition("/")
    if info.type == fs.FileType.File or not parent:
        return info
    if (whole := whole_path(filesystem, path)) != path:
        return filesystem.get_file_info(whole)
    if info.type == fs.FileType.NotFound and (whole := whole_path(filesystem, parent)) != parent:
        return filesystem.get_file_info(f"{whole}/{name}")
    return info


def fetch(filesystem: fs.FileSystem, source: str, path: Path) -> None:
    """Copy a file, or a directory's files of one version, to the local `path`."""
    for _ in range(remote.ATTEMPTS):
        info = present(filesystem, source)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        is_directory = info.type == fs.FileType.Directory
        before = version_of(filesystem, info.path) if is_directory else []
        if is_directory:
            path.mkdir()
        with suppress(FileNotFoundError):  # it was replaced meanwhile
            fs.copy_files(info.path, str(path), source_filesystem=filesystem, chunk_size=CHUNK)
            if not is_directory or version_of(filesystem, info.path) == before:
                return
        local.discard(path)
    raise OSError("it is replaced again and again while it is read")


def remove_abandoned(filesystem: fs.FileSystem, target: str) -> None:
    """Remove the parts that killed writers of `target` left beside it."""
    directory, _, name = target.rpartition("/")
    for part in names_in(filesystem, directory or "/"):
        if part.startswith(f"{name}.") and part.endswith(PART) and _is_abandoned(filesystem, directory, part):
            if isinstance(filesystem, fs.LocalFileSystem):
                local.discard(Path(directory, part))
            else:
                with suppress(OSError):  # another writer removes it, too
                    filesystem.delete_dir(f"{directory}/{part}")


def _is_abandoned(filesystem: fs.FileSystem, directory: str, part: str) -> bool:
    """Whether the writer of a part is gone: a process of this machine that ended, or of another one, a day ago."""
    host, _, process = part.removesuffix(PART).rpartition("-")[0].rpartition("-")
    if host.endswith(f".{os.uname().nodename}") and process.isdigit():
        return part not in _writing if int(process) == os.getpid() else not local.is_alive(int(process))
    if isinstance(filesystem, fs.LocalFileSystem):
        with suppress(FileNotFoundError):
            return time.time() - os.stat(f"{directory}/{part}").st_mtime > ABANDONED
        return False
    changed = max((info.mtime_ns for info in files_below(filesystem, f"{directory}/{part}")), default=0)
    return time.time() - changed / 1e9 > ABANDONED
