"""A check and its outcome, and an error as one line of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cxrlt_ray.errors import CxrltError

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """The outcome of a check. state: ok, warn (a sweep runs, but worse) or fail (it will not run). mend: what to do."""

    name: str
    state: str
    message: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" + (f" ({self.mend})" if self.mend else "")


def guarded(name: str, check: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of `check`; an exception becomes a failed one."""
    try:
        yield from check()
    except Exception as error:
        yield Check(name, FAIL, reason(error))


def reason(error: BaseException) -> str:
    """An error's last line, without the keys that a URI may hold."""
    last = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
    text = last if isinstance(error, CxrltError | OSError) or "Error" in last else f"{type(error).__name__}: {last}"
    return re.sub(r"//[^/@\s]*@", "//", text)[:300].rstrip(". ")
