"""The submission: images' ids, then a probability for each finding in the task's order, a row an image.

Format: that of CXR-LT 2024, with `dicom_id`; CXR-LT 2026's has `ImageID` in its place, as its participants' public code
writes it (unverified). Everything wrong with one is said at once, and nothing wrong is
written. 78,946 rows of 40 findings are checked in 0.1 s and written in 4 s.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.score_scale import Scaled, read_scores
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.ensembling.names import nearest
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import UNFIT, cell, heads, private_detail, unfit
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    import pandas as pd

    from cxrlt_ray.data.manifest import Manifest

ID = "dicom_id"
ID_COLUMNS = (ID, "ImageID")
FILE, ARCHIVE = "submission.csv", "submission.zip"


def build(
    image_ids: Sequence[str] | np.ndarray, probabilities: np.ndarray, findings: Sequence[str], id_column: str = ID
) -> pd.DataFrame:
    """The table of probabilities float [N, C] in [0, 1] of `image_ids` [N], findings [C] in the task's order."""
    import pandas as pd

    return pd.DataFrame(
        {id_column: np.asarray(image_ids).astype(str), **dict(zip(findings, probabilities.T, strict=True))}
    )


def check(frame: pd.DataFrame, task: Task, image_ids: Sequence[str] | np.ndarray) -> list[str]:
    """Every fault of a submission to `task` for the images `image_ids`, each as a sentence; [] if it is good."""
    faults = [*_column_faults(list(frame.columns), task), *_row_faults(frame, task, image_ids)]
    return [*faults, *_number_faults(frame, task, within=(0, 1))]


def write(
    store: Store, frame: pd.DataFrame, task: Task, image_ids: Sequence[str] | np.ndarray, zip: bool = False
) -> None:
    """Write submission.csv to `store`, and with `zip` submission.zip that holds it; each whole or not at all.

    Raises CxrltError with the faults, before anything is written.
    """
    raise_faults(check(frame, task, image_ids), f"{store.uri}/{FILE}", task)
    content = frame.to_csv(index=False).encode()
    store.write(FILE, content)
    if zip:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            # a ZipInfo of its own carries no clock: the same predictions give the same bytes
            archive.writestr(zipfile.ZipInfo(FILE), content, zipfile.ZIP_DEFLATED)
        store.write(ARCHIVE, packed.getvalue())


def read(path: str) -> pd.DataFrame:
    """A submission from a CSV, or a zip that holds one: a path or URI, image ids as text.

    attrs["notes"]: what was read otherwise than as plain UTF-8 CSV. Raises CxrltError naming the file where it is no
    table; what it holds is for `check`.
    """
    from cxrlt_ray.data.readers.ids import whole_ids
    from cxrlt_ray.data.table_file import read_table_file

    store, name = Store.holding(str(path))
    file = read_table_file(store, name, text=ID_COLUMNS)
    frame = file.table.to_pandas(ignore_metadata=True)
    for column in (column for column in ID_COLUMNS if column in frame):
        frame[column] = whole_ids(frame[column].astype("str").str.strip())
    done = f"{name} is read with {', '.join(file.remarks)}: write it as plain UTF-8 CSV before it is sent."
    frame.attrs["notes"] = [done] if file.remarks else []
    return frame


def aligned(
    frame: pd.DataFrame, task: Task, images: Manifest, name: str, scale: str | None = None
) -> tuple[Manifest, Scaled]:
    """The images with labels [N] and the submission's scores of them, [N, C] in the task's order, as probabilities.

    Images without any label of the task are not scored: the submission may hold them or not. scale: of its scores, as
    data.score_scale.read_scores. Raises CxrltError with every fault of the submission `name`.
    """
    import pandas as pd

    labelled = (images.targets(task.findings) >= 0).any(axis=1)
    if not labelled.any():
        raise CxrltError(
            f"the {len(images.table):,} images to score carry no label of {task.name}: a submission for them can be "
            "made and sent, but not scored here."
        )
    unscored = images.table.loc[~labelled, "image_id"].astype(str)
    ids = images.table.loc[labelled, "image_id"].astype(str).to_numpy()
    if (column := task.id_column) in frame:
        frame = frame.assign(**{column: frame[column].astype(str)})
        frame = frame[~frame[column].isin(unscored)]
    faults = [*_column_faults(list(frame.columns), task), *_row_faults(frame, task, ids), *_number_faults(frame, task)]
    raise_faults(faults, name, task)
    scores = frame.set_index(column).loc[ids, list(task.findings)].apply(pd.to_numeric).to_numpy(np.float64)
    return images.where(labelled), read_scores(scores, task.findings, name, scale)


