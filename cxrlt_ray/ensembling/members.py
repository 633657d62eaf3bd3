"""Predictions of any origin -> arrays for selection: a file a member, matched by image id and column name.

Rows and columns may stand in any order. Or all members stand in one .npz.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os.path import normpath

import numpy as np
import pandas as pd

from cxrlt_ray.data.column_names import is_no_finding
from cxrlt_ray.data.readers.columns import counted, row_of
from cxrlt_ray.data.score_scale import read_scores, rounded
from cxrlt_ray.ensembling.names import columns_text, renamed
from cxrlt_ray.ensembling.tables import (
    SUBJECT,
    first_cell,
    id_form,
    listed,
    numbers,
    open_npz,
    read_table,
    row_text,
)
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import heads, private_detail, unfit
from cxrlt_ray.storage import Store

_UNCERTAIN, _EMPTY = -1, -2
_AS_LABELLED = "as those of the labelled images"
_ALIKE = "give those of the labelled images and these alike, or say what both are by --scores"
_ALONE = ": each image counts as a subject of its own, and intervals are too narrow where subjects have several"


@dataclass(frozen=True)
class Members:
    """M members' predictions of the same N images, and notes on how they were matched.

    names: [M], unique. image_id: str [N]. findings: [C]. predictions: float32 [M, N, C], probabilities.
    targets: int8 [N, C], 1, 0 or -1 (not labelled). groups: str [N], the subject of each image.
    scales: [M], what each member's files hold, one of data.score_scale.SCALES: its other tables are read alike.
    """

    names: list[str]
    image_id: np.ndarray
    findings: list[str]
    predictions: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    scales: list[str]
    notes: list[str] = field(default_factory=list)


def read_members(
    paths: Sequence[str],
    targets_path: str,
    *,
    groups: str | None = None,
    id_column: str | None = None,
    findings: Sequence[str] | None = None,
    drop_missing: bool = False,
    scales: Sequence[str] | None = None,
) -> Members:
    """The members in the tables `paths`; images and findings in the order of the labels in `targets_path`.

    groups: a column of the labels, or a table of image ids and subjects; without it SUBJECT where the labels
    have it, else each image is a subject of its own. findings: those wanted; without it all columns of labels
    (1, 0, or -1 and empty, which are not labelled) that a member predicts. drop_missing: leave out images
    that a member lacks. scales: of all members, or one each; without it as data.score_scale tells. What else the files
    hold is not used, and noted.
    Raises UsageError for arguments that do not fit, CxrltError naming file, image and finding at fault.
    """
    names = member_names(paths)
    if normpath(targets_path) in map(normpath, paths):
        raise UsageError(f"{targets_path} holds the labels: it cannot be a member too.")
    targets = read_table(targets_path, id_column, text=[groups] if groups else [])
    subjects, notes = _subjects(targets, groups, id_column)
    frames = (read_table(path, id_column) for path in paths)
    notes += targets.attrs["notes"]
    labels = targets.drop(columns=groups or [], errors="ignore")
    return _match(names, frames, labels, subjects, notes, findings, drop_missing, _each(scales, names))


def read_npz(path: str, scales: Sequence[str] | None = None) -> Members:
    """The members in an .npz of plain arrays: predictions [M, N, C] and targets [N, C] (1, 0, -1 or nan).

    Where they are there also groups [N], members [M], image_id [N] and findings [C]; else each image is a
    subject of its own, and names are made up: member-0, image-0, finding-0. scales: as `read_members`.
    Raises CxrltError that says what is missing or does not fit.
    """
    arrays, names, frames = open_npz(path, ("predictions", "targets"))
    ids, findings = frames[0].index, list(frames[0].columns)
    for key, shape in (("targets", frames[0].shape), ("groups", ids.shape)):
        if key in arrays and arrays[key].shape != shape:
            raise CxrltError(f"{path}: {key} {list(arrays[key].shape)} must be {list(shape)}, as predictions.")
    targets = pd.DataFrame(arrays["targets"], ids, findings)
    targets.attrs["file"] = f"{path}, targets"
    notes = [] if "groups" in arrays else [f"{path} has no groups{_ALONE}"]
    given = arrays.get("groups", ids.to_numpy())
    subjects = given.astype(str)
    empty = pd.isna(given) | (np.char.strip(subjects) == "")
    if empty.any():  # as text they would be one subject
        raise CxrltError(f"{path}: groups are empty in {row_text(frames[0], empty)}: give each image its subject.")
    return _match(names, frames, targets, subjects, notes, findings, scales=_each(scales, names))


def read_apply(
    paths: Sequence[str], members: Members, *, id_column: str | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images to apply an ensemble of `members` to: image ids str [K], predictions float32 [M, K, C], and notes.

    paths: a table a member, matched by name where all names are the members', else in order; or one .npz of
    predictions [M, K, C] and perhaps members, image_id, findings (without: in the order of `members`). All
    must hold the same images; their order is that of the first member's file.
    Raises UsageError where files and members do not fit, CxrltError as `read_members`.
    """
    npz = len(paths) == 1 and paths[0].endswith(".npz")
    _, names, frames = open_npz(paths[0], ("predictions",), members.findings) if npz else ({}, member_names(paths), [])
    order, notes = _pair(names, members.names)
    predictions: list[np.ndarray] = []
    for k, scale in zip(order, members.scales, strict=True):
        frame, changes = renamed(frames[k] if npz else read_table(paths[k], id_column), members.findings)
        if not predictions:
            first = frame
        rows, file = _rows(first, frame), frame.attrs["file"]
        _rows(frame, first)
        _check_findings(list(frame), members.findings, file, "the ensemble needs it of every member")
        scores = _scores(frame, rows, members.findings)
        scaled = read_scores(scores, members.findings, file, scale, by=_AS_LABELLED, mend=_ALIKE)
        predictions.append(rounded(scaled.probabilities))
        notes += [*_rename_notes(changes, file), *scaled.notes]
    return first.index.to_numpy().astype(str), np.stack(predictions), notes


