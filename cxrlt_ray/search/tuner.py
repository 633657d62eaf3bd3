"""Trials through Ray Tune: suggested by the run's study, stopped by ASHA, begun anew where they end by a fault.

Nothing that Tune keeps is needed to resume: a new Tuner runs what the trial store says is missing, and ASHA is told
again what the trials of the store had told. A trial goes on by itself from its last epoch (midway.py).
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cxrlt_ray.cluster import ray_private
from cxrlt_ray.cluster.start import DATA_CPUS, data_context
from cxrlt_ray.data.stream import RAY
from cxrlt_ray.errors import CxrltError, Diverged, UsageError
from cxrlt_ray.runs.records import FAILED, RUNNING, VAL_MAP, TrialRecord
from cxrlt_ray.runs.store import RECORD, Run, Trial, damage, drop_checkpoints, read_trial
from cxrlt_ray.search import watchdog
from cxrlt_ray.search.optuna_study import Study, curve, is_last, note_retry, number_of, reopen, trial_name
from cxrlt_ray.search.space import REDUCTION, Space
from cxrlt_ray.search.watchdog import Halt, Room, patiently
from cxrlt_ray.training.heartbeat import beat
from cxrlt_ray.training.stage import Job
from cxrlt_ray.training.trial import train

ELASTIC = 60.0  # seconds that a trial waits for the machines of all its workers, where it may begin with fewer
RETRIES, HUNG_AFTER = 2, 600.0


@dataclass(frozen=True)
class Care:
    """How a sweep looks after its trials.

    retries: how often a trial that ended by a fault is begun anew. hung_after: seconds without a batch after which a
    trial is ended. keep: of how many best trials checkpoints are kept; None: of all. url: of the search's database.
    """

    retries: int = RETRIES
    hung_after: float = HUNG_AFTER
    keep: int | None = None
    url: str | None = None
    room: Room | None = None


def tune_trials(
    run: Run, job: Job, space: Space, resources: Any, trials: int, budget: float | None, seed: int, care: Care
) -> str:
    """Run the trials that are missing; why it was stopped before all were done, or nothing."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial's reason is told by Progress
    warnings.filterwarnings("ignore", module="optuna|ray")
    # from Python 3.12 on Optuna lays it at its caller's door
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Halt has its own
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that failed by its own fault reports nothing
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the trial store has it all; their files stay open
    study = Study(run, space, seed, care.url)
    steps = space.epochs + _has_more(space, job)
    scheduler = _scheduler(space, steps, run)
    for number in scheduler.stopped if isinstance(scheduler, Halving) else []:
        study.settle(number)
    missing = missing_trials(run, trials)
    workers = max(resources.workers_per_trial, 1)
    bundle = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    # the trial itself needs next to nothing where its worker group has the resources; Ray refuses nothing at all
    own: dict[str, float] = bundle if workers == 1 else {"CPU": 0.01}
    trainable = tune.with_resources(tune.with_parameters(_trial, job=job, space=space, plan=resources), own)
    started, halt = time.monotonic(), Halt()
    guard = watchdog.Guard(run, care.hung_after, DATA_CPUS if job.ingest.engine == RAY else 0.0)
    search = Search(run, study, care, halt, guard)
    with tempfile.TemporaryDirectory(prefix="cxrlt_ray-") as folder, halt.heeded():
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=VAL_MAP.name,
                mode=VAL_MAP.mode,
                search_alg=search,
                scheduler=scheduler,
                num_samples=missing,
                max_concurrent_trials=resources.max_concurrent,
                time_budget_s=budget,
                # a worker group that Tune has stopped does not let go of its actor in time
                reuse_actors=workers == 1,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="tune",
                verbose=0,
                stop=watchdog.Ending(halt, guard),
                failure_config=tune.FailureConfig(max_failures=care.retries),
                callbacks=[guard, watchdog.Progress(run, trials, missing)],
            ),
        )
        try:
            tuner.fit()
        finally:
            guard.release()
    if search.fault:
        raise search.fault
    if not missing_trials(run, trials):
        return ""
    if budget is not None and time.monotonic() - started >= budget:
        for trial in run.trials():  # they stand where ASHA would have left them
            if trial.state == RUNNING:
                study.settle(number_of(trial), cut=True)
        return ""
    return halt.reason or "before its end"


