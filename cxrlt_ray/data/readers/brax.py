"""BRAX 1.1.0: master_spreadsheet_update.csv over images/ (PNG) or Anonymized_DICOMs/, in it or a directory in it.

CheXpert's fourteen findings by its labeller in Portuguese reports: 1, 0, -1 (uncertain: null, or what
--uncertain says), empty (not mentioned: 0). DicomPath and PngPath are relative to the release; the PNG
are taken where their folder exists. Ages are groups of five years, above which "85 or more": 85.
Accession numbers are random and not known to be unique: a study is a patient's accession number. There is no split.

Source: Reis et al., BRAX, Scientific Data 9:487 (2022) and PhysioNet's page; paths and views as public code
reads them. Unverified, as the data is credentialed: the order of columns (they are found by name) and how an
age group is written (what is no number before "or more" is unknown).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.chexpert import FINDINGS
from cxrlt_ray.data.readers.columns import Sheet, ages, read_sheet, sexes, views
from cxrlt_ray.data.readers.files import first_with, locations
from cxrlt_ray.data.readers.views import remarks_on_views
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

TABLES = ("master_spreadsheet_update.csv", "master_spreadsheet.csv")
PATHS = ("PngPath", "DicomPath")
TEXT = (*PATHS, "PatientID", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate", "ViewPosition")


def recognise(data: Store, labelled: bool) -> str | None:
    """The release's spreadsheet."""
    location = first_with(locations(data), *TABLES)
    return location and f"{location[1]} in {location[0].uri}"


@register_reader("brax", f"{TABLES[0]}, in it or a directory in it", recognise, FINDINGS)
def read(request: Request) -> Raw:
    """The spreadsheet's rows."""
    location = first_with(locations(request.data), *TABLES)
    if not location:
        raise CxrltError(f"{request.data.uri} holds no BRAX: neither {' nor '.join(TABLES)} is there.")
    root, name = location
    sheet = read_sheet(root, name, TEXT, known=FINDINGS)
    sheet.need("PatientID", "AccessionNumber")
    findings = tuple(c for c in FINDINGS if request.findings is None or c in request.findings)
    sheet.need(*(findings if request.labelled else ()))
    problems: list[str] = []
    notes = [*sheet.notes, *remarks_on_views(sheet.file, sheet.text("ViewPosition"))]
    path = sheet.paths(_column(root, sheet), problems, notes)
    subject = sheet.ids("PatientID", problems)
    table = pd.DataFrame(
        {
            "image_id": path.str.rsplit("/", n=1).str[-1].str.replace(r"\.\w+$", "", regex=True),
            "study_id": subject + "_" + sheet.ids("AccessionNumber", problems),
            "subject_id": subject,
            "view": views(sheet.text("ViewPosition")),
            "path": path,
            "sex": sexes(sheet.text("PatientSex")),
            "age": ages(sheet.text("PatientAge").str.replace(r"\s*or more$", "", regex=True)),
            "file": sheet.file,
            "row": np.arange(1, len(path) + 1),
        }
    )
    present = tuple(c for c in findings if c in sheet.columns)
    table = table.assign(**{c: sheet.chexpert_labels(c, request.uncertain, problems) for c in present})
    return Raw(table if request.labelled else table.assign(split="test"), present, root.uri, notes, problems)


def _column(root: Store, sheet: Sheet) -> str:
    """The column of paths whose first folder exists: the PNG before the DICOM files."""
    named = [column for column in PATHS if column in sheet.columns]
    if not named:
        sheet.need(PATHS[0])
    tops = {column: next(iter(sheet.paths(column, [], [])), "").split("/")[0] for column in named}
    return next((column for column in named if tops[column] and root.exists(tops[column])), named[0])