def _match(
    names: list[str],
    frames: Iterable[pd.DataFrame],
    targets: pd.DataFrame,
    subjects: np.ndarray,
    notes: list[str],
    findings: Sequence[str] | None,
    drop_missing: bool = False,
    scales: Sequence[str | None] = (),
) -> Members:
    """Members from a frame each, taken one after the other, and the frame of the labels.

    scales: [M], of each member; None: as its scores tell.
    """
    labels, faults = _labels(targets, findings)
    labels_file = targets.attrs["file"]
    rows = np.empty((len(names), len(targets)), np.int64)  # of each image in each frame; -1: missing
    predicted: list[pd.DataFrame] = []
    columns: dict[str, list[str]] = {}  # of each file, in order
    used_scales: list[str] = []
    for m, (given, scale) in enumerate(zip(frames, scales or [None] * len(names), strict=True)):
        frame, changes = renamed(given, labels)
        file = frame.attrs["file"]
        notes += _rename_notes(changes, file)
        for name in (name for name in faults if name in frame):
            raise CxrltError(faults[name])
        notes += frame.attrs.get("notes", [])
        rows[m] = _rows(targets, frame, drop_missing)
        used, shared = rows[m][rows[m] >= 0], [name for name in labels if name in frame]
        scaled = read_scores(_scores(frame, used, shared), shared, file, scale, name=f"'{names[m]}'")
        predicted.append(pd.DataFrame(rounded(scaled.probabilities), columns=shared))
        used_scales.append(scaled.scale)
        columns[file] = [name for name in frame if not is_no_finding(name)]
        if unused := len(frame) - len(used):
            notes.append(f"{counted(unused, 'image')} of {names[m]} not used: {labels_file} does not have them")
        notes += scaled.notes
    chosen = _common_findings(targets, labels, columns, findings)
    complete = np.logical_and.reduce(rows >= 0)
    if not complete.any():
        raise CxrltError(f"no image of {labels_file} is in all {len(names)} files of predictions: write the ids alike.")
    predictions = np.empty((len(names), complete.sum(), len(chosen)), np.float32)
    for m, frame in enumerate(predicted):
        predictions[m] = frame[chosen].to_numpy()[complete[rows[m] >= 0]]
    codes = np.column_stack([labels[name] for name in chosen])[complete]
    every = dict.fromkeys([*(name for of_file in columns.values() for name in of_file), *labels])
    unused_columns = [name for name in every if name not in chosen and name not in faults]
    notes += _notes(names, labels_file, rows, codes, unused_columns if findings is None else [])
    ids = targets.index[complete].to_numpy().astype(str)
    return Members(names, ids, chosen, predictions, np.maximum(codes, -1), subjects[complete], used_scales, notes)


