"""Thresholds of findings from a table: columns `finding` and `threshold`, in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxrlt_ray.data.readers.columns import quoted, read_sheet, row_of
from cxrlt_ray.errors import UsageError
from cxrlt_ray.storage import Store


def read_thresholds(path: str, findings: Sequence[str]) -> np.ndarray:
    """The threshold of each of `findings`, [C]. Others in the table are not read.

    Raises UsageError for a missing finding and for what is no number from 0 to 1, CxrltError for what is no table.
    """
    store, name = Store.holding(path)
    sheet = read_sheet(store, name, text=("finding", "threshold"))
    sheet.need("finding", "threshold")
    rows = {finding: row for row, finding in enumerate(sheet.text("finding"))}
    if missing := [finding for finding in findings if finding not in rows]:
        raise UsageError(f"--thresholds {name} lacks {len(missing)} finding(s), such as {quoted(missing[:1])}.")
    values = []
    for finding in findings:
        try:
            value = float(sheet.text("threshold")[rows[finding]])
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1:
            raise UsageError(f"--thresholds {name}, {row_of(rows[finding])}: a threshold is a number from 0 to 1.")
        values.append(value)
    return np.array(values)
