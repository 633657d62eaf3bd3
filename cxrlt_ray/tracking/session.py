"""What a run's trackers have been told, kept in RUN/tracking.json: who goes on tells the rest.

The record may lag behind by MINUTE seconds after a crash; then an epoch is told again under the same step, which
TensorBoard and Weights & Biases take once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.runs.records import RUNNING, Record, TrialRecord
from cxrlt_ray.runs.store import Run
from cxrlt_ray.tracking.curves import points, scores, settings
from cxrlt_ray.tracking.trackers import TRACKERS, Tracker, open_tracker

FILE = "tracking.json"
MINUTE = 60.0


class Told(BaseModel):
    """What a tracker knows: epochs by trial, and the trials whose end it knows."""

    epochs: dict[str, int] = Field(default_factory=dict)
    ended: list[str] = Field(default_factory=list)


class TrackingRecord(Record):
    """`tracking.json`, by the trackers' names."""

    VERSION: ClassVar[int] = 1

    trackers: dict[str, Told] = Field(default_factory=dict)


def trackers_of(run: Run) -> tuple[str, ...]:
    """The trackers that a run was begun with."""
    return tuple(_record(run).trackers)


def _record(run: Run) -> TrackingRecord:
    return TrackingRecord.read(run.store, FILE) if run.store.exists(FILE) else TrackingRecord()


class Session:
    """The trackers of a run while a process has it. Nothing here raises: a tracker that fails is left out, and said."""

    def __init__(self, run: Run, names: Sequence[str], say: Callable[[str], object] = print) -> None:
        self.run, self.say = run, say
        self.trackers: dict[str, Tracker] = {}
        self.record, self._written = TrackingRecord(), time.monotonic()
        for name in names:
            with self._guarded(name):
                self.record = _record(run)
                self.trackers[name] = open_tracker(name, run)
                self.record.trackers.setdefault(name, Told())

    def see(self, trial: TrialRecord) -> None:
        """Tell the trackers what they do not know of a trial."""
        for name, tracker in list(self.trackers.items()):
            with self._guarded(name):
                self._tell(tracker, self.record.trackers[name], trial)
        if self.trackers and time.monotonic() - self._written > MINUTE:
            self._write()

    def catch_up(self) -> None:
        """Tell the trackers what they do not know of all trials."""
        if self.trackers:
            for trial in self.run.trials():
                self.see(trial.record)

    def ensemble(self, record: EnsembleRecord, report: Path | None = None) -> None:
        """Tell the trackers an ensemble's scores. report: the run's page, where there is one."""
        for name, tracker in list(self.trackers.items()):
            with self._guarded(name):
                tracker.ensemble(record.name, scores(record), report)

    def close(self) -> None:
        """Write down what was told."""
        for name, tracker in list(self.trackers.items()):
            with self._guarded(name):
                tracker.close()
        self._write()

    def _tell(self, tracker: Tracker, told: Told, trial: TrialRecord) -> None:
        if trial.name in told.ended:
            return
        known = told.epochs.get(trial.name, 0)
        if new := points(trial, known):
            tracker.log(trial.name, settings(trial), new)
            told.epochs[trial.name] = known + len(new)
        if trial.state != RUNNING:
            tracker.end(trial.name, settings(trial), trial.state, trial.score)
            told.ended.append(trial.name)

    def _write(self) -> None:
        self._written = time.monotonic()
        if self.record.trackers:
            with self._guarded(None):
                self.record.write(self.run.store, FILE)

    @contextmanager
    def _guarded(self, name: str | None) -> Iterator[None]:
        """A fault is one sentence, and the end of tracker `name`."""
        try:
            yield
        except Exception as error:
            self.trackers.pop(name or "", None)
            which = TRACKERS[name] if name else FILE
            self.say(f"{which} is left out from here on ({type(error).__name__}); the rest goes on.")