def _common_findings(
    targets: pd.DataFrame,
    labels: dict[str, np.ndarray],
    columns: dict[str, list[str]],
    findings: Sequence[str] | None,
) -> list[str]:
    """The findings asked for, or all that are labelled and predicted. Raises UsageError where a file lacks one.

    columns: those of each file of predictions.
    """
    every = dict.fromkeys(name for of_file in columns.values() for name in of_file)
    chosen = list(dict.fromkeys(findings or [name for name in labels if name in every]))
    if not chosen:
        raise UsageError(
            f"{targets.attrs['file']} (columns {heads(list(targets), 5)}) and the predictions "
            f"({heads(list(every), 5) or 'of no column'}) share no finding: a column that holds labels 1, 0, -1 or "
            "nothing here and scores there must have the same name."
        )
    for file, of_file in columns.items():
        _check_findings(of_file, chosen, file, "add it, or give the findings that all files have by --findings")
    return chosen


def _notes(
    names: list[str],
    labels_file: str,
    rows: np.ndarray,
    codes: np.ndarray,
    unused_columns: list[str],
) -> list[str]:
    """What a user should know of how members and labels were matched."""
    notes, complete = [], np.logical_and.reduce(rows >= 0)
    if unused_columns:
        notes.append(
            f"columns {listed(unused_columns)} not used: they are not both labelled in {labels_file} and predicted"
        )
    if not complete.all():
        missing = [f"{name} {(row < 0).sum():,}" for name, row in zip(names, rows, strict=True) if row.min() < 0]
        images = counted(len(complete), "image")
        notes.append(f"{(~complete).sum():,} of {images} left out, lacking in {', '.join(missing)}")
    if uncertain := int((codes == _UNCERTAIN).sum()):
        notes.append(f"{counted(uncertain, 'label')} of -1 (uncertain) taken as not labelled")
    return notes


