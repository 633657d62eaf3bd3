"""Images/s of training a model on a device: measured by earlier trials and by a probe, or estimated.

Rates are, in this order: measured here (kept in STORAGE/rates.json), or estimated from the model's floating-point
operations and what the device reaches (SPEEDS), scaled to what was measured on it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.runs.records import TrialRecord
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.claim import in_turn

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import ModelSpec

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
FILE, TURN = "rates.json", ".rates"  # in the storage
FINDINGS = 40  # of the models whose cost is planned: the head is next to nothing
PASSES = 3.0  # a training step costs three forward passes, forward and twice that backward


@dataclass(frozen=True)
class ModelRate:
    """A (backbone, resolution) of the space: images/s of training, where that is from, bytes of a checkpoint.

    flops: floating-point operations to score one image; 0 where they are not counted.
    """

    backbone: str
    resolution: int
    rate: float
    source: str
    checkpoint: int
    flops: int = 0


def family(device: str) -> str:
    """The GPU of SPEEDS that a device's name speaks of (NVIDIA-H100-80GB-HBM3: H100), so that what torch, Ray and
    --gpu call it is one; any other name as it is.
    """
    return next((word for word in device.split("-") if word in GPUS), device)


class Rates:
    """Images/s of training, measured (in STORAGE/rates.json) or estimated."""

    def __init__(self, storage: Store) -> None:
        self.store = storage
        self.known = self._stored()
        self.noted: dict[str, Any] = {}

    def _stored(self) -> dict[str, Any]:
        return self.store.read_json(FILE) if self.store.exists(FILE) else {}

    def note(self, device: str, backbone: str, resolution: int, rate: float, source: str) -> None:
        """Keep a measured rate; `save` writes them."""
        measured = {"images_per_second": float(f"{rate:.4g}"), "from": source}
        self.known[f"{family(device)} {backbone} {resolution}"] = measured
        self.noted[f"{family(device)} {backbone} {resolution}"] = measured

    def save(self) -> None:
        """Write what was noted to what other sweeps of the storage have left meanwhile: one may run for days."""
        if not self.noted:
            return
        with in_turn(self.store, TURN):
            self.known = self._stored() | self.noted
            self.store.write_json(FILE, self.known)
        self.noted = {}

    def measured(self, device: str, backbone: str) -> bool:
        """Whether a rate of the backbone on the device is known, at whatever resolution."""
        return any(key.startswith(f"{family(device)} {backbone} ") for key in self.known)

    def rate_of(self, spec: ModelSpec, findings: int, device: str, cores: int = 1) -> ModelRate:
        """The model's rate on `device` (a GPU's name, or cpu-N for N threads) and how it is known."""
        from cxrlt_ray import models

        flops, numbers = models.size(spec, findings)
        checkpoint = 4 * numbers
        device = family(device)
        measured = self.known.get(f"{device} {spec.backbone} {spec.resolution}")
        if measured is not None:
            rate, source = measured["images_per_second"], f"measured ({measured['from']})"
        else:
            speed, source = self._speed(spec.backbone, device, cores)
            rate = speed / (PASSES * flops)
        return ModelRate(spec.backbone, spec.resolution, rate, source, checkpoint, flops)

    def _speed(self, backbone: str, device: str, cores: int) -> tuple[float, str]:
        """FLOP/s reached on the device: by the backbone at other resolutions, or by all models; else SPEEDS.

        Of several measured rates it is the median.
        """
        from cxrlt_ray import models

        reached: dict[str, list[float]] = {}
        for key, measured in self.known.items():
            measured_on, measured_backbone, resolution = key.split(" ")
            if measured_on == device:
                spec = models.ModelSpec(measured_backbone, int(resolution), pretrained=False)
                speed = PASSES * models.flops(spec, FINDINGS) * measured["images_per_second"]
                reached.setdefault(measured_backbone, []).append(speed)
        if speeds := reached.get(backbone) or [speed for speeds in reached.values() for speed in speeds]:
            return statistics.median(speeds), f"scaled from {len(speeds)} measured"
        if device.startswith("cpu"):
            return SPEEDS["cpu"] * cores, "estimated"
        known = device in SPEEDS
        return SPEEDS[device if known else "A100"], f"estimated ({device if known else 'as an A100'})"


def measure(config: TrialConfig, findings: int, device: torch.device, seconds: float) -> float:
    """Images/s of training steps on made-up images that lie on the device already, over about `seconds`.

    They are of the whole backbone: of one whose first layers are frozen, what these save is taken off again.
    """
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.training import device as devices

    spec = config.spec()
    model = models.Classifier(spec, findings).to(device).to(memory_format=torch.channels_last)
    models.train_part(model.backbone, models.TrainedPart(layers=config.frozen_layers))
    models.hold(model.backbone, config.frozen_layers)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    amp = devices.autocast(config.precision, device)
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
    speed = count * config.batch_size / (time.monotonic() - start)
    return speed / gain_of_frozen(config.model_copy(update={"frozen_backbone": False}))


@dataclass(frozen=True)
class Probe:
    """Measured rates: images/s of training by (backbone, resolution), on the device of that name."""

    device: str
    rates: dict[tuple[str, int], float]


def probe(configs: Iterable[TrialConfig], findings: int, threads: int, gpu: bool, seconds: float) -> Probe:
    """Measure every kind of model of `configs`, in `seconds` together."""
    import torch

    from cxrlt_ray.training import device as devices

    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    if threads and device.type == "cpu":
        torch.set_num_threads(threads)
    stages = [stage for config in configs for stage in config.staged()]
    stages.sort(key=lambda stage: not stage.frozen_backbone)  # where there are both, of the backbone that is trained
    kinds = {(stage.backbone, stage.resolution): stage for stage in stages}
    rates = {kind: measure(config, findings, device, seconds / len(kinds)) for kind, config in kinds.items()}
    if device.type == "cuda":  # the sweep's own process has no use for it any more, trials have
        gc.collect()
        torch.cuda.empty_cache()
    return Probe(devices.label(device, threads), rates)


def gain_of_frozen(stage: TrialConfig) -> float:
    """How many times as many images/s a stage trains as one of the whole backbone.

    Frozen layers have no backward pass, which costs PASSES - 1 forward ones; of the time of a forward pass they take
    their share of the floating-point operations.
    """
    share = float(stage.frozen_backbone)
    if stage.frozen_layers:
        from cxrlt_ray import models

        share = models.share_of_layers(stage.spec(), stage.frozen_layers)
    return PASSES / (PASSES - (PASSES - 1) * share)


def trained_rates(record: TrialRecord) -> list[tuple[TrialConfig, float]]:
    """The stages of a trial that trained its backbone on single images, with the images/s of each one's last epoch.

    They are of training the whole backbone: those of a stage with frozen layers are divided by what these save.
    """
    if record.config is None:
        return []
    last = {epoch.stage: epoch.images_per_second for epoch in record.epochs}
    stages = record.config.staged()
    return [
        (stages[number], speed / gain_of_frozen(stages[number]))
        for number, speed in last.items()
        if speed > 0  # a record has one decimal
        and not stages[number].frozen_backbone
        and stages[number].fusion == "none"
        and not find_objective(stages[number].objective).needs.anew
    ]
