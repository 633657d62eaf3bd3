"""Signs of life of a process that trains: `beat` after each batch, heard by whoever listens; tuning.py does."""

from __future__ import annotations

from collections.abc import Callable

_heard: Callable[[], None] | None = None


def beat() -> None:
    """A batch is done."""
    if _heard is not None:
        _heard()


def listen(heard: Callable[[], None] | None) -> None:
    """Call `heard` at each beat of this process, from now on; None: nobody listens."""
    global _heard
    _heard = heard
