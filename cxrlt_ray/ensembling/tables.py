"""Predictions from anywhere -> arrays for selection: a file a member, matched by image id and column name.

Rows and columns may stand in any order. A table is a CSV (.csv, .csv.gz), a .parquet or a .zip that holds one
CSV, local or any `pyarrow.fs` URI; its image id column is the first of ID_COLUMNS that is there, or the one
given. Or all members stand in one .npz. A CSV of 39,293 images x 40 findings takes about 0.2 s.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os.path import normpath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from cxrlt_ray.data.manifest import META
from cxrlt_ray.data.readers.columns import counted, quoted, reason_of, row_of
from cxrlt_ray.ensembling.submission import unpacked
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import UNFIT, cell, check_unpacked, heads, told, unfit
from cxrlt_ray.storage import Store

ID_COLUMNS = ("dicom_id", "image_id", "id", "Image Index", "image", "filename")
SUBJECT = "subject_id"
# never findings, whatever they hold; the last two are an index that pandas wrote along
METADATA = {*META, *ID_COLUMNS, "fpath", "ViewPosition", "ViewCodeSequence_CodeMeaning", "fold", "", "Unnamed: 0"}
_NAMES = {"members": "member", "image_id": "image", "findings": "finding"}  # of an .npz, and those made up
_UNCERTAIN, _EMPTY = -1, -2
_ALONE = ": each image counts as a subject of its own, and intervals are too narrow where subjects have several"


@dataclass(frozen=True)
class Members:
    """M members' predictions of the same N images, and what to tell of how they were matched.

    names: [M], unique. image_id: str [N]. findings: [C]. predictions: float32 [M, N, C], finite.
    targets: int8 [N, C], 1, 0 or -1 (not labelled). groups: str [N], the subject of each image.
    logits: bool [M], whether the member's files hold logits: its predictions here are their probabilities.
    """

    names: list[str]
    image_id: np.ndarray
    findings: list[str]
    predictions: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    logits: np.ndarray
    notes: list[str] = field(default_factory=list)


def read_table(path: str, id_column: str | None = None, text: Sequence[str] = ()) -> pd.DataFrame:
    """A table of one row an image: index the image ids as text, columns the file's others, attrs["file"] the path.

    id_column: where the ids are; the first of ID_COLUMNS without it. text: columns to keep as written.
    Raises CxrltError naming the file that cannot be read, has no ids, or repeats an image or a column.
    """
    if path.endswith(".npz"):
        raise UsageError(f"{path} holds arrays, not a table: give it alone, with all members in it.")
    folder, name = _place(path)
    content = Store(folder).read(name)  # which unpacks .gz
    try:
        table = _parsed(content, [*ID_COLUMNS, SUBJECT, *text, *([id_column] if id_column else [])])
        key = _id_column(table.column_names, path, id_column)
        ids = pc.utf8_trim_whitespace(table[key].cast(pa.string())).fill_null("").to_numpy()
        frame = table.drop_columns([key]).to_pandas(ignore_metadata=True)
    except (ValueError, RuntimeError, pa.ArrowException, zipfile.BadZipFile) as error:
        raise CxrltError(f"{path} cannot be read as a table: {reason_of(error)}.") from None
    frame.index, frame.attrs["file"] = pd.Index(ids, name="image_id"), path
    empty, again = np.asarray(ids == ""), frame.index.duplicated()
    odd = frame.index.str.contains(UNFIT, regex=True)
    if not len(ids):
        raise CxrltError(f"{path} has no rows: it must have one an image.")
    if empty.any():
        raise CxrltError(f"{path}: column '{key}' is empty in {_row(frame, empty)}: give each row its image id.")
    if again.any():
        raise CxrltError(f"{path}: an image stands twice, again in {_row(frame, again)}: keep one row an image.")
    if odd.any():
        raise CxrltError(f"{path}: a spreadsheet would take the id in {_row(frame, odd)} for a formula: rename it.")
    return frame


def read_members(
    paths: Sequence[str],
    targets_path: str,
    *,
    groups: str | None = None,
    id_column: str | None = None,
    findings: Sequence[str] | None = None,
    drop_missing: bool = False,
) -> Members:
    """The members in the tables `paths`; images and findings in the order of the labels in `targets_path`.

    groups: a column of the labels, or a table of image ids and subjects; without it SUBJECT where the labels
    have it, else each image is a subject of its own. findings: those wanted; without it all columns of labels
    (1, 0, or -1 and empty, which are not labelled) that a member predicts. drop_missing: leave out images
    that a member lacks. What else the files hold is not used, and noted.
    Raises UsageError for arguments that do not fit, CxrltError naming file, image and finding at fault.
    """
    names = _names(paths)
    if normpath(targets_path) in map(normpath, paths):
        raise UsageError(f"{targets_path} holds the labels: it cannot be a member too.")
    targets = read_table(targets_path, id_column, text=[groups] if groups else [])
    subjects, notes = _subjects(targets, groups, id_column)
    frames = (read_table(path, id_column) for path in paths)
    labels = targets.drop(columns=groups or [], errors="ignore")
    return _match(names, frames, labels, subjects, notes, findings, drop_missing)


def read_npz(path: str) -> Members:
    """The members in an .npz of plain arrays: predictions [M, N, C] and targets [N, C] (1, 0, -1 or nan).

    Where they are there also groups [N], members [M], image_id [N] and findings [C]; else each image is a
    subject of its own, and names are made up: member-0, image-0, finding-0.
    Raises CxrltError that says what is missing or does not fit.
    """
    arrays, names, frames = _load_npz(path, ("predictions", "targets"))
    ids, findings = frames[0].index, list(frames[0].columns)
    for key, shape in (("targets", frames[0].shape), ("groups", ids.shape)):
        if key in arrays and arrays[key].shape != shape:
            raise CxrltError(f"{path}: {key} {list(arrays[key].shape)} must be {list(shape)}, as predictions.")
    targets = pd.DataFrame(arrays["targets"], ids, findings)
    targets.attrs["file"] = f"{path}, targets"
    notes = [] if "groups" in arrays else [f"{path} has no groups{_ALONE}"]
    return _match(names, frames, targets, arrays.get("groups", ids.to_numpy()).astype(str), notes, findings)


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
    _, names, frames = _load_npz(paths[0], ("predictions",), members.findings) if npz else ({}, _names(paths), [])
    order, notes = _pair(names, members.names)
    scores: list[np.ndarray] = []
    for k in order:
        frame = frames[k] if npz else read_table(paths[k], id_column)
        if not scores:
            first = frame
        rows = _rows(first, frame)
        _rows(frame, first)
        _check_findings(frame, members.findings, frame.attrs["file"], "the ensemble needs it of every member")
        scores.append(_scores(frame, rows, members.findings))
    predictions = np.stack(scores)
    for m in np.flatnonzero(_outside(predictions) & ~members.logits):
        raise CxrltError(
            f"{members.names[m]}: its scores are outside 0 to 1, where those of the labelled images are probabilities: "
            "give both as the same."
        )
    return first.index.to_numpy().astype(str), _as_probabilities(predictions, members.logits), notes


def _match(
    names: list[str],
    frames: Iterable[pd.DataFrame],
    targets: pd.DataFrame,
    subjects: np.ndarray,
    notes: list[str],
    findings: Sequence[str] | None,
    drop_missing: bool = False,
) -> Members:
    """Members from a frame each, taken one after the other, and the frame of the labels."""
    labels, faults = _labels(targets, findings)
    where = targets.attrs["file"]
    rows = np.empty((len(names), len(targets)), np.int64)  # of each image in each frame; -1: not there
    scores: dict[str, pd.DataFrame] = {}
    columns: dict[str, None] = {}  # all that are predicted, in order
    for m, frame in enumerate(frames):
        for name in (name for name in faults if name in frame):
            raise CxrltError(faults[name])
        rows[m] = _rows(targets, frame, drop_missing)
        used, there = rows[m][rows[m] >= 0], [name for name in labels if name in frame]
        scores[frame.attrs["file"]] = pd.DataFrame(_scores(frame, used, there), columns=there)
        columns |= dict.fromkeys(name for name in frame if name not in METADATA)
        if unused := len(frame) - len(used):
            notes.append(f"{counted(unused, 'image')} of {names[m]} not used: {where} does not have them")
    chosen = list(dict.fromkeys(findings or [name for name in labels if name in columns]))
    if not chosen:
        raise UsageError(
            f"{where} (columns {heads(list(targets), 5)}) and the predictions ({heads(list(columns), 5)}) share no "
            "finding: a column that holds labels 1, 0, -1 or nothing here and scores there must have the same name."
        )
    for file, each in scores.items():
        _check_findings(each, chosen, file, "add it, or give the findings that all files have by --findings")
    kept = np.logical_and.reduce(rows >= 0)
    if not kept.any():
        raise CxrltError(f"no image of {where} is in all {len(names)} files of predictions: write the ids alike.")
    predictions = np.empty((len(names), kept.sum(), len(chosen)), np.float32)
    for m, each in enumerate(scores.values()):
        predictions[m] = each[chosen].to_numpy()[kept[rows[m] >= 0]]
    codes = np.column_stack([labels[name] for name in chosen])[kept]
    odd = [name for name in {**columns, **labels} if name not in chosen and name not in faults]
    if findings is None and odd:
        notes.append(f"columns {_some(odd)} not used: they are not both labelled in {where} and predicted")
    if not kept.all():
        lacking = [f"{name} {(row < 0).sum():,}" for name, row in zip(names, rows, strict=True) if row.min() < 0]
        notes.append(f"{(~kept).sum():,} of {counted(len(kept), 'image')} left out, lacking in {', '.join(lacking)}")
    if uncertain := int((codes == _UNCERTAIN).sum()):
        notes.append(f"{counted(uncertain, 'label')} of -1 (uncertain) taken as not labelled")
    logits = _outside(predictions)
    if logits.any():
        listed = _some([name for name, each in zip(names, logits, strict=True) if each])
        notes.append(f"scores of {listed} are outside 0 to 1: taken as logits")
    predictions = _as_probabilities(predictions, logits)
    ids = targets.index[kept].to_numpy().astype(str)
    return Members(names, ids, chosen, predictions, np.maximum(codes, -1), subjects[kept], logits, notes)


def _labels(targets: pd.DataFrame, findings: Sequence[str] | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Of each column of labels the codes int8 [N], 1, 0, _UNCERTAIN or _EMPTY; of some, what is wrong with them.

    Without `findings` a column in which no cell is a label is no column of labels.
    """
    codes, faults, file = {}, {}, targets.attrs["file"]
    _check_findings(targets, findings or (), file, "--findings must name columns of the labels")
    for name in findings or [name for name in targets if name not in METADATA]:
        values, empty = _numbers(targets[name])
        known = np.isin(values, (1, 0, -1))
        bad = ~(known | empty)
        if findings is None and bad.any() and not known.any():
            continue
        codes[name] = np.where(known, values, _EMPTY).astype(np.int8)
        if bad.any():
            faults[name] = f"{file}: the label of {_first(targets, name, bad)}: a label is 1, 0, -1 or nothing"
            faults[name] += "." if findings else f"; if '{name}' is no finding, give those that are by --findings."
    return codes, faults


