"""Labels of seen findings that were mined from reports, on track `mined`: what the model of a fold learns of its own.

As the labels of asked findings are mined there, so are those by which trials are compared: the model of a fold learns
its fold's findings from mined labels, and is judged by the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.tables import read_table, write_table

MINED_FILE, VERSION = "mined.parquet", 1


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
        write_table(store, MINED_FILE, self.table.rename_axis("image_id").reset_index(), {"version": VERSION})

    @classmethod
    def read(cls, store: Store) -> MinedLabels:
        """What `write` wrote. Raises CxrltError for a file that is no such table, or of another version."""
        table, version = read_table(store, MINED_FILE, "mined labels", "version")
        if version != VERSION:
            raise CxrltError(f"{store.uri}/{MINED_FILE} is of version {version}, not {VERSION}: start a new run.")
        return cls(table.set_index("image_id").astype("Int8"))