def _scheduler(space: Space, steps: int, run: Run) -> TrialScheduler:
    """ASHA, or where the space says `prune: false` none: every trial is trained to its end."""
    if not space.prune:
        return FIFOScheduler()
    # by epoch, not by Tune's count of reports: a stage that was trained before is not reported again
    first = space.grace(steps)
    halving = Halving("epoch", max_t=steps, grace_period=first, reduction_factor=REDUCTION)
    halving.recall(run.trials())
    return halving


class Halving(ASHAScheduler):
    """ASHA that knows trials by the names they have in the store, and can be told what they told before."""

    def recall(self, trials: list[Trial]) -> None:
        """Be told the epochs of a run's trials; `stopped` is of those that run which it would have stopped by now."""
        self.stopped: list[int] = []
        for trial in trials:
            actions = [
                ray_private.asha_decision(self, trial.name, epoch, value)
                for epoch, value in curve(trial)
                if epoch < ray_private.asha_max_epochs(self) and value == value
            ]
            if TrialScheduler.STOP in actions and trial.state == RUNNING and trial.record.retraining is None:
                self.stopped.append(number_of(trial))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """As ASHAScheduler."""
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """As ASHAScheduler."""
        return super().on_trial_result(tune_controller, _named(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """As ASHAScheduler."""
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """As ASHAScheduler."""
        super().on_trial_remove(tune_controller, _named(trial))


def _named(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial_name(trial.config["number"]))


def _has_more(space: Space, job: Job) -> bool:
    """Whether a trial may have work after its last epoch, and reports once more: ASHA's max_t would cut it off."""
    return job.folds > 1 or any(config.refit or config.tta != "none" for config in space.kinds())


def missing_trials(run: Run, trials: int) -> int:
    """How many of `trials` are not done yet."""
    return max(0, trials - sum(trial.state != RUNNING for trial in run.trials()))


def reopen_damaged(run: Run) -> None:
    """Before a run is resumed: trials that failed by no fault of their own, or whose files are damaged, go on."""
    for trial in run.trials():
        if trial.state == FAILED and not trial.record.own_fault:
            print(f"{trial.name} is tried again: it had failed ({trial.record.reason})")
            reopen(trial)
        elif trial.state not in (FAILED, RUNNING) and (fault := damage(trial)):
            print(f"{trial.name} is trained again: {fault}")
            reopen(trial)


class Search(Searcher):
    """Tune's questions put to the run's study; storage that fails for a while is waited for."""

    def __init__(self, run: Run, study: Study, care: Care, halt: Halt, guard: watchdog.Guard) -> None:
        super().__init__()
        self.run, self.study, self.care, self.halt, self.guard = run, study, care, halt, guard
        self.numbers: dict[str, int] = {}
        self.fault: CxrltError | None = None

    def suggest(self, trial_id: str) -> Any:
        """The next point, with the number that names the trial; FINISHED where the sweep is to end."""
        if self.care.room and (lacking := self.care.room.lacking()):
            self.halt.no_more(lacking)
        if self.halt.reason or self.fault:
            return Searcher.FINISHED
        found = self._patiently(self.study.next)
        if found is None:
            return Searcher.FINISHED
        self.numbers[trial_id] = found[0]
        return {"number": found[0], "params": found[1]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The study is told of a trial when it has ended."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write the trial's last state to the store first, then tell the study."""
        if (number := self.numbers.pop(trial_id, None)) is not None:
            self._patiently(lambda: self._end(number, error))

    def _end(self, number: int, error: bool) -> None:
        trial = read_trial(self.run.store / "trials" / trial_name(number))
        if self.halt.now and trial.state == RUNNING and not is_last(trial):
            return  # it goes on when the run is resumed
        if error and (reason := self.guard.why(number)):
            note_retry(trial.store, reason, time.time())
        self.study.settle(number, error)
        if self.care.keep is not None:
            drop_checkpoints(self.run, self.care.keep)

    def _patiently(self, act: Callable[[], Any]) -> Any:
        """Do it; where the storage does not heal, end the sweep."""
        try:
            return patiently(act)
        except CxrltError as error:
            self.fault = self.fault or error
            self.halt.no_more(str(error))
            return None

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store has it."""
        with open(checkpoint_path, "wb"):
            pass

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: Tune's own checkpoints are not resumed from."""


def _trial(point: dict[str, Any], job: Job, space: Space, plan: Any) -> None:
    """Tune's function: one trial in this process, or in a group of Train workers."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray").setLevel(logging.ERROR)
    _release_memory()
    _bound_data(plan)
    name = trial_name(point["number"])
    params = point["params"]
    config = space.to_config(params, job.seed)
    run = job.run.uri.rpartition("/")[2]
    if plan.workers_per_trial <= 1:
        loop = lambda: _told_failure(job, name, config, params, tune.report)  # noqa: E731
        with watchdog.announced(run, name):
            TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0, use_gpu=plan.gpus_per_trial > 0)).fit()
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    def worker() -> None:
        import ray.train

        logging.getLogger("ray").setLevel(logging.ERROR)
        _bound_data(plan)
        with watchdog.announced(run, name, ray.train.get_context().get_world_rank(), watchdog.own_group()):
            _told_failure(job, name, config, params, ray.train.report)

    each = {"CPU": plan.cpus_per_trial, "GPU": plan.gpus_per_trial}
    count = workers_at_hand(_room_for(each), plan.min_workers, plan.workers_per_trial)
    scaling = ScalingConfig(num_workers=count, use_gpu=plan.gpus_per_trial > 0, resources_per_worker=each)
    with tempfile.TemporaryDirectory() as folder, watchdog.announced(run, name, -1):
        run_config = RunConfig(storage_path=folder, callbacks=[TuneReportCallback()])  # type: ignore[list-item]
        ray_private.torch_trainer_without_cleaner()(worker, scaling_config=scaling, run_config=run_config).fit()


def workers_at_hand(room: Callable[[], int], least: int, most: int) -> int:
    """How many workers a trial begins with: `most`, or what there is room for where ELASTIC seconds bring no more.

    Ray Train's own elastic groups count a cluster's resources, those of other trials too, and whole ones only.
    """
    until = time.monotonic() + ELASTIC
    while least < most and (there := room()) < most:
        if there >= least and time.monotonic() > until:
            return there
        beat()  # it waits and does not hang
        time.sleep(1.0)
    return most


def _room_for(each: dict[str, float]) -> Callable[[], int]:
    """Of how many workers the machines there are hold the resources now."""
    wanted = {kind: value for kind, value in each.items() if value}

    def room() -> int:
        nodes = ray_private.free_resources_by_node().values()
        return sum(min(int(free.get(kind, 0) // value) for kind, value in wanted.items()) for free in nodes)

    return room


def _release_memory() -> None:
    """Give back what the process's last trial left: its models stand in cycles, its thread's heap stays glibc's.

    Without this a process of many trials grew by 0.5 GB a trial.
    """
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim:
        trim(0)


def _told_failure(job: Job, name: str, config: Any, params: dict[str, Any], report: Any) -> None:
    """Train. A fault of the trial's own ends it; what else goes wrong is noted and raised: it may be tried again."""
    store = job.run / "trials" / name
    try:
        train(job, name, config, params, report)
    except (Diverged, UsageError) as error:
        if store.exists(RECORD):
            record = TrialRecord.read(store, RECORD)
        else:
            record = TrialRecord(name=name, state=FAILED, params=params)
        record.config = record.config or config
        record.state, record.reason, record.own_fault = FAILED, str(error), True
        record.write(store, RECORD)
    except Exception as error:
        memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't alloc" in str(error)
        reason = str(error) if isinstance(error, CxrltError) else f"{type(error).__name__}: {error}"
        if memory:
            import torch

            reason = "out of memory"
            torch.cuda.empty_cache()
        patiently(lambda: note_retry(store, " ".join(reason.split())[:500], time.time()))
        raise


def _bound_data(plan: Any) -> None:
    """Each trial's Ray Data gets its share of the CPUs that trials leave, so that none starves."""
    from ray.data import ExecutionResources

    share = max(DATA_CPUS, plan.cpus_for_data / plan.max_concurrent / max(plan.workers_per_trial, 1))
    data_context().execution_options.resource_limits = ExecutionResources(cpu=share)
