"""Names of findings as files write them: other case, blanks, - and _ are read; of others the nearest are proposed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from cxrlt_ray.data import column_names
from cxrlt_ray.privacy import heads

if TYPE_CHECKING:
    import pandas as pd


def renamed(frame: pd.DataFrame, names: Iterable[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """`frame` with those of its columns renamed to `names` that mean them alone, and which: {own: name}.

    A column means a name that is no column, where both are written alike but for case, blanks, - and _.
    """
    changes = column_names.renamed(list(frame), names, _form)
    return (frame.rename(columns=changes) if changes else frame), changes


def columns_text(columns: Sequence[str], missing: Sequence[str]) -> str:
    """For a message on `missing` columns: what the file has, shortened, and what it may have in their place.

    >>> columns_text(["effusion", "Masses"], ["Mass", "Effusion"])
    "it has 'effusion', 'Masses' (near: 'Masses' for 'Mass', 'effusion' for 'Effusion')"
    """
    near = {name: match for name in missing if (match := nearest(name, columns))}
    pairs = ", ".join(f"{heads([match])} for '{name}'" for name, match in list(near.items())[:3])
    return f"it has {heads(columns, 5) or 'no other'}" + (f" (near: {pairs})" if pairs else "")


def nearest(name: str, columns: Sequence[str]) -> str | None:
    """The column that is written nearest to `name`; None where none is near."""
    by_form = {_form(column): column for column in columns}
    close = get_close_matches(_form(name), list(by_form), n=1, cutoff=0.75)
    return by_form[close[0]] if close else None


def _form(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", str(name)).casefold()
