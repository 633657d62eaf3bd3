"""Whether a sweep is to end before its trials are done: asked for by a user, or as a disk is full."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune import Stopper

PAUSE, SETTLING = 1.0, 10.0  # seconds between two looks at what trials have saved; until a trial's report has come


class StopRequest:
    """Whether a sweep is to end: by Ctrl-C (once: after the epochs that run; twice: now), SIGTERM, or a full disk.

    reason: why, or nothing. now: trials that run are to end after their epoch; else they are trained to their end.
    """

    def __init__(self) -> None:
        self.reason, self.now = "", False

    def begin_no_more(self, reason: str) -> None:
        """Begin no more trials."""
        if not self.reason:
            self.reason = reason
            print(f"No more trials are begun: {reason}", flush=True)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM as a request; raises KeyboardInterrupt at the second."""

        def handle(number: int, frame: Any) -> None:
            if self.now:
                raise KeyboardInterrupt
            self.now = True
            self.reason = "by Ctrl-C" if number == signal.SIGINT else "by SIGTERM"
            print(
                "\nStopping: each trial ends its epoch and saves it. Once more (Ctrl-C) stops at once; nothing that is "
                "saved is lost.",
                flush=True,
            )

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class SweepStopper(Stopper):
    """Tune's question whether a trial, or all, are to stop. states: of the trials that run, by number, what is saved.

    A trial ends with its next report. In its later folds and its refit it makes none: all are ended once each has saved
    an epoch since, and none has reported in the SETTLING seconds after that.
    """

    def __init__(self, stop: StopRequest, states: Callable[[], dict[int, Any]]) -> None:
        self.stop, self.states = stop, states
        self.before: dict[int, Any] | None = None  # what was saved when the sweep was asked to end
        self.seen: tuple[dict[int, Any], float] = {}, 0.0  # what is saved now, and since when
        self.looked = -math.inf

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """After an epoch: whether the sweep is to end."""
        return self.stop.now

    def stop_all(self) -> bool:
        """Whether nothing runs any more of a sweep that is to end."""
        if not self.stop.now or (now := time.monotonic()) - self.looked < PAUSE:
            return False
        self.looked, states = now, self.states()
        if self.before is None:
            self.before = states
        if states != self.seen[0]:
            self.seen = states, now
        saved = all(states[number] != self.before.get(number) for number in states)
        return not states or (saved and now - self.seen[1] >= SETTLING)
