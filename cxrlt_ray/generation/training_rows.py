"""The images that a generator learns: real ones of the train split, and what it keeps of them to draw conditions.

GENERATOR/training.parquet      image_id, subject_id, and 1, 0 or -1 of each finding; patients' ids are in it
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import FRONTAL, MAIN, Manifest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import Store

FILE = "training.parquet"
ALL_VIEWS = "all"
VIEWS = ("frontal", ALL_VIEWS)


@dataclass(frozen=True)
class TrainingRows:
    """N training images: image_id and subject [N], targets int8 [N, C] of `findings`."""

    image_id: np.ndarray
    subject: np.ndarray
    targets: np.ndarray
    findings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_id)

    def write(self, store: Store) -> None:
        """Keep them in a generator's directory."""
        labels = pd.DataFrame(self.targets, columns=list(self.findings))
        table = pd.concat([pd.DataFrame({"image_id": self.image_id, "subject_id": self.subject}), labels], axis=1)
        sink = io.BytesIO()
        table.to_parquet(sink, index=False)
        store.write(FILE, sink.getvalue())

    @classmethod
    def read(cls, store: Store, findings: tuple[str, ...]) -> TrainingRows:
        """What `write` kept. Raises CxrltError where it is of other findings."""
        table = pd.read_parquet(io.BytesIO(store.read(FILE)))
        if tuple(table.columns[2:]) != findings:
            raise CxrltError(f"{store.uri}/{FILE} is of other findings than the generator: it is damaged.")
        image_id, subject = (table[name].to_numpy(object) for name in ("image_id", "subject_id"))
        return cls(image_id, subject, table[list(findings)].to_numpy(np.int8), findings)


def training_part(manifest: Manifest, views: str, say: Callable[[str], None]) -> Manifest:
    """The real images of the train split that a generator may learn.

    views: `frontal`, PA and AP, or `all`; where no view is known, all images are taken. Raises UsageError where there
    are no images of split train, or none of the views.
    """
    training = manifest.of_cohort(MAIN).of_split("train")
    training = training.where(~training.generated)
    if not len(training.table):
        raise UsageError("the data has no images of split train: all of its subjects are in other splits.")
    if views == ALL_VIEWS:
        return training
    if (training.table["view"] == "UNKNOWN").all():
        say("The data names no view of its images: all of them are learnt")
        return training
    frontal = training.where(training.table["view"].isin(FRONTAL))
    if not len(frontal.table):
        raise UsageError("--views frontal leaves no training image: give --views all.")
    return frontal


def rows_of(manifest: Manifest, findings: tuple[str, ...], prepared: np.ndarray) -> TrainingRows:
    """The rows of a manifest whose images were prepared: those with their ids in `prepared`.

    Raises UsageError for data without labels, and where no image could be prepared.
    """
    table = manifest.table
    kept = table["image_id"].isin(prepared).to_numpy()
    if not kept.any():
        raise UsageError(
            "none of the training images could be read: `python -m cxrlt_ray.cohort DIR --images` says why."
        )
    targets = manifest.targets(findings)[kept]
    if not (targets == 1).any():
        raise UsageError("no training image has a positive label: a generator learns findings from labels.")
    image_id, subject = (table.loc[kept, name].to_numpy(object) for name in ("image_id", "subject_id"))
    return TrainingRows(image_id, subject, targets, findings)


def subjects_fingerprint(subjects: np.ndarray) -> str:
    """16 hex digits of a set of subjects, in whatever order."""
    return hashlib.sha256("\n".join(sorted(set(map(str, subjects)))).encode()).hexdigest()[:16]
