"""How large original images are, by their headers: what boxes in pixels need to become shares of an image."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from cxrlt_ray.data import jpeg
from cxrlt_ray.data.decode import stated_size
from cxrlt_ray.data.dicom import is_dicom, stated_dicom_size
from cxrlt_ray.data.limits import MAX_BYTES
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.originals import read_original
from cxrlt_ray.errors import CxrltError

THREADS = 16  # files wait for the disk or the network, not for a core


def image_size(content: bytes) -> tuple[int, int]:
    """An image file's (width, height) in pixels. Raises ValueError where its header states none."""
    if is_dicom(content):
        height, width = stated_dicom_size(content, MAX_BYTES)
    elif content.startswith(jpeg.START):
        height, width, _ = jpeg.frame_size(content)
    else:
        height, width = stated_size(content)
    if min(height, width) < 1:
        raise ValueError("its header states no size")
    return width, height


def original_sizes(manifest: Manifest, image_ids: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(width, height) of those images of `image_ids` that the manifest has and that can be read.

    Images of a file are read whole: ask for those that have boxes, not for all.
    """
    wanted = manifest.table[manifest.table["image_id"].isin(set(image_ids))]

    def size_of(path: str) -> tuple[int, int] | None:
        try:
            return image_size(read_original(manifest.root, path))
        except (CxrltError, ValueError):
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        sizes = pool.map(size_of, wanted["path"])
        return {name: size for name, size in zip(wanted["image_id"], sizes, strict=True) if size is not None}
