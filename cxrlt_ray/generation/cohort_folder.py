"""Generated images as a cohort of the plain form that `--cohort synthetic=DIR` joins.

    DIR/images/g000000.png ...
       /draws.parquet      image_id, set, seed, and the training subject that it descends from: not to be shared
       /contact_sheet.png  what a person looks at
       /generate.json      GeneratedRecord, which marks the images as generated
       /labels.csv         written last: image_id, path, subject_id, split, view, and the findings that were asked for

Until then generate.unfinished.json holds how the images are drawn, and the same command goes on. A generated image is a
subject of its own.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers.table import FILE as LABELS
from cxrlt_ray.errors import UsageError
from cxrlt_ray.generation.conditions import Conditions
from cxrlt_ray.generation.records import GENERATED, GeneratedRecord
from cxrlt_ray.generation.training_rows import TrainingRows
from cxrlt_ray.storage import Store

IMAGES, DRAWS, SHEET = "images", "draws.parquet", "contact_sheet.png"
UNFINISHED = "generate.unfinished.json"


@dataclass(frozen=True)
class Generated:
    """A folder of generated images: its record and a row an image.

    table: image_id, path, set, and int8 columns of record.learnt.findings, -1 where a finding was left open. source:
    str [N], training subjects, or None where the folder does not say.
    """

    store: Store
    record: GeneratedRecord
    table: pd.DataFrame
    source: np.ndarray | None

    @property
    def findings(self) -> tuple[str, ...]:
        """The generator's findings [C]."""
        return self.record.learnt.findings

    @property
    def targets(self) -> np.ndarray:
        """What the images were to show, int8 [N, C]."""
        return self.table[list(self.findings)].to_numpy(np.int8)


def names_of(count: int) -> list[str]:
    """The ids of images by their number."""
    return [f"g{number:06d}" for number in range(count)]


def path_of(image_id: str) -> str:
    """Where an image lies in its folder."""
    return f"{IMAGES}/{image_id}.png"


def is_whole(store: Store) -> bool:
    """Whether all of a folder was written."""
    return store.exists(LABELS) and store.exists(GENERATED)


def write_tables(
    store: Store, record: GeneratedRecord, conditions: Conditions, rows: TrainingRows, names: list[str]
) -> None:
    """Leave draws, record and, last, labels of images that are all there."""
    draws = pd.DataFrame(
        {
            "image_id": names,
            "set": conditions.of,
            "seed": conditions.seed,
            "source_subject": rows.subject[conditions.source].astype(str),
        }
    )
    sink = io.BytesIO()
    draws.to_parquet(sink, index=False)
    store.write(DRAWS, sink.getvalue())
    write_labels(store, record, names, conditions.vectors)


def write_labels(store: Store, record: GeneratedRecord, names: list[str], vectors: np.ndarray) -> None:
    """Leave the record and, last, the labels int8 [N, C]: what is open is empty."""
    meta = pd.DataFrame(
        {
            "image_id": names,
            "path": [path_of(name) for name in names],
            "subject_id": names,
            "split": "train",
            "view": record.learnt.view,
        }
    )
    labels = pd.DataFrame(vectors, columns=list(record.learnt.findings)).astype("Int8")
    table = pd.concat([meta, labels.mask(labels < 0)], axis=1)
    record.write(store, GENERATED)
    store.write(LABELS, table.to_csv(index=False).encode())


def read_generated(folder: str) -> Generated:
    """The images of a folder. Raises UsageError where it is none of generated images, or is unfinished."""
    store = Store(folder).absolute()
    if store.exists(UNFINISHED) and not is_whole(store):
        raise UsageError(f"{folder} is unfinished: give its `generate sample` again, which goes on.")
    if not is_whole(store):
        raise UsageError(f"{folder} holds no generated images (no {GENERATED} and {LABELS}).")
    record = GeneratedRecord.read(store, GENERATED)
    labels = pd.read_csv(io.BytesIO(store.read(LABELS)), dtype={"image_id": str, "path": str})
    findings = list(record.learnt.findings)
    if missing := [name for name in (*findings, "image_id", "path") if name not in labels]:
        raise UsageError(f"{folder}/{LABELS} lacks the column '{missing[0]}' that {GENERATED} names.")
    if labels.empty:
        raise UsageError(f"{folder} has no images.")
    table = pd.concat([labels[["image_id", "path"]], labels[findings].fillna(-1).astype(np.int8)], axis=1)
    if not store.exists(DRAWS):
        return Generated(store, record, table.assign(set=""), None)
    draws = pd.read_parquet(io.BytesIO(store.read(DRAWS))).set_index("image_id").reindex(table["image_id"])
    return Generated(store, record, table.assign(set=draws["set"].to_numpy()), draws["source_subject"].to_numpy(str))
