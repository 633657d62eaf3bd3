"""The first sheet of an Excel workbook as CSV, by pandas and openpyxl (an extra, imported when it is needed)."""

from __future__ import annotations

import csv
import io
import zipfile
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from cxrlt_ray.privacy import check_unpacked

MEMBER = "xl/workbook.xml"  # what tells a workbook from another zip
OLD_EXCEL = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
SAVE_AS = "save it as 'CSV UTF-8'"


def is_workbook(archive: zipfile.ZipFile) -> bool:
    """Whether a zip is an .xlsx."""
    return MEMBER in archive.namelist()


def as_csv(content: bytes) -> tuple[bytes, str]:
    """An .xlsx's first sheet as UTF-8 CSV, each cell as it was typed, and what to say of the others.

    Raises ValueError where openpyxl is not installed, the file is damaged, or it would unpack to far more than a table.
    """
    import pandas as pd

    if find_spec("openpyxl") is None:
        raise ValueError(f"it is an Excel file, which needs openpyxl: pip install 'cxrlt-ray[excel]', or {SAVE_AS}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            check_unpacked(entry)
    try:
        with pd.ExcelFile(io.BytesIO(content), engine="openpyxl") as book:
            names = list(map(str, book.sheet_names))
            frame = pd.read_excel(book, header=None, dtype=object, keep_default_na=False, na_filter=False)
    except (KeyError, OSError, TypeError, AttributeError) as error:
        raise ValueError(f"it is an Excel file that cannot be opened ({type(error).__name__}): {SAVE_AS}") from None
    rows = ([_written(value) for value in row] for row in frame.itertuples(index=False))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(row for row in rows if any(row))
    return text.getvalue().encode(), f"sheet 1 of {len(names)}" if len(names) > 1 else ""


def _written(value: Any) -> str:
    """A cell as CSV has it: whole numbers without a point, days without a time."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    return str(value)
