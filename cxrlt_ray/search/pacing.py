"""How many epochs the next trial is given, where a time budget ends the sweep, and whether one is begun at all.

A trial's learning rate falls to nothing over the epochs that it is given, so one that the deadline cuts has not learnt
what its time could teach. Each trial is given its share of the time left, by the rates of those before it: on a machine
that is faster than was planned trials become longer, on a slower one fewer. The last one is given all that is left.

A probe, which trains a head on stored features alone, takes so little that it has all its epochs. Where a number of
trials is asked for it comes first, and the time that is left after it is known; else it comes as the space has it, and
takes no time from a training before it that still learns.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cxrlt_ray.runs.records import FAILED, FINISHED, PRUNED
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.space import Space

SHORTEST, LONGEST = 0.5, 1.5  # of a budget's last trial: the shortest in usual trials, the longest in Pace.longest
PROBE = 0.25  # of the time left: what a probe takes at most that has all its epochs
LATEST = 5  # ended trials by which plans are corrected: a machine's speed changes
BETWEEN = 5.0  # seconds from a trial's end to the next one's first step


@dataclass(frozen=True)
class Length:
    """A trial's epochs. all_left: it has all the time that is left, and its epochs follow the rate that it comes to."""

    epochs: int
    all_left: bool = False


@dataclass(frozen=True)
class Pace:
    """The time that is left to a sweep.

    deadline: by `clock`. plan: seconds of each epoch of a trial, as planned. trials: how many were planned. longest:
    epochs that a trial has where there is time. open_ended: trials are begun as long as there is time, however many
    were planned. together: trials that run at a time. start: the space's start points, which are the first trials.
    models: that a trial trains, on folds; an epoch is planned with all of them.
    """

    deadline: float
    plan: Callable[[TrialConfig], list[float]]
    trials: int
    longest: int
    open_ended: bool = False
    together: int = 1
    start: tuple[TrialConfig, ...] = ()
    models: int = 1
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
        if any(self.is_probe(config, trials, share=1.0) for config in self.start[len(trials) : len(trials) + 1]):
            return True
        return not lengths or self.left >= SHORTEST * statistics.median(lengths)

    def length(self, config: TrialConfig, trials: Sequence[Trial]) -> Length:
        """Of the next trial, at the space's config: its share of the epochs that the time left holds.

        trials: those that are begun. As many of the planned ones that are missing share the time as have config.epochs
        then; the last has up to LONGEST times `longest`. A trial of stages has epochs of its own.
        """
        if config.stages:
            return Length(config.epochs)
        if self.is_probe(config, trials, share=1.0 if self.open_ended else PROBE):
            return Length(self.longest)
        # the mean: the first epochs may store features, the last one be followed by a refit
        epoch = self.correction(trials) * statistics.fmean(self.plan(config))
        held = int(self.left / max(epoch, 1e-9))
        missing = math.ceil((self.trials - len(trials)) / self.together)  # one after the other
        sharing = max(1, min(missing, held // config.epochs))
        if sharing > 1 or held >= LONGEST * self.longest:
            return Length(min(self.longest, held // sharing))
        return Length(max(1, held), all_left=True)

    @property
    def most(self) -> int:
        """Epochs that a trial has at most."""
        return int(LONGEST * self.longest)

    def is_probe(self, config: TrialConfig, trials: Iterable[Trial] = (), share: float = PROBE) -> bool:
        """Whether a trial reads stored features alone, and takes that share of the time left at most."""
        if not reads_features(config):
            return False
        whole = config.model_copy(update={"epochs": self.longest})
        return self.correction(trials) * sum(self.plan(whole)) <= share * self.left

    def probes_first(self, space: Space) -> Space:
        """The space with those of its start points first that are probes, where several trials are asked for."""
        if self.open_ended or self.trials == 1:
            return space
        order = sorted(range(len(self.start)), key=lambda k: not self.is_probe(self.start[k]))
        return replace(space, start=tuple(space.start[k] for k in order))

    def correction(self, trials: Iterable[Trial]) -> float:
        """Seconds that the latest trials took over those that were planned for the epochs they had; 1 without any.

        Trainings alone count: what a probe takes says little of them.
        """
        ratios = []
        for trial in _latest(trials, (FINISHED, PRUNED)):
            assert trial.record.config is not None
            if reads_features(trial.record.config):
                continue
            count = len(trial.record.epochs_of())
            share = len(trial.record.epochs) / max(self.models * count, 1)  # one that was pruned has its first fold
            planned = share * sum(self.plan(trial.record.config)[:count])
            ratios.append(_seconds(trial) / max(planned, 1e-9))
        return statistics.median(ratios) if ratios else 1.0


def _latest(trials: Iterable[Trial], states: tuple[str, ...]) -> list[Trial]:
    """The trials in one of these states that ended last, whose time is known: not those that were begun anew."""
    ended = [trial for trial in trials if trial.state in states and trial.record.attempt == 1 and trial.record.epochs]
    return sorted(ended, key=lambda trial: trial.record.ended or 0.0)[-LATEST:]


def reads_features(config: TrialConfig) -> bool:
    """Whether all stages of a trial read stored features."""
    return all(stage.frozen_copies is not None for stage in config.staged())


def _seconds(trial: Trial) -> float:
    return (trial.record.ended or 0.0) - (trial.record.began or 0.0)
