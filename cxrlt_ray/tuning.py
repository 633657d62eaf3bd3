"""Trials through Ray Tune, suggested by Optuna, told truly and resumable from what is on disk.

Resuming never opens Tune's pickles: trials that were running are told FAIL and their parameters
enqueued again on the same Optuna study, and a new Tuner runs what is missing.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import logging
import sqlite3
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.air.constants import TRAINING_ITERATION
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.fit import Job
from cxrlt_ray.search import REDUCTION, Space
from cxrlt_ray.train import epochs_of, train
from cxrlt_ray.trialconfig import TrialConfig
from cxrlt_ray.trials import FAILED, FINISHED, PRUNED, RUNNING, Run, read_trial

METRIC, COST = "val_map", "cost"
SILENCE = 60.0


def tune_trials(
    run: Run, job: Job, space: Space, resources: Any, trials: int, missing: int, budget: float | None, seed: int
) -> bool:
    """Run `missing` trials; False if it was stopped (Ctrl-C) before all were done."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial's reason is told by Progress
    warnings.filterwarnings("ignore", module="optuna|ray")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = Search(run, space, seed)
    steps = space.epochs + _has_more(space, job)
    workers = max(resources.workers_per_trial, 1)
    bundle = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    # the trial itself needs next to nothing where its worker group has the resources; Ray refuses nothing at all
    own: dict[str, float] = bundle if workers == 1 else {"CPU": 0.01}
    trainable = tune.with_resources(tune.with_parameters(_trial, job=job, space=space, plan=resources), own)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cxrlt_ray-") as folder:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                search_alg=search,
                scheduler=_scheduler(space, steps),
                num_samples=missing,
                max_concurrent_trials=resources.max_concurrent,
                time_budget_s=budget,
                # a worker group that Tune has stopped does not let go of its actor in time
                reuse_actors=workers == 1,
            ),
            run_config=tune.RunConfig(
                storage_path=folder, name="tune", verbose=0, callbacks=[Progress(run, trials, missing)]
            ),
        )
        tuner.fit()
    out_of_time = budget is not None and time.monotonic() - started >= budget
    if out_of_time:
        search.close()
    return missing_trials(run, trials) == 0 or out_of_time


def _scheduler(space: Space, steps: int) -> TrialScheduler:
    """ASHA, or where the space says `prune: false` none: every trial is trained to its end."""
    if not space.prune:
        return FIFOScheduler()
    # by epoch, not by Tune's count of reports: a stage that was trained before is not reported again
    return ASHAScheduler("epoch", max_t=steps, grace_period=space.grace(steps), reduction_factor=REDUCTION)


def _has_more(space: Space, job: Job) -> bool:
    """Whether a trial may have work after its last epoch, and reports once more: ASHA's max_t would cut it off."""
    return job.folds > 1 or any(config.refit or config.tta != "none" for config in space.kinds())


def missing_trials(run: Run, trials: int) -> int:
    """How many of `trials` are not done yet."""
    return max(0, trials - sum(trial.state != RUNNING for trial in run.trials()))


