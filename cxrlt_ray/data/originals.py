"""The original images of a cohort, read only, and only below the data's root."""

from __future__ import annotations

import os
from importlib.util import find_spec

from cxrlt_ray.data.dicom import DICOM_SUFFIXES
from cxrlt_ray.data.limits import MAX_BYTES
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.readers.files import plain
from cxrlt_ray.errors import UsageError
from cxrlt_ray.privacy import LEADING_OUT, below, leads_out
from cxrlt_ray.storage import Store


def read_original(root: str, path: str) -> bytes:
    """The content of an image's file below the directory or URI `root`.

    Raises CxrltError where it cannot be read, ValueError where it must not be: it lies elsewhere, by its path or by a
    link, or is larger than any image.
    """
    store = Store(plain(root))
    if store.local is None:
        if leads_out(path):
            raise ValueError(LEADING_OUT)
        return store.read(path)
    resolved = below(str(store.local), path)
    if os.path.exists(resolved) and os.path.getsize(resolved) > MAX_BYTES:
        raise ValueError(f"a file of more than {MAX_BYTES:,} bytes")
    folder, _, name = resolved.rpartition("/")
    return Store(folder or "/").read(name)


def check_originals(manifest: Manifest) -> None:
    """Raise UsageError with the first of what no image of the data could be read for."""
    for reason in unreadable(manifest):
        raise UsageError(reason)


def unreadable(manifest: Manifest) -> list[str]:
    """What no image of the data could be read for, as sentences.

    DICOM files need pydicom; and a link of the first image that leads out of the data's root is likely not the only
    one, which would fill the quarantine image by image.
    """
    reasons = []
    if find_spec("pydicom") is None and manifest.table["path"].str.lower().str.endswith(DICOM_SUFFIXES).any():
        reasons.append("the images are DICOM files, which need pydicom: pip install 'cxrlt-ray[dicom]'.")
    if not manifest.table.empty and "://" not in plain(manifest.root):
        try:
            below(plain(manifest.root), manifest.table["path"].iloc[0])
        except ValueError as error:
            reasons.append(f"the images below {manifest.root} cannot be read: of the first, {error}.")
    return reasons
