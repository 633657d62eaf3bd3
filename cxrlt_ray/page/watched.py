"""A run's page that is written anew from time to time, until the run has ended or the user stops it.

The store is all that is asked: it may be another machine's. What cannot be read or written in one round is told and
tried again in the next. While the run goes on the page asks the browser to load it anew; the last one does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from cxrlt_ray import cli
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.page.cells import resolve
from cxrlt_ray.page.facts import Facts, public
from cxrlt_ray.page.records import Report
from cxrlt_ray.page.render import render
from cxrlt_ray.page.written import Written, write_report
from cxrlt_ray.runs.records import RUNNING
from cxrlt_ray.runs.store import Run, read_run
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.claim import is_claimed

LINE_SECONDS = 60.0  # between two lines at least
LOOKS = 2  # in a row that must find a run with trials left abandoned: it may be about to go on


def watch(
    run: Run,
    every: float,
    out: str | None = None,
    images: bool = False,
    pause: Callable[[float], object] = time.sleep,
) -> Written:
    """Write the page of `run` every so many seconds until it has ended or Ctrl-C; returns what was written last.

    out, images: as of write_report. pause: waits so many seconds. Raises CxrltError where the first page cannot be
    written.
    """
    teller, looks, written = _Teller(), 0, None
    try:
        while True:
            try:
                run = read_run(run.store)
                end, left = ended(run)
                looks = looks + 1 if end else 0
                over = looks >= (LOOKS if left else 1)
                written = write_report(run, out, images=images, refresh=None if over else every)
            except Exception as error:  # a file that is damaged or gone for a moment ends no watch
                if written is None:
                    raise
                reason = public(error) if isinstance(error, CxrltError) else type(error).__name__
                teller.tell(f"Not written this time, the next is tried: {reason}")
            else:
                teller.tell(_progress(written.report))
                if over:
                    cli.say(end)
                    return written
            pause(every)
    except KeyboardInterrupt:
        if written is None:
            raise
        _settle(written)
        cli.say("Stopped: the page stays as it was last written.")
        return written


def _settle(written: Written) -> None:
    """Leave the page as it was last written, without asking the browser to load it anew."""
    store, name = Store.holding(written.uri)
    with suppress(CxrltError):
        store.write(name, render(written.report).encode())


def ended(run: Run) -> tuple[str, int]:
    """Why a run has ended, "" while it goes on, and how many of its trials are left.

    It goes on while a sweep has its claim. Where that cannot be told (storage without locks), while trials are left.
    """
    facts, claimed = Facts(run), is_claimed(run.store)
    left = max(run.record.trials - len(facts.trials) - len(facts.unreadable), 0) + facts.states[RUNNING]
    if claimed or (claimed is None and left):
        return "", left
    if left:
        return f"The sweep has stopped with {left:,} trials left; --resume goes on with them.", left
    return f"All {len(facts.trials):,} trials have ended.", 0


class _Teller:
    """Prints a line where it is another than the last, and not too often."""

    def __init__(self) -> None:
        self.last, self.at = "", float("-inf")

    def tell(self, line: str) -> None:
        if line and line != self.last and time.monotonic() - self.at >= LINE_SECONDS:
            cli.say(line)
            self.last, self.at = line, time.monotonic()


def _progress(report: Report) -> str:
    state = resolve(report.sections.get("summary"), "state")
    return state if isinstance(state, str) else ""
