"""What a sweep will cost, before it is paid for: `python -m cxrlt_ray.sweep TASK --plan`.

A trial's time is its images over a rate, images/s of training a (backbone, resolution) on a device (rates.py). What
ASHA saves is found by simulating the search with made-up learning curves (schedule.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.budget import Fit, SearchSize, fit_to_budget
from cxrlt_ray.search.rates import FINDINGS, ModelRate, Probe, Rates, probe, trained_rates
from cxrlt_ray.search.resources import Resources, times
from cxrlt_ray.search.schedule import Simulation, simulate
from cxrlt_ray.search.space import Space
from cxrlt_ray.search.workload import FeatureNeed, Workload, feature_needs, trial_seconds
from cxrlt_ray.storage import Store

PROBE_SECONDS = 60.0
PROBE_SHARE = 0.04  # of a time budget, at most a quarter of PROBE_SECONDS, to measure rates that are not known
DOUBT = 10.0  # times by which estimated rates may be wrong
MARGIN = 1.1  # of planned time within a budget: decoding, writing and what else the rates do not hold
DEVICES = (1, 8, 32)  # numbers of GPUs that a plan compares


@dataclass(frozen=True)
class Forecast:
    """What the sweep on a number of devices comes to, with ASHA and without it. name: of the devices."""

    name: str
    devices: float
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
    features: tuple[FeatureNeed, ...] = ()  # of frozen stages, each kind once
    features_bound: float = 0.0  # bytes that all of them may take
    kept: int | None = None  # trials whose checkpoints are kept; None: all


class TrialBytes(NamedTuple):
    """Bytes on the storage of the largest trial: its last state while it runs, its checkpoints, its predictions."""

    state: float
    checkpoints: float
    predictions: float

    @property
    def most(self) -> float:
        """Of a trial that runs."""
        return sum(self)

    def of_sweep(self, trials: int, together: int, checkpoints: int) -> float:
        """Of `trials` that are to come, so many at a time, which leave so many checkpoints more than there are."""
        return self.most * min(trials, together) + self.checkpoints * checkpoints + self.predictions * trials


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

    device: that trials run on, by name; gpu: that the plan is for. features: bytes that stored features may take.
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
        features: int = 0,
        of_findings: bool = False,
    ) -> None:
        self.space, self.folds, self.seed, self.resources = space, max(folds, 1), seed, resources
        self.configs, self.rates = draw_trials(space, trials, seed), Rates(storage)
        self.features, self.of_findings = features, of_findings
        self.address, self.device = address, device_name(address, resources)
        self.gpu = gpu or (self.device if resources.gpus else "H100")

    def fitted(self, space: Space, trials: int) -> Planner:
        """The plan of a smaller search on the same machine."""
        same = (self.folds, self.seed, self.resources, self.rates.store, self.address, self.gpu)
        return Planner(space, trials, *same, features=self.features, of_findings=self.of_findings)

    def following(self, done: int) -> Planner:
        """The plan of the trials that come after the first `done`."""
        planner = self.fitted(self.space, len(self.configs))
        planner.configs = planner.configs[done:]
        return planner

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
        return self.rates_of(self.configs, device)

    def rates_of(self, configs: Iterable[TrialConfig], device: str) -> dict[tuple[str, int], ModelRate]:
        """Rates of the models of some trials on a device, by backbone and resolution."""
        stages = [stage for config in configs for stage in config.staged()]
        specs = {(stage.backbone, stage.resolution): stage.spec() for stage in stages}
        cores = self.resources.threads or 1
        return {key: self.rates.rate_of(spec, FINDINGS, device, cores) for key, spec in specs.items()}

    def workload(self, images: int | Manifest, others: Iterable[str] = ()) -> Workload:
        """How many images train and validate, of a manifest or of so many images and the published cohorts `others`."""
        if isinstance(images, int):
            return Workload.of_count(images, others, self.folds, self.of_findings)
        return Workload.of_manifest(images, self.folds, self.of_findings)

    def forecast(self, images: int | Manifest) -> Forecast:
        """The sweep on this machine."""
        return self._forecasts(self.device, self.rates_on(self.device), self.workload(images), [self.devices])[0]

    def plan(self, images: int | Manifest, others: Iterable[str] = (), kept: int | None = None) -> SweepPlan:
        """The plan for this machine and for 1, 8 and 32 GPUs; for a number of images, with `others` beside.

        kept: of how many trials checkpoints are kept; None: of all.
        """
        workload, gpu_rates = self.workload(images, others), self.rates_on(self.gpu)
        devices = [Device(self.gpu, tuple(gpu_rates.values()))]
        forecasts = self._forecasts(self.gpu, gpu_rates, workload, DEVICES)
        if self.device != self.gpu:
            rates = self.rates_on(self.device)
            devices.insert(0, Device(self.device, tuple(rates.values())))
            alone = self._forecasts(self.device, rates, workload, [self.devices])
            forecasts = [*alone, *forecasts]
        known = bool(self.rates.known)
        needs = dict.fromkeys(need for config in self.configs for need in feature_needs(config, workload) if need)
        return SweepPlan(
            workload,
            tuple(devices),
            tuple(forecasts),
            len(self.configs),
            self.resources.cpus,
            known,
            tuple(needs),
            self.features,
            kept,
        )

    def _forecasts(
        self, device: str, rates: Mapping[tuple[str, int], ModelRate], workload: Workload, counts: Sequence[float]
    ) -> list[Forecast]:
        """The sweep on each number of devices, as many of which a trial has as are asked for, if there are."""
        epochs, prune, first = self.space.epochs, self.space.prune, self.space.grace(self.space.epochs)
        forecasts = []
        for count in counts:
            each = min(self.resources.devices_per_trial, count)
            seconds = self.seconds_of(self.configs, rates, workload, each)
            runs = [
                simulate(seconds, epochs, times(count, each), pruned, first_rung=first if pruned else None)
                for pruned in (prune, False)
            ]
            pruned, unpruned = (replace(run, busy=run.busy * each) for run in runs)
            alone = device == self.device and self.device != self.gpu
            forecasts.append(Forecast(device if alone else f"{count:g} x {device}", count, pruned, unpruned))
        return forecasts

    @property
    def devices(self) -> float:
        """How many devices trials take here, all that run at a time together."""
        return self.resources.max_concurrent * self.resources.devices_per_trial

    def seconds_of(
        self,
        configs: Iterable[TrialConfig],
        rates: Mapping[tuple[str, int], ModelRate],
        workload: Workload,
        devices: float | None = None,
    ) -> list[list[float]]:
        """Seconds of every epoch of some trials, each trained by so many devices; as many as are asked for without."""
        each = self.resources.devices_per_trial if devices is None else devices
        trials = (trial_seconds(config, rates, workload, self.features) for config in configs)
        return [[seconds / each for seconds in trial] for trial in trials]

    def fit(
        self,
        budget: float,
        images: int | Manifest,
        fewest: int = 1,
        measured: bool = True,
        others: Iterable[str] = (),
    ) -> Fit:
        """The search of `fewest` trials or more that is planned to end within `budget` seconds on this machine.

        others: published cohorts beside a number of images. measured: where the estimated rates do not leave it beyond
        doubt that all of it fits, they are measured first.
        """
        started, workload = time.monotonic(), self.workload(images, others)
        if measured and not self._fit(budget / DOUBT, workload, fewest).size.full:
            self._probe_unknown(min(PROBE_SECONDS / 4, PROBE_SHARE * budget))
        return self._fit(budget - (time.monotonic() - started), workload, fewest)

    def _fit(self, budget: float, workload: Workload, fewest: int) -> Fit:
        pricer, trials = _Pricer(self, workload), len(self.configs)
        fewest = min(trials, max(fewest, self.resources.max_concurrent))  # trials side by side cost no time
        return fit_to_budget(budget, trials, pricer.epochs, pricer.sizes(fewest), pricer.seconds, fewest)

    def _probe_unknown(self, seconds: float) -> None:
        """Measure, in about so many seconds, each backbone of which no rate is known here, at its smallest size."""
        smallest: dict[str, TrialConfig] = {}
        for stage in (stage for config in self.space.kinds() for stage in config.staged()):
            if stage.backbone not in smallest or stage.resolution < smallest[stage.backbone].resolution:
                smallest[stage.backbone] = stage
        unknown = [stage for name, stage in smallest.items() if not self.rates.measured(self.device, name)]
        if unknown:
            with suppress(MemoryError, RuntimeError):  # a batch does not fit: training takes it in pieces
                self.probe(unknown, seconds)

    def epoch_seconds(self, images: int | Manifest) -> Callable[[TrialConfig], list[float]]:
        """The planned seconds of each epoch of a trial on this machine."""
        workload = self.workload(images)
        return lambda config: self.seconds_of([config], self.rates_of([config], self.device), workload)[0]

    def first_rate(self) -> ModelRate:
        """The rate here of the model of the search's first trial."""
        first = self.configs[0].staged()[0]
        return self.rates_of([first], self.device)[first.backbone, first.resolution]

    def trial_bytes(self, images: int | Manifest) -> TrialBytes:
        """Bytes on the storage of the largest trial."""
        rates, workload, checkpoints = self.rates_on(self.device), self.workload(images), 0.0
        for config in self.configs:
            last = config.staged()[-1]
            own = rates[last.backbone, last.resolution].checkpoint * (workload.folds + config.refit)
            checkpoints = max(checkpoints, own)
        # a state holds weights, AdamW's two moments and an average; while one is written the one before is there
        state = 2.0 * 4 * max(rate.checkpoint for rate in rates.values())
        return TrialBytes(state, checkpoints, 4.0 * FINDINGS * (workload.val + workload.test))

    def keep_rates(self, trials: Sequence[Trial]) -> None:
        """Keep the rates that trials had, for the next plan."""
        rates: dict[tuple[str, str, int], list[float]] = {}
        for trial in trials:
            for stage, speed in trained_rates(trial.record):
                device = trial.record.environment.device
                rate = speed / self.resources.devices_per_trial
                rates.setdefault((device, stage.backbone, stage.resolution), []).append(rate)
        for key, values in rates.items():
            self.rates.note(*key, float(np.median(values)), "trials")
        self.rates.save()


