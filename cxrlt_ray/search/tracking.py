"""A sweep's trackers hear of its trials through Tune's callbacks; what they are told is read from the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import tune

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.store import Run
from cxrlt_ray.search.trial_states import trial_name
from cxrlt_ray.tracking import Session


@dataclass
class Tracking(tune.Callback):
    """Tells the session of each epoch and of each trial that ends."""

    session: Session

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune writes its callbacks down, which a session's open files cannot be, and never reads them."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch was done."""
        self._see(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial finished or was pruned."""
        self._see(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed."""
        self._see(trial)

    def _see(self, trial: Any) -> None:
        try:
            record = self.session.run.trial(trial_name(trial.config["number"])).record
        except CxrltError:
            return  # the storage does not answer: what is missed is told later
        self.session.see(record)


@contextmanager
def tracked(run: Run, trackers: Sequence[str]) -> Iterator[list[tune.Callback]]:
    """The callbacks of a run's trackers, from what they know to what there is when the block ends."""
    if not trackers:
        yield []
        return
    session = Session(run, trackers)
    try:
        _catch_up(session)
        yield [Tracking(session)]
        _catch_up(session)
    finally:
        session.close()


def _catch_up(session: Session) -> None:
    try:
        session.catch_up()
    except CxrltError:
        return  # of the store, which the sweep itself waits for
