"""CXR-LT 2026: CXRLT_2026_training.csv (ImageID, StudyDate_DICOM, PatientID, 30 findings) over PadChest's PNG.

Images that Removal.csv names are left out of training. The test is CXRLT_2026_TEST_ALL_TASK1.csv or ..._TASK2.csv:
ImageID and, where labels are known, the task's findings. Task 2's six are not labelled in training. There is no
validation split. Columns are addressed by name, in any order.

PatientID of the public training table is rounded (3.24e+38), so that many patients share an id: splits, folds and
intervals would be of groups of them. With PadChest's own table beside it (in the directory or one in it), subject,
study, view, sex, age, report and photometric interpretation come from there by ImageID; without it rounded ids are
refused, views are unknown, and a patient's images of one day are a study.

Images are found by their names below the directory, in whatever folders they lie; one that is in several is taken from
the folder that holds most of them.

Source: public code of the challenge's participants. Unverified: that Removal.csv has no other column that matters, the
columns of the test tables beside ImageID, and that the table's NIH images, if there are any, are named as PadChest's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.columns import Sheet, and_more, counted, read_sheet, row_of
from cxrlt_ray.data.readers.files import first_with, image_files, locations
from cxrlt_ray.data.readers.ids import lossy, whole_ids
from cxrlt_ray.data.readers.padchest import details, find_table, read_table
from cxrlt_ray.data.tasks import TASK1_2026, TASK2_2026
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import private_detail
from cxrlt_ray.storage import Store

TRAIN = "CXRLT_2026_training.csv"
TESTS = {"2026-task1": "CXRLT_2026_TEST_ALL_TASK1.csv", "2026-task2": "CXRLT_2026_TEST_ALL_TASK2.csv"}
REMOVAL = "Removal.csv"
TEXT = ("ImageID", "StudyDate_DICOM", "PatientID")
FINDINGS = (*TASK1_2026, *TASK2_2026)
FROM_PADCHEST = ("study_id", "subject_id", "view", "sex", "age", "photometric", "report")


def recognise(data: Store, labelled: bool) -> str | None:
    """The table that identifies the release."""
    location = first_with(locations(data), TRAIN, *TESTS.values())
    return location and f"{location[1]} in {location[0].uri}"


@register_reader("cxrlt2026", f"{TRAIN} or {TESTS['2026-task1']}, in it or a directory in it", recognise, FINDINGS)
def read(request: Request) -> Raw:
    """The release's rows for the request's task."""
    location = first_with(locations(request.data), TRAIN, *TESTS.values())
    if not location:
        raise CxrltError(f"{request.data.uri} holds no CXR-LT 2026: neither {TRAIN} nor {TESTS['2026-task1']}.")
    release = location[0]
    notes: list[str] = []
    problems: list[str] = []
    findings = _requested(request)
    parts = [_train(release, findings, notes, problems), _test(release, request, findings, notes, problems)]
    parts = [part for part in parts if part is not None]
    if not parts:
        raise CxrltError(f"{release.uri} has no rows for {request.task}: neither training nor test images.")
    table = pd.concat(parts, ignore_index=True)
    # a part without a column, as train is without those of task 2, is not labelled with it
    table[[name for name in findings if name not in table]] = pd.NA
    table = table.astype(dict.fromkeys(findings, "Int8"))
    table = _with_people(table, find_table(request.data), request.labelled, notes, problems)
    table["path"] = _paths(table["image_id"], request.data, notes)
    return Raw(table, findings, request.data.uri, notes, problems)


def _requested(request: Request) -> tuple[str, ...]:
    """Findings to read, in the tasks' order; task 2 brings those to be trained on along."""
    if request.findings is None:
        return TASK1_2026
    if request.task == "2026-task2":
        return FINDINGS
    return tuple(name for name in FINDINGS if name in request.findings)


def _train(release: Store, findings: tuple[str, ...], notes: list[str], problems: list[str]) -> pd.DataFrame | None:
    if not release.exists(TRAIN):
        return None
    sheet = read_sheet(release, TRAIN, TEXT, known=findings)
    notes += sheet.notes
    labelled = tuple(name for name in findings if name in TASK1_2026)
    sheet.need(*labelled)
    table = _rows(sheet, "train", labelled, problems)
    if not release.exists(REMOVAL):
        return table
    removal = read_sheet(release, REMOVAL, TEXT)
    removal.need("ImageID")
    named = removal.text("ImageID").unique()
    removed = table["image_id"].isin(named)
    notes.append(f"{REMOVAL}: {counted(removed.sum(), 'image')} left out of training, of the {len(named):,} it names.")
    return table[~removed]


def _test(
    release: Store, request: Request, findings: tuple[str, ...], notes: list[str], problems: list[str]
) -> pd.DataFrame | None:
    """The images of the task's test; task auto takes what there is, task 1's before task 2's."""
    names = [TESTS[request.task]] if request.task in TESTS else list(TESTS.values())
    location = first_with([release], *names)
    if not location:
        return None
    sheet = read_sheet(*location, text=TEXT, known=findings)
    notes += sheet.notes
    labelled = tuple(name for name in findings if name in sheet.columns)
    if not labelled:
        notes.append(f"{location[1]} is without labels: its images can be scored by a submission only.")
    return _rows(sheet, "test", labelled, problems)


