"""Where a fold's time goes."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Clock:
    """Seconds by part: `lap` adds the time since the last lap to a part, `first` notes a first event.

    parts: what passed before, in a process that was cut off.
    """

    def __init__(self, parts: Mapping[str, float] | None = None) -> None:
        self.start = self.last = time.monotonic()
        self.parts: dict[str, float] = dict(parts or {})

    def lap(self, part: str) -> None:
        """Add the time since the last lap to `part`."""
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now

    def first(self, event: str) -> None:
        """Note when `event` came for the first time, since the start."""
        if event not in self.parts:
            self.parts[event] = time.monotonic() - self.start

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and from the start to each first event."""
        return {name: round(value, 3) for name, value in self.parts.items()}
