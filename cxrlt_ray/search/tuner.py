"""Trials through Ray Tune: suggested by the run's Optuna study, stopped by ASHA, begun anew where a fault ends them.

Nothing that Tune keeps is needed to resume: a new Tuner runs what the trial store says is missing, and ASHA is told
again what the trials of the store had reported. A trial goes on by itself from its last epoch (training/resume.py).
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
from ray import tune
from ray.tune.search import Searcher

from cxrlt_ray import output
from cxrlt_ray.cluster import ray_private
from cxrlt_ray.cluster.start import DATA_CPUS
from cxrlt_ray.data.stream import RAY
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.output.counting import Counter
from cxrlt_ray.runs import verdict
from cxrlt_ray.runs.damage import damages
from cxrlt_ray.runs.records import FAILED, RUNNING
from cxrlt_ray.runs.store import Run, Trial, drop_checkpoints, keep_index
from cxrlt_ray.search.asha import scheduler_of
from cxrlt_ray.search.disk import DiskRoom
from cxrlt_ray.search.optuna_study import UNREACHED, OptunaStudy
from cxrlt_ray.search.pacing import SHORTEST, Pace
from cxrlt_ray.search.progress import Progress
from cxrlt_ray.search.resources import Resources
from cxrlt_ray.search.space import Space
from cxrlt_ray.search.stop import StopRequest, SweepStopper
from cxrlt_ray.search.tracking import tracked
from cxrlt_ray.search.trainable import run_trial
from cxrlt_ray.search.trial_states import (
    has_no_more_to_do,
    note_retry,
    reopen_trial,
    trial_name,
    trial_number,
    trial_seed,
)
from cxrlt_ray.search.watchdog import Watchdog
from cxrlt_ray.storage.patience import patiently
from cxrlt_ray.training import resume

if TYPE_CHECKING:
    from cxrlt_ray.training.job import Job

RETRIES, HUNG_AFTER = 2, 600.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class FaultPolicy:
    """How a sweep looks after its trials and its disk.

    retries: how often a trial that ended by a fault is begun anew. hung_after: seconds without a batch after which a
    trial is ended. keep_checkpoints: of how many best trials; None: of all. disk: whether it holds more trials.
    """

    retries: int = RETRIES
    hung_after: float = HUNG_AFTER
    keep_checkpoints: int | None = None
    disk: DiskRoom | None = None


@dataclass(frozen=True)
class Search:
    """The trials of a run that are to be done.

    trials: how many in all, at least where the pace is open-ended. pace: of a time budget, or None. database: the URL
    of Optuna's, or None. trackers: by name.
    """

    run: Run
    job: Job
    space: Space
    resources: Resources
    trials: int
    pace: Pace | None
    seed: int
    policy: FaultPolicy
    database: str | None = None
    trackers: tuple[str, ...] = ()

    @property
    def deadline(self) -> float | None:
        """Of the time budget, by time.monotonic()."""
        return None if self.pace is None else self.pace.deadline

    @property
    def open_ended(self) -> bool:
        """Whether trials are begun as long as there is time."""
        return self.pace is not None and self.pace.open_ended


def tune_trials(search: Search) -> str:
    """Run the trials that are missing; why the search was stopped before all were done, or nothing."""
    _quieten()
    run, space, policy, metric = search.run, search.space, search.policy, search.space.metric
    optuna_study = OptunaStudy(run, space, search.seed, search.database, metric)
    scheduler, stopped = scheduler_of(space, _longest(search) + _reports_after_training(search), run, metric)
    for number in stopped:
        patiently(partial(optuna_study.settle, number), also=UNREACHED)
    missing = missing_trials(run, search.trials)
    stop, deadline = StopRequest(), search.deadline
    watchdog = Watchdog(run, policy.hung_after, DATA_CPUS if search.job.ingest.engine == RAY else 0.0)
    searcher = StudySearcher(search, optuna_study, stop, watchdog)
    with (
        tempfile.TemporaryDirectory(prefix="cxrlt_ray-") as folder,
        stop.on_signals(),
        _counter(search) as counter,
        tracked(run, search.trackers) as tracking,
    ):
        tuner = tune.Tuner(
            _trainable(search),
            tune_config=tune.TuneConfig(
                metric=metric.name,
                mode=metric.mode,
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1 if search.open_ended else missing,
                max_concurrent_trials=search.resources.max_concurrent,
                time_budget_s=None if deadline is None else max(1.0, deadline - time.monotonic()),
                # a worker group that Tune has stopped does not let go of its actor in time
                reuse_actors=search.resources.workers_per_trial <= 1,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="tune",
                verbose=0,
                stop=SweepStopper(stop, lambda: saved_states(run, watchdog.running)),
                failure_config=tune.FailureConfig(max_failures=policy.retries),
                callbacks=[
                    watchdog,
                    Progress(run, search.trials, missing, metric, deadline, search.open_ended, counter),
                    *tracking,
                    ray_private.silent_progress(),
                ],
            ),
        )
        try:
            tuner.fit()
        finally:
            watchdog.release()
            with suppress(CxrltError):  # they are copies
                keep_index(run, every=1)
                optuna_study.copy()
    if searcher.fault:
        raise searcher.fault
    uphold_verdicts(run)
    if deadline is not None and time.monotonic() >= deadline:
        for trial in run.trials():  # they stand where ASHA would have left them
            if trial.state == RUNNING:
                patiently(partial(optuna_study.settle, trial_number(trial), cut=True), also=UNREACHED)
        with suppress(CxrltError):
            optuna_study.copy()
        return ""
    if has_ended(run, search.trials, searcher.out_of_time):
        return ""
    return stop.reason or "before its end"


def _counter(search: Search) -> Counter:
    """Of the run's trials; in a log each trial that has ended has a line of its own."""
    counter = output.counter("trials", search.trials, text=lambda _: "")
    counter.done = search.trials - missing_trials(search.run, search.trials)
    return counter