def _rows(sheet: Sheet, split: str, findings: tuple[str, ...], problems: list[str]) -> pd.DataFrame:
    """A row an image, ids as the table has them; a day's images of a patient are a study."""
    sheet.need("ImageID")
    image, subject = sheet.filled("ImageID", problems), whole_ids(sheet.text("PatientID"))
    day = whole_ids(sheet.text("StudyDate_DICOM"))
    table = pd.DataFrame(
        {
            "image_id": image,
            "study_id": (subject + "_" + day).where((subject != "") & (day != ""), image),
            "subject_id": subject,
            "view": "UNKNOWN",
            "split": split,
            "file": sheet.file,
            "row": np.arange(1, len(image) + 1),
        }
    )
    return table.assign(**sheet.findings(findings, problems))


def _with_people(
    table: pd.DataFrame, location: tuple[Store, str] | None, labelled: bool, notes: list[str], problems: list[str]
) -> pd.DataFrame:
    """`table` with what PadChest's own table says of its images; ids that are rounded or missing are told."""
    known = np.zeros(len(table), bool)
    if location:
        sheet = read_table(*location)
        people = details(sheet, []).set_index(sheet.text("ImageID"))
        people = people[~people.index.duplicated() & (people["subject_id"] != "")]
        known = table["image_id"].isin(people.index).to_numpy()
        theirs = people.reindex(table["image_id"]).set_axis(table.index)
        for column in FROM_PADCHEST:
            own = table[column] if column in table else pd.Series(np.nan, table.index, theirs[column].dtype)
            table[column] = own.where(~known, theirs[column])
        notes.append(
            f"Subjects, studies and views of {known.sum():,} of the {len(table):,} images are from {location[1]}."
        )
    if labelled:
        _check_subjects(table, known, notes, problems)
    unknown = table["subject_id"] == ""
    return table.assign(subject_id=table["subject_id"].where(~unknown, table["image_id"]))


def _check_subjects(table: pd.DataFrame, known: np.ndarray, notes: list[str], problems: list[str]) -> None:
    """Note ids that a spreadsheet or pandas has rounded, and images without one. known: bool [N], from PadChest."""
    rounded = lossy(table["subject_id"])
    if rounded.any():
        first = table[rounded].iloc[0]
        row = f"{row_of(first['row'] - 1)}{private_detail(first['subject_id'])}{and_more(int(rounded.sum()) - 1)}"
        where = f"{first['file']}: column 'PatientID', {row}"
        if known[rounded.argmax()]:
            where = f"PadChest's own table: the PatientID of the image of {first['file']} {row}"
        problems.append(
            f"{where} holds a number that was rounded when the table was saved: different patients share an id, and "
            "nothing can be split by patient. Put PadChest's own table, as it was downloaded "
            "(PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv or .csv.gz), into the data's directory: ids are "
            "taken from it by ImageID. Or save the table anew from the original with PatientID as text (pandas: "
            "dtype=str)."
        )
    unnamed = (table["subject_id"] == "").to_numpy()
    for split, part in table[unnamed].groupby("split"):
        count = counted(len(part), "image")
        if split == "train":
            problems.append(
                f"{TRAIN}: column 'PatientID' is empty or missing in {count}, of which no patient is known."
            )
        else:
            notes.append(f"{count} of {split} name no patient: each counts as a subject of its own.")


@dataclass(frozen=True)
class _Found:
    """Files by name, and how many names lie in several folders. folder: the one that holds most of them."""

    path_of: pd.Series
    several: int
    folder: str


def _paths(names: pd.Series, data: Store, notes: list[str]) -> pd.Series:
    """Where each image is below `data`; one that is nowhere has the path where most are."""
    found = _find_images(names, data)
    if found.several:
        notes.append(
            f"{counted(found.several, 'image')} lie in several folders: those of {found.folder or 'the directory'}, "
            "which holds most, are taken."
        )
    elsewhere = (f"{found.folder}/" if found.folder else "") + names
    return names.map(found.path_of).astype("str").fillna(elsewhere)


def _find_images(names: pd.Series, data: Store) -> _Found:
    paths = pd.Series(np.array(list(image_files(data)), object), dtype="str")
    name = paths.str.rsplit("/", n=1).str[-1]
    listed = pd.DataFrame({"path": paths, "name": name, "folder": paths.str.rpartition("/")[0] if len(paths) else ""})
    listed = listed[listed["name"].isin(names)]
    if listed.empty:
        return _Found(pd.Series(dtype="str"), 0, "images")
    sizes = listed["folder"].value_counts()
    listed = listed.assign(size=listed["folder"].map(sizes))
    listed = listed.sort_values(["size", "path"], ascending=[False, True], kind="stable")
    first = listed.drop_duplicates("name")
    several = int((listed["name"].value_counts() > 1).sum())
    return _Found(first.set_index("name")["path"], several, str(listed["folder"].iloc[0]))
