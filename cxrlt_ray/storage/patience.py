"""Waiting for storage that fails for a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from cxrlt_ray import cli
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import NotThere

PATIENCE = 300.0  # seconds that storage may fail
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between two attempts

Result = TypeVar("Result")


def patiently(
    act: Callable[[], Result],
    patience: float = PATIENCE,
    beat: Callable[[], None] = lambda: None,
    also: tuple[type[Exception], ...] = (),
) -> Result:
    """What `act` returns; where it raises CxrltError (or one of `also`) it is tried again, for `patience` seconds.

    beat: called before each attempt, so that a process that waits is not taken for a hung one. Raises the last
    CxrltError, and at once NotThere and UsageError, which waiting does not mend.
    """
    failures: tuple[type[Exception], ...] = (CxrltError, *also)
    wait, until, announced = FIRST_WAIT, time.monotonic() + patience, False
    while True:
        beat()
        try:
            return act()
        except (NotThere, UsageError):
            raise
        except failures as error:
            within = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None)  # a database's own words
            reason = str(within or error).strip().splitlines()[0]
            if time.monotonic() > until:
                raise CxrltError(reason) from None
            if not announced:
                print(f"  waiting up to {cli.duration(patience)}: {reason}", file=sys.stderr, flush=True)
            announced = True
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
