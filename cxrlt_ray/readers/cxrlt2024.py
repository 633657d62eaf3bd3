"""CXR-LT 2024: the release's CSVs over a MIMIC-CXR-JPG tree.

Train is train_labeled.csv (40 findings; those of task 3 are unseen in training and null). Validation
is development_labeled_taskN.csv, test is test_labeled_taskN.csv, else the rows of labels.csv, else
development.csv and test_taskN.csv without labels. Task 2 is tested on its gold rows only. A task from
a file that takes findings of tasks 1 and 3 has the images of task 1's files.
"""

from __future__ import annotations

import pandas as pd

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.readers import Raw, Request, register_reader
from cxrlt_ray.readers.columns import Sheet, read_sheet
from cxrlt_ray.readers.files import first_with, places
from cxrlt_ray.readers.mimic import TEXT, add_side_tables, find_root, release_rows
from cxrlt_ray.storage import Store
from cxrlt_ray.tasks import ALL_FINDINGS, TASK1, TASK2, TASK3

RELEASE = "cxr-lt-2024"
TRAIN = "train_labeled.csv"
TASK_FINDINGS = {1: TASK1, 2: TASK2, 3: TASK3}
MARKS = (
    TRAIN,
    *(f"{stem}_task{n}.csv" for n in (1, 2, 3) for stem in ("development_labeled", "test_labeled", "test")),
)


def recognise(data: Store, labelled: bool) -> str | None:
    """The table that tells the release."""
    found = first_with(places(data, RELEASE), *MARKS)
    return found and f"{found[1]} in {found[0].uri}"


@register_reader("cxrlt2024", f"{TRAIN} or test_task1.csv, in it, in {RELEASE}/ or in a directory in it", recognise)
def read(request: Request) -> Raw:
    """The release's rows for the request's task."""
    near = places(request.data, RELEASE)
    found = first_with(near, *MARKS)
    if not found:
        raise CxrltError(f"{request.data.uri} holds no CXR-LT 2024 release: none of {', '.join(MARKS)} is there.")
    release, problems, notes = found[0], [], []
    wanted = _wanted(request)
    parts = [_train(release, wanted, request.labelled, problems)]
    parts.append(_scored(release, request, wanted, "development", "val", problems, notes))
    parts.append(_scored(release, request, wanted, "test", "test", problems, notes))
    parts = [part for part in parts if part is not None]
    if not parts:
        raise CxrltError(f"{release.uri} has no rows for {request.task}: neither training nor scored images.")
    table = pd.concat(parts, ignore_index=True)
    root = find_root(request.data, release)
    table, more = add_side_tables(table, root, [release, *near])
    present = tuple(name for name in wanted if name in table)
    # a part that lacks a column, as train does those of task 3, is not labelled with it
    table = table.astype(dict.fromkeys(present, "Int8"))
    return Raw(table, present, root.uri, notes + more, problems)


def _wanted(request: Request) -> tuple[str, ...]:
    """Findings to read, in the releases' alphabetical order; task 3 brings those to be trained on along."""
    if request.findings is None:
        return TASK1
    if request.task == "task3":
        return ALL_FINDINGS
    return tuple(name for name in ALL_FINDINGS if name in request.findings)


def _train(release: Store, wanted: tuple[str, ...], labelled: bool, problems: list[str]) -> pd.DataFrame | None:
    if not release.exists(TRAIN):
        return None
    sheet = read_sheet(release, TRAIN, TEXT)
    names = tuple(name for name in wanted if name in TASK1)
    if labelled:
        sheet.need(*names)
    return release_rows(sheet, "fpath", "train", _there(sheet, names), problems)


def _scored(
    release: Store,
    request: Request,
    wanted: tuple[str, ...],
    stem: str,
    split: str,
    problems: list[str],
    notes: list[str],
) -> pd.DataFrame | None:
    """The rows of the development or test set: from the task's file, labels.csv, or the list without labels."""
    number = {"task2": 2, "task3": 3}.get(request.task, 1)
    # images as the task's file has them; other findings of the same images from the other files
    names = [
        name for n in (number, *({1, 3} - {number} if number != 2 else ())) if (name := f"{stem}_labeled_task{n}.csv")
    ]
    own = names[0]
    if release.exists(own):
        table = None
        for name in names:
            lacking = tuple(c for c in wanted if table is None or c not in table)
            if table is None or (lacking and release.exists(name)):
                table = _joined(table, read_sheet(release, name, TEXT), split, lacking, problems)
        if number == 2 and split == "test":
            notes.append(f"Task 2 is scored on its {len(table):,} gold images ({own}).")
        return table
    if release.exists("labels.csv") and not (number == 2 and split == "test"):
        sheet = read_sheet(release, "labels.csv", TEXT)
        sheet.need("split")
        table = release_rows(sheet, "fpath", sheet.text("split"), _there(sheet, wanted), problems)
        notes.append(f"Labels of {split} come from labels.csv: {own} is not there.")
        return table[table["split"] == split]
    unlabelled = "development.csv" if split == "val" else f"test_task{number}.csv"
    if release.exists(unlabelled):
        notes.append(f"{unlabelled} is without labels: its images can be scored by a submission only.")
        split = "development" if split == "val" else split
        return release_rows(read_sheet(release, unlabelled, TEXT), "fpath", split, (), problems)
    return None


def _joined(
    table: pd.DataFrame | None, sheet: Sheet, split: str, names: tuple[str, ...], problems: list[str]
) -> pd.DataFrame:
    """`table` with the columns `names` that `sheet` has, or the rows of `sheet`."""
    rows = release_rows(sheet, "fpath", split, _there(sheet, names), problems)
    if table is None:
        return rows
    columns = rows.drop_duplicates("image_id").set_index("image_id")[list(_there(sheet, names))]
    return table.join(columns, on="image_id")


def _there(sheet: Sheet, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name in sheet.columns)
