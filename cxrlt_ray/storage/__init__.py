"""A directory, local, `s3://` or `gs://` (pyarrow.fs), in which a file or a directory is whole or not there.

What holds when a writer is killed at any moment:

    a file, locally        It is written beside its place (NAME.HOST-PID-X.part) and renamed.
    a file, elsewhere      It is finished locally, then uploaded; an upload that breaks off leaves nothing to be seen.
                           (S3 keeps its parts unseen, and charges for them, until a rule of the bucket aborts it.)
    a directory, locally   Written beside its place. One that is there already is exchanged for it in one step
                           (renameat2); where the file system cannot do that, as below.
    a directory, elsewhere Uploaded beside its place. Then a file NAME.whole says where it is; from there readers take
                           it until it has been copied to its place, and the old one is gone.

So there is always the old one or the new one. A directory is read by `fetched`, which elsewhere gives the files of one
version; `read` of one of its files may give the old one's until the new one is in its place. What does not hold:
locally, who reads while a directory is exchanged may find files of both; elsewhere, two that write the same directory
at the same time both succeed, and a reader may find files of both for a moment.
What a killed writer left is not listed, and the next writer of the name removes it.

Faults of S3 are tried again for some 40 s with growing pauses, a silent connection after SILENCE seconds.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage.finite import finite as finite

PART, WHOLE = ".part", ".whole"
ATTEMPTS = 8  # of a request to S3: with their pauses some 40 s
CONNECT, SILENCE = 10.0, 30.0  # seconds until a server that cannot be reached, or says nothing, is given up
LEFT = 86400.0  # seconds after which what another machine's writer left is no longer being written
THREADS = 16  # of read_many: they wait for answers
CHUNK = 1 << 24  # bytes of a request, of a file that is fetched
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
BY = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS"
DENIED = (
    f"access is denied; give credentials that may list, read, write and delete there by the environment ({BY}) or the "
    "machine's role"
)
NO_ANSWER = "no server answers; check the network and, where it is not AWS's, AWS_ENDPOINT_URL"
NO_BUCKET = "there is no such bucket; make it, or name another"
FAULTY = "the server goes on failing; try again later"
FULL = "the disk is full; make room, or give a larger one"


Opened = tuple[fs.FileSystem, str]
_writing: set[str] = set()  # by this process, at present


class NotThere(CxrltError):
    """A file to be read is not there."""


@dataclass(frozen=True)
class Store:
    """Files under `uri`, addressed by relative names with `/`.

    Every method raises CxrltError, naming the file, where the storage refuses or does not answer. A Store holds its
    URI only: it may be pickled, and its connections are kept by process.
    """

    uri: str

    def __post_init__(self) -> None:
        _check(self.uri)

    @property
    def local(self) -> Path | None:
        """The directory, where it is a local one."""
        if self.uri.startswith("file://"):
            return Path(unquote(self.uri.removeprefix("file://")))
        return None if "://" in self.uri else Path(self.uri)

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
        place, _, below = path.partition("/")
        with _told(f"{self.uri} cannot be opened"):
            filesystem, root = _filesystem(scheme, place, os.getpid(), _environment())
        return filesystem, "/".join(part.strip("/") for part in (root, below, name) if part.strip("/"))

    def free(self) -> int | None:
        """Bytes free on the disk where the directory is or will be; None for an object store."""
        if self.local is None:
            return None
        here = self.local.resolve()
        return shutil.disk_usage(next(each for each in (here, *here.parents) if each.exists())).free

    def size(self, name: str = "") -> int:
        """Bytes of the files in a directory and below it; 0 where there is none."""
        with _told(f"{self._where(name)} cannot be listed"):
            return sum(info.size or 0 for info in _below(*self.opened(name)))

    def remove(self) -> None:
        """Delete the directory with all that is below it."""
        with _told(f"{self.uri} cannot be removed"):
            filesystem, root = self.opened()
            if (whole := _whole(filesystem, root)) == root:
                filesystem.delete_dir(root)
                return
            filesystem.delete_dir_contents(root, missing_dir_ok=True)
            filesystem.delete_file(root + WHOLE)
            for each in (root, whole):
                with suppress(FileNotFoundError):
                    filesystem.delete_dir(each)

    def delete(self, name: str) -> None:
        """Delete a file."""
        with _told(f"{self._where(name)} cannot be removed"):
            filesystem, path = self.opened(name)
            filesystem.delete_file(path)

    def exists(self, name: str) -> bool:
        """Whether a file or directory of that name is there."""
        with _told(f"{self._where(name)} cannot be looked for"):
            filesystem, path = self.opened(name)
            return _present(filesystem, path).type != fs.FileType.NotFound

    def list(self, name: str = "") -> list[str]:
        """The names in a directory, sorted, without what is still being written; [] where there is none."""
        with _told(f"{self._where(name)} cannot be listed"):
            filesystem, path = self.opened(name)
            found = _names(filesystem, path)
            if not found and self.local is None:
                _check_bucket(filesystem, path)
        return sorted({each.removesuffix(WHOLE) for each in found if not each.endswith(PART)})

    def read(self, name: str) -> bytes:
        """A file's bytes, unpacked where it is NAME.gz, .bz2 or .zst. Raises NotThere where there is none."""
        with _told(f"{self._where(name)} cannot be read"):
            filesystem, path = self.opened(name)
            try:
                content = _bytes(filesystem, path)
            except FileNotFoundError:
                content = _bytes(filesystem, _present(filesystem, path).path)
            if (packed := PACKED.get(Path(name).suffix)) is None:
                return content
            with pa.CompressedInputStream(pa.BufferReader(content), packed) as stream:
                return stream.read()

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those of the files that are there, several read at a time."""

        def found(name: str) -> bytes | None:
            try:
                return self.read(name)
            except NotThere:
                return None

        wanted = list(names)
        with ThreadPoolExecutor(THREADS) as threads:
            contents = zip(wanted, threads.map(found, wanted), strict=True)
            return {name: content for name, content in contents if content is not None}

    def read_json(self, name: str) -> Any:
        """A file's content as JSON. Raises CxrltError naming the file."""
        return self._json(name, self.read(name))

    def read_json_many(self, names: Iterable[str]) -> dict[str, Any]:
        """The contents of those of the files that are there as JSON, several read at a time."""
        return {name: self._json(name, content) for name, content in self.read_many(names).items()}

    def write_json(self, name: str, content: Any) -> None:
        """Write `content` as JSON; nan and infinities become null."""
        self.write(name, json.dumps(finite(content), indent=1, allow_nan=False).encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        if self.local is None:
            with _told(f"{self._where(name)} cannot be written"):
                _put(*self.opened(name), content)
            return
        with self.place(name) as path:
            path.write_bytes(content)

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """A local path to write a file or directory to, which becomes `name` when the block ends well."""
        told = f"{self._where(name)} cannot be written"
        if self.local is not None:
            target = self.local / name
            with _told(told), _part(target.name) as part_name:
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(part_name)
                try:
                    yield part
                    self._replace(part, name)
                finally:
                    _discard(part)  # of a full disk, what was written so far
                _clean(*self.opened(name))
            return
        with _told(f"{told}, as {tempfile.gettempdir()} cannot"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            yield path
            with _told(told):
                self._upload(path, name)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A local path from which to read the file or directory `name`."""
        if self.local is not None:
            yield Path(_present(*self.opened(name)).path)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            with _told(f"{self._where(name)} cannot be fetched to {folder}"):
                _fetch(*self.opened(name), path)
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
        """Put the finished `part` in its place."""
        assert self.local is not None
        target = self.local / name
        if not part.is_dir() or not target.exists():
            os.replace(part, target)
        elif not _exchange(part, target):
            self._stand_in(part.name, name)
            shutil.rmtree(target)
            os.replace(part, target)
        if target.is_dir():
            target.with_name(target.name + WHOLE).unlink(missing_ok=True)

    def _upload(self, path: Path, name: str) -> None:
        filesystem, there = self.opened(name)
        if path.is_file():
            _put(filesystem, there, _content(path))
            return
        above, _, last = there.rpartition("/")
        with _part(last) as part:
            for file in path.rglob("*"):
                if file.is_file():
                    _put(filesystem, f"{above}/{part}/{file.relative_to(path).as_posix()}", _content(file))
            tries = 0
            while _whole(filesystem, there) != f"{above}/{part}":  # another writer came in between
                time.sleep(tries * random.random())  # so that two do not do so for ever
                self._stand_in(part, name)
                _copy(filesystem, f"{above}/{part}", there)
                tries += 1
            with suppress(FileNotFoundError):  # it has taken down the sign
                filesystem.delete_file(there + WHOLE)
        _clean(filesystem, there)  # its own part, too

    def _stand_in(self, part: str, name: str) -> None:
        """From now on readers of the directory `name` take `part`, beside it."""
        self.write(name + WHOLE, part.encode())


def _check(uri: str) -> None:
    """Refuse what would carry a secret into messages and run.json: nothing of it is echoed."""
    scheme, found, rest = uri.partition("://")
    place = rest.partition("/")[0]
    if not found or scheme == "file":
        return
    if not place:
        raise UsageError(f"{scheme}:// names no bucket: give {scheme}://BUCKET/DIRECTORY.")
    bucket = scheme in ("s3", "gs")  # their names have neither : nor @, and a secret may hold a /
    if (":" in place and "@" in rest) or (bucket and re.search("[:@]", place.removeprefix("anonymous@"))):
        raise UsageError(
            f"the URI {scheme}://... has a name or a password before its bucket, which would be told and kept: give "
            f"{scheme}://BUCKET/DIRECTORY, and credentials by the environment ({BY})."
        )
    if "?" in rest:
        raise UsageError(
            f"the URI {scheme}://... has options after a question mark: give {scheme}://BUCKET/DIRECTORY, a server "
            f"other than AWS's by AWS_ENDPOINT_URL, and credentials by the environment ({BY})."
        )


def _environment() -> tuple[tuple[str, str], ...]:
    """What a file system is made by: with another environment, another one is."""
    return tuple(item for item in os.environ.items() if item[0].startswith(("AWS_", "GOOGLE_", "CLOUD_STORAGE_")))


@lru_cache(maxsize=16)
def _filesystem(scheme: str, place: str, process: int, environment: tuple[tuple[str, str], ...]) -> Opened:
    """The process's file system of a bucket, with its connections (none are taken over by a fork), and its path."""
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        made = fs.S3FileSystem(
            endpoint_override=endpoint,
            region=None if endpoint else _region(place),
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            connect_timeout=CONNECT,
            request_timeout=SILENCE,
            allow_delayed_open=True,  # a small file in one request, not three
        )
        return made, place
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{place}" + ("?retry_limit_seconds=60" if scheme == "gs" else ""))
    except ValueError:
        raise UsageError(f"{scheme}:// is no storage that can be opened: give a directory, s3:// or gs://.") from None


def _region(bucket: str) -> str:
    """The bucket's own region; the environment's where that cannot be asked for."""
    try:
        return fs.resolve_s3_region(bucket)
    except FileNotFoundError:
        raise
    except OSError:
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            return region
        raise


def _check_bucket(filesystem: fs.FileSystem, path: str) -> None:
    bucket = path.partition("/")[0]
    if filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
        raise OSError(f"NO_SUCH_BUCKET {bucket}")


def _names(filesystem: fs.FileSystem, path: str) -> set[str]:
    """The names in a directory; none where there is none."""
    if isinstance(filesystem, fs.LocalFileSystem):
        try:
            return set(os.listdir(path))
        except FileNotFoundError:
            return set()
    return {info.base_name for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))}


