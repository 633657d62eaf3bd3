"""CXR-LT 2023: train.csv, development.csv and test.csv over a MIMIC-CXR-JPG tree.

26 findings, those of 2024's task 2. The release calls the path `path` and Normal `No Finding`, which
becomes Normal here. Where development.csv or test.csv come without labels, as in the challenge, their
images can be scored by a submission only.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.columns import Sheet, read_sheet
from cxrlt_ray.data.readers.files import locations
from cxrlt_ray.data.readers.mimic import TEXT, add_side_tables, find_root, release_rows
from cxrlt_ray.data.table_file import header
from cxrlt_ray.data.tasks import TASK2
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

RELEASE = "cxr-lt-2023"
SPLITS = {"train.csv": "train", "development.csv": "val", "test.csv": "test"}
RENAMED = {"No Finding": "Normal"}


def recognise(data: Store, labelled: bool) -> str | None:
    """The first of the release's tables that exists."""
    location = _find(locations(data, RELEASE))
    return location and f"{location[1]} with dicom_id and path in {location[0].uri}"


@register_reader(
    "cxrlt2023", "train.csv or test.csv with columns dicom_id and path, in it or a directory in it", recognise, TASK2
)
def read(request: Request) -> Raw:
    """The release's rows."""
    near = locations(request.data, RELEASE)
    location = _find(near)
    if not location:
        raise CxrltError(f"{request.data.uri} holds no CXR-LT 2023 release: none of {', '.join(SPLITS)} is there.")
    release, notes, parts = location[0], [], []
    problems: list[str] = []
    requested = TASK2 if request.findings is None else request.findings
    findings: tuple[str, ...] = ()
    for file, split in SPLITS.items():
        if not release.exists(file):
            continue
        sheet = _renamed(read_sheet(release, file, TEXT, known=(*TASK2, *RENAMED)))
        names = tuple(name for name in sheet.columns if name in requested)
        if not names:
            notes.append(f"{file} is without labels: its images can be scored by a submission only.")
            split = "development" if split == "val" else split
        else:
            sheet.need(*findings)
        parts.append(release_rows(sheet, "path", split, names, problems, notes))
        findings = findings or names
    root = find_root(request.data, release)
    table, more = add_side_tables(pd.concat(parts, ignore_index=True), root, [release, *near], problems)
    return Raw(table.astype(dict.fromkeys(findings, "Int8")), findings, root.uri, notes + more, problems)


def _find(near: list[Store]) -> tuple[Store, str] | None:
    tables = ((directory, file) for directory in near for file in SPLITS)
    return next((table for table in tables if {"dicom_id", "path"} <= set(header(*table, known=TEXT))), None)


def _renamed(sheet: Sheet) -> Sheet:
    return replace(sheet, table=sheet.table.rename_columns([RENAMED.get(name, name) for name in sheet.columns]))
