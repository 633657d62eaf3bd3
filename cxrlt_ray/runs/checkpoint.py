"""Whether a checkpoint is whole, without reading its weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path


def whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says; of what it says nothing is read."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False
