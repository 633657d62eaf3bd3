r"""Paths of images as a table has them -> paths below the data's root, settled once for all that read images.

As they are written, \ is read as /, and // and ./ are left out. Then SAMPLE of them are looked for. Only where one is
missing the root is listed, once, and paths are matched with it: by another case or ending of the same name, or accents
composed otherwise, as a Mac writes them; and, where most are missing, by the end of the path that the table's rows do
not share (absolute paths of another machine, a folder more or less). A match must be the only one. Nothing outside of
the root is looked at.

Cost: 16 look-ups, on an object store in parallel. Of 100,000 files on a local disk and 2 busy cores a listing took 0.3
to 1.5 s, and matching them all 7 to 11 s; an object store is listed in pages, of 1,000 files as a rule (not measured).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers.files import all_files, is_image
from cxrlt_ray.privacy import leads_out, private_detail
from cxrlt_ray.storage import Store

SAMPLE = 16
NO_IMAGES = (
    ".csv",
    ".gz",
    ".txt",
    ".tsv",
    ".json",
    ".parquet",
    ".xlsx",
    ".yaml",
    ".zip",
    ".md",
    ".pdf",
    ".html",
    ".py",
)
MANY = 20  # paths that show a changed folder beyond doubt
TRIED = "as written, with / for \\, in another case, with another ending, by file name in other folders"


def tidy_paths(paths: pd.Series) -> pd.Series:
    r"""Paths with / for \, without // and ./; C:/ and file:// begin an absolute path, which is one from /.

    >>> tidy_paths(pd.Series([r"images\a.png", "./x//b.png", r"C:\data\c.png"])).tolist()
    ['images/a.png', 'x/b.png', '/data/c.png']
    """
    odd = paths.str.contains(r"\\|//|(?:^|/)\./|^[A-Za-z]:", regex=True)
    if not odd.any():
        return paths
    tidy = paths[odd].str.replace("\\", "/", regex=False)
    tidy = tidy.str.replace(r"^[A-Za-z][A-Za-z0-9+.\-]*:/+", "/", regex=True).str.replace(r"/{2,}", "/", regex=True)
    tidy = tidy.str.replace(r"(^|/)(\./)+", r"\1", regex=True)
    return paths.where(~odd, tidy.reindex(paths.index))


def read_tidily(paths: pd.Series, file: str, notes: list[str]) -> pd.Series:
    """`tidy_paths`, with a note where that changes some. file: the table's name."""
    tidy = tidy_paths(paths)
    if changed := int((tidy != paths).sum()):
        notes.append(rf"{file}: {changed:,} paths are read with / for \, and without // and ./.")
    return tidy


def settled(paths: pd.Series, root: Store, file: str) -> tuple[pd.Series, list[str]]:
    """`paths` [N] as they are below `root`, and notes on what was read otherwise than as written, and what is missing.

    file: the table's name, for notes. A path without a match stays as it is.
    """
    notes: list[str] = []
    tidy = read_tidily(paths, file, notes)
    own = str(root.local if root.local is not None else root.uri.partition(":/")[2]).rstrip("/") + "/"
    below = tidy.str.startswith(own)
    if below.any():
        tidy = tidy.where(~below, tidy.str.slice(len(own)))
        notes.append(f"{file}: {int(below.sum()):,} paths are absolute and below the data's root.")
    unique = pd.Series(tidy.unique())
    if _all_exist(unique, root):
        return tidy, notes
    match = _match(unique, root)
    tidy = tidy.map(lambda path: match.found.get(path, path)).astype("str") if match.found else tidy
    return tidy, notes + [f"{file}: {remark}." for remark in match.remarks]


def _all_exist(paths: pd.Series, root: Store) -> bool:
    """Whether the SAMPLE of `paths` exist."""
    sample = _sample(list(paths))
    if any(map(leads_out, sample)):
        return False
    with ThreadPoolExecutor(SAMPLE) as threads:
        return all(threads.map(root.exists, sample))


def _sample(paths: list[str]) -> list[str]:
    """SAMPLE of `paths`, from the first to the last."""
    return [paths[k] for k in np.unique(np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).astype(int))]


@dataclass
class _Match:
    """found: path -> the path on disk, where another. remarks: phrases on both, and on what is missing."""

    found: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def _match(paths: pd.Series, root: Store) -> _Match:
    """Unique `paths` matched with the files below `root`."""
    files = list(all_files(root))
    missing = _not_there(paths, files, root)
    named = set(paths)
    free = [name for name in files if name not in named and not name.lower().endswith(NO_IMAGES)]
    if not free:
        return _Match(remarks=[_nothing_like(missing, len(paths), [], root)] if 2 * len(missing) > len(paths) else [])
    index = defaultdict(list)
    for name in free:
        index[_key(name)].append(name)
    found = _only_once({path: _best(path, index.get(_key(path), [])) for path in missing if not path.startswith("/")})
    match = _Match(dict(found))
    if found:
        match.remarks.append(f"{len(found):,} paths are found under another case or ending{_example(found)}")
    missing = [path for path in missing if path not in found]
    if 2 * len(missing) > len(paths):
        _match_folders(missing, free, match)
        missing = [path for path in missing if path not in match.found]
        if 2 * len(missing) > len(paths):
            match.remarks.append(_nothing_like(missing, len(paths), list(filter(is_image, files)), root))
    return match


