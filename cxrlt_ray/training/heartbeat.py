"""Signs of life of a process that trains or scores: a heartbeat after each batch, for whoever listens.

The search's watchdog listens; a process without heartbeats for too long is taken for hung.
"""

from __future__ import annotations

from collections.abc import Callable

_listener: Callable[[], None] | None = None


def beat() -> None:
    """A batch is done."""
    if _listener is not None:
        _listener()


def listen(listener: Callable[[], None] | None) -> None:
    """Call `listener` at each heartbeat of this process, from now on; None: nobody listens."""
    global _listener
    _listener = listener
