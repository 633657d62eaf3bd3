"""VinDr-CXR 1.0.0: annotations/image_labels_train.csv and image_labels_test.csv, images in train/ and test/.

An image of train has a row of each of the three radiologists who read it (rad_id); its label is what more
than half of those who labelled it say, null where they are split evenly. An image of test has one row, the
consensus of five. So a label is 1, 0 or, in a cell that is empty, null. Images are ID.dicom as released, or
ID.png, ID.jpg of a public export; one that is not on disk is taken to be ID.dicom. The release names no patients:
each image is a subject of its own. All views are PA. Sex and age stand in the DICOM files only and stay unknown.

Source: Nguyen et al., VinDr-CXR, Scientific Data 9:429 (2022); columns as public code reads them: test calls
`Other disease` what train calls `Other diseases`. Unverified, as the data is credentialed: that every image
of train has exactly three rows (any number is voted on).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.dicom import DICOM_SUFFIXES
from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.columns import Sheet, and_more, counted, read_sheet, row_of
from cxrlt_ray.data.readers.files import image_files, locations
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import private_detail
from cxrlt_ray.storage import Store

SHEETS = {"train": "image_labels_train.csv", "test": "image_labels_test.csv"}
FOLDERS = ("annotations", "")
FINDINGS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
    "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding",
)  # fmt: skip
RENAMED = {"Other disease": "Other diseases"}
TEXT = ("image_id", "rad_id")
READERS = 3  # of an image of train


def recognise(data: Store, labelled: bool) -> str | None:
    """The first of the tables that exists."""
    location = _find(data)
    return location and f"{location[1]} below {location[0].uri}"


@register_reader(
    "vindr", f"{' or '.join(SHEETS.values())}, in annotations/, in it or in a directory in it", recognise, FINDINGS
)
def read(request: Request) -> Raw:
    """A row for each image of the tables that exist."""
    location = _find(request.data)
    if not location:
        raise CxrltError(f"{request.data.uri} holds no VinDr-CXR: none of {', '.join(SHEETS.values())} is there.")
    root, first = location
    folder = root / first.rpartition("/")[0] if "/" in first else root
    findings = tuple(c for c in FINDINGS if request.findings is None or c in request.findings)
    problems: list[str] = []
    notes = ["VinDr-CXR does not tell patients: each image is a subject of its own."]
    parts = []
    for split, name in SHEETS.items():
        if folder.exists(name):
            sheet = _renamed(read_sheet(folder, name, TEXT, known=(*FINDINGS, *RENAMED)))
            notes += sheet.notes
            sheet.need("image_id", *(findings if request.labelled else ()))
            findings = tuple(c for c in findings if c in sheet.columns)
            rows = _rows(sheet, findings, problems)
            rows = _voted(sheet, rows, findings, notes, problems) if split == "train" else rows
            parts.append(rows.assign(split=split, path=_paths(root, split, rows["image_id"])))
    table = pd.concat(parts, ignore_index=True).astype(dict.fromkeys(findings, "Int8"))
    table = table.assign(study_id=table["image_id"], subject_id=table["image_id"], view="PA")
    return Raw(table if request.labelled else table.assign(split="test"), findings, root.uri, notes, problems)


def _find(data: Store) -> tuple[Store, str] | None:
    """The release's root, and the first table's name below it."""
    names = [f"{folder}/{name}".lstrip("/") for folder in FOLDERS for name in SHEETS.values()]
    return next(((root, name) for root in locations(data) for name in names if root.exists(name)), None)


def _renamed(sheet: Sheet) -> Sheet:
    return replace(sheet, table=sheet.table.rename_columns([RENAMED.get(name, name) for name in sheet.columns]))


def _rows(sheet: Sheet, findings: tuple[str, ...], problems: list[str]) -> pd.DataFrame:
    """The table's own rows."""
    image = sheet.ids("image_id", problems)
    table = pd.DataFrame({"image_id": image, "file": sheet.file, "row": np.arange(1, len(image) + 1)})
    return table.assign(**sheet.findings(findings, problems))


def _voted(
    sheet: Sheet, rows: pd.DataFrame, findings: tuple[str, ...], notes: list[str], problems: list[str]
) -> pd.DataFrame:
    """One row an image, at the place of its first, with the majority of its readers' labels."""
    sheet.need("rad_id")
    again = rows.assign(rad_id=sheet.filled("rad_id", problems)).duplicated(["image_id", "rad_id"]).to_numpy()
    if again.any():
        row = int(np.flatnonzero(again)[0])
        problems.append(
            f"{sheet.file}: {row_of(row)} is a second reading of one image"
            f"{private_detail(rows['image_id'].iloc[row])} by the same radiologist{and_more(again.sum() - 1)}: "
            "each reads an image once."
        )
    image, _ = pd.factorize(rows["image_id"])
    votes = np.bincount(image)
    odd = int((votes != READERS).sum())
    if odd:
        notes.append(f"{counted(odd, 'image')} of train read by another number than {READERS}: those there are vote.")
    labels = {name: _majority(rows[name].fillna(-1).to_numpy(np.int8), image) for name in findings}
    return rows.drop_duplicates("image_id", ignore_index=True).assign(**labels)


def _majority(codes: np.ndarray, image: np.ndarray) -> pd.api.extensions.ExtensionArray:
    """Codes int8 [rows] of 1, 0 or -1 (no vote) and each row's image -> the label of each image, as Int8."""
    balance = np.bincount(image, weights=np.where(codes < 0, 0, np.where(codes == 1, 1, -1)))
    return pd.arrays.IntegerArray((balance > 0).astype(np.int8), balance == 0)


def _paths(root: Store, split: str, image: pd.Series) -> pd.Series:
    """train/ID.png or another suffix that exists, an export before the DICOM file."""
    present = sorted(image_files(root, split, recursive=False), key=lambda path: not path.endswith(DICOM_SUFFIXES))
    path_of = {path.rsplit("/", 1)[1].rsplit(".", 1)[0]: path for path in present}
    return image.map(lambda name: path_of.get(name, f"{split}/{name}.dicom")).astype("str")
