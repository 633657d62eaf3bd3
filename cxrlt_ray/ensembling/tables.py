"""Tables of predictions or labels: a row an image, a column a finding, or arrays in one .npz.

A table is a CSV (.csv, .csv.gz), a .parquet or a .zip that holds one CSV, local or any `pyarrow.fs` URI; its image id
column is the first of ID_COLUMNS that is there, or the one given. A CSV of 39,293 images x 40 findings takes about
0.2 s.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from cxrlt_ray.data.manifest import META
from cxrlt_ray.data.readers.columns import quoted, reason_of, row_of
from cxrlt_ray.ensembling.submission import unpacked
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import UNFIT, cell, check_unpacked, heads, private_detail
from cxrlt_ray.storage import Store

ID_COLUMNS = ("dicom_id", "image_id", "ImageID", "id", "Image Index", "image", "filename")
SUBJECT = "subject_id"
# never findings, whatever they hold; the last two are an index that pandas wrote along
METADATA = {*META, *ID_COLUMNS, "fpath", "ViewPosition", "ViewCodeSequence_CodeMeaning", "fold", "", "Unnamed: 0"}
_NAMES = {"members": "member", "image_id": "image", "findings": "finding"}  # of an .npz, and those made up


def read_table(path: str, id_column: str | None = None, text: Sequence[str] = ()) -> pd.DataFrame:
    """A table of one row an image: index the image ids as text, columns the file's others, attrs["file"] the path.

    id_column: where the ids are; the first of ID_COLUMNS without it. text: columns to keep as written.
    Raises CxrltError naming the file that cannot be read, has no ids, or repeats an image or a column.
    """
    if path.endswith(".npz"):
        raise UsageError(f"{path} holds arrays, not a table: give it alone, with all members in it.")
    folder, name = split_path(path)
    content = Store(folder).read(name)  # which unpacks .gz
    try:
        table = _parsed(content, [*ID_COLUMNS, SUBJECT, *text, *([id_column] if id_column else [])])
        key = _id_column(table.column_names, path, id_column)
        ids = pc.utf8_trim_whitespace(table[key].cast(pa.string())).fill_null("").to_numpy()
        frame = table.drop_columns([key]).to_pandas(ignore_metadata=True)
    except (ValueError, RuntimeError, pa.ArrowException, zipfile.BadZipFile) as error:
        raise CxrltError(f"{path} cannot be read as a table: {reason_of(error)}.") from None
    frame.index, frame.attrs["file"] = pd.Index(ids, name="image_id"), path
    empty, repeated = np.asarray(ids == ""), frame.index.duplicated()
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
    folder, name = split_path(path)
    try:
        with Store(folder).fetched(name) as local:
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
    empty = (column.isna() | (text == "")).to_numpy(bool)
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


def split_path(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    return folder or slash or ".", name


def _parsed(content: bytes, text: Sequence[str]) -> pa.Table:
    """The table in a file's bytes, told by how they begin; columns `text` as written, true and false as 1 and 0."""
    if content.startswith(b"PAR1"):
        table = pq.read_table(io.BytesIO(content))
    else:
        content = unpacked(content) if content.startswith(b"PK") else content
        # only the empty cell is empty: what is no number is told as it stands
        options = csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), null_values=[""])
        table = csv.read_csv(io.BytesIO(content), convert_options=options)
    columns = [column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column for column in table.columns]
    return pa.table(columns, names=[name.strip() for name in table.column_names])


def _id_column(columns: list[str], path: str, id_column: str | None) -> str:
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise CxrltError(f"{path} has column {listed(repeated)} twice: rename or remove one.")
    for name in [id_column] if id_column else ID_COLUMNS:
        if name in columns:
            return name
    raise UsageError(
        f"{path} has no column of image ids, {id_column or ' or '.join(ID_COLUMNS)}; it has {heads(columns, 5)}: "
        "rename the one that holds them, or give it by --id-column."
    )


def _more(bad: np.ndarray) -> str:
    return f" (and {bad.sum() - 1:,} more like it)" if bad.sum() > 1 else ""
