"""Tables of predictions or labels: a row an image, a column a finding, or arrays in one .npz.

A table is any that data/table_file.py reads (CSV in any usual form, .xlsx, .parquet, a .zip that holds one CSV), local
or any `pyarrow.fs` URI; its image id column is the first of ID_COLUMNS that is there, or the one given. A CSV of 39,293
images x 40 findings takes about 0.2 s.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from cxrlt_ray.data.readers.columns import quoted, reason_of, row_of
from cxrlt_ray.data.readers.ids import lossy_problem, whole_ids
from cxrlt_ray.data.table_file import MISSING, parsed_table
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import UNFIT, cell, check_unpacked, heads, private_detail
from cxrlt_ray.storage import Store

ID_COLUMNS = ("dicom_id", "image_id", "ImageID", "id", "Image Index", "image", "filename")
SUBJECT = "subject_id"
_NAMES = {"members": "member", "image_id": "image", "findings": "finding"}  # of an .npz, and those made up


def read_table(path: str, id_column: str | None = None, text: Sequence[str] = ()) -> pd.DataFrame:
    """A table of one row an image: index the image ids as text, columns the file's others, attrs["file"] the path.

    attrs["notes"]: what was read otherwise than as it stands. id_column: where the ids are; the first of ID_COLUMNS
    without it. text: columns to keep as written. Raises CxrltError naming the file that cannot be read, has no ids,
    ids of images or subjects that have lost digits, or repeats an image or a column.
    """
    if path.endswith(".npz"):
        raise UsageError(f"{path} holds arrays, not a table: give it alone, with all members in it.")
    store, name = Store.holding(path)
    content = store.read(name)  # which unpacks .gz
    file = parsed_table(content, path, [*ID_COLUMNS, SUBJECT, *text, *([id_column] if id_column else [])])
    key = _id_column(file.table.column_names, path, id_column)
    ids = _ids(file.table, key, path)
    try:
        frame = file.table.drop_columns([key]).to_pandas(ignore_metadata=True)
    except (ValueError, pa.ArrowException) as error:
        raise CxrltError(f"{path} cannot be read as a table: {reason_of(error)}.") from None
    for name in (name for name in dict.fromkeys([SUBJECT, *text]) if name in frame):
        frame[name] = _ids(file.table, name, path)
    frame.index, frame.attrs["file"] = pd.Index(ids, name="image_id"), path
    frame.attrs["notes"] = [f"{path} is read with {', '.join(file.remarks)}"] if file.remarks else []
    empty, repeated = (ids == "").to_numpy(), frame.index.duplicated()
    formulas = frame.index.str.contains(UNFIT, regex=True)
    if not len(ids):
        raise CxrltError(f"{path} has no rows: it must have one an image.")
    if empty.any():
        raise CxrltError(f"{path}: column '{key}' is empty in {row_text(frame, empty)}: give each row its image id.")
    if repeated.any():
        raise CxrltError(f"{path}: an image stands twice, again in {row_text(frame, repeated)}: keep one row an image.")
    if formulas.any():
        raise CxrltError(
            f"{path}: a spreadsheet would take the id in {row_text(frame, formulas)} for a formula: rename it."
        )
    return frame


def open_npz(
    path: str, needed: Sequence[str], findings: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], list[str], list[pd.DataFrame]]:
    """The arrays, the members' names and a frame each; `findings` are those of a file that names none."""
    store, name = Store.holding(path)
    try:
        with store.fetched(name) as local:
            with zipfile.ZipFile(local) as archive:  # numpy takes what is no archive for a pickle
                for entry in archive.infolist():
                    check_unpacked(entry)
            with np.load(local, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CxrltError(f"{path} cannot be read as an .npz of plain arrays: {reason_of(error)}.") from None
    if missing := [key for key in needed if key not in arrays]:
        shapes = "predictions [members, images, findings], targets [images, findings]"
        raise CxrltError(f"{path} has no array {listed(missing)}, but {quoted(list(arrays))}: name them {shapes}.")
    predictions = arrays["predictions"]
    if predictions.ndim != 3 or predictions.dtype.kind not in "biuf" or not predictions.size:
        held = f"{predictions.dtype} {list(predictions.shape)}"
        raise CxrltError(f"{path}: predictions must be numbers [members, images, findings], one at least, not {held}.")
    axes: list[list[str]] = []  # the names of members, images and findings
    for (key, one), count in zip(_NAMES.items(), predictions.shape, strict=True):
        default = findings if key == "findings" and len(findings) == count else [f"{one}-{k}" for k in range(count)]
        names = np.asarray(arrays.get(key, default)).astype(str)
        if names.shape != (count,) or len(set(names.tolist())) < count:
            raise CxrltError(f"{path}: {key} {list(names.shape)} must be {count} names, each once.")
        axes.append(names.tolist())
    frames = [pd.DataFrame(scores, pd.Index(axes[1], name="image_id"), axes[2]) for scores in predictions]
    for name, frame in zip(axes[0], frames, strict=True):
        frame.attrs["file"] = f"{path}, member {name}"
    return arrays, axes[0], frames


def numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The cells as float64 [N], nan where they are no number; and where they are empty, bool [N]."""
    if column.dtype.kind in "biuf":
        values = column.to_numpy(np.float64)
        return values, np.isnan(values)
    text = column.astype(str).str.strip()
    empty = (column.isna() | text.isin(MISSING)).to_numpy(bool)
    return pd.to_numeric(text, errors="coerce").to_numpy(np.float64, na_value=np.nan), empty


def first_cell(frame: pd.DataFrame, finding: str, bad: np.ndarray) -> str:
    value = frame[finding].iloc[int(np.argmax(bad))]
    held = "empty or nan" if pd.api.types.is_scalar(value) and pd.isna(value) else cell(value)
    return f"finding '{finding}' in {row_text(frame, bad, '')} is {held}{_more(bad)}"


def row_text(frame: pd.DataFrame, which: np.ndarray, more: str | None = None) -> str:
    """The first of the rows `which` [N] for a message, and how many more there are."""
    first = int(np.argmax(which))
    return f"{row_of(first)}{private_detail(frame.index[first])}{_more(which) if more is None else more}"


def id_form(name: str) -> str:
    """How an id is written, without what it says: 9999.xxx."""
    return re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "9", str(name)))[:60]


def listed(names: Sequence[str]) -> str:
    return quoted(list(names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _ids(table: pa.Table, name: str, path: str) -> pd.Series:
    """A column of ids as text, whole numbers without a point, "" where empty. Raises CxrltError for lost digits."""
    cells = table[name].cast(pa.string()).to_pandas().astype("str").fillna("").str.strip()
    if problem := lossy_problem(path, name, cells):
        raise CxrltError(problem)
    return whole_ids(cells).where(~cells.isin(MISSING), "")


def _id_column(columns: list[str], path: str, id_column: str | None) -> str:
    for name in [id_column] if id_column else ID_COLUMNS:
        if name in columns:
            return name
    raise UsageError(
        f"{path} has no column of image ids, {id_column or ' or '.join(ID_COLUMNS)}; it has {heads(columns, 5)}: "
        "rename the one that holds them, or give it by --id-column."
    )


def _more(bad: np.ndarray) -> str:
    return f" (and {bad.sum() - 1:,} more like it)" if bad.sum() > 1 else ""
