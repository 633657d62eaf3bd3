"""Starts a pretraining in this process, or in a group of Ray Train's workers, whose first one tells how far it is."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from cxrlt_ray.cluster import ray_private
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.errors import CxrltError, Diverged, UsageError
from cxrlt_ray.pretraining.course import Pretraining, with_steps
from cxrlt_ray.pretraining.monitor import Monitored
from cxrlt_ray.pretraining.settings import Monitoring
from cxrlt_ray.runs.pretrain_record import FILE, PretrainRecord
from cxrlt_ray.runs.records import TrialRecord
from cxrlt_ray.runs.store import RECORD
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.resources import Resources
from cxrlt_ray.storage import Store
from cxrlt_ray.training import resume
from cxrlt_ray.training.clock import Clock
from cxrlt_ray.training.context import TrialContext
from cxrlt_ray.training.course import begin
from cxrlt_ray.training.job import Job, manifest_of, training_images
from cxrlt_ray.training.stage import train_stage
from cxrlt_ray.training.trial import first_record
from cxrlt_ray.training.workers import agree, most, worker_of

Say = Callable[[str], None]
FINDINGS = ("none",)  # of the classifier around the backbone, whose head is not trained
TRIAL, STATE = "pretraining", "state"
PROBE, SLACK = 8, 0.9  # steps that are timed for a time budget; the share of it that steps may take
PROGRESS, FAULT = "progress.json", "fault.json"
LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Assignment:
    """What every worker needs. config: of the record, before steps are fitted. deadline: by time.time()."""

    job: Job
    out: Store
    monitoring: Monitoring
    deadline: float | None = None


def run_here(assignment: Assignment, say: Say) -> None:
    """Train in this process, or as the worker of a group that it is. Raises Diverged for a collapse."""
    import torch

    job, out = assignment.job, assignment.out
    if job.threads:
        torch.set_num_threads(job.threads)
    worker, store, manifest = worker_of(job), job.run, manifest_of(job.run)
    record = PretrainRecord.read(out, FILE)
    before = resume.latest(store)
    if not agree(before is not None, worker):
        before = None
    config = with_steps(
        record.config,
        len(_training(job, record.config, manifest)),
        record.config.batch_size * job.workers,
        worker.world,
    )
    if before is None:
        config = _fitted(assignment, config, manifest, say if worker.first else _silent)
    existing = TrialRecord.read(store, RECORD) if store.exists(RECORD) else None
    trial_record = first_record(job, TRIAL, config, {}, existing, before)
    record.config, record.weights, record.environment = config, trial_record.weights, trial_record.environment
    trial = TrialContext(
        job, config, manifest, store if worker.first else None, worker, trial_record, lambda values: None, before
    )
    trial.write()
    if worker.first and not before:
        record.write(out, FILE)
    course = Pretraining(
        trial,
        record,
        out,
        _monitored(manifest),
        assignment.monitoring,
        say if worker.first else _silent,
        assignment.deadline,
    )
    course.run()


def run_in_workers(assignment: Assignment, resources: Resources, say: Say) -> None:
    """Train in a group of Ray Train's workers; raises what a worker raised as a sentence of ours."""
    from ray.train import RunConfig, ScalingConfig

    store = assignment.job.run

    def worker() -> None:
        logging.getLogger("ray").setLevel(logging.ERROR)
        numbered = {"line": 0}

        def note(line: str) -> None:
            numbered["line"] += 1
            store.write_json(PROGRESS, {**numbered, "text": line})

        try:
            run_here(assignment, note)
        except CxrltError as error:
            if worker_of(assignment.job).first:
                store.write_json(FAULT, {"kind": type(error).__name__, "text": str(error)})
            raise

    for name in (FAULT, PROGRESS):
        if store.exists(name):
            store.delete(name)
    bundle = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    scaling = ScalingConfig(
        num_workers=resources.workers_per_trial, use_gpu=resources.gpus_per_trial > 0, resources_per_worker=bundle
    )
    over = threading.Event()
    listener = threading.Thread(target=_tell, args=(store, say, over), daemon=True)
    listener.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = ray_private.torch_trainer_without_cleaner()
            trainer(worker, scaling_config=scaling, run_config=RunConfig(storage_path=folder)).fit()
    except Exception as error:
        raise _fault(store, error) from None
    finally:
        over.set()
        listener.join()


def _fault(store: Store, error: Exception) -> CxrltError:
    """What the first worker wrote of its end, or what Ray says."""
    if store.exists(FAULT):
        fault = store.read_json(FAULT)
        kinds = {kind.__name__: kind for kind in (Diverged, UsageError)}
        return kinds.get(fault["kind"], CxrltError)(fault["text"])
    return CxrltError(f"a worker ended: {' '.join(str(error).split())[:300]}.")


def _tell(store: Store, say: Say, over: threading.Event) -> None:
    """Say the lines that the first worker writes, until it is over."""
    told = 0
    while True:
        last = over.wait(LOOK_SECONDS)
        with suppress(CxrltError):
            if store.exists(PROGRESS) and (progress := store.read_json(PROGRESS))["line"] > told:
                told = progress["line"]
                say(progress["text"])
        if last:
            return


def _silent(line: str) -> None:
    """Of all workers but the first."""


def _training(job: Job, config: TrialConfig, manifest: Manifest) -> np.ndarray:
    return training_images(manifest, job, 0, config.cohorts).image_id


def _monitored(manifest: Manifest) -> Monitored:
    """The images that are kept to measure by."""
    part = manifest.of_split("val")
    return Monitored(part.table["image_id"].to_numpy(), part.table["subject_id"].to_numpy(), part.targets())


def _fitted(assignment: Assignment, config: TrialConfig, manifest: Manifest, say: Say) -> TrialConfig:
    """The configuration with as many steps as the time budget has room for, by timing PROBE of them on this machine.

    One with stages is left as it is: it ends when the time does.
    """
    if assignment.deadline is None or config.stages:
        return config
    job, worker = assignment.job, worker_of(assignment.job)
    images = training_images(manifest, job, 0, config.cohorts)
    short = config.model_copy(update={"steps": PROBE, "epochs": PROBE, "frozen_steps": 0})
    times: list[float] = []
    model = begin(job, short, None, None)
    timed = replace(job, features=0)
    for _ in train_stage(timed, short, model, images, 0, Clock(), watch=lambda *_: times.append(time.monotonic())):
        pass
    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
    room = int(SLACK * rate * (assignment.deadline - time.time()))
    room = -most(-room, worker)  # the fewest of all workers
    if room < 1:
        raise UsageError("the time budget has no room for one step: give more time, or a smaller model.")
    asked = with_steps(config, len(images), config.batch_size * job.workers, worker.world)
    fitted = with_steps(
        config.model_copy(update={"steps": room}), len(images), config.batch_size * job.workers, worker.world
    )
    if (not config.steps and fitted.epochs > asked.epochs) or (config.steps and room >= config.steps):
        say(f"The time budget holds all that was asked for: {rate:.2f} steps/s")
        return config
    say(f"The time budget holds {room:,} steps at {rate:.2f} steps/s: the schedule is fitted to them")
    return fitted
