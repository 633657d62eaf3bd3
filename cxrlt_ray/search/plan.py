"""What a sweep will cost, before it is paid for: `python -m cxrlt_ray.sweep TASK --plan`.

A trial's time is its images over a rate, images/s of training a (backbone, resolution) on a device. Rates are, in
this order: measured here (earlier trials and `--probe`, kept in STORAGE/rates.json), or estimated from the
model's floating-point operations and what the device reaches (SPEEDS), scaled to what was measured on it.
What ASHA saves is found by playing the sweep through with made-up learning curves.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.data.manifest import MAIN
from cxrlt_ray.runs.records import TrialRecord
from cxrlt_ray.runs.trial_config import ALL, OUTSIDE, TrialConfig
from cxrlt_ray.search.space import REDUCTION, Space, grace
from cxrlt_ray.storage import Store

# FLOP/s that training reaches; from 600 images/s of ConvNeXt-S at 384 px on an H100 (627 measured, benchmarks/gpu.py),
# and estimated from the vendors' dense bf16 (T4, V100: fp16) figures for the others; CPU: per core, the low end of the
# 20 to 53 GFLOP/s that the demo's models reached on two AMD EPYC cores
SPEEDS = {
    "H200": 95e12,
    "H100": 92e12,
    "A100": 45e12,
    "L40S": 45e12,
    "A10G": 15e12,
    "L4": 14e12,
    "V100": 20e12,
    "T4": 8e12,
    "cpu": 20e9,
}
GPUS = [name for name in SPEEDS if name != "cpu"]
PROBE_SECONDS = 60.0
FINDINGS = 40  # of the models whose cost is planned: the head is next to nothing
PASSES = 3.0  # a training step costs three forward passes, forward and twice that backward
# of a made-up trial's score in its first epoch, in units of the spread between trials; chosen, not fitted: the small
# models of benchmarks/search.py are noisier (rank correlation with the last epoch .46 to .56 after the first)
NOISE = 0.6
TURNAROUND, START = 2.0, 30.0  # seconds between trials of a process, and before its first
PROCESS = 1.5e9  # bytes of a trial's process on the CPU's side: Python, torch, Ray and the batches under way
DECODE = 2.9e-9  # seconds a pixel to decode a q95 JPEG, one core (PERFORMANCE.md: 1,320 images/s at 512 px)
BYTES = 0.29  # a pixel of the cache at q95 (77 KB at 512 px)
ORIGINAL_BYTES = 1.5e6  # MIMIC-CXR-JPG's mean file
# seconds of a core from an original of 2544 x 3056 px to shards, measured (benchmarks/prepare.py): decoding, by the
# largest size; resizing to each further size; encoding a pixel
ORIGINAL = {318: 1 / 80, 636: 1 / 65, 1272: 1 / 50, 4096: 1 / 27}
FURTHER, ENCODE = 3e-3, 1.6e-9
# images of published cohorts, where a plan is for a number of images and the cohorts are only named
COHORTS = {"nih": 112_120, "chexpert": 223_414, "vindr": 18_000, "brax": 40_967, "padchest": 160_868}
SHARES = {"train": 258_871, "val": 39_293, "test": 78_946}  # CXR-LT 2024's images


@dataclass(frozen=True)
class Kind:
    """A (backbone, resolution) of the space: images/s of training, where that is from, bytes of a checkpoint."""

    backbone: str
    resolution: int
    rate: float
    source: str
    checkpoint: int


@dataclass(frozen=True)
class Work:
    """How many images train, validate and are tested; K folds train K models a trial. outside: of other cohorts."""

    train: int
    val: int
    test: int
    folds: int = 1
    outside: dict[str, int] = field(default_factory=dict)

    def trained(self, cohorts: str) -> int:
        """Images that a stage of `cohorts` (TrialConfig.cohorts) trains on."""
        others = sum(self.outside.values())
        if cohorts in (MAIN, OUTSIDE, ALL):
            return {MAIN: self.train, OUTSIDE: others, ALL: self.train + others}[cohorts]
        return sum(self.train if name == MAIN else self.outside.get(name, 0) for name in cohorts.split("+"))

    @property
    def images(self) -> int:
        """All of them."""
        return self.train + self.val + self.test + sum(self.outside.values())

    @classmethod
    def of(cls, images: int) -> Work:
        """So many images, split as those of CXR-LT 2024."""
        total = sum(SHARES.values())
        train, val = (round(images * SHARES[split] / total) for split in ("train", "val"))
        return cls(train, val, images - train - val)


@dataclass(frozen=True)
class Outcome:
    """A sweep played through: wall seconds, device seconds, and the epochs of each trial [N]."""

    wall: float
    busy: float
    epochs: np.ndarray


def epoch_seconds(kind: Kind, work: Work, stage: TrialConfig | None = None) -> float:
    """One epoch of a trial: training images at the rate, validation images at a forward pass's.

    stage: whose cohorts train, and of whose frozen backbone training is hardly more than the forward pass.
    """
    train = work.train if stage is None else work.trained(stage.cohorts)
    rate = kind.rate * (PASSES if stage is not None and stage.frozen_backbone else 1)
    return work.folds * (train / rate + work.val / (PASSES * kind.rate))


def trial_seconds(config: TrialConfig, kinds: dict[tuple[str, int], Kind], work: Work) -> list[float]:
    """Every epoch of a trial, stage after stage; what comes after them (refit) is added to the last."""
    found = [
        epoch_seconds(kinds[stage.backbone, stage.resolution], work, stage)
        for stage in config.staged()
        for _ in range(stage.epochs)
    ]
    if config.refit:
        found[-1] += sum(found) / work.folds
    return found


def prepare_seconds(sizes: Sequence[int]) -> float:
    """Seconds of a core to bring one original of a usual radiograph's size to shards of these sizes."""
    decoding = next(seconds for most, seconds in ORIGINAL.items() if max(sizes) <= most)
    return decoding + FURTHER * (len(sizes) - 1) + ENCODE * sum(size**2 for size in sizes)


