"""NIH ChestX-ray14: Data_Entry_2017*.csv, train_val_list.txt, test_list.txt, images in images/ or images_0xx/images/.

Finding names are written with a space (Pleural Thickening), image ids without .png. Which of the
twelve folders holds an image is found by listing them; one that is in none is taken to be in images/.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from cxrlt_ray.data.encodings import as_text
from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.columns import Sheet, ages, read_sheet, row_of, sexes, views
from cxrlt_ray.data.readers.files import folders, image_files, locations
from cxrlt_ray.data.readers.views import remarks_on_views
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import private_detail
from cxrlt_ray.storage import Store

TABLE = re.compile(r"Data_Entry_2017.*\.csv(\.gz)?$", re.IGNORECASE)
TEXT = (
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "Patient Sex",
    "View Position",
)  # fmt: skip
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
NONE = "No Finding"
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural Thickening", "Pneumonia", "Pneumothorax", NONE,
)  # fmt: skip


def recognise(data: Store, labelled: bool) -> str | None:
    """The table, in the directory or one in it."""
    location = _find(data)
    return location and f"{location[1]} in {location[0].uri}"


@register_reader("nih", "Data_Entry_2017*.csv, in it or a directory in it", recognise, FINDINGS)
def read(request: Request) -> Raw:
    """The images that the table names."""
    location = _find(request.data)
    if not location:
        raise CxrltError(f"{request.data.uri} holds no NIH ChestX-ray14: no Data_Entry_2017*.csv is there.")
    root, name = location
    sheet = read_sheet(root, name, TEXT, TEXT)
    sheet.need("Image Index", "Finding Labels", "Patient ID")
    problems: list[str] = []
    file = sheet.filled("Image Index", problems)
    stem = file.str.replace(r"\.\w+$", "", regex=True)
    subject = sheet.ids("Patient ID", problems)
    follow_up = sheet.text("Follow-up #")
    table = pd.DataFrame(
        {
            "image_id": stem,
            "study_id": (subject + "_" + follow_up).where(follow_up != "", stem),
            "subject_id": subject,
            "view": views(sheet.text("View Position")),
            "sex": sexes(sheet.text("Patient Gender").where(lambda cells: cells != "", sheet.text("Patient Sex"))),
            "age": ages(sheet.text("Patient Age")),
            "path": _paths(root, file),
            "file": sheet.file,
            "row": np.arange(1, len(file) + 1),
        }
    )
    findings = tuple(c for c in FINDINGS if request.findings is None or c in request.findings)
    table = table.assign(**_labels(sheet, findings, problems))
    table, notes = _split(table, file, root, request.labelled)
    notes = [*sheet.notes, *remarks_on_views(sheet.file, sheet.text("View Position")), *notes]
    return Raw(table, findings, root.uri, notes, problems)


def _find(data: Store) -> tuple[Store, str] | None:
    # the folders of 112,120 images are no place to look for a table
    near = [directory for directory in locations(data) if not directory.uri.rsplit("/", 1)[-1].startswith("images")]
    return next(((directory, name) for directory in near for name in directory.list() if TABLE.match(name)), None)


def _paths(root: Store, file: pd.Series) -> pd.Series:
    """images_0xx/images/NAME or images/NAME."""
    below = [f"{name}/images" for name in folders(root) if name.startswith("images_")]
    path_of = {path.rsplit("/", 1)[1]: path for folder in below for path in image_files(root, folder, recursive=False)}
    return file.map(lambda name: path_of.get(name, f"images/{name}")).astype("str")


def _labels(sheet: Sheet, findings: tuple[str, ...], problems: list[str]) -> dict[str, pd.Series]:
    """A column per finding from the cells 'Mass|Nodule'; an empty cell is not labelled."""
    cells = sheet.text("Finding Labels")
    sets = {cell: {part.strip().replace("_", " ") for part in cell.split("|")} for cell in cells.unique()}
    for cell, names in sets.items():
        unknown = sorted(names - {*FINDINGS, ""})
        if unknown:
            row = int(np.flatnonzero(cells == cell)[0])
            problems.append(
                f"{sheet.file}: column 'Finding Labels', {row_of(row)}{private_detail(unknown[0])} holds what is none "
                "of NIH's findings."
            )
            break
    return {
        name: cells.map({cell: pd.NA if cell == "" else int(name in names) for cell, names in sets.items()}).astype(
            "Int8"
        )
        for name in findings
    }


def _split(table: pd.DataFrame, file: pd.Series, root: Store, labelled: bool) -> tuple[pd.DataFrame, list[str]]:
    """NIH's own split, without images that neither list names; all is to be scored where no labels are asked for."""
    lists = {split: name for split, name in LISTS.items() if root.exists(name)}
    if len(lists) < len(LISTS):
        return (table, []) if labelled else (table.assign(split="test"), [])
    splits = pd.Series(np.nan, table.index, "str")
    for split, name in lists.items():
        splits[file.isin(as_text(root.read(name)).split())] = split
    left_out = int(splits.isna().sum())
    notes = (
        [f"{left_out:,} images are left out: neither {' nor '.join(LISTS.values())} names them."] if left_out else []
    )
    return table.assign(split=splits)[splits.notna()], notes
