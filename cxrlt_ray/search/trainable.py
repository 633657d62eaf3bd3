"""The function that Ray Tune calls for a trial: it trains in its own process, or in a group of Ray Train's workers."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cxrlt_ray.cluster import ray_private
from cxrlt_ray.cluster.start import DATA_CPUS, data_context
from cxrlt_ray.errors import CxrltError, Diverged, UsageError
from cxrlt_ray.runs import verdict
from cxrlt_ray.runs.records import FAILED, RUNNING, TrialRecord
from cxrlt_ray.runs.store import RECORD
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search import watchdog
from cxrlt_ray.search.resources import Resources, times
from cxrlt_ray.search.space import Space
from cxrlt_ray.search.trial_states import note_retry, trial_name
from cxrlt_ray.storage.patience import patiently
from cxrlt_ray.training.context import TimeLeft
from cxrlt_ray.training.heartbeat import beat

if TYPE_CHECKING:
    from cxrlt_ray.training.job import Job

Report = Callable[[dict[str, Any]], None]
ELASTIC = 60.0  # seconds that a trial waits for the machines of all its workers, where it may begin with fewer


def run_trial(point: dict[str, Any], job: Job, space: Space, resources: Resources) -> None:
    """Train the trial `point` in this process, or in a group of Train workers.

    point: {"number", "params", "seed", "epochs", "until"}; epochs: None for the space's own; until: TimeLeft, or None.
    """
    from ray import tune
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray").setLevel(logging.ERROR)
    _release_memory()
    _limit_data_cpus(resources)
    name, params = trial_name(point["number"]), point["params"]
    config = space.to_config(params, point["seed"])
    if point["epochs"]:
        config = config.model_copy(update={"epochs": point["epochs"]})
    if resources.workers_per_trial > 1:
        _train_in_workers(job, name, config, params, resources)
        return
    time_left = TimeLeft(*point["until"]) if point["until"] else None
    loop = lambda: train_or_note(job, name, config, params, tune.report, time_left)  # noqa: E731
    scaling = ScalingConfig(num_workers=0, use_gpu=resources.gpus_per_trial > 0)
    with watchdog.heartbeats_written(job.run.uri, name):
        TorchTrainer(loop, scaling_config=scaling).fit()


def _train_in_workers(job: Job, name: str, config: TrialConfig, params: dict[str, Any], resources: Resources) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.tune.integration.ray_train import TuneReportCallback

    run = job.run.uri

    def worker() -> None:
        import ray.train

        logging.getLogger("ray").setLevel(logging.ERROR)
        _limit_data_cpus(resources)
        rank, group = ray.train.get_context().get_world_rank(), watchdog.own_placement_group()
        with watchdog.heartbeats_written(run, name, rank, group):
            train_or_note(job, name, config, params, ray.train.report)

    bundle = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    count = workers_at_hand(_room_for(bundle), resources.min_workers, resources.workers_per_trial)
    scaling = ScalingConfig(num_workers=count, use_gpu=resources.gpus_per_trial > 0, resources_per_worker=bundle)
    with tempfile.TemporaryDirectory() as folder, watchdog.heartbeats_written(run, name, -1):
        run_config = RunConfig(storage_path=folder, callbacks=[TuneReportCallback()])  # type: ignore[list-item]
        ray_private.torch_trainer_without_cleaner()(worker, scaling_config=scaling, run_config=run_config).fit()


def workers_at_hand(room: Callable[[], int], least: int, most: int) -> int:
    """How many workers a trial begins with: `most`, or what there is room for where ELASTIC seconds bring no more.

    Ray Train's own elastic groups count a cluster's resources, those of other trials too, and whole ones only.
    """
    until = time.monotonic() + ELASTIC
    while least < most and (workers := room()) < most:
        if workers >= least and time.monotonic() > until:
            return workers
        beat()  # it waits and does not hang
        time.sleep(1.0)
    return most


def _room_for(bundle: dict[str, float]) -> Callable[[], int]:
    """Of how many workers the machines hold the resources now."""
    needs = {kind: value for kind, value in bundle.items() if value}

    def room() -> int:
        nodes = ray_private.free_resources_by_node().values()
        return sum(min(times(free.get(kind, 0), value) for kind, value in needs.items()) for free in nodes)

    return room


def train_or_note(
    job: Job, name: str, config: TrialConfig, params: dict[str, Any], report: Report, time_left: TimeLeft | None = None
) -> None:
    """Train. A fault of the trial's own ends it; any other is noted and raised: the trial may be tried again."""
    from cxrlt_ray.training.trial import train

    store = job.run / "trials" / name
    try:
        train(job, name, config, params, report, time_left)
    except (Diverged, UsageError) as error:
        if store.exists(RECORD):
            record = TrialRecord.read(store, RECORD)
        else:
            record = TrialRecord(name=name, state=RUNNING, params=params)
        if record.state != RUNNING:  # the sweep has ended it meanwhile
            return
        record.config = record.config or config
        record.state, record.reason, record.own_fault = FAILED, str(error), True
        record.write(store, RECORD)
        verdict.uphold(store)
    except Exception as error:
        memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't alloc" in str(error)
        reason = str(error) if isinstance(error, CxrltError) else f"{type(error).__name__}: {error}"
        if memory:
            import torch

            reason = "out of memory"
            torch.cuda.empty_cache()
        patiently(lambda: note_retry(store, " ".join(reason.split())[:500], time.time()))
        raise


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


def _limit_data_cpus(resources: Resources) -> None:
    """Each trial's Ray Data gets its share of the CPUs that trials leave, so that none starves."""
    from ray.data import ExecutionResources

    workers = resources.max_concurrent * max(resources.workers_per_trial, 1)
    share = max(DATA_CPUS, resources.cpus_for_data / workers)
    data_context().execution_options.resource_limits = ExecutionResources(cpu=share)
