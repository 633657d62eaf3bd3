"""Labels of seen findings that were mined from reports, on track `mined`: what the model of a fold learns of its own.

As the labels of asked findings are mined there, so are those by which trials are compared: the model of a fold learns
its fold's findings from mined labels, and is judged by the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

MINED_FILE, VERSION = "mined.parquet", 1
KEY = b"cxrlt_ray"  # of the metadata


@dataclass(frozen=True, eq=False)
class MinedLabels:
    """table: Int8 by image_id, a column a finding: 1, 0, or null where the report says nothing that can be used."""

    table: pd.DataFrame

    def at(self, image_id: Sequence[str] | np.ndarray, findings: Sequence[str]) -> np.ndarray:
        """int8 [N, C] of images and findings; -1 where there is no label, of other images and findings too."""
        known = self.table.reindex(index=pd.Index(image_id), columns=list(findings))
        return known.astype("Int8").fillna(-1).to_numpy(np.int8)

    def write(self, store: Store) -> None:
        """Write them as a Parquet file, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(self.table.rename_axis("image_id").reset_index(), preserve_index=False)
        table = table.replace_schema_metadata({KEY: json.dumps({"version": VERSION}).encode()})
        with store.place(MINED_FILE) as path:
            pq.write_table(table, path, write_page_checksum=True)

    @classmethod
    def read(cls, store: Store) -> MinedLabels:
        """What `write` wrote. Raises CxrltError for a file that is no such table, or of another version."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with store.fetched(MINED_FILE) as path:
                table = pq.read_table(path, page_checksum_verification=True)
            if json.loads((table.schema.metadata or {})[KEY])["version"] != VERSION:
                raise ValueError("another version")
            return cls(table.replace_schema_metadata(None).to_pandas().set_index("image_id").astype("Int8"))
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise CxrltError(
                f"{store.uri}/{MINED_FILE} is no table of mined labels ({type(error).__name__})."
            ) from None