def raise_faults(faults: list[str], name: str, task: Task) -> None:
    """Raise CxrltError with all `faults` of the submission `name`, where there are any."""
    if faults:
        raise CxrltError(f"{name} is no submission to {task.name}: " + " ".join(faults))


def _column_faults(columns: list[str], task: Task) -> list[str]:
    expected = [task.id_column, *task.findings]
    faults = []
    if missing := [name for name in expected if name not in columns]:
        near = [f"{heads([match])} for {name}" for name in missing if (match := nearest(name, columns))]
        proposal = f" (near: {', '.join(near[:3])})" if near else ""
        faults.append(f"{len(missing)} column(s) missing: {_some(missing)}{proposal}.")
    if extra := [name for name in columns if name not in expected]:
        faults.append(f"{len(extra)} column(s) too many: {heads(extra, 5)}.")
    if len(set(columns)) < len(columns):
        faults.append(f"column(s) standing twice: {heads(sorted({c for c in columns if columns.count(c) > 1}), 5)}.")
    elif not missing and not extra and columns != expected:
        place = next(k for k, names in enumerate(zip(columns, expected, strict=True)) if names[0] != names[1])
        faults.append(
            f"columns are out of the task's order: column {place + 1} is '{columns[place]}' where "
            f"'{expected[place]}' belongs."
        )
    if wrong := [name for name in task.findings if unfit(name)]:
        faults.append(f"a spreadsheet would take column {wrong[0]!r} for a formula: rename the finding.")
    return faults


def _row_faults(frame: pd.DataFrame, task: Task, image_ids: Sequence[str] | np.ndarray) -> list[str]:
    if task.id_column not in frame:
        return []
    import pandas as pd

    expected = pd.Index(np.asarray(image_ids).astype(str))
    ids = pd.Index(frame[task.id_column].astype(str))
    faults = [
        (ids.difference(expected, sort=False), "image(s) are none of those to score"),
        (ids[ids.duplicated()].unique(), "image(s) have more than one row"),
        (ids[ids.str.contains(UNFIT, regex=True)], "image(s) would be taken for formulas by a spreadsheet"),
    ]
    sentences = [
        f"{len(bad):,} {fault}, the first in {_row(frame, task, ids.get_indexer_for(bad[:1])[0])}."
        for bad, fault in faults
        if len(bad)
    ]
    if len(missing := expected.difference(ids, sort=False)):
        count = f"{len(missing):,} of the {len(expected):,} image(s)"
        sentences.insert(0, f"{count} to score have no row{private_detail(missing[0])}.")
    return sentences


def _number_faults(
    frame: pd.DataFrame, task: Task, within: tuple[float, float] = (-math.inf, math.inf)
) -> Iterator[str]:
    """A sentence for each finding with values that are no finite numbers, or not `within` bounds."""
    import pandas as pd

    least, most = within
    for finding in task.findings:
        if finding not in frame or frame.columns.tolist().count(finding) > 1:
            continue  # a fault of the columns
        values = pd.to_numeric(frame[finding], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        finite = np.isfinite(values)
        outside = finite & ((values < least) | (values > most))
        for bad, fault in ((~finite, "no finite number"), (outside, f"outside {least:g} to {most:g}")):
            if bad.any():
                first = int(np.argmax(bad))
                yield (
                    f"'{finding}' has {bad.sum():,} value(s) that are {fault}, the first is "
                    f"{cell(frame[finding].iloc[first])} in {_row(frame, task, first)}."
                )


def _row(frame: pd.DataFrame, task: Task, place: int) -> str:
    """The row at `place` for a message, as its file counts it: of what was read, rows may have been left out."""
    from cxrlt_ray.data.readers.columns import row_of

    column = task.id_column
    return row_of(int(frame.index[place])) + (private_detail(frame[column].iloc[place]) if column in frame else "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
