"""When a request may be sent: after a fault, after Retry-After, at a rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds, of which each wait is a random part: all clients at once would collide
LONGEST_ASKED = 600.0  # seconds of a Retry-After that are heeded


def backoff(fault: int, uniform: float | None = None) -> float:
    """Seconds to wait after a request's fault number `fault` (from 0): a random part of a doubling time.

    uniform: the random number in [0, 1), drawn without it.

    >>> [backoff(fault, uniform=0.5) for fault in (0, 1, 2, 10)]
    [0.375, 0.75, 1.5, 22.5]
    """
    part = random.random() if uniform is None else uniform
    return min(FIRST_WAIT * 2**fault, LONGEST_WAIT) * (1 + part) / 2


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float:
    """Seconds that a server asks to wait, as a number or a date; 0 where it does not ask. now: seconds since 1970.

    >>> retry_after({"Retry-After": "2"}), retry_after({}), retry_after({"Retry-After": "soon"})
    (2.0, 0.0, 0.0)
    """
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = date.timestamp() - (time.time() if now is None else now)
    return min(max(seconds, 0.0), LONGEST_ASKED) if seconds == seconds else 0.0


class Pace:
    """The times at which the requests of a process may be sent: at most `rate` a second, none while the server rests.

    rate: None for no limit. A server that asks one request to wait is spared all the others, too.
    """

    def __init__(self, rate: float | None = None) -> None:
        self.interval = 1 / rate if rate else 0.0
        self._next = self._rest_until = 0.0

    async def turn(self) -> None:
        """Wait until the next request may be sent."""
        at = max(time.monotonic(), self._next)
        self._next = at + self.interval
        while (left := at - time.monotonic()) > 0:
            await asyncio.sleep(left)  # it may wake early by the clock's resolution
        while (left := self._rest_until - time.monotonic()) > 0:
            await asyncio.sleep(left + random.random() * min(left, 1.0))  # not all at once

    def rest(self, seconds: float) -> None:
        """Send nothing for so long."""
        self._rest_until = max(self._rest_until, time.monotonic() + seconds)
