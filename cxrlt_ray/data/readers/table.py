"""A plain labels.csv: image_id, path, subject_id, and what else is known of META, then columns of 1, 0, -1 or empty.

It may be any table that table_file.py reads (.csv, .tsv, .xlsx ...), by the first of FILES that exists, in any case.
Missing columns: study_id is the image's own, view UNKNOWN. Without `split` the images are divided by subject, or, where
no labels are asked for, all of them are to be scored. -1 is what --uncertain says; true, false, yes and no are 1 and 0.
A column that is never a finding (column_names.py) is left out and named; another that holds anything else is warned of.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cxrlt_ray.data.column_names import is_no_finding
from cxrlt_ray.data.manifest import COHORT, META
from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.columns import (
    SPLIT_NAMES,
    UNCERTAIN,
    Labels,
    Sheet,
    ages,
    counted,
    quoted,
    read_sheet,
    row_of,
    sexes,
    views,
)
from cxrlt_ray.data.readers.ids import lossy_problem
from cxrlt_ray.data.readers.views import remarks_on_views
from cxrlt_ray.data.table_file import MISSING, header
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import cell
from cxrlt_ray.storage import Store

FILE = "labels.csv"
FILES = (FILE, "labels.csv.gz", "labels.tsv", "labels.txt", "labels.xlsx", "labels.xls", "labels.parquet")
PHOTOMETRIC = ["MONOCHROME1", "MONOCHROME2"]
REQUIRED = ("image_id", "path", "subject_id")
KNOWN = tuple(name for name in META if name != COHORT)
WARNINGS = 20  # columns that are warned of in a line each


def recognise(data: Store, labelled: bool) -> str | None:
    """The table, if it is not that of a CXR-LT release."""
    name = _find(data)
    if name is None or (name.lower().startswith(FILE) and "dicom_id" in header(data, name, KNOWN)):
        return None
    return name


@register_reader(
    "table", f"{FILE} (.tsv, .xlsx) with columns {', '.join(REQUIRED)}, split and one per finding", recognise
)
def read(request: Request) -> Raw:
    """The table's rows."""
    name = _find(request.data)
    if name is None:
        raise CxrltError(f"{request.data.uri} holds no table of labels: none of {', '.join(FILES)} is there.")
    sheet = read_sheet(request.data, name, KNOWN, known=request.findings or ())
    problems: list[str] = []
    sheet.need(*(REQUIRED if request.labelled else REQUIRED[:2]))
    notes = [*sheet.notes, *remarks_on_views(sheet.file, sheet.text("view"))]
    table = _meta(sheet, request.labelled, problems, notes)
    if request.findings is None or not request.labelled:
        findings, remarks = _columns_of_labels(sheet)
        findings = tuple(name for name in findings if request.findings is None or name in request.findings)
        notes += remarks if request.findings is None else []
    else:
        findings = tuple(name for name in sheet.columns if name in request.findings)
    notes += _remarks_on_labels(sheet, findings, request.uncertain)
    table = table.assign(**sheet.findings(findings, problems, request.uncertain))
    return Raw(table, findings, request.data.uri, notes, problems)


def _find(data: Store) -> str | None:
    """The name of the first of FILES that exists, as it is written there."""
    names = {name.lower(): name for name in data.list()}
    return next((names[name] for name in FILES if name in names), None)


def _meta(sheet: Sheet, labelled: bool, problems: list[str], notes: list[str]) -> pd.DataFrame:
    image = sheet.ids("image_id", problems)
    study = _studies(sheet, problems)
    table = pd.DataFrame(
        {
            "image_id": image,
            "study_id": study.where(study != "", image),
            "subject_id": sheet.ids("subject_id", problems) if "subject_id" in sheet.columns else image,
            "view": views(sheet.text("view")),
            "path": sheet.paths("path", problems, notes),
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


def _studies(sheet: Sheet, problems: list[str]) -> pd.Series:
    """Study ids as written; MIMIC's all with their s where some have it and some do not."""
    if "study_id" not in sheet.columns:
        return sheet.text("study_id")
    study = sheet.ids("study_id", [])  # an empty one is the image's own
    if problem := lossy_problem(sheet.file, "study_id", study):
        problems.append(problem)
    study = study.where(~study.isin(MISSING), "")
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


def _columns_of_labels(sheet: Sheet) -> tuple[tuple[str, ...], list[str]]:
    """Columns that may be findings and hold only labels; and notes on the others, each with its first other cell."""
    findings, beside, warnings = [], [], []
    for name in sheet.columns:
        if name in KNOWN:
            continue
        if is_no_finding(name):
            beside.append(name)
            continue
        labels = sheet.labels(name, (0, 1, UNCERTAIN))
        if labels.bad:
            warnings.append(f"{name} ({labels.first_bad()}; a label is 1, 0, -1 or empty)")
        elif not labels.known.any():
            warnings.append(f"{name} (empty)")
        else:
            findings.append(name)
    notes = [f"Columns of {sheet.file} that are never findings by their names: {', '.join(beside)}."] if beside else []
    notes += [
        f"Warning: column {warning} of {sheet.file} is no finding and left out." for warning in warnings[:WARNINGS]
    ]
    if more := warnings[WARNINGS:]:
        notes.append(f"Warning: {counted(len(more), 'more column')} of {sheet.file} left out in the same way.")
    return tuple(findings), notes


def _remarks_on_labels(sheet: Sheet, findings: tuple[str, ...], uncertain: str) -> list[str]:
    """Notes on labels that are read as something else than they are: -1, and words."""
    labels: dict[str, Labels] = {name: sheet.labels(name, (0, 1, UNCERTAIN)) for name in findings}
    unsure = {name: count for name, part in labels.items() if (count := int((part.codes == UNCERTAIN).sum()))}
    worded = [name for name in findings if sheet.in_words(name)]
    notes = []
    if unsure:
        notes.append(
            f"{sheet.file}: {counted(sum(unsure.values()), 'label')} of -1 (uncertain) in "
            f"{counted(len(unsure), 'column')} read as {uncertain} (--uncertain null, zero or one)."
        )
    if worded:
        notes.append(f"{sheet.file}: words such as yes and no in {quoted(worded[:5])} read as 1 and 0.")
    return notes
