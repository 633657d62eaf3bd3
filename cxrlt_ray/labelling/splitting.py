"""Labelled studies divided into train, val and test by subject, and joined with their images to what a sweep reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.readers.ids import whole_ids
from cxrlt_ray.data.splits import assign_shares
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.labels import STUDY, SUBJECT, LabelTable
from cxrlt_ray.privacy import UNFIT, unfit

SPLITS = ("train", "val", "test")
SPLIT, IMAGE, PATH, VIEW = "split", "image_id", "path", "view"
FOLDERS = r"(?:^|/)p?([^/]+)/(s?[^/]+)/[^/]+$"  # .../SUBJECT/STUDY/IMAGE, as MIMIC's tree has it


@dataclass(frozen=True)
class Divided:
    """Rows with their split; notes for a person.

    table: study_id, subject_id, split, of images also image_id, path and view; then `findings` as Int8.
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    notes: tuple[str, ...]


def studies_of(labels: LabelTable) -> pd.DataFrame:
    """A row a study: study_id, subject_id, findings. Raises UsageError without subjects, CxrltError where one lacks."""
    if labels.subjects is None:
        raise UsageError(
            f"the labels have no column {SUBJECT}, and a split is by subject: add it, or give --images of a cohort "
            "that knows the subjects."
        )
    subjects = whole_ids(labels.subjects.fillna("").str.strip())
    if missing := int(subjects.isin(["", "nan"]).sum()):
        raise CxrltError(
            f"column {SUBJECT} of the labels is empty in {counted(missing, 'row')}: fill it in, as a split by subject "
            "must know whose study each is."
        )
    table = labels.table.rename_axis(STUDY).reset_index()
    table.insert(1, SUBJECT, subjects.to_numpy())
    return table


def images_of(labels: LabelTable, images: Manifest) -> tuple[pd.DataFrame, list[str]]:
    """A row an image whose study is labelled: image_id, path, study_id, subject_id, view, findings; and notes.

    Studies are matched by the images' study ids, else by image ids, else by the folder that an image lies in, as in
    MIMIC's tree. Raises UsageError where none matches, CxrltError where the two name different subjects for a study.
    """
    table = images.table[[IMAGE, PATH, STUDY, SUBJECT, VIEW]]
    studies, how = _matched_studies(table, labels.table.index)
    notes = [f"Images are matched with labels by {how}."] if how != "study id" else []
    table = table.assign(**{STUDY: studies})
    if how.startswith("folder") and images.source == "images":
        table[SUBJECT] = table[PATH].str.extract(FOLDERS)[0].to_numpy()
    labelled = table[STUDY].isin(labels.table.index)
    if lacking := int((~labelled).sum()):
        notes.append(f"{counted(lacking, 'image')} of {len(table):,} without labels left out.")
    if lacking := int((~labels.table.index.isin(table[STUDY])).sum()):
        notes.append(f"{lacking:,} of {len(labels.table):,} labelled studies have no image, and are left out.")
    table = table[labelled].reset_index(drop=True)
    table[SUBJECT] = _subjects(table, labels)
    findings = labels.table.loc[table[STUDY]].reset_index(drop=True)
    return pd.concat([table, findings], axis=1), notes


def divide(
    table: pd.DataFrame, findings: Sequence[str], shares: Sequence[float], seed: int, notes: Sequence[str] = ()
) -> Divided:
    """Rows of studies or images with their split: by subject, each finding's positives in the `shares` of SPLITS.

    Raises CxrltError where a study is of two subjects or an id would run as a formula in a spreadsheet, UsageError for
    a finding of such a name.
    """
    if wrong := [name for name in findings if unfit(name)]:
        raise UsageError(f"finding {wrong[0]!r}: a spreadsheet would take its name for a formula: rename the column.")
    for name in (STUDY, SUBJECT, IMAGE, PATH):
        if name in table and (bad := int(table[name].str.contains(UNFIT, regex=True).sum())):
            raise CxrltError(
                f"column {name} holds {counted(bad, 'cell')} that a spreadsheet would take for a formula (they begin "
                "with = + - or @, or have control characters): rename them."
            )
    if several := int((table.groupby(STUDY)[SUBJECT].nunique() > 1).sum()):
        raise CxrltError(
            f"studies of more than one subject: {several:,}. Correct {SUBJECT}: a subject is in one split."
        )
    targets = table[list(findings)].fillna(-1).to_numpy(np.int8)
    total = sum(shares)
    part = assign_shares(targets, table[SUBJECT].to_numpy(str), [share / total for share in shares], seed)
    divided = table.assign(**{SPLIT: np.array(SPLITS)[part]})
    first = [name for name in (IMAGE, PATH, STUDY, SUBJECT, VIEW, SPLIT) if name in divided]
    return Divided(divided[[*first, *findings]], tuple(findings), tuple(notes))


def _matched_studies(table: pd.DataFrame, studies: pd.Index) -> tuple[pd.Series, str]:
    """The study of each image as the labels write it, and by what it was matched."""
    plain = {_plain(study): study for study in studies}
    ways = {
        "study id": table[STUDY],
        "image id": table[IMAGE],
        "folder (SUBJECT/STUDY/IMAGE)": table[PATH].str.extract(FOLDERS)[1],
    }
    for how, names in ways.items():
        if (matched := names.fillna("").map(_plain).map(plain)).notna().any():
            return matched, how
    raise UsageError(
        "no image is of a study of the labels: neither the images' study ids or names nor the folders they lie in are "
        "the labels' ids."
    )


def _plain(study: str) -> str:
    return study.strip().removeprefix("s").removesuffix(".0")


def _subjects(table: pd.DataFrame, labels: LabelTable) -> pd.Series:
    """The subject of each image: of the labels, else of the images. Raises CxrltError where they differ."""
    own = table[SUBJECT].fillna("").astype("str")
    if labels.subjects is None:
        said = pd.Series("", table.index)
    else:
        said = whole_ids(labels.subjects.fillna("").str.strip().replace("nan", "")).loc[table[STUDY]]
        said = said.reset_index(drop=True)
    stem = (own == table[IMAGE]) | (own == "")  # the image itself: the images do not know their subjects
    differ = (said != "") & ~stem & (said.map(_as_subject) != own.map(_as_subject))
    if differ.any():
        raise CxrltError(
            f"labels and images name different subjects for {table.loc[differ, STUDY].nunique():,} studies: are they "
            "of the same release?"
        )
    subjects = said.where(said != "", own.where(~stem, ""))
    if missing := int((subjects == "").sum()):
        raise CxrltError(
            f"the subject of {counted(missing, 'image')} is not known, and a split is by subject: add {SUBJECT} to "
            "the labels."
        )
    return subjects


def _as_subject(name: str) -> str:
    """A subject as MIMIC's folders write it, and its tables."""
    return name[1:] if name[:1] == "p" and name[1:].isdigit() else name