def has_ended(run: Run, trials: int, out_of_time: bool) -> bool:
    """Whether a search is done: no trial of its run goes on, and none of `trials` is missing that there is time for."""
    return all(trial.state != RUNNING for trial in run.trials()) and (out_of_time or not missing_trials(run, trials))


def _quieten() -> None:
    """Turn off what Tune and Optuna print, write and handle beside what a sweep does itself."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # Progress prints why a trial failed
    warnings.filterwarnings("ignore", module="optuna|ray")
    # from Python 3.12 on Optuna lays it at its caller's door
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # StopRequest has its own
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that failed by its own fault reports nothing
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the trial store has it all; their files stay open


def _trainable(search: Search) -> Any:
    """`run_trial` with what all trials share, and the resources that Tune reserves for one."""
    resources = search.resources
    # the trial itself needs next to nothing where its worker group has the resources; Ray refuses nothing at all
    own = {"CPU": 0.01}
    if resources.workers_per_trial <= 1:
        own = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    shared = tune.with_parameters(run_trial, job=search.job, space=search.space, resources=resources)
    return tune.with_resources(shared, own)


def saved_states(run: Run, numbers: Iterable[int]) -> dict[int, list[str]]:
    """The resume states that some trials have saved, by number; none where the storage does not answer."""
    states: dict[int, list[str]] = {}
    for number in list(numbers):
        states[number] = []
        with suppress(CxrltError):
            states[number] = resume.names(run.store / "trials" / trial_name(number))
    return states


def _longest(search: Search) -> int:
    """Epochs of the longest trial: of the space, of a time budget, or of one that was cut off and keeps its own."""
    space, pace = search.space, search.pace
    epochs = space.epochs if pace is None or space.staged else pace.most
    begun = (trial.record.config for trial in search.run.trials() if trial.state == RUNNING)
    return max([epochs, *(config.total_epochs for config in begun if config is not None)])


def _reports_after_training(search: Search) -> int:
    """1 where a trial may have work after its last epoch, and reports once more: ASHA's max_t would cut it off."""
    later = any(config.refit or config.tta != "none" for config in search.space.kinds())
    return int(search.job.models > 1 or later)


def missing_trials(run: Run, trials: int) -> int:
    """How many of `trials` are not done yet."""
    return max(0, trials - sum(trial.state != RUNNING for trial in run.trials()))


def uphold_verdicts(run: Run) -> None:
    """Trials that the sweep ended, and whose process was killed as it wrote its record over that, have ended."""
    for trial in run.trials():
        if trial.state == RUNNING:
            verdict.uphold(trial.store)


