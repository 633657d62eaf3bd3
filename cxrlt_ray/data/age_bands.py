"""Ages in bands: a module that imports nothing heavy, as the phantom's drawing processes load it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"  # the group of images whose group is not known
AGE_BANDS = {0: "0-17", 18: "18-39", 40: "40-59", 60: "60-79", 80: "80+"}  # from how many years on


def age_bands(years: pd.Series) -> pd.Series:
    """The band of AGE_BANDS of ages in years [N]; UNKNOWN where null or negative.

    >>> import pandas as pd
    >>> age_bands(pd.Series([17.9, 40, None])).tolist()
    ['0-17', '40-59', 'unknown']
    """
    import numpy as np
    import pandas as pd

    edges = [*AGE_BANDS, np.inf]
    bands = pd.cut(years.astype("float64"), edges, right=False, labels=list(AGE_BANDS.values()))
    return bands.astype("object").where(bands.notna(), UNKNOWN)
