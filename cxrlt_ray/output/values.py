"""Values as JSON holds them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import PurePath


def plain(value: object) -> object:
    """`value` as JSON can hold it.

    nan and infinities become null, numpy's numbers and arrays plain ones, dataclasses dicts, paths and anything else
    text.

    >>> plain({"score": float("nan"), "bounds": (0.25, 0.5)})
    {'score': None, 'bounds': [0.25, 0.5]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value) if isinstance(value, PurePath) or type(value).__str__ is not object.__str__ else repr(value)
