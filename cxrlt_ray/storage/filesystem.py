"""Operations on a file system of pyarrow, local or remote, by its own paths."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

Version = list[tuple[str, int, int]]  # path, size and time of change in ns of each file


def names_in(filesystem: fs.FileSystem, path: str) -> set[str]:
    """The names in a directory; none where it does not exist."""
    if isinstance(filesystem, fs.LocalFileSystem):
        try:
            return set(os.listdir(path))
        except FileNotFoundError:
            return set()
    return {info.base_name for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))}


def files_below(filesystem: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    """The files in a directory and below it, by path; [] where it does not exist."""
    entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted((info for info in entries if info.type == fs.FileType.File), key=lambda info: info.path)


def version_of(filesystem: fs.FileSystem, path: str) -> Version:
    """What differs between two versions of a directory."""
    return [(info.path, info.size, info.mtime_ns) for info in files_below(filesystem, path)]


def read_file(filesystem: fs.FileSystem, path: str) -> bytes:
    """A file's bytes in one request: a stream takes one for every 256 KB."""
    with filesystem.open_input_file(path) as file:
        return file.read()


def put_file(filesystem: fs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Write a file in one call: of a stream that is abandoned half-way pyarrow makes a file."""
    if not isinstance(filesystem, fs.S3FileSystem):  # which alone lists directories that were not made
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def mapped(path: Path) -> pa.Buffer:
    """A local file's content, mapped into memory."""
    return pa.memory_map(str(path)).read_buffer()


def copy_directory(filesystem: fs.FileSystem, source: str, target: str) -> None:
    """Replace the files of the directory `target` by copies of those of `source`."""
    filesystem.delete_dir_contents(target, missing_dir_ok=True)
    for info in files_below(filesystem, source):
        path = target + info.path[len(source) :]
        if not isinstance(filesystem, fs.S3FileSystem):
            filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        filesystem.copy_file(info.path, path)
