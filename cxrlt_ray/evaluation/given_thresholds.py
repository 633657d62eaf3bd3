"""Thresholds of findings from a table: columns `finding` and `threshold`, in [0, 1].

An ensemble's thresholds.csv is such a table: of one aim, which column `aim` names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxrlt_ray.data.readers.columns import quoted, read_sheet, row_of
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.thresholds import Aim
from cxrlt_ray.storage import Store

FILE = "thresholds.csv"  # of an ensemble


def read_thresholds(path: str, findings: Sequence[str]) -> np.ndarray:
    """The threshold of each of `findings`, [C]. Others in the table are not read.

    Raises UsageError for a finding that is missing or has two thresholds and for what is no number from 0 to 1,
    CxrltError for what is no table.
    """
    store, name = Store.holding(path)
    sheet = read_sheet(store, name, text=("finding", "threshold"))
    sheet.need("finding", "threshold")
    rows: dict[str, int] = {}
    cells = sheet.text("threshold")
    for row, finding in enumerate(sheet.text("finding")):
        if cells[rows.setdefault(finding, row)] != cells[row] and finding in findings:
            raise UsageError(
                f"--thresholds {name}, {row_of(row)}: {quoted([finding])} has another threshold in an earlier row. "
                "Leave one of each finding; of an ensemble's thresholds.csv name the aim: --thresholds f1."
            )
    if missing := [finding for finding in findings if finding not in rows]:
        raise UsageError(f"--thresholds {name} lacks {len(missing)} finding(s), such as {quoted(missing[:1])}.")
    values = []
    for finding in findings:
        try:
            value = float(cells[rows[finding]])
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1:
            raise UsageError(f"--thresholds {name}, {row_of(rows[finding])}: a threshold is a number from 0 to 1.")
        values.append(value)
    return np.array(values)


def thresholds_of(folder: Store, aim: Aim, findings: Sequence[str]) -> np.ndarray:
    """The thresholds of `findings` [C] that the ensemble in `folder` was made with for an aim; nan where it has none.

    An aim has none for a finding without positives in validation, and those for critical findings for these alone.
    Raises UsageError where the ensemble was made without this aim.
    """
    wanted: dict[str, float] = {}
    aims: list[str] = []
    if folder.exists(FILE):
        sheet = read_sheet(folder, FILE, text=("finding", "aim", "threshold"))
        sheet.need("finding", "aim", "threshold")
        aims = list(dict.fromkeys(sheet.text("aim")))
        rows = zip(*(sheet.text(name) for name in ("finding", "aim", "threshold")), strict=True)
        wanted = {finding: float(value) for finding, of, value in rows if of == str(aim)}
    if not wanted:
        kept = f"it has those of {', '.join(aims)}" if aims else "it has none"
        raise UsageError(
            f"--thresholds {aim}: the ensemble was made without thresholds of this aim ({kept}). `python -m "
            f"cxrlt_ray.ensemble --thresholds {aim}` chooses them."
        )
    return np.array([wanted.get(finding, np.nan) for finding in findings])
