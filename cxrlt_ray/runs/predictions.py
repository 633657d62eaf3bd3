"""Predictions on disk: Parquet keyed by image_id, one float32 column a finding, and what they are of in the metadata.

They are refused where they do not fit the run that reads them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

KEY = b"cxrlt_ray"  # of the metadata
TTA = "-tta"  # ends the split's name of predictions under test-time augmentation


@dataclass(frozen=True)
class Predictions:
    """Probabilities of images, and what they are of.

    image_id: [N]. probabilities: float [N, C] in [0, 1]. findings: [C] names. split: of the manifest whose fingerprint
    is `fingerprint`; precision: of the forward passes, fp32 or bf16; None where it is not known. track: what training
    had seen of findings asked for by text (data/asking.py); None where none was.
    """

    image_id: np.ndarray
    probabilities: np.ndarray = field(repr=False)
    findings: tuple[str, ...]
    split: str
    fingerprint: str
    precision: str | None = None
    track: str | None = None

    def __post_init__(self) -> None:
        if self.probabilities.shape != (len(self.image_id), len(self.findings)):
            raise ValueError(
                f"probabilities of shape {self.probabilities.shape} are not of {len(self.image_id)} images and "
                f"{len(self.findings)} findings"
            )

    def frame(self) -> pd.DataFrame:
        """float32, index image_id, a column a finding."""
        index = pd.Index(self.image_id, name="image_id", dtype="str")
        return pd.DataFrame(self.probabilities, index, list(self.findings), np.float32)

    def write(self, store: Store, name: str) -> None:
        """Write the predictions as Parquet file `name`, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"image_id": pa.array(list(self.image_id), pa.string())}
        columns |= {name: pa.array(self.probabilities[:, c], pa.float32()) for c, name in enumerate(self.findings)}
        metadata = {"findings": list(self.findings), "split": self.split, "fingerprint": self.fingerprint}
        metadata |= {key: value for key in ("precision", "track") if (value := getattr(self, key)) is not None}
        table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(metadata).encode()})
        with store.place(name) as path:
            pq.write_table(table, path, write_page_checksum=True)


def augmented_name(split: str, tta: bool) -> str:
    """The name under which predictions of `split` are kept; those under test-time augmentation have their own."""
    return f"{split}{TTA}" if tta else split


def read_predictions(
    store: Store, name: str, findings: list[str] | tuple[str, ...], split: str, fingerprint: str
) -> Predictions:
    """Read and check what `Predictions.write` wrote. Raises CxrltError naming the file that does not fit."""
    where = f"{store.uri}/{name}"
    table, metadata = _read(store, name)
    expected = {"findings": list(findings), "split": split, "fingerprint": fingerprint}
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise CxrltError(
                f"{where} does not fit this run: its {key} is {cli.shortened(metadata.get(key))}, the run's "
                f"{cli.shortened(value)}; it was made on another cohort or task."
            )
    if table.column_names != ["image_id", *findings]:
        raise CxrltError(f"{where} is damaged: its columns are not the findings that it says it has.")
    scores = np.empty((len(findings), len(table)), np.float32)  # a finding's lie together, as they do in the file
    for c, finding in enumerate(findings):
        scores[c] = table.column(finding).to_numpy()
    ids = table.column("image_id").to_numpy()
    known = (metadata.get("precision"), metadata.get("track"))
    return Predictions(ids, scores.T, tuple(findings), split, fingerprint, *known)


def split_of(store: Store, name: str) -> str | None:
    """The split that predictions are of; None without the file. Raises CxrltError where it is damaged."""
    if not store.exists(name):
        return None
    with _checked(store, name):
        return str(_metadata(_parquet(store, name).schema_arrow)["split"])


def _read(store: Store, name: str) -> tuple[pa.Table, dict[str, str]]:
    with _checked(store, name):
        # of small files threads cost more than they bring; many are read at once
        table = _parquet(store, name).read(use_threads=False)
        return table, _metadata(table.schema)


def _parquet(store: Store, name: str) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    return pq.ParquetFile(io.BytesIO(store.read(name)), page_checksum_verification=True)


def _metadata(schema: pa.Schema) -> dict[str, str]:
    metadata: dict[str, str] = json.loads((schema.metadata or {})[KEY])
    return metadata


@contextmanager
def _checked(store: Store, name: str) -> Iterator[None]:
    """Raises CxrltError where what is read in its course is no file of predictions."""
    import pyarrow as pa

    try:
        yield
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise CxrltError(f"{store.uri}/{name} is not a file of predictions ({error}).") from None