def play(
    seconds: Sequence[float | Sequence[float]],
    epochs: int,
    together: int,
    prune: bool = True,
    seed: int = 0,
    first: int | None = None,
) -> Outcome:
    """Trials with these seconds an epoch (or for each epoch), `together` at a time, stopped by successive halving.

    first: the first rung, an epoch.

    A made-up trial has a quality drawn from a normal distribution; what an epoch shows of it is blurred by NOISE
    that shrinks with the square root of the epoch. The rule is Ray's (`stops`).
    """
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=len(seconds))
    each = [[float(s)] * epochs if np.ndim(s) == 0 else list(s) for s in seconds]  # type: ignore[arg-type]
    rungs = [rung for k in range(20) if (rung := (first or grace(epochs)) * REDUCTION**k) < epochs]
    seen: dict[int, list[float]] = {rung: [] for rung in rungs}
    done = np.zeros(len(seconds), int)
    busy = 0.0
    queue: list[tuple[float, int, int]] = []
    todo = iter(range(len(seconds)))
    for trial in itertools.islice(todo, together):  # events: (moment, trial, epoch that ends then)
        heapq.heappush(queue, (START + each[trial][0], trial, 1))
        busy += START + each[trial][0]
    wall = 0.0
    while queue:
        wall, trial, epoch = heapq.heappop(queue)
        done[trial] = epoch
        stop = epoch >= len(each[trial])
        if epoch in seen and prune:
            score = float(quality[trial] + NOISE / np.sqrt(epoch) * rng.normal())
            before = seen[epoch]
            stop = stop or stops(score, before)
            before.append(score)
        if not stop:
            heapq.heappush(queue, (wall + each[trial][epoch], trial, epoch + 1))
            busy += each[trial][epoch]
        elif (following := next(todo, None)) is not None:
            heapq.heappush(queue, (wall + TURNAROUND + each[following][0], following, 1))
            busy += TURNAROUND + each[following][0]
    return Outcome(wall, busy, done)


def stops(score: float, before: Sequence[float]) -> bool:
    """Whether ASHA stops a trial at a rung where `before` was seen: it is below the top 1/REDUCTION of these."""
    return bool(before) and score < float(np.percentile(before, 100 * (1 - 1 / REDUCTION)))


