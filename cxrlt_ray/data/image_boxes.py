"""Boxes of a cohort's images, kept beside the manifest in a run, in shares of the images' edges.

A Parquet file with the columns image_id, finding, left, top, right, bottom: 0 to 1, from the upper left corner. They
hold at any size, since images are resized to squares without a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.boxes import read_boxes
from cxrlt_ray.data.image_sizes import original_sizes
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.errors import UsageError
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.provenance import provenance_of
from cxrlt_ray.storage.tables import read_table, write_table

FILE = "boxes.parquet"  # in a run
EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class BoxesOfImages:
    """M boxes, by image. image, finding: int64 [M], places among the images and findings. edges: float64 [M, 4]."""

    image: np.ndarray
    finding: np.ndarray
    edges: np.ndarray

    def of(self, image: int) -> slice:
        """Those of an image."""
        return slice(*np.searchsorted(self.image, [image, image + 1]).tolist())


@dataclass(frozen=True)
class ImageBoxes:
    """A row a box: image_id, finding, EDGES; and where they came from. notes: on what was left out."""

    table: pd.DataFrame = field(repr=False)
    provenance: str
    notes: tuple[str, ...] = ()

    def at(self, image_id: np.ndarray, findings: Sequence[str]) -> BoxesOfImages:
        """The boxes of these images [N], each once, and findings [C]."""
        image = pd.Index(image_id).get_indexer(self.table["image_id"])
        finding = pd.Index(findings).get_indexer(self.table["finding"])
        rows = np.flatnonzero((image >= 0) & (finding >= 0))
        rows = rows[np.argsort(image[rows], kind="stable")]
        edges = self.table[list(EDGES)].to_numpy(np.float64)[rows]
        return BoxesOfImages(image[rows].astype(np.int64), finding[rows].astype(np.int64), edges)

    def write(self, store: Store, name: str = FILE) -> None:
        """Write them as a Parquet file, whole or not at all."""
        write_table(store, name, self.table, {"provenance": self.provenance})

    @classmethod
    def read(cls, store: Store, name: str = FILE) -> ImageBoxes:
        """What `write` wrote. Raises CxrltError for a file that is no such table."""
        table, provenance = read_table(store, name, "boxes", "provenance", ["image_id", "finding", *EDGES])
        return cls(table, str(provenance))


def boxes_for(uri: str, manifest: Manifest, findings: Sequence[str]) -> ImageBoxes:
    """The boxes of a file that are in training images of the manifest, and of `findings`.

    Raises UsageError as `read_boxes` does (boxes outside of their image among it), and where no such image has one.
    """
    boxes = read_boxes(uri)
    boxes = boxes.within(original_sizes(manifest, boxes.table["image_id"]))
    training = manifest.of_split("train").table["image_id"]
    rows = boxes.table["image_id"].isin(training) & boxes.table["finding"].isin(findings)
    if not rows.any():
        raise UsageError(
            f"--boxes {uri}: none of its {len(boxes.table):,} boxes is of a training image and of a finding that is "
            "trained: are its images named as the cohort's image ids?"
        )
    kept = replace(boxes, table=boxes.table[rows].reset_index(drop=True))
    images = kept.table["image_id"].nunique()
    count = f"{len(kept.table):,} of {len(boxes.table):,} boxes, in {images:,} training images"
    shown = "which are shown without flip, random crop and augmentation, as boxes would not follow"
    return ImageBoxes(kept.shares(), provenance_of(uri, "--boxes"), (*boxes.notes, f"Boxes: {count}, {shown}"))
