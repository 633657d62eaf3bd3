"""What a sweep will cost, before it is paid for: `python -m cxrlt_ray.sweep TASK --plan`.

A trial's time is its images over a rate, images/s of training a (backbone, resolution) on a device (rates.py). What
ASHA saves is found by simulating the search with made-up learning curves (schedule.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.rates import FINDINGS, ModelRate, Probe, Rates, probe, trained_rates
from cxrlt_ray.search.resources import Resources
from cxrlt_ray.search.schedule import Simulation, simulate
from cxrlt_ray.search.space import Space
from cxrlt_ray.search.workload import Workload, trial_seconds
from cxrlt_ray.storage import Store

PROBE_SECONDS = 60.0
DEVICES = (1, 8, 32)  # numbers of GPUs that a plan compares


@dataclass(frozen=True)
class Forecast:
    """What the sweep on a number of devices comes to, with ASHA and without it. name: of the devices."""

    name: str
    devices: int
    pruned: Simulation
    unpruned: Simulation


@dataclass(frozen=True)
class Device:
    """A device by name, and the rates of the space's models on it."""

    name: str
    rates: tuple[ModelRate, ...]


@dataclass(frozen=True)
class SweepPlan:
    """All that `--plan` shows. devices: the one here, if it is another, then the one that is planned for."""

    workload: Workload
    devices: tuple[Device, ...]
    forecasts: tuple[Forecast, ...]
    trials: int
    cpus: float
    measured: bool  # whether any rate was measured


def draw_trials(space: Space, trials: int, seed: int = 0) -> list[TrialConfig]:
    """Trials as a search might choose them: the space's start points, then points at random."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna_study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for point in space.start:
        optuna_study.enqueue_trial(dict(point))
    configs = []
    for _ in range(trials):
        trial = optuna_study.ask()
        space.define(trial)
        configs.append(space.to_config(trial.params))
    return configs


class Planner:
    """What a sweep will cost by what is known of rates, and how that compares with what it took.

    here: the device that trials run on; gpu: that the plan is for.
    """

    def __init__(
        self,
        space: Space,
        trials: int,
        folds: int,
        seed: int,
        resources: Resources,
        storage: Store,
        address: str | None = None,
        gpu: str | None = None,
    ) -> None:
        self.space, self.folds, self.resources = space, max(folds, 1), resources
        self.configs, self.rates = draw_trials(space, trials, seed), Rates(storage)
        self.address, self.here = address, device_name(address, resources)
        self.gpu = gpu or (self.here if resources.gpus else "H100")

    def probe(self, configs: Iterable[TrialConfig] = (), seconds: float | None = None) -> Probe:
        """Measure every kind of model of `configs` (all trials') where trials will run, and keep the rates.

        seconds: of all together; PROBE_SECONDS without it.
        """
        import ray

        configs, seconds = list(configs) or self.configs, PROBE_SECONDS if seconds is None else seconds
        arguments = (configs, FINDINGS, self.resources.threads, self.resources.gpus_per_trial > 0, seconds)
        if self.address:
            task = ray.remote(probe).options(num_gpus=self.resources.gpus_per_trial)
            measured: Probe = ray.get(task.remote(*arguments))
        else:
            measured = probe(*arguments)
        for (backbone, resolution), rate in measured.rates.items():
            self.rates.note(measured.device, backbone, resolution, rate, "probe")
        self.rates.save()
        return measured

    def rates_on(self, device: str) -> dict[tuple[str, int], ModelRate]:
        """Rates of the space's models on a device, by backbone and resolution."""
        stages = [stage for config in self.configs for stage in config.staged()]
        specs = {(stage.backbone, stage.resolution): stage.spec() for stage in stages}
        cores = self.resources.threads or 1
        return {key: self.rates.rate_of(spec, FINDINGS, device, cores) for key, spec in specs.items()}

    def workload(self, images: int | Manifest, others: Iterable[str] = ()) -> Workload:
        """How many images train and validate, of a manifest or of so many images and the published cohorts `others`."""
        if isinstance(images, int):
            return Workload.of_count(images, others, self.folds)
        return Workload.of_manifest(images, self.folds)

    def forecast(self, images: int | Manifest) -> Forecast:
        """The sweep on this machine."""
        concurrent = [self.resources.max_concurrent]
        return self._forecasts(self.here, self.rates_on(self.here), self.workload(images), concurrent)[0]

    def plan(self, images: int | Manifest, others: Iterable[str] = ()) -> SweepPlan:
        """The plan for this machine and for 1, 8 and 32 GPUs; for a number of images, with `others` beside."""
        workload, there = self.workload(images, others), self.rates_on(self.gpu)
        devices = [Device(self.gpu, tuple(there.values()))]
        forecasts = self._forecasts(self.gpu, there, workload, DEVICES)
        if self.here != self.gpu:
            here = self.rates_on(self.here)
            devices.insert(0, Device(self.here, tuple(here.values())))
            alone = self._forecasts(self.here, here, workload, [self.resources.max_concurrent])
            forecasts = [*alone, *forecasts]
        known = bool(self.rates.known)
        return SweepPlan(workload, tuple(devices), tuple(forecasts), len(self.configs), self.resources.cpus, known)

    def _forecasts(
        self, device: str, rates: Mapping[tuple[str, int], ModelRate], workload: Workload, counts: Sequence[int]
    ) -> list[Forecast]:
        """The sweep on each number of devices, a trial on each."""
        seconds = [trial_seconds(config, rates, workload) for config in self.configs]
        epochs, prune, first = self.space.epochs, self.space.prune, self.space.grace(self.space.epochs)
        return [
            Forecast(
                device if device == self.here and self.here != self.gpu else f"{count} x {device}",
                count,
                simulate(seconds, epochs, count, prune, first_rung=first),
                simulate(seconds, epochs, count, prune=False),
            )
            for count in counts
        ]

    def trial_bytes(self, images: int | Manifest) -> tuple[float, float]:
        """Bytes on the storage of the largest trial: while it runs, its last state included, and when it is done."""
        rates, workload, done = self.rates_on(self.here), self.workload(images), 0.0
        for config in self.configs:
            last = config.staged()[-1]
            checkpoints = rates[last.backbone, last.resolution].checkpoint * (workload.folds + config.refit)
            done = max(done, checkpoints + 4.0 * FINDINGS * (workload.val + workload.test))
        # a state holds weights, AdamW's two moments and an average; while one is written the one before is there
        return done + 2 * 4 * max(rate.checkpoint for rate in rates.values()), done

    def keep_rates(self, trials: Sequence[Trial]) -> None:
        """Keep the rates that trials had, for the next plan."""
        rates: dict[tuple[str, str, int], list[float]] = {}
        for trial in trials:
            for stage, speed in trained_rates(trial.record):
                device = trial.record.environment.device
                rates.setdefault((device, stage.backbone, stage.resolution), []).append(speed)
        for key, values in rates.items():
            self.rates.note(*key, float(np.median(values)), "trials")
        self.rates.save()


def device_name(address: str | None, resources: Resources) -> str:
    """What trials run on: a GPU's name, or cpu-N."""
    if not resources.gpus_per_trial:
        return f"cpu-{resources.threads}"
    if address is None:
        import torch

        from cxrlt_ray.training import device

        return device.name(torch.device("cuda"))
    import ray

    kinds = [key.partition(":")[2] for key in ray.cluster_resources() if key.startswith("accelerator_type:")]
    return kinds[0] if kinds else "GPU"
