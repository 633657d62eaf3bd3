"""A directory, local or any `pyarrow.fs` URI, in which a file is whole or not there.

Locally a file is written beside its place and renamed. On an object store it is first finished
locally and then uploaded, since an upload that breaks off leaves nothing but an open stream that
fails leaves a stump.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from cxrlt_ray.errors import CxrltError


@dataclass(frozen=True)
class Store:
    """Files under `uri`, addressed by relative names with `/`."""

    uri: str

    @property
    def local(self) -> Path | None:
        """The directory, where it is a local one."""
        return None if "://" in self.uri else Path(self.uri)

    def __truediv__(self, name: str) -> Store:
        """The store of a directory below."""
        return Store(f"{self.uri.rstrip('/')}/{name}")

    def absolute(self) -> Store:
        """The same store, whatever a process's working directory."""
        return self if self.local is None else Store(str(self.local.resolve()))

    def remove(self) -> None:
        """Delete the directory with all that is below it."""
        filesystem, root = self._open()
        filesystem.delete_dir(root)

    def delete(self, name: str) -> None:
        """Delete a file."""
        filesystem, root = self._open()
        filesystem.delete_file(f"{root}/{name}")

    def exists(self, name: str) -> bool:
        """Whether a file or directory of that name is there."""
        filesystem, root = self._open()
        return filesystem.get_file_info(f"{root}/{name}").type != fs.FileType.NotFound

    def list(self, name: str = "") -> list[str]:
        """The names in a directory, sorted, without what is still being written; [] where there is none."""
        filesystem, root = self._open()
        found = filesystem.get_file_info(fs.FileSelector(f"{root}/{name}".rstrip("/"), allow_not_found=True))
        return sorted(info.base_name for info in found if not info.base_name.endswith(".part"))

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises CxrltError naming the file if it cannot be read."""
        filesystem, root = self._open()
        try:
            with filesystem.open_input_stream(f"{root}/{name}") as stream:
                return stream.read()
        except OSError as error:
            raise CxrltError(f"{self.uri}/{name} cannot be read: {_reason(error)}.") from None

    def read_json(self, name: str) -> Any:
        """A file's content as JSON. Raises CxrltError naming the file."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise CxrltError(f"{self.uri}/{name} is not the JSON it should be: {error}.") from None

    def write_json(self, name: str, content: Any) -> None:
        """Write `content` as JSON."""
        self.write(name, json.dumps(content, indent=1, allow_nan=False).encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        with self.place(name) as path:
            path.write_bytes(content)

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """A local path to write a file or directory to, which becomes `name` when the block ends well."""
        filesystem, root = self._open()
        try:
            if self.local is not None:
                target = self.local / name
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f"{target.name}.{os.getpid()}.part")
                try:
                    yield part
                    _replace(part, target)
                finally:
                    _discard(part)  # of a full disk, what was written so far
                return
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(name).name
                yield path
                there = f"{root}/{name}"
                filesystem.create_dir(there if path.is_dir() else there.rsplit("/", 1)[0], recursive=True)
                fs.copy_files(str(path), there, destination_filesystem=filesystem)
        except OSError as error:
            raise CxrltError(f"{self.uri}/{name} cannot be written: {_reason(error)}.") from None

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A local path from which to read the file or directory `name`."""
        if self.local is not None:
            yield self.local / name
            return
        filesystem, root = self._open()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            source = f"{root}/{name}"
            if filesystem.get_file_info(source).type == fs.FileType.Directory:
                path.mkdir()
            fs.copy_files(source, str(path), source_filesystem=filesystem)
            yield path

    def check_writable(self) -> None:
        """Raise CxrltError if nothing can be written here."""
        self.write(".writable", b"")

    def _open(self) -> tuple[fs.FileSystem, str]:
        if self.local is not None:
            return fs.LocalFileSystem(), str(self.local)
        try:
            return fs.FileSystem.from_uri(self.uri)
        except (OSError, ValueError) as error:
            raise CxrltError(f"{self.uri} is no storage that can be opened: {_reason(error)}.") from None


def _replace(part: Path, target: Path) -> None:
    if part.is_dir() and target.exists():
        shutil.rmtree(target)
    os.replace(part, target)


def _discard(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")
