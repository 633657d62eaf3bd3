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
LONGEST_WAIT = 15.0  # seconds between two tries

Result = TypeVar("Result")


def patiently(
    act: Callable[[], Result],
    patience: float = PATIENCE,
    beat: Callable[[], None] = lambda: None,
    also: tuple[type[Exception], ...] = (),
) -> Result:
    """What `act` returns; where it raises CxrltError (or one of `also`) it is tried again, for `patience` seconds.

    beat is called before each try: who waits is not hung. Raises the last CxrltError; at once what waiting does not
    mend: NotThere, and UsageError.
    """
    wait, until, said = 0.5, time.monotonic() + patience, False
    while True:
        beat()
        try:
            return act()
        except (NotThere, UsageError):
            raise
        except (CxrltError, *also) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            if time.monotonic() > until:
                raise CxrltError(reason) from None
            if not said:
                print(f"  waiting up to {cli.duration(patience)}: {reason}", file=sys.stderr, flush=True)
            said = True
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
