"""CSV files that people open in a spreadsheet: no cell runs as a formula, and they are read by their owner alone."""

from __future__ import annotations

import os

import pandas as pd

from cxrlt_ray.privacy import inert
from cxrlt_ray.storage import Store


def write_csv(table: pd.DataFrame, path: str) -> None:
    """Write a table as CSV, whole or not at all; text cells and heads that a spreadsheet would run get a '."""
    columns = {
        inert(str(name)): column if pd.api.types.is_numeric_dtype(column) else column.map(inert, na_action="ignore")
        for name, column in table.items()
    }
    write_text(pd.DataFrame(columns, index=table.index).to_csv(index=False, lineterminator="\n"), path)


def write_text(text: str, path: str) -> None:
    """Write a file that may hold ids or words of reports: for this user alone, where it lies on a disk."""
    store, name = Store.holding(path)
    store.write(name, text.encode())
    if store.local is not None:
        os.chmod(store.local / name, 0o600)
