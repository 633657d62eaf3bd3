"""Listing a data directory or URI, read-only, and never image by image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import pandas as pd
from pyarrow import fs

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import follows_links, leading_out, leads_out
from cxrlt_ray.storage import Store

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom")
READ_THREADS = 16  # listing waits for the file system, not for the processor
LOST = "lost+found"  # at the top of a disk, its administrator's alone


def folders(data: Store) -> list[str]:
    """Names of the directories in `data`, sorted; hidden ones left out, and those that this user may not enter."""
    filesystem, root = data.opened()
    entries = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    names = (f.base_name for f in entries if f.type == fs.FileType.Directory and not f.base_name.startswith("."))
    return sorted(name for name in names if data.local is None or os.access(data.local / name, os.R_OK | os.X_OK))


def locations(data: Store, *below: str) -> list[Store]:
    """Where a release may lie: `data`, the directories in it, and `below` each of these."""
    near = [data, *(data / name for name in folders(data))]
    return [directory for parent in near for directory in (parent, *(parent / name for name in below))]


def first_with(candidates: Iterable[Store], *names: str) -> tuple[Store, str] | None:
    """The first candidate that holds one of `names`, and that name."""
    return next(((directory, name) for directory in candidates for name in names if directory.exists(name)), None)


def image_files(data: Store, folder: str = "", recursive: bool = True) -> Iterator[str]:
    """Paths of the images below `folder`, relative to `data`, by listing directories only."""
    return (path for path in all_files(data, folder, recursive) if is_image(path))


def all_files(data: Store, folder: str = "", recursive: bool = True) -> Iterator[str]:
    """As `image_files`, of all files that are not hidden: images may have no ending."""
    if data.local is None:
        yield from _remote_files(data, folder, recursive)
        return
    level = [folder]
    with ThreadPoolExecutor(READ_THREADS) as threads:
        while level:
            entries = list(threads.map(lambda name: _scan(str(data.local), name), level))
            for _, files in entries:
                yield from files
            level = [name for below, _ in entries for name in below] if recursive else []


def is_image(path: str) -> bool:
    """Whether a file's ending is that of an image."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def plain(root: str) -> str:
    """A local directory as a path, however it was given; another URI as it is."""
    return root.removeprefix("file://")


def common_root(roots: Sequence[str]) -> str:
    """The deepest directory or URI at or above all of `roots`, plain ones. Raises CxrltError where there is none.

    >>> common_root(["/data/mimic", "/data/more/nih"]), common_root(["s3://bucket/mimic", "s3://bucket/nih"])
    ('/data', 's3://bucket')
    """
    parted = [root.rpartition("://") for root in roots]
    split_paths = [[part for part in path.split("/") if part] for _, _, path in parted]
    levels = takewhile(lambda parts: len(set(parts)) == 1, zip(*split_paths, strict=False))
    shared = "/".join(parts[0] for parts in levels)
    schemes = {scheme for scheme, _, _ in parted}
    if len(schemes) > 1 or (schemes != {""} and not shared):
        raise CxrltError(
            f"the cohorts lie in different places ({', '.join(roots)}): a manifest has one root, so that all must be "
            "local or in one bucket. Copy or mount them side by side."
        )
    scheme = schemes.pop()
    return f"{scheme}://{shared}" if scheme else f"/{shared}"


@dataclass(frozen=True)
class Disk:
    """Images that a row names and that are not on disk, and the reverse; paths relative to the root, sorted."""

    missing: list[str]
    unnamed: list[str]


def compare_with_disk(paths: pd.Series, root: str) -> Disk:
    """Which of `paths` are not below `root`, and which images beside them no row names."""
    store, named = Store(root), pd.Index(paths)
    paths = paths[~leading_out(paths)]
    tops = sorted({path.partition("/")[0] if "/" in path else "" for path in paths})
    listed = [path for top in tops for path in all_files(store, top, recursive=top != "")]
    existing = pd.Index(np.array(listed, object)).astype("str")
    missing = sorted(named.difference(existing))
    if store.local is not None:  # not listed is what is hidden or behind a link
        missing = [path for path in missing if leads_out(path) or not (store.local / path).is_file()]
    return Disk(missing, sorted(filter(is_image, existing.difference(named))))


def _scan(root: str, folder: str) -> tuple[list[str], list[str]]:
    """Directories and files in one directory; none where it does not exist."""
    below, files = [], []
    prefix = f"{folder}/" if folder else ""
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == LOST:
                    continue  # a Mac's ._NAME.jpg is no image
                if entry.is_dir():
                    if follows_links() or not entry.is_symlink():
                        below.append(prefix + entry.name)
                elif not entry.is_symlink() or entry.is_file():  # not a link to nowhere
                    files.append(prefix + entry.name)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CxrltError(f"{root}/{folder} cannot be listed: {error.strerror}.") from None
    return below, files


def _remote_files(data: Store, folder: str, recursive: bool) -> Iterator[str]:
    filesystem, root = data.opened()
    selector = fs.FileSelector(f"{root}/{folder}".rstrip("/"), recursive=recursive, allow_not_found=True)
    for entry in filesystem.get_file_info(selector):
        if entry.type == fs.FileType.File and not entry.base_name.startswith("."):
            yield entry.path[len(root) :].lstrip("/")