def draw(space: Space, trials: int, seed: int = 0) -> list[TrialConfig]:
    """Trials as a search might choose them: the space's start points, then points at random."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for point in space.start:
        study.enqueue_trial(dict(point))
    found = []
    for _ in range(trials):
        trial = study.ask()
        space.define(trial)
        found.append(space.to_config(trial.params))
    return found


def family(device: str) -> str:
    """The GPU of SPEEDS that a device's name speaks of (NVIDIA-H100-80GB-HBM3: H100), so that what torch, Ray and
    --gpu call it is one; any other name as it is.
    """
    return next((word for word in device.split("-") if word in GPUS), device)


class Rates:
    """Images/s of training, measured (in STORAGE/rates.json) or estimated."""

    def __init__(self, storage: Store) -> None:
        self.store = storage
        self.known: dict[str, Any] = storage.read_json("rates.json") if storage.exists("rates.json") else {}

    def note(self, device: str, backbone: str, resolution: int, rate: float, source: str) -> None:
        """Keep a measured rate; `save` writes them."""
        self.known[f"{family(device)} {backbone} {resolution}"] = {"images_per_second": round(rate, 2), "from": source}

    def save(self) -> None:
        """Write what is known."""
        self.store.write_json("rates.json", self.known)

    def kind(self, spec: Any, findings: int, device: str, cores: int = 1) -> Kind:
        """The model's rate on `device` (a GPU's name, or cpu-N for N threads) and how it is known."""
        from cxrlt_ray import models

        flops, numbers = models.size(spec, findings)
        checkpoint = 4 * numbers
        device = family(device)
        key = f"{device} {spec.backbone} {spec.resolution}"
        if key in self.known:
            found = self.known[key]
            return Kind(
                spec.backbone, spec.resolution, found["images_per_second"], f"measured ({found['from']})", checkpoint
            )
        speed, source = self._speed(device, cores)
        return Kind(spec.backbone, spec.resolution, speed / (PASSES * flops), source, checkpoint)

    def _speed(self, device: str, cores: int) -> tuple[float, str]:
        """FLOP/s reached on the device: of the models measured on it, the middle one; else SPEEDS."""
        from cxrlt_ray import models

        reached = []
        for key, found in self.known.items():
            there, backbone, resolution = key.split(" ")
            if there == device:
                spec = models.ModelSpec(backbone, int(resolution), pretrained=False)
                reached.append(PASSES * models.flops(spec, 40) * found["images_per_second"])
        if reached:
            return statistics.median(reached), f"scaled from {len(reached)} measured"
        if device.startswith("cpu"):
            return SPEEDS["cpu"] * cores, "estimated"
        known = device in SPEEDS
        return SPEEDS[device if known else "A100"], f"estimated ({device if known else 'as an A100'})"


def measure(config: TrialConfig, findings: int, device: Any, seconds: float) -> float:
    """Images/s of training steps on made-up images that lie on the device already, over about `seconds`."""
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.training import device as device_

    spec = config.spec()
    model = models.Classifier(spec, findings).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    amp = device_.autocast(config.precision, device)
    images = torch.randint(0, 255, (config.batch_size, spec.resolution, spec.resolution), dtype=torch.uint8)
    images, targets = images.to(device), torch.zeros(config.batch_size, findings, device=device)

    def step() -> None:
        with amp():
            logits = model(images)
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()  # the first picks algorithms
    start, count = time.monotonic(), 0
    while count < 2 or time.monotonic() - start < seconds:
        step()
        count += 1
    return count * config.batch_size / (time.monotonic() - start)


def probe(configs: Iterable[TrialConfig], findings: int, threads: int, gpu: bool, seconds: float) -> dict[str, Any]:
    """Measured rates of every kind of model, in `seconds` together: device's name, and (backbone, px) -> images/s."""
    import torch

    from cxrlt_ray.training import device as device_

    place = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    if threads and place.type == "cpu":
        torch.set_num_threads(threads)
    kinds = {(stage.backbone, stage.resolution): stage for config in configs for stage in config.staged()}
    each = seconds / len(kinds)
    rates = {kind: measure(config, findings, place, each) for kind, config in kinds.items()}
    return {"device": device_.label(place, threads), "rates": rates}


@dataclass(frozen=True)
class Plan:
    """What the sweep on one set of machines comes to."""

    devices: int
    outcome: Outcome
    unpruned: Outcome


def plans(
    configs: list[TrialConfig],
    kinds: dict[tuple[str, int], Kind],
    work: Work,
    epochs: int,
    counts: Sequence[int],
    first: int | None = None,
    prune: bool = True,
) -> list[Plan]:
    """The sweep on each number of devices, a trial on each. first: ASHA's first rung; without `prune` it stops none."""
    seconds = [trial_seconds(config, kinds, work) for config in configs]
    return [
        Plan(count, play(seconds, epochs, count, prune, first=first), play(seconds, epochs, count, prune=False))
        for count in counts
    ]


