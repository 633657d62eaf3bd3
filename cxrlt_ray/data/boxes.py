"""Where findings are in images: boxes from a file beside a cohort, in CXR-LT's names. Three formats, by content.

    a table with image_id, finding, x, y, width, height     the phantom's boxes.csv (`phantom --boxes`), or one's own
    a table with image_id, class_name, x_min ... y_max      VinDr-CXR's annotations_train.csv and annotations_test.csv,
                                                            and Kaggle's train.csv of it
    JSON {image: {"img_size": [H, W], FINDING: polygons}}   CheXlocalize's gt_annotations_val.json, ..._test.json
    JSON {image: {FINDING: {"size": [H, W], "counts"}}}     CheXlocalize's gt_segmentations_val.json, ..._test.json

All are in pixels of the original image, x to the right and y downwards. VinDr-CXR: a row for each box of each of the
radiologists who read an image, all of which are kept; rows "No finding" have no box. CheXlocalize: a polygon
[[x, y], ...] is a part, "counts" is COCO's run-length string (column by column; a mask of zeros where the finding is
absent); each part that lies apart has a box. Images are named as CheXpert's reader names them
(patient64541_study1_view1_frontal).

Source: Nguyen et al., Scientific Data 9:429 (2022); Saporta et al., Nature Machine Intelligence 4:867 (2022) and the
formats as public code of both reads them. The data is credentialed and was not at hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cxrlt_ray.data.coco_masks import decoded_mask, parts_of
from cxrlt_ray.data.mapping import load_mapping
from cxrlt_ray.data.table_file import parsed_table
from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.errors import UsageError
from cxrlt_ray.storage import Store

PLACE = ("x", "y", "width", "height")
OWN = ("image_id", "finding", *PLACE)
CORNERS = ("x_min", "y_min", "x_max", "y_max")
VINDR = ("image_id", "class_name", *CORNERS)
SLACK = 1.0  # pixels by which a box may leave its image: readers draw to the edge, and programs round
RENAMED = {"airspace opacity": "lung opacity", "other disease": "other diseases"}  # as CheXpert's and VinDr's tables
NO_FINDING = "no finding"

Sizes = Mapping[str, tuple[int, int]]  # of images by their id: width, height in pixels


@dataclass(frozen=True)
class Boxes:
    """Boxes of a file.

    table: a row a box: image_id; finding, one of CXR-LT's; x, y, width, height, float64 pixels of the original image.
    file: its name. sizes: the images' sizes as far as the file or the caller tells them. notes: what was left out.
    """

    table: pd.DataFrame
    file: str
    sizes: Sizes
    notes: tuple[str, ...] = ()

    def within(self, sizes: Sizes) -> Boxes:
        """The same of images of these sizes; those that the file tells stand.

        Raises UsageError for boxes outside of their image; of an image of unknown size, left of it or above it.
        """
        boxes, far = replace(self, sizes={**sizes, **self.sizes}), (np.inf, np.inf)
        size = np.array([boxes.sizes.get(name, far) for name in boxes.table["image_id"]], float).reshape(-1, 2)
        low = boxes.table[["x", "y"]].to_numpy()
        high = low + boxes.table[["width", "height"]].to_numpy()
        outside = (low < -SLACK).any(axis=1) | (high > size + SLACK).any(axis=1)
        _refuse(outside, boxes.file, "lie outside of their image", "are they in pixels of the original image?")
        return boxes

    def shares(self) -> pd.DataFrame:
        """image_id, finding, left, top, right, bottom: shares of the image's edges in [0, 1].

        They stay the same when an image is resized. Raises UsageError for images whose size is not known.
        """
        if unknown := len(set(self.table["image_id"]) - set(self.sizes)):
            raise UsageError(
                f"{self.file}: the size of {unknown:,} of its images is not known, so that its pixels mean nothing "
                "there: are these images in the cohort?"
            )
        size = np.array([self.sizes[image_id] for image_id in self.table["image_id"]], float).reshape(-1, 2)
        corner = self.table[["x", "y"]].to_numpy()
        low, high = corner / size, (corner + self.table[["width", "height"]].to_numpy()) / size
        edges = np.clip(np.concatenate([low, high], axis=1), 0, 1)
        return self.table[["image_id", "finding"]].assign(
            **dict(zip(("left", "top", "right", "bottom"), edges.T, strict=True))
        )


def read_boxes(path: str, sizes: Sizes | None = None, mapping: str | None = None) -> Boxes:
    """The boxes of the file at `path`, or URI.

    sizes: of the cohort's images; a box outside of its image is refused. mapping: a file of cohorts/ that says what the
    findings are among CXR-LT's; without it vindr or chexpert for these formats, and the names themselves for a table
    of the phantom's form. Findings that it does not reach are left out, with a note.
    Raises UsageError, naming the file and how many, for cells that are no numbers, boxes without area or outside of
    their image, and where no finding is known.
    """
    folder, name = Store.holding(path)
    content = folder.read(name)
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        table, known = _chexlocalize(content, path)
        mapping = mapping or "chexpert"
    else:
        table = _table(content, path)
        known = {}
        mapping = mapping or ("vindr" if "class_name" in table else None)
        table = _corners_as_places(table) if "class_name" in table else table[list(OWN)]
    table, notes = _in_cxr_lt(_checked(table, path), mapping, path)
    return Boxes(table.reset_index(drop=True), path, known, notes).within(sizes or {})


def _table(content: bytes, path: str) -> pd.DataFrame:
    """The columns of a box table in one of the two forms."""
    table = parsed_table(content, path, text=("image_id",), known=(*OWN, *VINDR)).table
    for columns in (OWN, VINDR):
        if set(columns) <= set(table.column_names):
            return table.select(list(columns)).to_pandas()
    raise UsageError(
        f"{path} is no table of boxes: it needs the columns {', '.join(OWN)}; or, as VinDr-CXR's, {', '.join(VINDR)}."
    )


def _corners_as_places(table: pd.DataFrame) -> pd.DataFrame:
    """VinDr's rows in our columns, without those that only say that nothing was found."""
    table = table[table["class_name"].astype(str).str.lower() != NO_FINDING]
    left, top, right, bottom = (pd.to_numeric(table[name], errors="coerce") for name in CORNERS)
    places = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return table[["image_id"]].assign(finding=table["class_name"], **places)


