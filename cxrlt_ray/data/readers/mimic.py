"""What both CXR-LT releases share: their rows, and the MIMIC-CXR-JPG tree and MIMIC-IV tables around them.

The side tables fill in gaps and are optional: a missing view from
MIMIC's metadata, sex, age (at MIMIC-IV's anchor year, not at the study) and race from MIMIC-IV, the
path of the study's report where report files exist, and how many scored images are in MIMIC's
own training split, which public backbones have seen.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers.columns import Sheet, ages, read_sheet, sexes, study_ids, views
from cxrlt_ray.data.readers.files import first_with, folders
from cxrlt_ray.data.readers.ids import disagreement
from cxrlt_ray.data.readers.views import remarks_on_views
from cxrlt_ray.storage import Store

IDS = ("dicom_id", "subject_id", "study_id")
TEXT = (*IDS, "fpath", "path", "ViewPosition", "ViewCodeSequence_CodeMeaning", "split")
METADATA = ("mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-metadata.csv")
OWN_SPLIT = ("mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.0.0-split.csv")
PATIENTS = ("patients.csv.gz", "patients.csv")
ADMISSIONS = ("admissions.csv.gz", "admissions.csv")
UNKNOWN_RACES = ("", "UNKNOWN", "UNABLE TO OBTAIN", "PATIENT DECLINED TO ANSWER")
REPORT_FOLDERS = ("", "mimic-cxr-reports/")


def find_root(data: Store, release: Store) -> Store:
    """The directory that holds `files/`: `data`, one in it, or the one around it or the release; else a guess."""
    above = _above(data)
    location = first_with([data, *(data / name for name in folders(data)), *above], "files")
    if location:
        return location[0]
    return above[0] if above and release.uri == data.uri else data


def _above(data: Store) -> list[Store]:
    """The directory around `data`; none where that is a file system's root or a bucket's outside."""
    upper = data.uri.rstrip("/").rpartition("/")[0]
    return [] if upper == "" or upper.endswith("/") else [Store(upper)]


def release_rows(
    sheet: Sheet,
    path: str,
    split: str | pd.Series,
    findings: tuple[str, ...],
    problems: list[str],
    notes: list[str],
) -> pd.DataFrame:
    """The rows of a table of a release. path: the column that holds it."""
    sheet.need(*IDS, path)
    seen = sheet.text("ViewPosition"), sheet.text("ViewCodeSequence_CodeMeaning")
    notes += [*sheet.notes, *remarks_on_views(sheet.file, *seen)]
    table = pd.DataFrame(
        {
            "image_id": sheet.ids("dicom_id", problems),
            "study_id": study_ids(sheet.ids("study_id", problems)),
            "subject_id": sheet.ids("subject_id", problems),
            "view": views(*seen),
            "path": sheet.paths(path, problems, notes),
            "split": split,
            "file": sheet.file,
            "row": np.arange(1, sheet.table.num_rows + 1),
        }
    )
    of_path = table["path"].str.extract(r"(?:^|/)p(\d{8})/", expand=False)
    if problem := disagreement(sheet.file, table["subject_id"], of_path, "the folders of its paths"):
        problems.append(problem)
    return table.assign(**sheet.findings(findings, problems))


def add_side_tables(
    table: pd.DataFrame, root: Store, near: list[Store], problems: list[str]
) -> tuple[pd.DataFrame, list[str]]:
    """`table` completed from the side tables in `near` or `root`, and notes on it."""
    near = [root, *near]
    near += [directory / "hosp" for directory in near]
    table = _with_views(table, near, problems)
    table = _with_people(table, near)
    table["report"] = _reports(table, root)
    return table, _own_split(table, near)


def _with_views(table: pd.DataFrame, near: list[Store], problems: list[str]) -> pd.DataFrame:
    unknown = table["view"] == "UNKNOWN"
    location = first_with(near, *METADATA) if unknown.any() else None
    if not location:
        return table
    sheet = read_sheet(
        *location, text=TEXT, only=("dicom_id", "subject_id", "ViewPosition", "ViewCodeSequence_CodeMeaning")
    )
    sheet.need("dicom_id", "ViewPosition")
    view = views(sheet.text("ViewPosition"), sheet.text("ViewCodeSequence_CodeMeaning"))
    image = sheet.text("dicom_id")
    if "subject_id" in sheet.columns:
        subjects = sheet.text("subject_id").set_axis(image)
        subjects = table["image_id"].map(subjects[~subjects.index.duplicated()])
        if problem := disagreement(str(table["file"].iloc[0]), table["subject_id"], subjects, sheet.file):
            problems.append(problem)
    known = pd.Series(view.to_numpy(), index=image)
    known = known[known != "UNKNOWN"]
    known = known[~known.index.duplicated()]
    filled = table.loc[unknown, "image_id"].map(known).fillna("UNKNOWN")
    table.loc[unknown, "view"] = filled
    return table


def _with_people(table: pd.DataFrame, near: list[Store]) -> pd.DataFrame:
    if location := first_with(near, *PATIENTS):
        sheet = read_sheet(*location, text=("subject_id",), only=("subject_id", "gender", "anchor_age"))
        sheet.need("subject_id", "gender", "anchor_age")
        people = pd.DataFrame({"sex": sexes(sheet.text("gender")), "age": ages(sheet.text("anchor_age"))})
        people = people.set_index(sheet.text("subject_id"))
        people = people[~people.index.duplicated()]
        for column in people:
            table[column] = table["subject_id"].map(people[column])
    if location := first_with(near, *ADMISSIONS):
        sheet = read_sheet(*location, text=("subject_id",), only=("subject_id", "race"))
        sheet.need("subject_id", "race")
        races = pd.Series(sheet.text("race").to_numpy(), index=sheet.text("subject_id"))
        races = races[~races.isin(UNKNOWN_RACES)]
        table["race"] = table["subject_id"].map(races[~races.index.duplicated()])
    return table


def _reports(table: pd.DataFrame, root: Store) -> pd.Series | None:
    """Path of each study's report, where the first study's exists: the others are not checked."""
    if table.empty:
        return None
    files = table["path"].str.rsplit("/", n=1).str[0] + ".txt"
    for folder in REPORT_FOLDERS:
        if root.exists(folder + files.iloc[0]):
            return folder + files
    return None


def _own_split(table: pd.DataFrame, near: list[Store]) -> list[str]:
    location = first_with(near, *OWN_SPLIT)
    scored = table.loc[table["split"] == "test", "image_id"]
    if not location or scored.empty:
        return []
    sheet = read_sheet(*location, text=TEXT, only=("dicom_id", "split"))
    sheet.need("dicom_id", "split")
    overlap = int(scored.isin(sheet.text("dicom_id")[sheet.text("split") == "train"]).sum())
    if not overlap:
        return []
    return [
        f"{overlap:,} of the {len(scored):,} test images are in MIMIC-CXR's own training split: a backbone pretrained "
        "on MIMIC-CXR has seen them."
    ]
