"""Small tables of a run: a Parquet file with checksums, and what there is to know of it in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage.store import Store

KEY = b"cxrlt_ray"  # of the metadata


def write_table(store: Store, name: str, table: pd.DataFrame, about: Mapping[str, Any]) -> None:
    """Write the columns of a table, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pa.Table.from_pandas(table, preserve_index=False)
    content = content.replace_schema_metadata({KEY: json.dumps(dict(about)).encode()})
    with store.place(name) as path:
        pq.write_table(content, path, write_page_checksum=True)


def read_table(
    store: Store, name: str, what: str, key: str, columns: Sequence[str] | None = None
) -> tuple[pd.DataFrame, Any]:
    """What `write_table` wrote: `columns` of the table, or all, and what there is to know under `key`.

    Raises CxrltError for a file that is no such table of `what`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with store.fetched(name) as path:
            table = pq.read_table(path, page_checksum_verification=True)
        about = json.loads((table.schema.metadata or {})[KEY])[key]
        kept = table if columns is None else table.select(list(columns))
        return kept.replace_schema_metadata(None).to_pandas(), about
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise CxrltError(f"{store.uri}/{name} is no table of {what} ({type(error).__name__}).") from None