def _scores(frame: pd.DataFrame, rows: np.ndarray, findings: Sequence[str]) -> np.ndarray:
    """The `rows` [N] of a frame as float32 [N, C], all finite. Raises CxrltError naming file, row and finding."""
    scores = np.empty((len(rows), len(findings)), np.float32)
    for c, name in enumerate(findings):
        with np.errstate(over="ignore"):
            scores[:, c] = _numbers(frame[name].iloc[rows])[0]
        bad = np.zeros(len(frame), bool)
        bad[rows] = ~np.isfinite(scores[:, c])
        if bad.any():
            wrong = _first(frame, name, bad)
            raise CxrltError(f"{frame.attrs['file']}: the score of {wrong}: every score must be a finite number.")
    return scores


def _numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The cells as float64 [N], nan where they are no number; and where they are empty, bool [N]."""
    if column.dtype.kind in "biuf":
        values = column.to_numpy(np.float64)
        return values, np.isnan(values)
    text = column.astype(str).str.strip()
    empty = (column.isna() | (text == "")).to_numpy(bool)
    return pd.to_numeric(text, errors="coerce").to_numpy(np.float64, na_value=np.nan), empty


def _subjects(targets: pd.DataFrame, groups: str | None, id_column: str | None) -> tuple[np.ndarray, list[str]]:
    """The subject of each image, str [N], and a note where that is the image."""
    column, table, file = groups or SUBJECT, targets, targets.attrs["file"]
    if column not in targets:
        if groups is None:
            return targets.index.to_numpy().astype(str), [f"{file} has no column {SUBJECT} (--groups){_ALONE}"]
        folder, name = _place(groups)
        if not Store(folder).exists(name):
            raise UsageError(f"--groups {groups} is no file and no column of {file}, which has {_some(list(targets))}.")
        table, file = read_table(groups, id_column), groups
        columns = [SUBJECT] if SUBJECT in table else list(table)
        if len(columns) != 1:
            raise UsageError(f"{file} must have {SUBJECT} or one column beside the ids; it has {_some(columns)}.")
        column = columns[0]
    rows = _rows(targets, table)
    subjects = table[column].astype(str).str.strip()
    empty = np.zeros(len(table), bool)
    empty[rows] = (table[column].isna() | (subjects == "")).to_numpy(bool)[rows]
    if empty.any():
        raise CxrltError(f"{file}: column '{column}' is empty in {_row(table, empty)}.")
    return subjects.iloc[rows].to_numpy().astype(str), []


def _rows(wanted: pd.DataFrame, frame: pd.DataFrame, drop: bool | None = None) -> np.ndarray:
    """The row in `frame` of each image of `wanted`, int64 [N]; -1 where there is none.

    Raises CxrltError if images lack: with `drop` only if all do; None: it cannot be chosen.
    """
    rows = frame.index.get_indexer(wanted.index)
    missing = rows < 0
    if not missing.any() or (drop and not missing.all()):
        return rows
    file, where = frame.attrs["file"], wanted.attrs["file"]
    lacks = f"{file} lacks {missing.sum():,} of the {counted(len(rows), 'image')} of {where}, the first is that of "
    lacks += row_of(int(np.argmax(missing))) + told(wanted.index[missing][0])
    if missing.all():
        here, there = _form(wanted.index[missing][0]), _form(frame.index[0])
        raise CxrltError(f"{lacks}, as {here}, where its own first is as {there}: write the ids alike.")
    raise CxrltError(f"{lacks}: add them" + ("." if drop is None else ", or leave them out by --drop-missing."))


def _check_findings(frame: pd.DataFrame, findings: Sequence[str], file: str, mend: str) -> None:
    if lacking := [name for name in findings if name not in frame]:
        raise UsageError(f"{file} has no column {_some(lacking)}; it has {heads(list(frame), 5)}: {mend}.")


def _outside(predictions: np.ndarray) -> np.ndarray:
    """Which members [M] have scores outside 0 to 1."""
    return np.array([each.min() < 0 or each.max() > 1 for each in predictions])


def _as_probabilities(predictions: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Predictions with those of the members `logits` [M] through the logistic function."""
    for m in np.flatnonzero(logits):
        with np.errstate(over="ignore"):  # exp(1000) is inf, and 1 / inf 0
            predictions[m] = 1 / (1 + np.exp(-predictions[m].astype(np.float64)))
    return predictions


