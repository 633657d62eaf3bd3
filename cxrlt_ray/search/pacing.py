"""How many epochs the next trial is given, where a time budget ends the sweep, and whether one is begun at all.

A trial's learning rate falls to nothing over the epochs that it is given, so one that the deadline cuts has not learnt
what its time could teach. Each trial is given its share of the time left, by the rates of those before it: on a machine
that is faster than was planned trials become longer, on a slower one fewer. The last one is given all that is left, but
for start points that take little, such as a head on stored features: their time is kept for them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from cxrlt_ray.runs.records import FAILED, FINISHED, PRUNED
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.runs.trial_config import TrialConfig

SHORTEST, LONGEST = 0.5, 1.5  # of a budget's last trial: the shortest in usual trials, the longest in Pace.longest
SHORT, MARGIN = 0.25, 1.2  # of the time left: what a start point takes at most whose time is kept; of that time
LATEST = 5  # ended trials by which plans are corrected: a machine's speed changes
BETWEEN = 5.0  # seconds from a trial's end to the next one's first step


@dataclass(frozen=True)
class Pace:
    """The time that is left to a sweep.

    deadline: by `clock`. plan: seconds of each epoch of a trial, as planned. trials: how many were planned. longest:
    epochs that a trial has where there is time. open_ended: trials are begun as long as there is time, however many
    were planned. together: trials that run at a time. start: the space's start points, which are the first trials.
    """

    deadline: float
    plan: Callable[[TrialConfig], list[float]]
    trials: int
    longest: int
    open_ended: bool = False
    together: int = 1
    start: tuple[TrialConfig, ...] = ()
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds for the next trial's epochs."""
        return self.deadline - self.clock() - BETWEEN

    def holds_another(self, trials: Iterable[Trial]) -> bool:
        """Whether the time left holds a trial of at least SHORTEST the length of a usual one of `trials`.

        A run without a whole trial is to begin one, unless all that were planned have failed: more of them would, too.
        """
        trials = list(trials)
        if len(trials) >= self.trials and all(trial.state == FAILED for trial in trials):
            return False
        lengths = [_seconds(trial) for trial in _latest(trials, (FINISHED,))]
        if any(taken <= MARGIN * self.left for taken in self._taken(trials, self.start[len(trials) : len(trials) + 1])):
            return True
        return not lengths or self.left >= SHORTEST * statistics.median(lengths)

    def epochs(self, config: TrialConfig, trials: Sequence[Trial]) -> int:
        """Of the next trial, at the space's config: its share of the epochs that the time left holds.

        trials: those that are begun. As many of the planned ones that are missing share the time as have config.epochs
        then; the last has up to LONGEST times `longest`. Start points to come that take SHORT of the time at most do
        not share, but have what they take. A trial of stages has epochs of its own.
        """
        if config.stages:
            return config.epochs
        # the mean: the first epochs may store features, the last one be followed by a refit
        epoch = self.correction(trials) * statistics.fmean(self.plan(config))
        short = self._short(trials)
        held = int((self.left - MARGIN * sum(short)) / max(epoch, 1e-9))
        missing = math.ceil((self.trials - len(trials) - len(short)) / self.together)  # one after the other
        sharing = max(1, min(missing, held // config.epochs))
        if sharing > 1 or held >= LONGEST * self.longest:
            return min(self.longest, held // sharing)
        return max(1, held)

    def _short(self, trials: Sequence[Trial]) -> list[float]:
        """What start points after the next trial take, of those that take little; half of the time left in all."""
        last = len(self.start) if self.open_ended else self.trials
        taken = [
            value for value in self._taken(trials, self.start[len(trials) + 1 : last]) if value <= SHORT * self.left
        ]
        return [value for value, total in zip(taken, accumulate(taken), strict=True) if total <= self.left / 2]

    def _taken(self, trials: Sequence[Trial], configs: Iterable[TrialConfig]) -> list[float]:
        """The seconds that trials will take, from one's end to the next one's."""
        correction = self.correction(trials)
        return [correction * sum(self.plan(config)) + BETWEEN for config in configs]

    def correction(self, trials: Iterable[Trial]) -> float:
        """Seconds that the latest trials took over those that were planned for the epochs they had; 1 without any."""
        ratios = []
        for trial in _latest(trials, (FINISHED, PRUNED)):
            assert trial.record.config is not None
            planned = sum(self.plan(trial.record.config)[: len(trial.record.epochs_of())])
            ratios.append(_seconds(trial) / max(planned, 1e-9))
        return statistics.median(ratios) if ratios else 1.0


def _latest(trials: Iterable[Trial], states: tuple[str, ...]) -> list[Trial]:
    """The trials in one of these states that ended last, whose time is known: not those that were begun anew."""
    ended = [trial for trial in trials if trial.state in states and trial.record.attempt == 1 and trial.record.epochs]
    return sorted(ended, key=lambda trial: trial.record.ended or 0.0)[-LATEST:]


def _seconds(trial: Trial) -> float:
    return (trial.record.ended or 0.0) - (trial.record.began or 0.0)
