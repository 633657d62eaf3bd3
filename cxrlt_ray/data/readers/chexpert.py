"""CheXpert: train.csv and valid.csv, perhaps test.csv, with `Path`, in CheXpert-v1.0*/ or in the directory itself.

Scored are the images that radiologists labelled: test.csv where it comes with labels, else valid.csv
(234 images; with test.csv it is left out, as too small to choose by). Validation is carved from train.
An empty cell is 0; -1 (uncertain) is null, or what --uncertain says.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.columns import Sheet, ages, and_more, read_sheet, row_of, sexes, views
from cxrlt_ray.data.readers.files import locations
from cxrlt_ray.data.readers.views import remarks_on_views
from cxrlt_ray.data.table_file import header
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import private_detail
from cxrlt_ray.storage import Store

SPLITS = {"train.csv": "train", "valid.csv": "test", "test.csv": "test"}
FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
TEXT = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")


def recognise(data: Store, labelled: bool) -> str | None:
    """The first of the release's tables that exists."""
    location = _find(data)
    return location and f"{location[1]} with Path in {location[0].uri}"


@register_reader("chexpert", "train.csv or valid.csv with column Path, in it or a directory in it", recognise, FINDINGS)
def read(request: Request) -> Raw:
    """The rows of the tables that count."""
    location = _find(request.data)
    if not location:
        raise CxrltError(
            f"{request.data.uri} holds no CheXpert: none of {', '.join(SPLITS)} with column Path is there."
        )
    release = location[0]
    problems: list[str] = []
    sheets, notes = _chosen(
        {name: read_sheet(release, name, TEXT, known=FINDINGS) for name in SPLITS if release.exists(name)}, request
    )
    notes += [note for sheet in sheets for note in sheet.notes]
    requested = tuple(name for name in FINDINGS if request.findings is None or name in request.findings)
    table = pd.concat(
        [_rows(sheet, requested, request.uncertain, problems, notes) for sheet in sheets], ignore_index=True
    )
    findings = tuple(name for name in requested if name in table)
    table["path"] = _below(release, table["path"])
    return Raw(table.astype(dict.fromkeys(findings, "Int8")), findings, release.uri, notes, problems)


def _find(data: Store) -> tuple[Store, str] | None:
    tables = ((directory, file) for directory in locations(data) for file in SPLITS)
    heads = ((table, header(*table, known=(*TEXT, "dicom_id"))) for table in tables)
    return next((table for table, head in heads if "Path" in head and "dicom_id" not in head), None)  # not CXR-LT 2023


def _chosen(sheets: dict[str, Sheet], request: Request) -> tuple[list[Sheet], list[str]]:
    """The tables to use, one test set at most, and why."""
    test = sheets.get("test.csv")
    if test is not None and request.labelled and not set(FINDINGS) & set(test.columns):
        del sheets["test.csv"]
        test = None
    if test is not None:
        sheets.pop("valid.csv", None)
        return list(sheets.values()), ["Split test is test.csv; valid.csv is left out."]
    notes = ["Split test is valid.csv, which radiologists labelled."] if "valid.csv" in sheets else []
    return list(sheets.values()), notes


def _rows(
    sheet: Sheet, requested: tuple[str, ...], uncertain: str, problems: list[str], notes: list[str]
) -> pd.DataFrame:
    sheet.need("Path")
    path = sheet.paths("Path", problems, notes)
    parts = path.str.extract(r"(patient\d+)/(study\d+)/([^/]+)\.\w+$")
    strange = np.flatnonzero(parts[0].isna())
    if len(strange):
        problems.append(
            f"{sheet.file}: column 'Path', {row_of(strange[0])}{private_detail(path.iloc[strange[0]])}"
            f"{and_more(len(strange) - 1)} should end in patient00001/study1/view1_frontal.jpg."
        )
    study = parts[0] + "_" + parts[1]
    frontal = sheet.text("Frontal/Lateral").str.capitalize()
    notes += remarks_on_views(sheet.file, sheet.text("AP/PA"))
    table = pd.DataFrame(
        {
            "image_id": study + "_" + parts[2],
            "study_id": study,
            "subject_id": parts[0],
            # AP/PA says nothing of laterals
            "view": views(sheet.text("AP/PA")).where(frontal != "Lateral", "LATERAL"),
            "path": path,
            "split": SPLITS[sheet.file],
            "sex": sexes(sheet.text("Sex")),
            "age": ages(sheet.text("Age")),
            "file": sheet.file,
            "row": np.arange(1, len(path) + 1),
        }
    )
    labels = {name: sheet.chexpert_labels(name, uncertain, problems) for name in requested if name in sheet.columns}
    return table.assign(**labels)


def _below(release: Store, paths: pd.Series) -> pd.Series:
    """Paths relative to the release, with whose original name they begin; the directory may have been renamed."""
    first = paths.iloc[0].split("/")[0] if len(paths) else ""
    return paths if not first or release.exists(first) else paths.str.removeprefix(f"{first}/")