def _checked(table: pd.DataFrame, path: str) -> pd.DataFrame:
    """Boxes whose places are finite numbers with an area, as float64."""
    places = {name: pd.to_numeric(table[name], errors="coerce").astype(float) for name in PLACE}
    table = table[["image_id", "finding"]].astype(str).assign(**places)
    values = table[list(PLACE)].to_numpy()
    _refuse(~np.isfinite(values).all(axis=1), path, "have a place that is no number", "give x, y, width and height")
    _refuse((values[:, 2:] <= 0).any(axis=1), path, "have no area", "width and height are above 0")
    return table


def _refuse(wrong: np.ndarray, path: str, what: str, remedy: str) -> None:
    if wrong.any():
        raise UsageError(f"{path}: {int(wrong.sum()):,} of {len(wrong):,} boxes {what}: {remedy}.")


def _in_cxr_lt(table: pd.DataFrame, mapping: str | None, path: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Boxes by CXR-LT's names: one for each finding that a name means."""
    meant: dict[str, tuple[str, ...]] = {name: (name,) for name in ALL_FINDINGS}
    if mapping is not None:
        meant = load_mapping(mapping).findings
    meant = {name.lower(): targets for name, targets in meant.items()}
    names = table["finding"].str.strip().str.lower().replace(RENAMED)
    targets = names.map(meant)
    if len(table) and targets.isna().all():
        raise UsageError(
            f"{path}: none of its findings is known ({_some(table['finding'])}): map them in cohorts/NAME.yaml."
        )
    left_out = table.loc[targets.isna(), "finding"]
    notes = (f"{path}: {len(left_out):,} boxes of {_some(left_out)} are left out.",) if len(left_out) else ()
    mapped = table.assign(finding=targets)[targets.notna()]
    return mapped.explode("finding").astype({"finding": str}), notes


def _some(names: pd.Series, most: int = 4) -> str:
    distinct = list(dict.fromkeys(names))
    return ", ".join(f"'{name[:40]}'" for name in distinct[:most]) + (" ..." if len(distinct) > most else "")


def _chexlocalize(content: bytes, path: str) -> tuple[pd.DataFrame, dict[str, tuple[int, int]]]:
    """The boxes of a CheXlocalize file, and its images' sizes."""
    rows: list[tuple[Any, ...]] = []
    sizes: dict[str, tuple[int, int]] = {}
    try:
        for image_id, record in json.loads(content).items():
            parts = _polygons if "img_size" in record else _masks
            for finding, size, places in parts(record):
                sizes[image_id] = size
                rows += [(image_id, finding, *place) for place in places]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise UsageError(
            f"{path} is no file of CheXlocalize: {{image: {{'img_size': [H, W], finding: [[[x, y], ...], ...]}}}} or "
            "{image: {finding: {'size': [H, W], 'counts': '...'}}} is expected."
        ) from None
    return pd.DataFrame(rows, columns=list(OWN)), sizes


Part = tuple[str, tuple[int, int], list[tuple[float, float, float, float]]]


def _polygons(record: dict[str, Any]) -> Iterator[Part]:
    """Of each finding the image's (width, height) and a box around each polygon."""
    height, width = (int(edge) for edge in record["img_size"])
    for finding, polygons in record.items():
        if finding != "img_size":
            points = [np.asarray(polygon, float).reshape(-1, 2) for polygon in polygons if len(polygon)]
            boxes = [
                (float(x.min()), float(y.min()), float(np.ptp(x)), float(np.ptp(y))) for x, y in (p.T for p in points)
            ]
            yield finding, (width, height), boxes


def _masks(record: dict[str, Any]) -> Iterator[Part]:
    """Of each finding the image's (width, height) and a box around each part of its mask."""
    for finding, mask in record.items():
        height, width = (int(edge) for edge in mask["size"])
        yield finding, (width, height), parts_of(decoded_mask(mask["counts"], height, width))
