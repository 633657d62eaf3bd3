"""Ids that pandas or Excel has made numbers of: those that can be read back, and those that are lost.

A column of whole numbers with gaps is written as 100.0: that is 100. A number beyond 2^53 is rounded when it is read
as a float, and written in exponent form (3.24e+38) or with digits that are none of its own (123456789012345000):
many ids become one, patients merge, and a split by subject no longer parts them.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

EXPONENT = r"^[+\-]?\d+(?:[.,]\d+)?[eE]\+\d+$|^[+\-]?\d+[.,]\d+[eE]\d+$"  # not 12e5, which may be a hexadecimal id
LONG = 2**53  # above, not every whole number is a float
EXCEL_DIGITS = 15
UNLIKELY = 1e-4
AS_TEXT = (
    "write the table anew from its source with them as text (pandas: read_csv(..., dtype={{'{name}': str}}); Excel: "
    "import the column as text, by Data > From Text/CSV)"
)


def whole_ids(cells: pd.Series) -> pd.Series:
    """Ids without the '.0' that a column of numbers with gaps gets when it is written; others as they are.

    >>> whole_ids(pd.Series(["100.0", "7", ""])).tolist(), whole_ids(pd.Series(["1.0", "1.1"])).tolist()
    (['100', '7', ''], ['1.0', '1.1'])
    """
    pointed = cells.str.contains(r"^\d+[.,]0+$", regex=True)
    if not pointed.any() or cells.str.contains(r"^\d+[.,]\d*[1-9]\d*$", regex=True).any():
        return cells
    return cells.where(~pointed, cells.str.replace(r"[.,]0+$", "", regex=True))


def lossy(cells: pd.Series) -> np.ndarray:
    """Which ids [N] have lost digits, bool: those in exponent form, or all long ones where all are rounded."""
    exponents = cells.str.contains(EXPONENT, regex=True).to_numpy(bool)
    if exponents.any():
        return exponents
    whole = whole_ids(cells)
    long = (whole.str.len() > EXCEL_DIGITS) & whole.str.contains(r"^\d+$", regex=True)
    texts = whole[long].unique()
    numbers = [text for text in texts if int(text) > LONG]
    rounded = numbers and _chance(numbers) < UNLIKELY
    return (whole.isin(numbers) if rounded else pd.Series(False, cells.index)).to_numpy(bool)


def _chance(numbers: list[str]) -> float:
    """How likely it is that ids which were never rounded all look as if they were, by a float or by Excel."""
    as_float = math.prod(1.0 if _is_float(int(text)) else math.inf for text in numbers)
    bits = sum(int(text).bit_length() - 53 for text in numbers)
    zeros = all(re.search(f"0{{{len(text) - EXCEL_DIGITS}}}$", text) for text in numbers)
    spare = sum(len(text) - EXCEL_DIGITS for text in numbers)
    return min(2.0**-bits if as_float == 1 else 1.0, 10.0**-spare if zeros else 1.0)


def _is_float(number: int) -> bool:
    return number < 10**300 and int(float(number)) == number


def lossy_problem(file: str, name: str, cells: pd.Series) -> str | None:
    """A sentence where a column's ids have lost digits, and what to do; none of them is shown."""
    bad = lossy(cells)
    if not bad.any():
        return None
    form = "in exponent form (as 3.2e+38)" if cells[bad].str.contains(EXPONENT, regex=True).any() else "rounded"
    count, left = int(bad.sum()), cells[bad].nunique()
    return (
        f"{file}: column '{name}' holds numbers {form} in {count:,} rows, {left:,} different ones: pandas or Excel has "
        f"made floats of the ids, which merges patients, studies or images. The digits are lost here: "
        f"{AS_TEXT.format(name=name)}."
    )


def disagreement(file: str, subjects: pd.Series, true: pd.Series, source: str) -> str | None:
    """A sentence where the subject ids [N] are fewer than, or part otherwise, the `true` ones [N] of another table.

    true: null where the other table does not have the image. How the two write an id does not matter.
    """
    pairs = pd.DataFrame({"own": subjects.to_numpy(), "true": true.to_numpy()}).dropna().drop_duplicates()
    merged = pairs["own"].duplicated(keep=False)
    if not merged.any():
        return None
    return (
        f"{file}: {pairs.loc[merged, 'own'].nunique():,} of its subjects are several patients each in {source} "
        f"({pairs.loc[merged, 'true'].nunique():,} together): the ids have lost digits, or are of other images. "
        f"Take them from {source}."
    )
