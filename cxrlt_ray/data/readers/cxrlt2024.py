"""CXR-LT 2024: the release's CSVs over a MIMIC-CXR-JPG tree.

Train is train_labeled.csv (40 findings; those of task 3 are unseen in training and null). Validation
is development_labeled_taskN.csv, test is test_labeled_taskN.csv, else the rows of labels.csv, else
development.csv and test_taskN.csv without labels. Task 2 is tested on its gold rows only. A task from
a file that takes findings of tasks 1 and 3 has the images of task 1's files.
"""

from __future__ import annotations

import pandas as pd

from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.columns import read_sheet
from cxrlt_ray.data.readers.files import first_with, locations
from cxrlt_ray.data.readers.mimic import TEXT, add_side_tables, find_root, release_rows
from cxrlt_ray.data.tasks import ALL_FINDINGS, TASK1, TASK2, TASK3
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

RELEASE = "cxr-lt-2024"
TRAIN = "train_labeled.csv"
TASK_FINDINGS = {1: TASK1, 2: TASK2, 3: TASK3}
MARKS = (
    TRAIN,
    *(f"{stem}_task{n}.csv" for n in (1, 2, 3) for stem in ("development_labeled", "test_labeled", "test")),
)


def recognise(data: Store, labelled: bool) -> str | None:
    """The table that identifies the release."""
    location = first_with(locations(data, RELEASE), *MARKS)
    return location and f"{location[1]} in {location[0].uri}"


@register_reader(
    "cxrlt2024", f"{TRAIN} or test_task1.csv, in it, in {RELEASE}/ or in a directory in it", recognise, ALL_FINDINGS
)
def read(request: Request) -> Raw:
    """The release's rows for the request's task."""
    near = locations(request.data, RELEASE)
    location = first_with(near, *MARKS)
    if not location:
        raise CxrltError(f"{request.data.uri} holds no CXR-LT 2024 release: none of {', '.join(MARKS)} is there.")
    release = location[0]
    problems: list[str] = []
    notes: list[str] = []
    requested = _requested(request)
    parts = [_train(release, requested, problems, notes)]
    parts += [_scored(release, request, requested, split, problems, notes) for split in ("val", "test")]
    parts = [part for part in parts if part is not None]
    if not parts:
        raise CxrltError(f"{release.uri} has no rows for {request.task}: neither training nor scored images.")
    table = pd.concat(parts, ignore_index=True)
    root = find_root(request.data, release)
    table, more = add_side_tables(table, root, [release, *near], problems)
    present = tuple(name for name in requested if name in table)
    # a part without a column, as train is without those of task 3, is not labelled with it
    table = table.astype(dict.fromkeys(present, "Int8"))
    return Raw(table, present, root.uri, notes + more, problems)


def _requested(request: Request) -> tuple[str, ...]:
    """Findings to read, in the releases' alphabetical order; task 3 brings those to be trained on along."""
    if request.findings is None:
        return TASK1
    if request.task == "task3":
        return ALL_FINDINGS
    return tuple(name for name in ALL_FINDINGS if name in request.findings)


def _train(release: Store, requested: tuple[str, ...], problems: list[str], notes: list[str]) -> pd.DataFrame | None:
    if not release.exists(TRAIN):
        return None
    sheet = read_sheet(release, TRAIN, TEXT, known=ALL_FINDINGS)
    findings = tuple(name for name in requested if name in TASK1)
    sheet.need(*findings)
    return release_rows(sheet, "fpath", "train", findings, problems, notes)


def _scored(
    release: Store, request: Request, requested: tuple[str, ...], split: str, problems: list[str], notes: list[str]
) -> pd.DataFrame | None:
    """The rows of val or test: from the task's file, from labels.csv, or from the list without labels."""
    number = {"task2": 2, "task3": 3}.get(request.task, 1)
    stem = "development" if split == "val" else "test"
    own, unlabelled = f"{stem}_labeled_task{number}.csv", f"{stem}_task{number}.csv"
    if split == "val":
        unlabelled = "development.csv"
    gold = number == 2 and split == "test"
    if release.exists(own):
        table = _from_task_files(release, stem, number, requested, split, problems, notes)
        if gold:
            notes.append(f"Task 2 is scored on its {len(table):,} gold images ({own}).")
        return table
    if release.exists("labels.csv") and not gold:
        notes.append(f"Labels of {split} come from labels.csv: {own} is not there.")
        sheet = read_sheet(release, "labels.csv", TEXT, known=ALL_FINDINGS)
        sheet.need("split", *requested)
        table = release_rows(sheet, "fpath", sheet.text("split"), requested, problems, notes)
        return table[table["split"] == split]
    if release.exists(unlabelled):
        notes.append(f"{unlabelled} is without labels: its images can be scored by a submission only.")
        name = "development" if split == "val" else split
        return release_rows(read_sheet(release, unlabelled, TEXT), "fpath", name, (), problems, notes)
    return None


def _from_task_files(
    release: Store,
    stem: str,
    number: int,
    requested: tuple[str, ...],
    split: str,
    problems: list[str],
    notes: list[str],
) -> pd.DataFrame:
    """The images of task `number`, with its findings and those that another task's file gives the same images."""
    table = None
    for other in (number, *({1, 3} - {number})):
        findings = tuple(
            name for name in TASK_FINDINGS[other] if name in requested and (table is None or name not in table)
        )
        file = f"{stem}_labeled_task{other}.csv"
        if table is not None and not (findings and release.exists(file)):
            continue
        sheet = read_sheet(release, file, TEXT, known=ALL_FINDINGS)
        sheet.need(*findings)
        rows = release_rows(sheet, "fpath", split, findings, problems, notes)
        if table is None:
            table = rows
        else:
            more = rows.drop_duplicates("image_id").set_index("image_id")[list(findings)]
            table = table.join(more, on="image_id")
    return table
