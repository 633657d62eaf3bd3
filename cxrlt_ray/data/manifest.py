"""The manifest: one row an image, the one table that all code after the readers works on.

Columns: META (strings, age float32; unknown values are null), then one nullable int8 column per
finding: 1, 0 or null (not labelled). Stored as Parquet, with schema version, source, root and a
content fingerprint in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrlt_ray.data.two_labellings import TwoLabellings
from cxrlt_ray.errors import CxrltError

SCHEMA_VERSION = 1
COHORT, MAIN = "cohort", "main"
# report: the path of its text, or TABLE#ROW where it stands in a table's row (from 1)
# photometric: MONOCHROME1 where bright is low, in an image file that does not say so itself
# cohort: MAIN, or the name of another cohort, whose images only train
META = (
    "image_id", "study_id", "subject_id", "view", "path", "split", "sex", "age", "race", "report", "photometric",
    COHORT,
)  # fmt: skip
VIEWS = ("PA", "AP", "LATERAL", "OTHER", "UNKNOWN")
FRONTAL = ("PA", "AP")
# development: images of the release's development set while its labels are withheld
SPLITS = ("train", "val", "test", "development")
_KEY = b"cxrlt_ray"


@dataclass(frozen=True)
class Manifest:
    """A cohort.

    table: META columns, then `findings` as pandas Int8 (1, 0, <NA>), RangeIndex, in a fixed order.
    source: the reader's name. root: directory or URI that `path` is relative to. synthetic: cohorts whose images are
    generated: they train only, and count for no class weight.
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    source: str
    root: str
    synthetic: tuple[str, ...] = ()

    @property
    def generated(self) -> np.ndarray:
        """Which images are generated, bool [N]."""
        return self.cohorts.isin(self.synthetic).to_numpy(bool)

    @property
    def cohorts(self) -> pd.Series:
        """Whose image each row is: MAIN or another cohort's name, str [N]."""
        if COHORT not in self.table:
            return pd.Series(MAIN, self.table.index, "str")
        return self.table[COHORT].astype("str").fillna(MAIN)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, splits, paths and labels: it distinguishes predictions of different cohorts."""
        columns = ["image_id", "study_id", "subject_id", "path", "split"]
        digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, *self.findings]).encode())
        digest.update(pd.util.hash_pandas_object(self.table[columns].astype(str), index=False).to_numpy().tobytes())
        digest.update(self.targets().tobytes())
        return digest.hexdigest()[:16]

    def targets(self, findings: tuple[str, ...] | None = None) -> np.ndarray:
        """int8 [N, C]: 1, 0 or -1 where not labelled; a finding that is not in the manifest is -1 throughout."""
        findings = self.findings if findings is None else findings
        columns = [
            self.table[name].fillna(-1).to_numpy(np.int8)
            if name in self.table
            else np.full(len(self.table), -1, np.int8)
            for name in findings
        ]
        return np.column_stack(columns) if columns else np.empty((len(self.table), 0), np.int8)

    def where(self, rows: np.ndarray | pd.Series) -> Manifest:
        """The manifest of the rows for which the boolean mask `rows` [N] holds."""
        return replace(self, table=self.table[np.asarray(rows, bool)].reset_index(drop=True))

    def of_split(self, *splits: str) -> Manifest:
        """The manifest of the images of `splits`."""
        return self.where(self.table["split"].isin(splits))

    def of_cohort(self, *names: str) -> Manifest:
        """The manifest of the images of the cohorts `names`."""
        return self.where(self.cohorts.isin(names))

    def write(self, path: Path | str) -> None:
        """Write as Parquet: whole or not at all."""
        arrow = pa.Table.from_pandas(self.table, preserve_index=False)
        metadata = {
            "schema_version": SCHEMA_VERSION,
            "source": self.source,
            "root": self.root,
            "findings": self.findings,
            "fingerprint": self.fingerprint,
            "synthetic": self.synthetic,
        }
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), _KEY: json.dumps(metadata).encode()})
        part = f"{path}.part"
        pq.write_table(arrow, part)
        os.replace(part, path)

    @classmethod
    def read(cls, path: Path | str) -> Manifest:
        """Read what `write` wrote. Raises CxrltError for a file that is none or of another version.

        A file from before there were cohorts is of MAIN throughout.
        """
        try:
            arrow = pq.read_table(path)
            metadata = json.loads((arrow.schema.metadata or {})[_KEY])
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise CxrltError(f"{path} is not a manifest of cxrlt_ray ({error}).") from None
        if metadata["schema_version"] != SCHEMA_VERSION:
            raise CxrltError(f"{path} is a manifest of version {metadata['schema_version']}; this is {SCHEMA_VERSION}.")
        synthetic = tuple(metadata.get("synthetic", ()))  # a file from before there were any has none
        manifest = cls(arrow.to_pandas(), tuple(metadata["findings"]), metadata["source"], metadata["root"], synthetic)
        if COHORT not in manifest.table:
            manifest.table.insert(manifest.table.columns.isin(META).sum(), COHORT, manifest.cohorts)
        return manifest


@dataclass(frozen=True)
class Cohort:
    """A manifest, notes for a person on how it came about, and below which directory the images of each cohort lie.

    origins: of each of the manifest's images the `file` and the `row` (from 1) that name it. labellings: its own labels
    beside those that took their place.
    """

    manifest: Manifest
    notes: tuple[str, ...]
    roots: Mapping[str, str] = field(default_factory=dict)
    origins: pd.DataFrame = field(default_factory=pd.DataFrame)
    labellings: TwoLabellings | None = None


def studies(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Study and view of each image of a manifest's table; an image of no known study is a study of its own."""
    return table["study_id"].fillna(table["image_id"]).to_numpy(), table["view"].fillna("UNKNOWN").to_numpy()


def codes(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """`studies` as models take them, int64 [N]: a number for each study, and the view's index in VIEWS."""
    study, view = studies(table)
    number = {name: k for k, name in enumerate(VIEWS)}
    return np.unique(study.astype(str), return_inverse=True)[1], np.array([number[name] for name in view], np.int64)