class _Pricer:
    """Planned seconds of searches of different sizes on this machine."""

    def __init__(self, planner: Planner, workload: Workload) -> None:
        self.planner, self.space, self.workload = planner, planner.space, workload
        self.epochs = 1 if self.space.staged else self.space.epochs  # stages have epochs of their own
        self._draws: dict[int, list[TrialConfig]] = {}  # by cap of the resolutions

    def seconds(self, size: SearchSize) -> float:
        """The planned time of a search, with a margin for decoding and writing."""
        space, seconds = self.space.fitted(size), self._epoch_seconds(size)
        if not size.full:  # the search may like the slowest model; what is promised is to be reached
            slowest, started = max(seconds, key=sum), len(space.start)
            seconds = [*seconds[:started], *([slowest] * (size.trials - started))]
        concurrent, first = self.planner.resources.max_concurrent, space.grace(space.epochs)
        return MARGIN * simulate(seconds, space.epochs, concurrent, space.prune, first_rung=first).wall

    def sizes(self, fewest: int) -> list[int]:
        """The caps of resolutions, largest first; each makes images of the first `fewest` trials smaller."""
        sizes, before = [], None
        for pixels in self.space.sizes():
            drawn = [stage.resolution for config in self._drawn(pixels)[:fewest] for stage in config.staged()]
            if drawn != before:
                sizes.append(pixels)
            before = drawn
        return sizes

    def _drawn(self, pixels: int) -> list[TrialConfig]:
        """Trials as they may be drawn where resolutions are capped."""
        if pixels not in self._draws:
            space, count = self.space.capped(pixels), len(self.planner.configs)
            self._draws[pixels] = draw_trials(space, count, self.planner.seed)
        return self._draws[pixels]

    def _epoch_seconds(self, size: SearchSize) -> list[list[float]]:
        """Seconds of each epoch of trials as they may be drawn."""
        configs = self._drawn(size.pixels)[: size.trials]
        if not self.space.staged:
            configs = [config.model_copy(update={"epochs": size.epochs}) for config in configs]
        rates = self.planner.rates_of(configs, self.planner.device)
        return self.planner.seconds_of(configs, rates, self.workload)


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