class Search(OptunaSearch):
    """Optuna's search on the run's own study; says PRUNED where the stock class says COMPLETE.

    With objectives map and cost the study is of two directions, validation mAP up and GFLOPs an image down.
    """

    def __init__(self, run: Run, space: Space, seed: int) -> None:
        self.run = run
        self.database = _database(run)
        storage = optuna.storages.RDBStorage(f"sqlite:///{self.database}")
        sampler = optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=4, seed=seed + len(run.trials())
        )
        fresh = run.name not in {s.study_name for s in optuna.get_all_study_summaries(storage)}
        self.costs = COST in run.about["objectives"]
        super().__init__(
            space.define,
            metric=[METRIC, COST] if self.costs else METRIC,
            mode=["max", "min"] if self.costs else "max",
            sampler=sampler,
            storage=storage,
            study_name=run.name,
            points_to_evaluate=list(space.start) if fresh else None,
        )
        self._metric, self._mode = METRIC, "max"  # what trials report; what they cost is known without them
        assert self._ot_study is not None
        self.study: optuna.Study = self._ot_study
        if not fresh:
            self._requeue()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next point, with the number that names the trial."""
        params = super().suggest(trial_id)
        return None if params is None else {"params": params, "number": self._ot_trials[trial_id].number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch's score, for a pruned trial's rank; Optuna takes none in a study of two objectives."""
        if not self.costs:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write the trial's last state to the store first, then tell the study."""
        if trial_id in self._completed_trials:
            return
        number = self._ot_trials[trial_id].number
        state = settle(self.run, number, error)
        value = (result or {}).get(METRIC)
        if result and value is not None and not self.costs:
            # the result at which a trial is stopped comes here only; Optuna judges a pruned trial by its last one
            self._ot_trials[trial_id].report(value, result[TRAINING_ITERATION])
        if state == FAILED or value is None or value != value:
            self.study.tell(number, state=optuna.trial.TrialState.FAIL)
        elif state == PRUNED:
            self.study.tell(number, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(number, [value, _cost(self.run, number)] if self.costs else value)
        self._completed_trials.add(trial_id)
        _keep_database(self.run, self.database)

    def close(self) -> None:
        """Settle the trials that a time budget cut off: they stand where ASHA would have left them."""
        for trial in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            cut = settle(self.run, trial.number, error=False) == PRUNED
            self.study.tell(trial.number, state=optuna.trial.TrialState.PRUNED if cut else optuna.trial.TrialState.FAIL)
        _keep_database(self.run, self.database)

    def _requeue(self) -> None:
        for trial in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            store = self.run.store / "trials" / trial_name(trial.number)
            done = store.exists("trial.json") and read_trial(store).state != RUNNING
            if not done:
                # in this order a kill in between costs a trial run twice, never a point lost
                self.study.enqueue_trial(trial.params)
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        for left in self.run.trials():
            if left.state == RUNNING:
                left.store.remove()  # its parameters run again under a new number


def _cost(run: Run, number: int) -> float:
    """GFLOPs of a trial's models to score one image."""
    from cxrlt_ray.ensemble import gflops

    return float(gflops([read_trial(run.store / "trials" / trial_name(number))])[0])


def settle(run: Run, number: int, error: bool) -> str:
    """The last state of a trial that Tune has ended, written to its trial.json."""
    store = run.store / "trials" / trial_name(number)
    if not store.exists("trial.json"):
        store.write_json(
            "trial.json", {"name": trial_name(number), "state": RUNNING, "config": {}, "epochs": [], "val_map": None}
        )
    about = read_trial(store).about
    if about["state"] == RUNNING:
        epochs = list(epochs_of(about))
        judged = bool(epochs) and not error
        # Tune stops a trial at its last report, before its own last word
        whole = judged and run.about["folds"] <= 1 and _is_last(about["config"], epochs[-1]["epoch"])
        about["state"] = FINISHED if whole else PRUNED if judged else FAILED
        if about["state"] == FAILED:
            about.setdefault("reason", "its process ended before an epoch was done (out of memory, or killed)")
        store.write_json("trial.json", about)
    return about["state"]


def _is_last(config: dict[str, Any], epoch: int) -> bool:
    """Whether a trial whose last epoch was that one had no more to do: no epoch, refit or look at the images."""
    trial = TrialConfig(**config)
    return epoch + 1 == trial.total_epochs and not trial.refit and trial.tta == "none"


def trial_name(number: int) -> str:
    """The name of the search's trial `number`."""
    return f"T{number:04d}"


def _database(run: Run) -> Path:
    """The study's SQLite file: in the run, or for a run on an object store a local copy of what is there."""
    if run.store.local is not None:
        return run.store.local / "optuna.db"
    path = Path(tempfile.mkdtemp(prefix="cxrlt_ray-")) / "optuna.db"
    if run.store.exists("optuna.db"):
        path.write_bytes(run.store.read("optuna.db"))
    return path


def _keep_database(run: Run, path: Path) -> None:
    """Put a consistent copy of a local study beside a run on an object store, after every trial."""
    if run.store.local is None:
        with run.store.place("optuna.db") as place, sqlite3.connect(path) as live, sqlite3.connect(place) as copy:
            live.backup(copy)


def _trial(point: dict[str, Any], job: Job, space: Space, plan: Any) -> None:
    """Tune's function: one trial in this process, or in a group of Train workers."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray").setLevel(logging.ERROR)
    _release_memory()
    _bound_data(ray, plan)
    name = trial_name(point["number"])
    params = point["params"]
    config = space.to_config(params, job.seed)
    if plan.workers_per_trial <= 1:
        loop = lambda: _told_failure(job, name, config, params, tune.report)  # noqa: E731
        TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0, use_gpu=plan.gpus_per_trial > 0)).fit()
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    def worker() -> None:
        import ray.train

        logging.getLogger("ray").setLevel(logging.ERROR)
        _bound_data(ray, plan)
        _told_failure(job, name, config, params, ray.train.report)

    scaling = ScalingConfig(
        num_workers=plan.workers_per_trial,
        use_gpu=plan.gpus_per_trial > 0,
        resources_per_worker={"CPU": plan.cpus_per_trial, "GPU": plan.gpus_per_trial},
    )
    with tempfile.TemporaryDirectory() as folder:
        run_config = RunConfig(storage_path=folder, callbacks=[TuneReportCallback()])  # type: ignore[list-item]
        TorchTrainer(worker, scaling_config=scaling, run_config=run_config).fit()


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
    """Train; a failure is written to the trial's own record before it goes up."""
    try:
        train(job, name, config, params, report)
    except Exception as error:
        store = job.run / "trials" / name
        begun = {"name": name, "params": params, "config": config.model_dump(), "epochs": [], "val_map": None}
        about = store.read_json("trial.json") if store.exists("trial.json") else begun
        memory = "out of memory" in str(error).lower()
        reason = "out of memory" if memory else f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        if isinstance(error, CxrltError):
            reason = str(error)
        store.write_json("trial.json", {**about, "state": FAILED, "reason": reason})
        if memory:
            import torch

            torch.cuda.empty_cache()
        raise


def _bound_data(ray: Any, plan: Any) -> None:
    """Each trial's Ray Data gets its share of the CPUs that trials leave, so that none starves."""
    from ray.data import ExecutionResources

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    share = max(0.5, plan.cpus_for_data / plan.max_concurrent / max(plan.workers_per_trial, 1))
    context.execution_options.resource_limits = ExecutionResources(cpu=share)


@dataclasses.dataclass
class Progress(tune.Callback):
    """One line a finished trial: how it did, the best so far, images/s, time left; and of long trials, of epochs."""

    run: Run
    trials: int
    missing: int

    def __post_init__(self) -> None:
        self.started, self.said, self.done = time.monotonic(), time.monotonic(), 0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tell of an epoch where nothing was told for SILENCE seconds."""
        if time.monotonic() - self.said > SILENCE:
            self.said = time.monotonic()
            print(
                f"  {trial_name(trial.config['number'])} epoch {result['epoch']}, best val mAP {result[METRIC]:.4f}, "
                f"{result['images_per_second']:.0f} images/s",
                flush=True,
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell of a trial that finished or was pruned."""
        self._tell(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell of a trial that failed."""
        self._tell(trial)

    def _tell(self, trial: Any) -> None:
        self.done += 1
        self.said = time.monotonic()
        left = (time.monotonic() - self.started) / self.done * (self.missing - self.done)
        name = trial_name(trial.config["number"])
        everyone = {each.name: each for each in self.run.trials()}
        this = everyone.get(name)
        judged = [each for each in everyone.values() if each.val_map == each.val_map]
        best = max(judged, key=lambda each: each.val_map, default=None)
        if this is None:
            line = f"{name} failed before it began"
        elif this.state == FAILED:
            line = f"{name} failed: {this.about.get('reason')}"
        else:
            config = this.about["config"]
            line = (
                f"{name} {this.state:8} val mAP {this.val_map:.4f}  {len(this.about['epochs'])} epochs  "
                f"{this.about.get('images_per_second', 0):.0f} images/s  "
                f"{config['backbone']} {config['resolution']} px {config['loss']}"
            )
        told = f"best {best.val_map:.4f} ({best.name})" if best else "none yet"
        total = self.trials - self.missing + self.done
        print(f"[{total}/{self.trials}] {line} | {told} | {left / 60:.1f} min left", flush=True)