def _bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as file:
        return file.read()  # in one request: a stream takes one for every 256 KB


def _below(filesystem: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    """The files in a directory and below it; [] where there is none."""
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted((info for info in found if info.type == fs.FileType.File), key=lambda info: info.path)


def _state(filesystem: fs.FileSystem, path: str) -> list[tuple[str, int, int]]:
    """What tells a directory's version from another."""
    return [(info.path, info.size, info.mtime_ns) for info in _below(filesystem, path)]


def _whole(filesystem: fs.FileSystem, path: str) -> str:
    """Where the directory `path` is whole: beside its place while it is being replaced."""
    if "/" not in path:  # a bucket
        return path
    try:
        with filesystem.open_input_file(path + WHOLE) as file:
            part = f"{path.rpartition('/')[0]}/{file.read().decode()}"
    except (FileNotFoundError, NotADirectoryError):
        return path
    # locally it is moved to its place before the sign is taken down
    return part if filesystem.get_file_info(part).type == fs.FileType.Directory else path


def _present(filesystem: fs.FileSystem, path: str) -> fs.FileInfo:
    """The file or the whole directory that a reader of `path` is to take, wherever it is."""
    info = filesystem.get_file_info(path)
    above, _, last = path.rpartition("/")
    if info.type == fs.FileType.File or not above:
        return info
    if (whole := _whole(filesystem, path)) != path:
        return filesystem.get_file_info(whole)
    if info.type == fs.FileType.NotFound and (whole := _whole(filesystem, above)) != above:
        return filesystem.get_file_info(f"{whole}/{last}")
    return info


def _put(filesystem: fs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Upload a file in one write: of a stream that is left half-way pyarrow makes a file."""
    if not isinstance(filesystem, fs.S3FileSystem):  # which alone lists directories that were not made
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def _content(path: Path) -> pa.Buffer:
    return pa.memory_map(str(path)).read_buffer()


def _copy(filesystem: fs.FileSystem, part: str, there: str) -> None:
    """Put a directory's files in the place of what there is of another."""
    filesystem.delete_dir_contents(there, missing_dir_ok=True)
    for info in _below(filesystem, part):
        to = there + info.path[len(part) :]
        if not isinstance(filesystem, fs.S3FileSystem):
            filesystem.create_dir(to.rpartition("/")[0], recursive=True)
        filesystem.copy_file(info.path, to)


def _fetch(filesystem: fs.FileSystem, there: str, path: Path) -> None:
    """Copy a file, or a directory's files of one version, to the local `path`."""
    for _ in range(ATTEMPTS):
        info = _present(filesystem, there)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        directory = info.type == fs.FileType.Directory
        before = _state(filesystem, info.path) if directory else []
        if directory:
            path.mkdir()
        with suppress(FileNotFoundError):  # it was replaced meanwhile
            fs.copy_files(info.path, str(path), source_filesystem=filesystem, chunk_size=CHUNK)
            if not directory or _state(filesystem, info.path) == before:
                return
        _discard(path)
    raise OSError("it is replaced again and again while it is read")


@contextmanager
def _part(name: str) -> Iterator[str]:
    """A name under which to write what is to become `name`: it says who does."""
    part = f"{name}.{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}{PART}"
    _writing.add(part)
    try:
        yield part
    finally:
        _writing.discard(part)


def _clean(filesystem: fs.FileSystem, there: str) -> None:
    """Remove what killed writers of `there` left beside it."""
    above, _, name = there.rpartition("/")
    for part in _names(filesystem, above or "/"):
        if part.startswith(f"{name}.") and part.endswith(PART) and _is_left(filesystem, above, part):
            if isinstance(filesystem, fs.LocalFileSystem):
                _discard(Path(above, part))
            else:
                with suppress(OSError):  # another one removes it, too
                    filesystem.delete_dir(f"{above}/{part}")


def _is_left(filesystem: fs.FileSystem, above: str, part: str) -> bool:
    """Whether its writer is gone: a process of this machine that ended, or of another one, a day ago."""
    host, _, process = part.removesuffix(PART).rpartition("-")[0].rpartition("-")
    if host.endswith(f".{os.uname().nodename}") and process.isdigit():
        return part not in _writing if int(process) == os.getpid() else not _is_alive(int(process))
    if isinstance(filesystem, fs.LocalFileSystem):
        with suppress(FileNotFoundError):
            return time.time() - os.stat(f"{above}/{part}").st_mtime > LEFT
        return False
    return time.time() - max((info.mtime_ns for info in _below(filesystem, f"{above}/{part}")), default=0) / 1e9 > LEFT


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Have two paths change places in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number))