def show(
    rows: list[tuple[str, Plan]],
    groups: list[tuple[str, list[Kind]]],
    work: Work,
    price: float,
    cpus: float,
    decoded: int,
    findings: int,
    console: Any,
) -> None:
    """Print the plan: kinds and rates on each device, disk, memory, what the ingest needs, time and cost by devices."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    columns = [(f"{device}: images/s", "rate is", "an epoch") for device, _ in groups]
    for column in ("backbone", "px", *itertools.chain(*columns), "CPU"):
        table.add_column(column, no_wrap=True)
    for same in sorted(
        zip(*(kinds for _, kinds in groups), strict=True), key=lambda k: (k[0].backbone, k[0].resolution)
    ):
        cells = [same[0].backbone, str(same[0].resolution)]
        for kind in same:
            cells += [f"{_digits(kind.rate)}", kind.source, cli.duration(epoch_seconds(kind, work))]
        table.add_row(*cells, f"{same[-1].rate * same[-1].resolution ** 2 * DECODE:.2f}")
    console.print(table)
    console.print(f"CPU: cores that decode for one {groups[-1][0]}, from shards of the trial's size")
    sizes = sorted({kind.resolution for _, kinds in groups for kind in kinds})
    shards = sum(work.images * size**2 * BYTES for size in sizes)
    checkpoint = statistics.mean(kind.checkpoint for _, kinds in groups for kind in kinds)
    trials = len(rows[0][1].outcome.epochs)
    left = trials * (max(work.folds, 1) * checkpoint + 4 * findings * (work.val + work.test))
    console.print(
        f"Prepare, once: {work.images:,} originals (about {cli.size(work.images * ORIGINAL_BYTES)} where they are "
        f"like MIMIC-CXR-JPG) to {', '.join(map(str, sizes))} px: "
        f"{cli.duration(work.images * prepare_seconds(sizes) / cpus)} on {cpus:g} CPU\n"
        f"Disk: {cli.size(shards)} of shards (q95), {cli.size(left)} of checkpoints and predictions\n"
        f"Memory a machine: {cli.size(PROCESS)} a trial, up to {cli.size(decoded)} of decoded images; a GPU's "
        "own: a batch is split to fit"
    )
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("devices", "wall time", "device-hours", "cost", "epochs", "without pruning", "pruning saves"):
        table.add_column(column, no_wrap=True)
    for name, plan in rows:
        outcome, whole = plan.outcome, plan.unpruned
        cost = f"{outcome.busy / 3600 * price:,.2f}" if not name.startswith("cpu") else "-"
        table.add_row(
            name,
            cli.duration(outcome.wall),
            f"{outcome.busy / 3600:,.1f}",
            cost,
            f"{outcome.epochs.sum():,}",
            cli.duration(whole.wall),
            f"{1 - outcome.busy / whole.busy:.0%}",
        )
    console.print(table)
    console.print(f"Cost at {price:.2f} a device-hour (--price); the head, the CPUs and the storage are not in it.")


def _digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


class Sweep:
    """The sweep's plan: what it will cost by what is known of rates, and how that compares with what it took."""

    def __init__(
        self,
        space: Any,
        trials: int,
        folds: int,
        seed: int,
        resources: Any,
        threads: int,
        storage: Any,
        address: str | None,
        gpu: str | None,
    ) -> None:
        self.space, self.folds, self.resources, self.threads = space, max(folds, 1), resources, threads
        self.configs, self.rates = draw(space, trials, seed), Rates(storage)
        self.first = space.grace(space.epochs)
        self.address, self.here = address, _device_name(address, resources, threads)
        self.gpu = gpu or (self.here if resources.gpus else "H100")

    def probe(self) -> None:
        """Measure every kind of model for a minute together, where trials will run, and keep the rates."""
        import ray

        arguments = (self.configs, FINDINGS, self.threads, self.resources.gpus_per_trial > 0, PROBE_SECONDS)
        kinds = len(self.kinds(self.here))
        print(f"Probing {kinds} kinds of models for {PROBE_SECONDS:.0f} s on {self.here}", flush=True)
        if self.address:
            task = ray.remote(probe).options(num_gpus=self.resources.gpus_per_trial)
            found = ray.get(task.remote(*arguments))
        else:
            found = probe(*arguments)
        for (backbone, resolution), rate in found["rates"].items():
            self.rates.note(found["device"], backbone, resolution, rate, "probe")
        self.rates.save()

    def kinds(self, device: str) -> dict[tuple[str, int], Any]:
        """Rates of the space's kinds of models on a device."""
        stages = [stage for config in self.configs for stage in config.staged()]
        specs = {(stage.backbone, stage.resolution): stage.spec() for stage in stages}
        return {key: self.rates.kind(spec, FINDINGS, device, self.threads or 1) for key, spec in specs.items()}

    def work(self, images: Any, others: Iterable[str] = ()) -> Any:
        """How many images train and validate, of a manifest or of so many images and the published cohorts `others`."""
        if isinstance(images, int):
            found = replace(Work.of(images), outside={name: COHORTS[name] for name in others if name in COHORTS})
        else:
            main = images.table["cohort"] == MAIN
            counts = images.table.loc[main, "split"].value_counts()
            outside = images.table.loc[~main, "cohort"].value_counts().to_dict()
            train, val, test = (int(counts.get(split, 0)) for split in ("train", "val", "test"))
            found = Work(train, val, test, outside=outside)
        if self.folds == 1:
            return found
        train = found.train + (found.val if isinstance(images, int) else 0)
        train, val = train * (self.folds - 1) // self.folds, train // self.folds
        return replace(found, train=train, val=val, folds=self.folds)

    def plan(self, images: Any) -> Plan:
        """The sweep on this machine."""
        kinds, together = self.kinds(self.here), [self.resources.max_concurrent]
        return plans(self.configs, kinds, self.work(images), self.space.epochs, together, self.first, self.space.prune)[
            0
        ]

    def trial_bytes(self, images: Any) -> tuple[float, float]:
        """Bytes on the storage of the largest trial: while it runs, its last state included, and when it is done."""
        kinds, work, done = self.kinds(self.here), self.work(images), 0.0
        for config in self.configs:
            last = config.staged()[-1]
            kept = kinds[last.backbone, last.resolution].checkpoint * (work.folds + config.refit)
            done = max(done, kept + 4.0 * FINDINGS * (work.val + work.test))
        # a state holds weights, AdamW's two moments and an average; while one is written the one before is there
        return done + 2 * 4 * max(kind.checkpoint for kind in kinds.values()), done

    def show(self, price: float, images: Any, others: Iterable[str] = ()) -> None:
        """Print the plan for this machine and for 1, 8 and 32 GPUs; for a number of images, with `others` beside."""
        from cxrlt_ray.cluster.node_cache import memory_bound

        work, here, there = self.work(images, others), self.kinds(self.here), self.kinds(self.gpu)
        alone = plans(
            self.configs, here, work, self.space.epochs, [self.resources.max_concurrent], self.first, self.space.prune
        )[0]
        rows = [(self.here, alone)] if self.here != self.gpu else []
        counts = (1, 8, 32)
        planned = plans(self.configs, there, work, self.space.epochs, counts, self.first, self.space.prune)
        rows += [(f"{count} x {self.gpu}", each) for count, each in zip(counts, planned, strict=True)]
        groups = [(self.gpu, list(there.values()))]
        if self.here != self.gpu:
            groups.insert(0, (self.here, list(here.values())))
        show(rows, groups, work, price, self.resources.cpus, memory_bound(), FINDINGS, cli.console(160))
        print("Plan only: nothing was started." + ("" if self.rates.known else " Measure the rates with --probe."))

    def compare(self, foreseen: Any, trials: list[Any], seconds: float) -> None:
        """Keep the rates that trials had, and say how the plan compares with what the sweep took."""
        rates: dict[tuple[str, str, int], list[float]] = {}
        for trial in trials:
            for stage, speed in _speeds(trial.record):
                device = trial.record.environment.device
                rates.setdefault((device, stage.backbone, stage.resolution), []).append(speed)
        for key, values in rates.items():
            self.rates.note(*key, float(np.median(values)), "trials")
        self.rates.save()
        epochs = sum(len(trial.record.epochs) for trial in trials)
        planned, outcome = foreseen.outcome.wall, foreseen.outcome
        print(
            f"Planned {cli.duration(planned)} and {outcome.epochs.sum() * self.folds} epochs, took "
            f"{cli.duration(seconds)} and {epochs}: {seconds / planned:.2f} times the plan. Rates kept for the next "
            "plan (--plan)."
        )


def _speeds(record: TrialRecord) -> list[tuple[TrialConfig, float]]:
    """The stages of a trial that trained its backbone on single images, with the images/s of each one's last epoch."""
    if record.config is None:
        return []
    last = {epoch.stage: epoch.images_per_second for epoch in record.epochs}
    stages = record.config.staged()
    return [
        (stages[number], speed)
        for number, speed in last.items()
        if not stages[number].frozen_backbone and stages[number].fusion == "none"
    ]


def _device_name(address: str | None, resources: Any, threads: int) -> str:
    """What trials run on: a GPU's name, or cpu-N."""
    if not resources.gpus_per_trial:
        return f"cpu-{threads}"
    if address is None:
        import torch

        from cxrlt_ray.training import device

        return device.name(torch.device("cuda"))
    import ray

    kinds = [key.partition(":")[2] for key in ray.cluster_resources() if key.startswith("accelerator_type:")]
    return kinds[0] if kinds else "GPU"
