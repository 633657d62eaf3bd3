"""numba's `njit`, with a place for what it compiles.

numba keeps compiled code beside the source, else in the user's cache directory. Where neither can be written (an image
that is read-only, a user without a home) it refuses to compile at all: then a directory in TMPDIR serves, which no
other user can enter, as its files are loaded as code.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numba
from numba import njit

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import own_dir

__all__ = ["cache_directories", "njit", "temporary_cache"]

VARIABLE = "NUMBA_CACHE_DIR"
config: Any = numba.config  # whose attributes are made from the environment


def temporary_cache() -> Path | None:
    """The directory in TMPDIR that numba is given for compiled code; None where it finds a place by itself.

    Raises CxrltError where TMPDIR cannot be written either.
    """
    try:
        njit(cache=True)(_probe)
    except RuntimeError:  # no locator available
        folder = Path(tempfile.gettempdir(), f"cxrlt_ray-{os.getuid()}")
        try:
            cache = own_dir(own_dir(folder) / "numba")
        except OSError as error:
            raise CxrltError(
                f"compiled code can be kept nowhere: {folder} cannot be made ({error.strerror}); set {VARIABLE} to a "
                "directory of yours."
            ) from None
        config.CACHE_DIR = os.environ[VARIABLE] = str(cache)
        return cache
    return None


def cache_directories(package: Path) -> list[Path]:
    """Where compiled code of the modules in the directory `package` may be."""
    return [package / "__pycache__", *([Path(config.CACHE_DIR)] if config.CACHE_DIR else [])]


def _probe() -> None:
    """A function to be compiled, which never is."""


temporary_cache()