def _discard(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what a storage refuses into CxrltError: `what`, why, and how to mend it; never with a credential."""
    try:
        yield
    except CxrltError:
        raise
    except Exception as error:
        if (cause := _of_system(error)) is None:
            raise
        kind = NotThere if isinstance(cause, FileNotFoundError) else CxrltError
        raise kind(f"{what}: {_reason(cause)}.") from None  # what pyarrow says may hold the id of a key


def _of_system(error: Exception) -> OSError | None:
    """The error as the system's; None where it is none. safetensors says what it met in words only."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _reason(error: OSError) -> str:
    text = " ".join(str(error).split())
    if error.errno == errno.ENOSPC:
        return FULL
    if error.errno:
        return os.strerror(error.errno)
    if "NO_SUCH_BUCKET" in text or re.search(r"Bucket '.*' not found", text):
        return NO_BUCKET
    found = re.search(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation: (.*)", text)
    if found is None:
        return _without_secrets(text).rstrip(".")
    kind, status, operation, said = found.groups()
    words = (kind, status, said.replace("No response body.", ""))
    told = _without_secrets(f"{operation}: {' '.join(word for word in words if word)}").rstrip(". ")
    if kind in ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN"):
        return f"{DENIED} ({told})"
    if kind == "NETWORK_CONNECTION":
        return f"{NO_ANSWER} ({told})"
    if kind in ("INTERNAL_FAILURE", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "THROTTLING") or (status or "")[:1] == "5":
        return f"{FAULTY} ({told})"
    return told


def _without_secrets(text: str) -> str:
    """`text` without the environment's credentials, and without what looks like the id of a key."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return re.sub(r"\b(?:AKIA|ASIA)[A-Z0-9]{8,}", "***", text)
