"""JSON has neither nan nor infinities."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: nan and infinities in it, in dicts, lists and tuples too, become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
