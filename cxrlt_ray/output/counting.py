"""How far a long work is: counted here, shown by the form of output."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


def duration(seconds: float) -> str:
    """A length of time as people say it: 40 s, 12 min, 3.5 h, 2.1 days."""
    for most, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < most:
            return f"{seconds / unit:.1f} {name}" if name == "h" else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.1f} days"


@dataclass
class Counter:
    """Counts the parts of a work that are done.

    noun: what is counted. total: of the work. show: is given the counter at each change, and decides what is shown.
    reported: when something was last shown, by time.monotonic(). closed: the work has ended. text: its line for people,
    where it is not the usual one; an empty one is not printed.
    """

    noun: str
    total: int
    show: Callable[[Counter], None]
    done: float = 0
    closed: bool = False
    started: float = field(default_factory=lambda: time.monotonic())
    reported: float = field(default_factory=lambda: time.monotonic())
    known_left: float | None = None
    text: Callable[[Counter], str] | None = None

    def __enter__(self) -> Self:
        self.show(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.closed = True
        self.show(self)

    def __getstate__(self) -> dict[str, object]:
        """Without the form that shows it, whose streams and bars are this process's own: a copy shows nothing."""
        return {**self.__dict__, "show": unseen}

    def advance(self, count: float = 1, seconds_left: float | None = None) -> None:
        """So many more are done. seconds_left: where the caller knows better than the mean rate tells."""
        self.done += count
        self.known_left = seconds_left
        self.show(self)

    def due(self, seconds: float) -> bool:
        """Whether nothing was shown for so long; if so, it counts as shown now."""
        now = time.monotonic()
        if now - self.reported <= seconds:
            return False
        self.reported = now
        return True

    @property
    def rate(self) -> float:
        """Parts a second so far."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Until the work is done; None where nothing is done yet."""
        if self.known_left is not None:
            return self.known_left
        return (self.total - self.done) / self.rate if self.done else None

    @property
    def line(self) -> str:
        """'  1,200 of 9,000 images, 80 images/s, 98 s left'."""
        if self.text is not None:
            return self.text(self)
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        return f"  {self.done:,} of {self.total:,} {self.noun}, {self.rate:,.0f} {self.noun}/s{left}"


def unseen(counter: Counter) -> None:
    """Nothing is shown."""
