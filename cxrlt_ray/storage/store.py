"""The Store: files of a directory, wherever it is, addressed by relative names."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import local
from cxrlt_ray.storage.filesystem import copy_directory, files_below, mapped, names_in, put_file, read_file
from cxrlt_ray.storage.finite import finite
from cxrlt_ray.storage.messages import NotThere, explained
from cxrlt_ray.storage.remote import Opened, check_bucket, check_uri, open_bucket
from cxrlt_ray.storage.whole import PART, WHOLE, fetch, new_part, present, remove_abandoned, whole_path

THREADS = 16  # of read_many: they wait for answers
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def as_json(content: Any) -> bytes:
    """`content` as write_json writes it; nan and infinities become null."""
    return json.dumps(finite(content), indent=1, allow_nan=False).encode()


@dataclass(frozen=True)
class Store:
    """Files under `uri`, addressed by relative names with `/`.

    A file:// URI is kept as the path that it means: its escapes (%20) must not be undone twice. Every method raises
    CxrltError, naming the file, where the storage refuses or does not answer. A Store holds its URI only: it may be
    pickled, and its connections are kept by process.
    """

    uri: str

    def __post_init__(self) -> None:
        check_uri(self.uri)
        if self.uri.startswith("file://"):
            object.__setattr__(self, "uri", unquote(self.uri.removeprefix("file://")))

    @property
    def local(self) -> Path | None:
        """The directory, where it is a local one."""
        return None if "://" in self.uri else Path(self.uri)

    @classmethod
    def holding(cls, path: str) -> tuple[Store, str]:
        """The store of the directory that holds the file at `path`, or URI, and its name there."""
        folder, slash, name = path.rpartition("/")
        return cls(folder or slash or "."), name

    def __truediv__(self, name: str) -> Store:
        """The store of a directory below."""
        return Store(f"{self.uri.rstrip('/')}/{name}")

    def absolute(self) -> Store:
        """The same store, whatever a process's working directory."""
        return self if self.local is None else Store(str(self.local.resolve()))

    def opened(self, name: str = "") -> Opened:
        """The file system, kept for this process, and the path of `name` in it."""
        if self.local is not None:
            return fs.LocalFileSystem(), str((self.local / name).absolute())
        scheme, _, path = self.uri.partition("://")
        bucket, _, below = path.partition("/")
        with explained(f"{self.uri} cannot be opened"):
            filesystem, root = open_bucket(scheme, bucket)
        return filesystem, "/".join(part.strip("/") for part in (root, below, name) if part.strip("/"))

    def free(self) -> int | None:
        """Bytes free on the disk where the directory is or will be; None for an object store."""
        if self.local is None:
            return None
        path = self.local.resolve()
        return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free

    def size(self, name: str = "") -> int:
        """Bytes of the files in a directory and below it; 0 where it does not exist."""
        with explained(f"{self._where(name)} cannot be listed"):
            return sum(info.size or 0 for info in files_below(*self.opened(name)))

    def remove(self) -> None:
        """Delete the directory with all that is below it."""
        with explained(f"{self.uri} cannot be removed"):
            filesystem, root = self.opened()
            if (whole := whole_path(filesystem, root)) == root:
                filesystem.delete_dir(root)
                return
            filesystem.delete_dir_contents(root, missing_dir_ok=True)
            filesystem.delete_file(root + WHOLE)
            for directory in (root, whole):
                with suppress(FileNotFoundError):
                    filesystem.delete_dir(directory)

    def delete(self, name: str) -> None:
        """Delete a file."""
        with explained(f"{self._where(name)} cannot be removed"):
            filesystem, path = self.opened(name)
            filesystem.delete_file(path)

    def exists(self, name: str) -> bool:
        """Whether a file or directory of that name exists."""
        with explained(f"{self._where(name)} cannot be looked for"):
            filesystem, path = self.opened(name)
            return present(filesystem, path).type != fs.FileType.NotFound

    def list(self, name: str = "") -> list[str]:
        """The names in a directory, sorted, without what is still being written; [] where it does not exist."""
        with explained(f"{self._where(name)} cannot be listed"):
            filesystem, path = self.opened(name)
            names = names_in(filesystem, path)
            if not names and self.local is None:
                check_bucket(filesystem, path)
        return sorted({name.removesuffix(WHOLE) for name in names if not name.endswith(PART)})

    def files(self, name: str = "") -> dict[str, tuple[int, int]]:
        """Size in bytes and time of change in ns of the whole files in a directory and below it, by relative path.

        One listing: an object store gives 1,000 of them in a request. {} where the directory does not exist.
        """
        with explained(f"{self._where(name)} cannot be listed"):
            filesystem, root = self.opened(name)
            infos = files_below(filesystem, root)
        paths = ((info.path[len(root) :].lstrip("/"), info) for info in infos)
        return {path: (info.size, info.mtime_ns) for path, info in paths if PART not in path}

    def read(self, name: str) -> bytes:
        """A file's bytes, unpacked where it is NAME.gz, .bz2 or .zst. Raises NotThere where it does not exist."""
        with explained(f"{self._where(name)} cannot be read"):
            filesystem, path = self.opened(name)
            try:
                content = read_file(filesystem, path)
            except FileNotFoundError:
                content = read_file(filesystem, present(filesystem, path).path)
            if (packed := PACKED.get(Path(name).suffix)) is None:
                return content
            with pa.CompressedInputStream(pa.BufferReader(content), packed) as stream:
                return stream.read()

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those of the files that exist, in the names' order; THREADS are read at a time."""
        paths = list(names)
        with ThreadPoolExecutor(THREADS) as threads:
            contents = list(threads.map(self._read_if_present, paths))  # the first fault cancels the rest
        return {name: content for name, content in zip(paths, contents, strict=True) if content is not None}

    def _read_if_present(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except NotThere:
            return None

    def read_json(self, name: str) -> Any:
        """A file's content as JSON. Raises CxrltError naming the file."""
        return self._json(name, self.read(name))

    def read_json_many(self, names: Iterable[str]) -> dict[str, Any]:
        """The contents of those of the files that exist as JSON; THREADS are read at a time."""
        return {name: self._json(name, content) for name, content in self.read_many(names).items()}

    def write_json(self, name: str, content: Any) -> None:
        """Write `content` as JSON; nan and infinities become null."""
        self.write(name, as_json(content))

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        if self.local is None:
            with explained(f"{self._where(name)} cannot be written"):
                put_file(*self.opened(name), content)
            return
        with self.place(name) as path:
            path.write_bytes(content)

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """A local path to write a file or directory to, which becomes `name` when the block ends well."""
        failure = f"{self._where(name)} cannot be written"
        if self.local is not None:
            target = (self.local / name).absolute()  # a relative one may look like a URI: pyarrow takes s3:x for one
            with explained(failure), new_part(target.name) as part_name:
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(part_name)
                try:
                    yield part
                    self._replace(part, name)
                finally:
                    local.discard(part)  # of a full disk, what was written so far
                remove_abandoned(*self.opened(name))
            return
        with explained(f"{failure}, as {tempfile.gettempdir()} cannot"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            yield path
            with explained(failure):
                self._upload(path, name)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A local path from which to read the file or directory `name`."""
        if self.local is not None:
            yield Path(present(*self.opened(name)).path)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            with explained(f"{self._where(name)} cannot be fetched to {folder}"):
                fetch(*self.opened(name), path)
            yield path

    def check_writable(self) -> None:
        """Raise CxrltError if nothing can be written here."""
        self.write(".writable", b"")

    def _json(self, name: str, content: bytes) -> Any:
        try:
            return json.loads(content)
        except ValueError as error:
            raise CxrltError(f"{self._where(name)} is not the JSON it should be: {error}.") from None

    def _where(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{name}" if name else self.uri

    def _replace(self, part: Path, name: str) -> None:
        """Make the finished local `part` the file or directory `name`."""
        assert self.local is not None
        target = self.local / name
        if not local.move(part, target) and not local.exchange(part, target):
            self._stand_in(part.name, name)
            shutil.rmtree(target)
            os.replace(part, target)
        if target.is_dir():
            target.with_name(target.name + WHOLE).unlink(missing_ok=True)

    def _upload(self, path: Path, name: str) -> None:
        """Upload a finished file or directory, which becomes `name`."""
        filesystem, target = self.opened(name)
        if path.is_file():
            put_file(filesystem, target, mapped(path))
            return
        parent, _, last = target.rpartition("/")
        with new_part(last) as part:
            for file in path.rglob("*"):
                if file.is_file():
                    put_file(filesystem, f"{parent}/{part}/{file.relative_to(path).as_posix()}", mapped(file))
            attempts = 0
            while whole_path(filesystem, target) != f"{parent}/{part}":  # another writer came in between
                time.sleep(attempts * random.random())  # so that two do not do so for ever
                self._stand_in(part, name)
                copy_directory(filesystem, f"{parent}/{part}", target)
                attempts += 1
            with suppress(FileNotFoundError):  # the other writer has removed the sign
                filesystem.delete_file(target + WHOLE)
        remove_abandoned(filesystem, target)  # its own part, too

    def _stand_in(self, part: str, name: str) -> None:
        """From now on readers of the directory `name` take `part`, beside it."""
        self.write(name + WHOLE, part.encode())
