"""One step: a batch's gradients, in pieces that fit the device, on every worker alike; compiled where that pays."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from cxrlt_ray.data.batching import pieces
from cxrlt_ray.objectives.registry import Objective
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.training import device as device_
from cxrlt_ray.training.job import Job
from cxrlt_ray.training.workers import Worker, all_finite, alone, most

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.training.streams import Inputs, Targets

    Autocast = Callable[[], AbstractContextManager[None]]

UNBOUNDED = (
    1 << 30
)  # images of a piece: a batch of studies is not cut on a CPU, one whose loss is of all together never


class Forward:
    """The network's forward pass, compiled from where that pays; batches of another size stay as they are."""

    def __init__(self, network: torch.nn.Module, mode: str, device: torch.device, size: int, steps: int) -> None:
        self.network, self.size, self.left = network, size, steps
        self.undecided = mode == "auto" and device.type == "cuda"
        self.compiled: Callable[..., torch.Tensor] | None = None
        self.ticks, self.since = 0, 0.0
        self.asked, self.proven = mode == "on", False  # proven: a compiled pass has been made
        if self.asked:
            self._compile()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the network returns."""
        if self.compiled is None or len(inputs[0]) != self.size:
            return self.network(*inputs)
        if self.proven:
            return self.compiled(*inputs)
        import torch

        try:
            outputs = self.compiled(*inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whatever kind: a machine without a C compiler, a layer that it cannot do
            if self.asked:
                raise
            print(f"  not compiled, trained as it is: {' '.join(str(error).split())[:200]}", flush=True)
            self.compiled = None
            return self.network(*inputs)
        self.proven = True
        return outputs

    def tick(self) -> None:
        """A step is done: time the first ones and decide."""
        self.left -= 1
        if not self.undecided:
            return
        import torch

        self.ticks += 1
        if self.ticks == device_.WARM_STEPS:
            torch.cuda.synchronize()
            self.since = time.monotonic()
        if self.ticks == device_.WARM_STEPS + device_.TIMED_STEPS:
            torch.cuda.synchronize()
            self.undecided = False
            if device_.worth_compiling((time.monotonic() - self.since) / device_.TIMED_STEPS, self.left):
                self._compile()

    def _compile(self) -> None:
        import torch

        self.compiled = torch.compile(self.network, dynamic=False)


def backward(
    forward: Forward,
    inputs: Inputs,
    targets: Targets,
    objective: Objective,
    config: TrialConfig,
    piece: int,
    amp: Autocast,
    worker: Worker,
) -> float | None:
    """Add a batch's gradients, in pieces that fit the device; its loss, or None where that is not finite.

    Pieces weigh by their images: the whole batch's gradient where images have equally many labels.
    """
    from torch.nn.parallel import DistributedDataParallel as DDP

    total, images = 0.0, len(inputs[0])
    study = inputs[1].cpu().numpy() if config.fusion != "none" else None
    parts = pieces(images, piece, study)
    passes = most(len(parts), worker)
    for number in range(passes):
        # a worker whose share has fewer pieces than another's passes its last one again, without weight
        part = parts[min(number, len(parts) - 1)]
        share = (part.stop - part.start) / images if number < len(parts) else 0.0
        # workers exchange gradients with a batch's last pass only
        quiet = isinstance(forward.network, DDP) and number < passes - 1
        with forward.network.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            with amp():
                outputs = forward(*(tensor[part] for tensor in inputs))
            loss = objective.loss(outputs.float(), [(weight, rows[part]) for weight, rows in targets])
            value = float(loss.detach())
            if not all_finite(value, worker):
                return None
            (loss * (share / config.accumulation)).backward()
        total += share * value
    forward.tick()
    return total


def piece_that_fits(
    job: Job,
    config: TrialConfig,
    network: torch.nn.Module,
    objective: Objective,
    amp: Autocast,
    worker: Worker,
) -> int:
    """How many images of a batch fit the device at once, by trial, once for all trials of this kind.

    UNBOUNDED where the objective takes a batch whole: one that does not fit ends the trial, out of memory.
    """
    if objective.needs.whole:
        return UNBOUNDED
    if worker.device.type != "cuda":
        return config.batch_size if config.fusion == "none" else UNBOUNDED
    import torch

    width = objective.table().shape[1]

    def attempt(size: int) -> None:
        network.zero_grad(set_to_none=True)
        count = size + (size > 1)  # a last image joins the piece before
        shape = (count, config.resolution, config.resolution)
        images = torch.randint(0, 255, shape, dtype=torch.uint8, device=worker.device)
        # what AdamW will hold once it has stepped
        later = [torch.empty_like(p) for p in network.parameters() if p.requires_grad for _ in range(2)]
        with amp():
            outputs = network(*[images] * objective.needs.crops)
        targets = torch.zeros(count, width, dtype=torch.float32, device=worker.device)
        objective.loss(outputs.float(), [(1.0, targets)]).backward()
        del later

    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}  # batch norm must not learn from noise
    known, key = known_pieces(job, config, worker.device)
    most = config.batch_size * (1 if config.fusion == "none" else 2)  # images of an average study
    try:
        with alone(network):
            return device_.fitting(most, attempt, known if worker.first else None, key)
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
        network.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def known_pieces(job: Job, config: TrialConfig, device: torch.device) -> tuple[Store, str]:
    """Where it is kept how many images of this kind of trial fit the GPU `device` at once, and under what key.

    What takes more memory has a key of its own: what fitted a trial of adapters, say, need not fit one of all weights.
    """
    from cxrlt_ray.models.heads import HEADS

    kind = config.spec()
    own = [f"{getattr(kind, name):g}" for name in HEADS[kind.head].SETTINGS]
    parts = [kind.backbone, f"{kind.resolution}px", kind.head, *own, kind.fusion, config.precision]
    parts.append(str(len(job.trained)))
    parts += ["frozen"] * config.frozen_backbone
    parts += [f"frozen{config.frozen_layers}"] * bool(config.frozen_layers)
    parts += [f"lora{config.image_lora}"] * bool(config.image_lora)
    parts += ["ema"] * bool(config.ema_decay)
    parts += [config.objective] * (config.objective != "multilabel")
    key = "-".join(parts).replace("/", "_").replace(":", "_")
    return Store(job.run.uri.rpartition("/")[0]) / "devices" / device_.name(device), key
