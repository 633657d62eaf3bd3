"""How trials share a machine or a cluster: CPUs, GPUs, and what streams their images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cxrlt_ray.cluster.processors import available_processors
from cxrlt_ray.cluster.start import DATA_CPUS
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.stream import RAY, THREADS, Ingest
from cxrlt_ray.errors import UsageError
from cxrlt_ray.search.request import SweepRequest

UNITS = 10_000  # of a CPU or GPU, in whole numbers of which Ray counts them


@dataclass(frozen=True)
class Resources:
    """The CPUs and GPUs of the machine or cluster, and how trials share them.

    min_workers: with how many a trial goes on where machines are lost.
    """

    cpus: float
    gpus: float
    cpus_per_trial: float
    gpus_per_trial: float
    workers_per_trial: int
    max_concurrent: int
    min_workers: int = 1

    @property
    def cpus_for_data(self) -> float:
        """What all trials together leave to Ray Data."""
        return self.cpus - self.max_concurrent * self.cpus_per_trial * max(self.workers_per_trial, 1)

    @property
    def threads(self) -> int:
        """Threads that a worker of a trial computes with on the CPU; 0 where it has a GPU."""
        workers = self.max_concurrent * max(self.workers_per_trial, 1)
        return 0 if self.gpus_per_trial else max(1, int(self.cpus // workers))

    @property
    def devices_per_trial(self) -> float:
        """How many devices train a trial: its workers' GPUs, a part of one where trials share it, or its workers."""
        return max(self.workers_per_trial, 1) * (self.gpus_per_trial or 1.0)

    def __str__(self) -> str:
        """One line that explains the budget."""
        worker = f"{self.cpus_per_trial:g} CPU" + (f" + {self.gpus_per_trial:g} GPU" if self.gpus_per_trial else "")
        if self.workers_per_trial > 1:
            worker = f"{self.workers_per_trial} workers of {worker}"
        return (
            f"{self.cpus:g} CPU, {self.gpus:g} GPU: {counted(self.max_concurrent, 'trial')} at a time, {worker} each, "
            f"{self.cpus_for_data:g} CPU left"
        )


def plan_resources(
    cpus: float,
    gpus: float,
    *,
    max_concurrent: int | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    workers_per_trial: int = 1,
    min_workers: int | None = None,
    data_cpus: float = DATA_CPUS,
) -> Resources:
    """Fill in what was not asked for; raises UsageError, with the numbers, for more than there is.

    Trials that reserve every CPU would starve Ray Data and hang, so `data_cpus` at least stay free; none need
    where trials stream in threads of their own.
    """
    workers = workers_per_trial
    if workers < 1:
        raise UsageError(f"--workers-per-trial must be at least 1, not {workers}.")
    if min_workers is not None and not 1 <= min_workers <= workers:
        raise UsageError(f"--min-workers must be 1 to {workers} (--workers-per-trial), not {min_workers}.")
    per_gpu = gpus_per_trial if gpus_per_trial is not None else (1.0 if gpus else 0.0)
    if not 0 <= per_gpu < math.inf or (per_gpu > 1 and per_gpu % 1):
        raise UsageError(f"--gpus-per-trial is a part of a GPU, such as 0.5, or whole ones; not {per_gpu:g}.")
    fit_gpu = _workers_on(gpus, per_gpu) // workers if per_gpu else None
    if per_gpu and not fit_gpu:
        each = f", each of which holds {times(1.0, per_gpu)}" if per_gpu * workers <= gpus else ""
        raise UsageError(
            f"--gpus-per-trial {per_gpu:g} x --workers-per-trial {workers} asks for {per_gpu * workers:g} GPU; "
            f"there are {gpus:g}{each}."
        )
    concurrent = max_concurrent if max_concurrent is not None else (fit_gpu or 1)
    if concurrent < 1:
        raise UsageError(f"--max-concurrent must be at least 1, not {concurrent}.")
    if fit_gpu is not None and concurrent > fit_gpu:
        asked = concurrent * per_gpu * workers
        raise UsageError(
            f"--max-concurrent {concurrent} trials of {per_gpu * workers:g} GPU ask for {asked:g} GPU; "
            f"there are {gpus:g}: at most {fit_gpu} trials at a time."
        )
    if cpus_per_trial is None:
        share = (cpus - data_cpus) / (concurrent * workers)
        cpus_per_trial = 1.0 if share >= 1 else round(share - 0.05, 1)
    asked = concurrent * workers * cpus_per_trial
    if not cpus_per_trial > 0 or not cpus - asked >= data_cpus:
        free = f", and {data_cpus:g} must stay free to stream images" if data_cpus else ""
        raise UsageError(
            f"{concurrent} trial(s) x {workers} worker(s) x {cpus_per_trial:g} CPU ask for {asked:g} of {cpus:g} CPU"
            f"{free}: lower --max-concurrent, --cpus-per-trial or --workers-per-trial."
        )
    return Resources(cpus, gpus, cpus_per_trial, per_gpu, workers_per_trial, concurrent, min_workers or workers)


def times(whole: float, part: float) -> int:
    """How many times a part goes into the whole, as Ray counts: 0.2 goes into 1 five times, but 1 // 0.2 is 4."""
    return round(whole * UNITS) // max(1, round(part * UNITS))


def _workers_on(gpus: float, per_gpu: float) -> int:
    """How many workers GPUs hold: one that takes a part of a GPU has it of one GPU."""
    return times(gpus, per_gpu) if per_gpu >= 1 else int(gpus) * times(1.0, per_gpu)


def available(address: str | None) -> tuple[float, float]:
    """CPUs and GPUs of the cluster at `address`, or of this machine, without starting Ray here."""
    if address is None:
        import torch

        return float(available_processors()), float(torch.cuda.device_count())
    from cxrlt_ray.cluster.start import start_ray

    cluster = start_ray(address).cluster_resources()
    if not cluster.get("CPU"):
        raise UsageError(
            "the cluster has no workers up (0 CPU): a sweep plans by what is there. Ask the autoscaler for some first: "
            'python -c \'import ray; from ray.autoscaler.sdk import request_resources; ray.init("auto"); '
            'request_resources(bundles=[{"GPU": 1}] * 4)\''
        )
    return cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)


def engine_of(asked: str, address: str | None) -> str:
    """What streams images: Ray Data on a cluster of several machines, whose cores can help; else threads."""
    if asked != "auto":
        return asked
    if address is None:
        return THREADS
    import ray

    return RAY if sum(node["Alive"] for node in ray.nodes()) > 1 else THREADS


def ingest_of(engine: str, resources: Resources, cache_gb: float | None) -> Ingest:
    """How trials stream images. cache_gb: of decoded images in a machine's memory; None: a quarter of it."""
    from cxrlt_ray.cluster.node_cache import memory_bound

    trainers = resources.max_concurrent * max(resources.workers_per_trial, 1)
    threads = max(1, min(8, round(resources.cpus / trainers)))
    return Ingest(engine, threads, memory_bound(cache_gb))


def resources_for(request: SweepRequest) -> tuple[str, Resources]:
    """What streams images, and how trials share the machine or cluster."""
    cpus, gpus = available(request.address)
    engine = engine_of(request.ingest, request.address)
    resources = plan_resources(
        cpus,
        gpus,
        max_concurrent=request.max_concurrent,
        cpus_per_trial=request.cpus_per_trial,
        gpus_per_trial=request.gpus_per_trial,
        workers_per_trial=request.workers_per_trial,
        min_workers=request.min_workers,
        data_cpus=DATA_CPUS if engine == RAY else 0.0,
    )
    return engine, resources