def _parsed(content: bytes, text: Sequence[str]) -> pa.Table:
    """The table in a file's bytes, told by how they begin; columns `text` as written, true and false as 1 and 0."""
    if content.startswith(b"PAR1"):
        table = pq.read_table(io.BytesIO(content))
    else:
        content = unpacked(content) if content.startswith(b"PK") else content
        # only the empty cell is empty: what is no number is told as it stands
        options = csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), null_values=[""])
        table = csv.read_csv(io.BytesIO(content), convert_options=options)
    columns = [each.cast(pa.int8()) if pa.types.is_boolean(each.type) else each for each in table.columns]
    return pa.table(columns, names=[name.strip() for name in table.column_names])


def _id_column(columns: list[str], path: str, wanted: str | None) -> str:
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise CxrltError(f"{path} has column {_some(twice)} twice: rename or remove one.")
    for name in [wanted] if wanted else ID_COLUMNS:
        if name in columns:
            return name
    raise UsageError(
        f"{path} has no column of image ids, {wanted or ' or '.join(ID_COLUMNS)}; it has {heads(columns, 5)}: "
        "rename the one that holds them, or give it by --id-column."
    )


def _load_npz(
    path: str, needed: Sequence[str], findings: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], list[str], list[pd.DataFrame]]:
    """The arrays, the members' names and a frame each; `findings` are those of a file that names none."""
    folder, name = _place(path)
    try:
        with Store(folder).fetched(name) as local:
            with zipfile.ZipFile(local) as archive:  # numpy takes what is no archive for a pickle
                for each in archive.infolist():
                    check_unpacked(each)
            with np.load(local, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CxrltError(f"{path} cannot be read as an .npz of plain arrays: {reason_of(error)}.") from None
    if lacking := [key for key in needed if key not in arrays]:
        shapes = "predictions [members, images, findings], targets [images, findings]"
        raise CxrltError(f"{path} has no array {_some(lacking)}, but {quoted(list(arrays))}: name them {shapes}.")
    predictions = arrays["predictions"]
    if predictions.ndim != 3 or predictions.dtype.kind not in "biuf" or not predictions.size:
        held = f"{predictions.dtype} {list(predictions.shape)}"
        raise CxrltError(f"{path}: predictions must be numbers [members, images, findings], one at least, not {held}.")
    made = []
    for (key, one), count in zip(_NAMES.items(), predictions.shape, strict=True):
        default = findings if key == "findings" and len(findings) == count else [f"{one}-{k}" for k in range(count)]
        names = np.asarray(arrays.get(key, default)).astype(str)
        if names.shape != (count,) or len(set(names.tolist())) < count:
            raise CxrltError(f"{path}: {key} {list(names.shape)} must be {count} names, each once.")
        made.append(names.tolist())
    frames = [pd.DataFrame(each, pd.Index(made[1], name="image_id"), made[2]) for each in predictions]
    for name, frame in zip(made[0], frames, strict=True):
        frame.attrs["file"] = f"{path}, member {name}"
    return arrays, made[0], frames


def _names(paths: Sequence[str]) -> list[str]:
    """Each file's stem, with its folder where another has the same. Raises UsageError if that does not tell them."""
    if not paths:
        raise UsageError("there is no file of predictions: give one a member.")
    long = [re.sub(r"(\.(csv|gz|zip|parquet))+$", "", normpath(path)).split("/")[-2:] for path in paths]
    counts = Counter(parts[-1] for parts in long)
    names = [parts[-1] if counts[parts[-1]] == 1 else "/".join(parts) for parts in long]
    if wrong := [name for name in names if unfit(name)]:
        raise UsageError(f"a spreadsheet would take the member's name {wrong[0]!r} for a formula: rename the file.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UsageError(f"{count} files are called {name}: give each member once, under a name of its own.")
    return names


def _pair(given: list[str], names: list[str]) -> tuple[list[int], list[str]]:
    """Which of `given` belongs to each of the members' `names`, and a note where that is by order."""
    if len(given) != len(names):
        raise UsageError(f"--apply needs predictions of each member, {_some(names)}: {len(names)}, not {len(given)}.")
    if set(given) == set(names):
        return [given.index(name) for name in names], []
    for name, other in zip(given, names, strict=True):
        if name in names and name != other:
            raise UsageError(f"--apply: {name} stands where {other} belongs: give the files in the members' order.")
    pairs = ", ".join(f"{name} for {other}" for name, other in zip(given, names, strict=True))
    return list(range(len(names))), [f"--apply taken in order, as names differ: {pairs}"]


def _first(frame: pd.DataFrame, finding: str, bad: np.ndarray) -> str:
    value = frame[finding].iloc[int(np.argmax(bad))]
    held = "empty or nan" if pd.api.types.is_scalar(value) and pd.isna(value) else cell(value)
    return f"finding '{finding}' in {_row(frame, bad, '')} is {held}{_more(bad)}"


def _row(frame: pd.DataFrame, which: np.ndarray, more: str | None = None) -> str:
    """The first of the rows `which` [N] for a message, and how many more there are."""
    first = int(np.argmax(which))
    return f"{row_of(first)}{told(frame.index[first])}{_more(which) if more is None else more}"


def _form(name: str) -> str:
    """How an id is written, without what it says: 9999.xxx."""
    return re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "9", str(name)))[:60]


def _more(bad: np.ndarray) -> str:
    return f" (and {bad.sum() - 1:,} more like it)" if bad.sum() > 1 else ""


def _some(names: Sequence[str]) -> str:
    return quoted(list(names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _place(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    return folder or slash or ".", name
