"""Protection of patients' data, and against harmful files from elsewhere.

A message names the row of a file, never an image, a study, a subject, a path below the data's root (MIMIC's hold all
three) or a cell's content; CXRLT_RAY_SHOW_IDS=1 adds them, for a terminal that no one else reads. Folders that hold
ids are this user's alone. docs/security.md says what is protected and what is not.
"""

from __future__ import annotations

import math
import os
import re
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlt_ray.errors import CxrltError

if TYPE_CHECKING:
    import pandas as pd

SHOW_IDS = "CXRLT_RAY_SHOW_IDS"
FOLLOW_LINKS = "CXRLT_RAY_FOLLOW_LINKS"
PHANTOM_MARKER = "phantom.json"  # in a directory of a phantom cohort, whose images are of no patients
GENERATED_MARKER = "generate.json"  # in a directory of generated images (generation/records.py)
LEADS_OUT = r"^/|\x00|(?:^|/)\.\.(?:/|$)"  # a path that is not below what it is relative to, or that hides its end
UNFIT = r"^[=+\-@]|[\x00-\x1f\x7f]"  # runs as a formula in a spreadsheet, or breaks a line of a table or a terminal
LEADING_OUT = "its path leads out of the data's root"
LARGE, RATIO = 100_000_000, 100  # bytes and times their packed size above which a zip's content is no table of scores


def private_detail(value: object) -> str:
    """' (what)' where CXRLT_RAY_SHOW_IDS=1 says that ids and cells may be shown, else nothing."""
    return f" ({str(value)!r})" if os.environ.get(SHOW_IDS) == "1" else ""


def cell(value: Any) -> str:
    """A cell's content as a message may show it: a number below 1,000 (a larger one may be an id), else its kind.

    >>> cell("1.0000001"), cell(4711), cell("Mr. A")
    ('1.0000001', 'a large number', 'text')
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"text{private_detail(str(value)[:40])}"
    return f"a large number{private_detail(value)}" if 1000 <= abs(number) < math.inf else f"{number:.8g}"


def heads(columns: Sequence[str], most: int = 12) -> str:
    """The names of columns as a message may list them: in a file without a header they are a row of data.

    Nor are those shown that would steer the terminal.
    """
    hidden = r"\d{4}|/|.{60}|[\x00-\x1f\x7f-\x9f]"
    shown = [f"'{name}'" if not re.search(hidden, name) else "(not shown)" for name in columns[:most]]
    return ", ".join(shown) + (" ..." if len(columns) > most else "")


def unfit(name: str) -> bool:
    """Whether a name must not stand in a table that is passed on: it begins with = + - @ or has control characters."""
    return re.search(UNFIT, name) is not None


def inert(text: str) -> str:
    r"""A text as a cell of a CSV that a spreadsheet takes for text: a ' before = + - @, blanks for control characters.

    >>> inert("-1.2 cm nodule"), inert("a\tb"), inert("No effusion.")
    ("'-1.2 cm nodule", 'a b', 'No effusion.')
    """
    plain = re.sub(r"[\x00-\x09\x0b-\x1f\x7f]", " ", text)  # a line break in a quoted cell is no harm
    return f"'{plain}" if re.match(r"\s*[=+\-@]", plain) else plain


def leads_out(path: str) -> bool:
    """Whether a path is not below what it is relative to, as it is written."""
    return re.search(LEADS_OUT, path) is not None


def leading_out(paths: pd.Series) -> pd.Series:
    """`leads_out` of paths [N]: bool."""
    return paths.str.contains(LEADS_OUT, regex=True)


def follows_links() -> bool:
    """Whether links are followed out of a data directory: whoever packed it may have set them."""
    return os.environ.get(FOLLOW_LINKS) == "1"


def below(root: str, path: str) -> str:
    """The real path of the file `path` below the local directory `root`.

    Raises ValueError where it is elsewhere, by its path or by a link (CXRLT_RAY_FOLLOW_LINKS=1 follows links), or is
    not a file: a device or a pipe would be read for ever.
    """
    if leads_out(path):
        raise ValueError(LEADING_OUT)
    real = os.path.realpath(os.path.join(root, path))
    if not follows_links() and not real.startswith(os.path.join(os.path.realpath(root), "")):
        raise ValueError(f"a link leads out of the data's root ({FOLLOW_LINKS}=1 follows it)")
    if os.path.exists(real) and not os.path.isfile(real):
        raise ValueError("not a file")
    return real


def unzipped(content: Any, name: str) -> bytes:
    """A file in an open archive, in memory: nothing is ever unpacked to disk. Raises ValueError for a bomb."""
    info = content.getinfo(name)
    check_unpacked(info)
    return content.read(info)


def check_unpacked(info: zipfile.ZipInfo) -> None:
    """Raise ValueError for a file that unpacks to far more than any table of scores (those: 3 to 30 times its size)."""
    if info.file_size > max(LARGE, RATIO * info.compress_size):
        raise ValueError(f"it would unpack to {info.file_size:,} bytes, {RATIO} times its size and more")


def private_dir(folder: Path) -> Path:
    """`folder`, created where missing (with missing parents) for this user alone, whatever the umask."""
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
    return folder


def own_dir(folder: Path) -> Path:
    """`private_dir` where others may write, such as in /tmp. Raises CxrltError where it is someone else's."""
    private_dir(folder)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise CxrltError(f"{folder} is not a directory of yours: remove it, or set TMPDIR to a directory that is.")
    folder.chmod(0o700)
    return folder