def _not_there(paths: pd.Series, files: list[str], root: Store) -> list[str]:
    """Those of `paths` that are none of the `files` listed, nor exist unlisted: hidden, or behind a link."""
    listed = set(files)
    missing = [path for path in paths if path not in listed]
    if root.local is None or not any(_is_file(root.local, path) for path in _sample(missing)):
        return missing
    return [path for path in missing if not _is_file(root.local, path)]


def _is_file(root: Path, path: str) -> bool:
    return not leads_out(path) and os.path.isfile(f"{root}/{path}")


def _nothing_like(missing: list[str], count: int, images: list[str], root: Store) -> str:
    """What to say of paths of which most are missing: what was tried, and how names there and here are written."""
    remark = f"{len(missing):,} of {count:,} images are not below {root.uri} (tried: {TRIED})"
    if not images:
        return f"{remark}, which has no image files"
    forms = f"a row names one as {_form(missing[0])}, those there are as {_form(images[0])}"
    return f"{remark}: {forms}, {len(images):,} together"


def _match_folders(missing: list[str], files: list[str], match: _Match) -> None:
    """Add paths whose folder is another: what the rows' folders do not share must be the end of one file's path."""
    parts = {path: _key(path).split("/") for path in missing}
    shared = _in_common(names[:-1] for names in parts.values())  # folders in common
    depths = {len(names) - shared for names in parts.values()}
    ends = defaultdict(list)
    for name in files:
        names = _key(name).split("/")
        for depth in depths:
            if len(names) >= depth:
                ends["/".join(names[-depth:])].append(name)
    found = _only_once({path: _best(path, ends.get("/".join(names[shared:]), [])) for path, names in parts.items()})
    heads = {path: _heads(path, name) for path, name in found.items()}
    # with a folder taken off and another put before, few paths may be those of another patient
    several = len({head for _, head in heads.values()}) > 1 or len(found) < max(MANY, len(missing))
    match.found |= {path: name for path, name in found.items() if not (several and all(heads[path]))}
    sure = [heads[path] for path in found if path in match.found]
    if sure:
        off, before = ({head[k] for head in sure} - {""} for k in (0, 1))
        done = [f"without {_folder(off)}"] if off else []
        done += [f"in {_folder(before)}" if len(before) == 1 else f"in {len(before)} folders"] if before else []
        match.remarks.append(f"{len(sure):,} paths are found by file name, {' and '.join(done) or 'from the root on'}")


def _key(path: str) -> str:
    r"""What paths of one image share: no case, no ending of an image, / for \, accents composed."""
    return _composed(_stem(path.replace("\\", "/").strip("/")).lower())


def _composed(path: str) -> str:
    """Letters with their accents as one character, which Macs write as two: they look alike and are other bytes."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _stem(path: str) -> str:
    return path.rpartition(".")[0] if is_image(path) else path


def _best(path: str, names: list[str]) -> str | None:
    """The one of `names` that is most like `path`: by its folders, then its ending, then case; None for several."""
    if not names:
        return None
    own = path.strip("/")

    def likeness(name: str) -> tuple[int, bool, bool]:
        other = name.replace("\\", "/")
        same_ending = own.lower().endswith(other.lower().rpartition("/")[2])
        return _in_common([_backwards(own), _backwards(other)]), same_ending, own.endswith(other)

    ranked = sorted(names, key=likeness, reverse=True)
    if len(ranked) > 1 and likeness(ranked[0]) == likeness(ranked[1]):
        return None
    return ranked[0]


def _backwards(path: str) -> list[str]:
    return _key(path).split("/")[::-1]


def _in_common(parts: Iterable[list[str]]) -> int:
    """How many parts all have in common at their beginning."""
    return len(list(takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))))


def _only_once(found: dict[str, str | None]) -> dict[str, str]:
    """Matches without the files that two paths would have."""
    count: dict[str, int] = defaultdict(int)
    for name in found.values():
        count[name or ""] += 1
    return {path: name for path, name in found.items() if name and count[name] == 1}


def _heads(path: str, name: str) -> tuple[str, str]:
    """The folders of a path and of its file before those that they share at the end."""
    own, other = path.strip("/").split("/")[:-1], name.replace("\\", "/").split("/")[:-1]
    while own and other and _composed(own[-1].lower()) == _composed(other[-1].lower()):
        own, other = own[:-1], other[:-1]
    return "/".join(own), "/".join(other)


def _folder(names: Iterable[str]) -> str:
    """A folder that rows share, unless its name may be an id."""
    name = sorted(names)[0]
    return f"'{name}/'" if not re.search(r"\d{4}", name) else f"their folder{private_detail(name)}"


def _example(found: dict[str, str]) -> str:
    """' (.png for .jpg)' of the first match whose ending is another, or whose accents are."""
    for path, name in found.items():
        if _composed(path) == _composed(name):
            return " (accents composed otherwise)"
        own, other = (("." + text.rpartition(".")[2]) if "." in text else "no ending" for text in (path, name))
        if own != other and max(len(own), len(other)) < 10:
            return f" ({other} for {own})"
    return ""


def _form(path: str) -> str:
    """How a path is written, without what it says: xxx/9999.png."""
    stem = _stem(path)
    return re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "9", stem))[:60] + path[len(stem) :]
