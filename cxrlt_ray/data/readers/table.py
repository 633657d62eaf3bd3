"""A plain labels.csv: image_id, path, subject_id, and what else is known of META, then columns of 1, 0 or empty.

Missing columns: study_id is the image's own, view UNKNOWN. Without `split` the images are divided by
subject, or, where no labels are asked for, all of them are to be scored.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import COHORT, META
from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.columns import SPLIT_NAMES, Sheet, ages, quoted, read_sheet, row_of, sexes, views, whole_ids
from cxrlt_ray.data.readers.files import header
from cxrlt_ray.privacy import cell
from cxrlt_ray.storage import Store

FILE = "labels.csv"
PHOTOMETRIC = ["MONOCHROME1", "MONOCHROME2"]
REQUIRED = ("image_id", "path", "subject_id")
KNOWN = tuple(name for name in META if name != COHORT)


def recognise(data: Store, labelled: bool) -> str | None:
    """labels.csv, if it is not that of a CXR-LT release."""
    columns = header(data, FILE)
    return FILE if columns and "dicom_id" not in columns else None


@register_reader("table", f"{FILE} with columns {', '.join(REQUIRED)}, split and one per finding", recognise)
def read(request: Request) -> Raw:
    """The table's rows."""
    sheet = read_sheet(request.data, FILE, KNOWN)
    problems: list[str] = []
    sheet.need(*(REQUIRED if request.labelled else REQUIRED[:2]))
    table = _meta(sheet, request.labelled, problems)
    notes = []
    if request.findings is None or not request.labelled:
        findings, ignored = _binary_columns(sheet)
        findings = tuple(name for name in findings if request.findings is None or name in request.findings)
        if ignored and request.findings is None:
            notes.append(f"Ignored columns of {FILE}, which hold more than 1, 0 or empty: {', '.join(ignored)}.")
    else:
        findings = tuple(name for name in sheet.columns if name in request.findings)
    table = table.assign(**sheet.findings(findings, problems))
    return Raw(table, findings, request.data.uri, notes, problems)


def _meta(sheet: Sheet, labelled: bool, problems: list[str]) -> pd.DataFrame:
    image = sheet.filled("image_id", problems)
    study = _studies(sheet)
    table = pd.DataFrame(
        {
            "image_id": image,
            "study_id": study.where(study != "", image),
            "subject_id": whole_ids(sheet.filled("subject_id", problems)) if "subject_id" in sheet.columns else image,
            "view": views(sheet.text("view")),
            "path": sheet.filled("path", problems),
            "sex": sexes(sheet.text("sex")),
            "age": ages(sheet.text("age")),
            "file": sheet.file,
            "row": np.arange(1, sheet.table.num_rows + 1),
        }
    )
    for name in ("race", "report"):
        cells = sheet.text(name)
        table[name] = cells.where(cells != "")
    table["photometric"] = _photometric(sheet, problems)
    if "split" in sheet.columns:
        table["split"] = _splits(sheet, problems)
    elif not labelled:
        table["split"] = "test"
    return table


def _photometric(sheet: Sheet, problems: list[str]) -> pd.Series:
    """DICOM's photometric interpretation, which marks exported images that are to be inverted."""
    cells = sheet.text("photometric").str.upper()
    wrong = np.flatnonzero(~cells.isin(["", *PHOTOMETRIC]))
    if len(wrong):
        problems.append(
            f"{sheet.file}: column 'photometric', {row_of(wrong[0])} holds {cell(cells.iloc[wrong[0]])}: allowed are "
            f"{quoted(PHOTOMETRIC)} or nothing."
        )
    return cells.where(cells != "")


def _studies(sheet: Sheet) -> pd.Series:
    """Study ids as written; MIMIC's all with their s where some have it and some do not."""
    study = whole_ids(sheet.text("study_id"))
    with_s, without_s = study.str.fullmatch(r"s\d+"), study.str.fullmatch(r"\d+")
    return ("s" + study).where(without_s, study) if with_s.any() and without_s.any() else study


def _splits(sheet: Sheet, problems: list[str]) -> pd.Series:
    cells = sheet.text("split")
    meaning = {cell_text: SPLIT_NAMES.get(cell_text.lower()) for cell_text in cells.unique()}
    splits = cells.map(meaning)
    wrong = np.flatnonzero(splits.isna())
    if len(wrong):
        problems.append(
            f"{sheet.file}: column 'split', {row_of(wrong[0])} holds {cell(cells.iloc[wrong[0]])}: a split is one of "
            f"{quoted(sorted(set(SPLIT_NAMES.values())))}."
        )
    return splits


def _binary_columns(sheet: Sheet) -> tuple[tuple[str, ...], list[str]]:
    """Columns outside KNOWN that hold only 1, 0 or empty; and the others, each with its first other cell."""
    findings, ignored = [], []
    for name in sheet.columns:
        if name in KNOWN:
            continue
        labels = sheet.labels(name)
        if labels.bad:
            ignored.append(f"{name} ({labels.first_bad()})")
        elif not labels.known.any():
            ignored.append(f"{name} (empty)")
        else:
            findings.append(name)
    return tuple(findings), ignored