def _labels(targets: pd.DataFrame, findings: Sequence[str] | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Of each column of labels the codes int8 [N], 1, 0, _UNCERTAIN or _EMPTY; of some, what is wrong with them.

    Without `findings` a column in which no cell is a label is no column of labels.
    """
    codes, faults, file = {}, {}, targets.attrs["file"]
    _check_findings(list(targets), findings or (), file, "--findings must name columns of the labels")
    for name in findings or [name for name in targets if not is_no_finding(name)]:
        values, empty = numbers(targets[name])
        known = np.isin(values, (1, 0, -1))
        bad = ~(known | empty)
        if findings is None and bad.any() and not known.any():
            continue
        codes[name] = np.where(known, values, _EMPTY).astype(np.int8)
        if bad.any():
            faults[name] = f"{file}: the label of {first_cell(targets, name, bad)}: a label is 1, 0, -1 or nothing"
            faults[name] += "." if findings else f"; if '{name}' is no finding, give those that are by --findings."
    return codes, faults


def _scores(frame: pd.DataFrame, rows: np.ndarray, findings: Sequence[str]) -> np.ndarray:
    """The `rows` [N] of a frame as float64 [N, C], all finite, also in float32.

    Raises CxrltError naming file, row and finding.
    """
    scores = np.empty((len(rows), len(findings)))
    for c, name in enumerate(findings):
        scores[:, c] = numbers(frame[name].iloc[rows])[0]
        bad = np.zeros(len(frame), bool)
        with np.errstate(over="ignore"):
            bad[rows] = ~np.isfinite(scores[:, c].astype(np.float32))
        if bad.any():
            wrong = first_cell(frame, name, bad)
            raise CxrltError(f"{frame.attrs['file']}: the score of {wrong}: every score must be a finite number.")
    return scores


def _subjects(targets: pd.DataFrame, groups: str | None, id_column: str | None) -> tuple[np.ndarray, list[str]]:
    """The subject of each image, str [N], and a note where that is the image."""
    column, table, file = groups or SUBJECT, targets, targets.attrs["file"]
    if column not in targets:
        if groups is None:
            return targets.index.to_numpy().astype(str), [f"{file} has no column {SUBJECT} (--groups){_ALONE}"]
        store, name = Store.holding(groups)
        if not store.exists(name):
            names = listed(list(targets))
            raise UsageError(f"--groups {groups} is no file and no column of {file}, which has {names}.")
        table, file = read_table(groups, id_column), groups
        columns = [SUBJECT] if SUBJECT in table else list(table)
        if len(columns) != 1:
            raise UsageError(f"{file} must have {SUBJECT} or one column beside the ids; it has {listed(columns)}.")
        column = columns[0]
    rows = _rows(targets, table)
    subjects = table[column].astype(str).str.strip()
    empty = np.zeros(len(table), bool)
    empty[rows] = (table[column].isna() | (subjects == "")).to_numpy(bool)[rows]
    if empty.any():
        raise CxrltError(f"{file}: column '{column}' is empty in {row_text(table, empty)}.")
    return subjects.iloc[rows].to_numpy().astype(str), []


def _rows(images: pd.DataFrame, frame: pd.DataFrame, drop: bool | None = None) -> np.ndarray:
    """The row in `frame` of each image of `images`, int64 [N]; -1 where it is missing.

    Raises CxrltError if images are missing: with `drop` only if all are; None: the user has no such choice.
    """
    rows = frame.index.get_indexer(images.index)
    missing = rows < 0
    if not missing.any() or (drop and not missing.all()):
        return rows
    file, images_file = frame.attrs["file"], images.attrs["file"]
    message = f"{file} lacks {missing.sum():,} of the {counted(len(rows), 'image')} of {images_file}, the first is "
    message += "that of " + row_of(int(np.argmax(missing))) + private_detail(images.index[missing][0])
    if missing.all():
        missing_form, own_form = id_form(images.index[missing][0]), id_form(frame.index[0])
        raise CxrltError(f"{message}, as {missing_form}, where its own first is as {own_form}: write the ids alike.")
    raise CxrltError(f"{message}: add them" + ("." if drop is None else ", or leave them out by --drop-missing."))


def _check_findings(columns: Sequence[str], findings: Sequence[str], file: str, mend: str) -> None:
    if missing := [name for name in findings if name not in columns]:
        raise UsageError(f"{file} has no column {listed(missing)}; {columns_text(columns, missing)}: {mend}.")


def _rename_notes(changes: dict[str, str], file: str) -> list[str]:
    """A note where columns were read under other names, as `renamed` says."""
    if not changes:
        return []
    column, name = next(iter(changes.items()))
    more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
    return [f"column {heads([column])} of {file} read as '{name}'{more}"]


def _each(scales: Sequence[str] | None, names: list[str]) -> list[str | None]:
    """The scale of each of the members; None: as its scores tell. Raises UsageError for another number of them."""
    if not scales:
        return [None] * len(names)
    if len(scales) not in (1, len(names)):
        raise UsageError(f"--scores takes one scale for all {len(names)} members or one each, not {len(scales)}.")
    return list(scales) if len(scales) == len(names) else [*scales] * len(names)


def member_names(paths: Sequence[str]) -> list[str]:
    """Each file's stem, with its folder where another has the same. Raises UsageError if that does not tell them."""
    if not paths:
        raise UsageError("there is no file of predictions: give one a member.")
    stems = [re.sub(r"(\.(csv|tsv|txt|xlsx|gz|zip|parquet))+$", "", normpath(path)).split("/")[-2:] for path in paths]
    counts = Counter(parts[-1] for parts in stems)
    names = [parts[-1] if counts[parts[-1]] == 1 else "/".join(parts) for parts in stems]
    if wrong := [name for name in names if unfit(name)]:
        raise UsageError(f"a spreadsheet would take the member's name {wrong[0]!r} for a formula: rename the file.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UsageError(f"{count} files are called {name}: give each member once, under a name of its own.")
    return names


def _pair(files: list[str], names: list[str]) -> tuple[list[int], list[str]]:
    """Which of `files` belongs to each of the members' `names`, and a note where that is by order."""
    if len(files) != len(names):
        raise UsageError(f"--apply needs predictions of each member, {listed(names)}: {len(names)}, not {len(files)}.")
    if set(files) == set(names):
        return [files.index(name) for name in names], []
    for name, other in zip(files, names, strict=True):
        if name in names and name != other:
            raise UsageError(f"--apply: {name} stands where {other} belongs: give the files in the members' order.")
    pairs = ", ".join(f"{name} for {other}" for name, other in zip(files, names, strict=True))
    return list(range(len(names))), [f"--apply taken in order, as names differ: {pairs}"]
