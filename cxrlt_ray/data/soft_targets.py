"""Soft targets: stored predictions beside the manifest, for images and findings of it.

A Parquet file with a column `image_id` and a float column a finding: probabilities, null where there is none. Scores of
another scale are read as `score_scale` says.
What `ensemble`, `predict` and a trial with folds leave (predictions.parquet, predictions/val.parquet) is of this form.
The manifest's own columns stay 1, 0 or null: a label is never overwritten. Where the predictions came from is kept as
their provenance.

Pseudo-labels (`python -m cxrlt_ray.pseudo`) are soft targets whose teacher is on record. They stand for labels that are
missing: a cell with a label has none. With folds they have a column `fold` and a row for each image and fold.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.score_scale import read_scores, rounded
from cxrlt_ray.data.teacher import Teacher, parse_teacher
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import Store

FILE = "soft_targets.parquet"  # in a run
KEY = b"cxrlt_ray"  # of the metadata
FOLD = "fold"  # a column beside image_id: of which fold's teacher a row is


@dataclass(frozen=True)
class SoftTargets:
    """Probabilities float32, index image_id, a column a finding, nan where there is none; and where they came from.

    notes: on how the file's scores were read. teacher: of pseudo-labels; None of other predictions. folds: with a
    teacher a fold, each fold's table, of which `table` is the mean; () otherwise.
    """

    table: pd.DataFrame = field(repr=False)
    provenance: str
    notes: tuple[str, ...] = ()
    teacher: Teacher | None = None
    folds: tuple[pd.DataFrame, ...] = field(default=(), repr=False)

    def at(self, image_ids: np.ndarray, findings: Sequence[str], fold: int | None = None) -> np.ndarray:
        """float32 [N, C] of images and findings, in their order; nan for those that are not in the table.

        fold: by the teacher of this fold, where there is one; else by the mean of all.
        """
        table = self.table if fold is None or fold >= len(self.folds) else self.folds[fold]
        return table.reindex(index=image_ids, columns=list(findings)).to_numpy(np.float32)

    @property
    def transductive(self) -> bool:
        """Whether they are of test images, too."""
        return self.teacher is not None and self.teacher.transductive

    def check(self, manifest: Manifest, findings: Sequence[str]) -> list[str]:
        """What to tell of how they fit a cohort. Raises UsageError where no image or no finding is in both."""
        shared = [finding for finding in findings if finding in self.table.columns]
        if not shared:
            raise UsageError(
                f"--soft-targets has none of the findings that are trained; its columns are "
                f"{', '.join(map(str, self.table.columns[:8]))}."
            )
        training = manifest.of_split("train", *(["test"] if self.transductive else [])).table["image_id"]
        matched = int(training.isin(self.table.index).sum())
        if not matched:
            cohorts = [name for name in (self.teacher.images if self.teacher else ()) if name not in (MAIN, "test")]
            raise UsageError(
                "--soft-targets has none of the cohort's training images: "
                + (f"give {' '.join(f'--cohort {name}=DIR' for name in cohorts)} too." if cohorts else "")
                + ("" if cohorts else "are they of another cohort?")
            )
        count = f"{matched:,} of {len(training):,} training images, {len(shared)} of {len(findings)} findings"
        return [f"Soft targets: {count}", *(f"Soft targets: {note}" for note in self.notes)]

    def write(self, store: Store, name: str = FILE) -> None:
        """Write them as a Parquet file, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folds = [part.assign(**{FOLD: fold}) for fold, part in enumerate(self.folds)]
        frame = pd.concat(folds) if folds else self.table
        about: dict[str, object] = {"provenance": self.provenance}
        if self.teacher is not None:
            about["teacher"] = self.teacher.model_dump(mode="json")
        table = pa.Table.from_pandas(frame.reset_index(), preserve_index=False)
        table = table.replace_schema_metadata({KEY: json.dumps(about).encode()})
        with store.place(name) as path:
            pq.write_table(table, path, write_page_checksum=True)


def read_soft_targets(uri: str) -> SoftTargets:
    """The soft targets in a Parquet file or URI. Raises UsageError for a file that is not of this form."""
    return read_from(*Store.holding(uri), uri)


def read_from(store: Store, name: str = FILE, uri: str = "") -> SoftTargets:
    """The soft targets in file `name` of `store`. Raises UsageError as `read_soft_targets` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = f"--soft-targets {uri or name}"
    try:
        content = store.read(name)
    except CxrltError as error:
        raise UsageError(f"{where} cannot be read: {error}") from None
    try:
        parquet = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UsageError(f"{where} is no Parquet file ({' '.join(str(error).split())[:120]}).") from None
    table = parquet.to_pandas()
    if "image_id" not in table.columns:
        raise UsageError(f"{where} has no column image_id: give a table of predictions, keyed by image.")
    table = table.assign(image_id=table["image_id"].astype(str)).set_index("image_id")
    about = _about(parquet.schema.metadata)
    teacher = parse_teacher(about["teacher"], where) if "teacher" in about else None
    fold = table.pop(FOLD).to_numpy() if teacher is not None and FOLD in table else np.zeros(len(table), np.int64)
    if pd.MultiIndex.from_arrays([table.index, fold]).has_duplicates:
        raise UsageError(f"{where} has images twice: {int(table.index.duplicated().sum())} rows repeat an image_id.")
    wrong = [str(column) for column, kind in table.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if wrong:
        raise UsageError(f"{where}: column '{wrong[0]}' does not hold numbers.")
    scores, findings = table.to_numpy(np.float64, na_value=np.nan), [str(column) for column in table.columns]
    if (infinite := np.isinf(scores).any(axis=0)).any():
        raise UsageError(f"{where}: column '{findings[int(infinite.argmax())]}' holds infinite numbers.")
    try:
        scaled = read_scores(scores, findings, where, name=uri or name, mend="convert them to probabilities")
    except CxrltError as error:
        raise UsageError(str(error)) from None
    table = pd.DataFrame(rounded(scaled.probabilities), table.index, findings)
    folds = tuple(table[fold == k] for k in range(teacher.folds)) if teacher is not None else ()
    if folds:
        table = table.groupby(level=0, sort=False).mean()
    return SoftTargets(table, _provenance(about, content, uri or name), tuple(scaled.notes), teacher, folds)


def _about(metadata: dict[bytes, bytes] | None) -> dict[str, object]:
    """What a file says of itself."""
    try:
        about = json.loads((metadata or {}).get(KEY, b"{}"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _provenance(about: dict[str, object], content: bytes, uri: str) -> str:
    """Where predictions came from: as an earlier run recorded it, else the file, what it says of itself, its digest."""
    if "provenance" in about:
        return str(about["provenance"])
    details = ", ".join(f"{key} {about[key]}" for key in ("split", "fingerprint", "precision") if about.get(key))
    digest = hashlib.sha256(content).hexdigest()[:12]
    return f"{uri} (sha256 {digest}{', ' + details if details else ''})"
