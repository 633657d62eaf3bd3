"""A directory of images without any table: each file is an image of a subject of its own, to be scored."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.files import IMAGE_SUFFIXES, image_files
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store


def recognise(data: Store, labelled: bool) -> str | None:
    """An image somewhere below, where no labels are asked for and no table exists."""
    if labelled or any(name.endswith((".csv", ".csv.gz")) for name in data.list()):
        return None
    return "images and no table" if next(image_files(data), None) else None


@register_reader(
    "images", f"image files ({' '.join(IMAGE_SUFFIXES)}) without a table, to be scored only", recognise, ()
)
def read(request: Request) -> Raw:
    """A row for each image file; the id is the file's name without suffix, or its path where names repeat."""
    if request.labelled:
        raise CxrltError(
            f"{request.data.uri}, read as images, has no labels: images can be scored (python -m cxrlt_ray.predict), "
            "but not trained on. A labels.csv beside them is needed: see format table."
        )
    path = pd.Series(sorted(image_files(request.data)), dtype="str")
    whole = path.str.replace(r"\.\w+$", "", regex=True)
    stem = whole.str.rsplit("/", n=1).str[-1]
    notes = []
    if stem.duplicated().any():
        notes.append("Names of images repeat across directories, so image_id is the path without its suffix.")
        stem = whole
    table = pd.DataFrame(
        {
            "image_id": stem,
            "study_id": stem,
            "subject_id": stem,
            "view": "UNKNOWN",
            "path": path,
            "split": "test",
            "file": "the directory",
            "row": np.arange(1, len(path) + 1),
        }
    )
    return Raw(table, (), request.data.uri, notes)