def reopen_damaged(run: Run) -> None:
    """Before a run is resumed: trials that failed by no fault of their own, or whose files are damaged, go on."""
    uphold_verdicts(run)
    trials = run.trials()
    faults = damages(run, [trial for trial in trials if trial.state not in (FAILED, RUNNING)])
    for trial in trials:
        if trial.state == FAILED and not trial.record.own_fault:
            print(f"{trial.name} is tried again: it had failed ({trial.record.reason})")
            reopen_trial(trial)
        elif trial.name in faults:
            print(f"{trial.name} is trained again: {faults[trial.name]}")
            reopen_trial(trial)
    keep_index(run)


class StudySearcher(Searcher):
    """Tune's questions put to the run's Optuna study; storage that fails for a while is waited for.

    fault: what ended the search, where the storage did not heal. out_of_time: the time left holds no further trial.
    """

    def __init__(self, search: Search, optuna_study: OptunaStudy, stop: StopRequest, watchdog: Watchdog) -> None:
        super().__init__()
        self.run, self.pace, self.policy = search.run, search.pace, search.policy
        self.optuna_study, self.stop, self.watchdog = optuna_study, stop, watchdog
        self.numbers: dict[str, int] = {}
        self.fault: CxrltError | None = None
        self.out_of_time = False

    def suggest(self, trial_id: str) -> Any:
        """The next point, with the number that names the trial; FINISHED where the sweep is to end."""
        if self.policy.disk and (shortage := self.policy.disk.shortage()):
            self.stop.begin_no_more(shortage)
        if self.stop.reason or self.fault or self.out_of_time:
            return Searcher.FINISHED
        point = self._with_patience(self._next)
        if point is None:
            return Searcher.FINISHED
        self.numbers[trial_id] = point["number"]
        return point

    def _next(self) -> dict[str, Any] | None:
        """The next trial as `run_trial` takes it; prints where it repeats an earlier one's settings."""
        goes_on = self.optuna_study.goes_on  # a trial that was cut off is worth what it has
        if self.pace is not None and not goes_on and not self.pace.holds_another(self.run.trials()):
            self.out_of_time = True
            return None
        number, params = self.optuna_study.next()
        trials = self.run.trials()
        seed, earlier = trial_seed(trials, number, self.optuna_study.sampler.seed)
        if earlier:
            fixed = "seed" in self.optuna_study.space.domains
            how = "the same weights are trained again" if fixed else f"it is trained with seed {seed}"
            print(f"  {trial_name(number)} has the settings of {earlier}: {how}", flush=True)
        return {"number": number, "params": params, "seed": seed, **self._length(number, params, trials)}

    def _length(self, number: int, params: dict[str, Any], trials: list[Trial]) -> dict[str, Any]:
        """A trial's epochs where they are not the space's own: it was begun with them, or the time left holds others.

        until: what makes a TimeLeft; None: as planned.
        """
        begun = next((trial.record.config for trial in trials if trial_number(trial) == number), None)
        if begun is not None or self.pace is None:
            return {"epochs": begun and begun.epochs, "until": None}
        config = self.optuna_study.space.to_config(params)
        others = [trial for trial in trials if trial_number(trial) != number]
        length = self.pace.length(config, others)
        until = (time.time() + self.pace.left, self.pace.most, SHORTEST) if length.all_left else None
        return {"epochs": length.epochs, "until": until}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the study learns of a trial when it has ended."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write the trial's last state to the store first, then to the study."""
        if (number := self.numbers.pop(trial_id, None)) is not None:
            self._with_patience(lambda: self._end(number, error))

    def _end(self, number: int, error: bool) -> None:
        trial = self.run.trial(trial_name(number))
        if self.stop.now and trial.state == RUNNING and not has_no_more_to_do(trial, self.run.record.models):
            return  # it goes on when the run is resumed
        if error and (reason := self.watchdog.reason_of_end(number)):
            note_retry(trial.store, reason, time.time())
        self.optuna_study.settle(number, error)
        if self.policy.keep_checkpoints is not None:
            drop_checkpoints(self.run, self.policy.keep_checkpoints)
        keep_index(self.run)

    def _with_patience(self, act: Callable[[], Result]) -> Result | None:
        """What `act` returns; where the storage does not heal, None, and the sweep ends."""
        try:
            return patiently(act, also=UNREACHED)
        except CxrltError as error:
            self.fault = self.fault or error
            self.stop.begin_no_more(str(error))
            return None

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store has it."""
        with open(checkpoint_path, "wb"):
            pass

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: Tune's own checkpoints are not resumed from."""
