"""One stage of a trial: a model, training images, and after each epoch the model that is to be judged.

Images as the sampler draws them, mixed if asked for; bfloat16 where the device has it; gradients accumulated. Loss
that is not finite is skipped; MAX_SKIPPED steps in a row end the trial. A batch that does not fit the device is
taken in pieces.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray.data import sampling
from cxrlt_ray.data.prepare import Shards, nearest
from cxrlt_ray.data.stream import Batch, Ingest, batches, pieces, steps
from cxrlt_ray.data.tasks import TAIL, rarity
from cxrlt_ray.errors import Diverged
from cxrlt_ray.storage import Store
from cxrlt_ray.training import device as device_
from cxrlt_ray.training.config import TrialConfig
from cxrlt_ray.training.heartbeat import beat
from cxrlt_ray.training.optimizer import Average, Inputs, optimizer_of, restore, state_of, take_step
from cxrlt_ray.training.resume import Midway

if TYPE_CHECKING:
    import torch

MAX_SKIPPED = 10


@dataclass(frozen=True)
class Job:
    """What all trials of a run share. `findings`: the task's; `folds` 0 or 1: the val split validates.

    workers: of a trial; a step is of `batch_size` images for each, also where fewer of them are left to share it.
    """

    run: Store
    shards: tuple[Shards, ...]
    findings: tuple[str, ...]
    fingerprint: str
    views: str = "all"
    folds: int = 0
    seed: int = 0
    threads: int = 0
    gpu: bool = True
    workers: int = 1
    ingest: Ingest = field(default_factory=Ingest)


@dataclass(frozen=True)
class Part:
    """Images of one role, in manifest order: image_id [N], targets int8 [N, C]; codes of study and view int64 [N]."""

    image_id: np.ndarray
    targets: np.ndarray
    study: np.ndarray
    view: np.ndarray

    def __len__(self) -> int:
        return len(self.image_id)

    def at(self, rows: np.ndarray) -> Part:
        """Those of `rows`, in their order."""
        return Part(self.image_id[rows], self.targets[rows], self.study[rows], self.view[rows])


@dataclass(frozen=True)
class Epoch:
    """An epoch that is done: the mean loss, images/s, and the model to be judged: the averaged one, if there is one.

    state: the tensors with which training goes on after it. again: it was done before, in another process.
    """

    number: int
    loss: float | None
    images_per_second: float
    model: Any
    state: Callable[[], dict[str, Any]]
    again: bool = False


def fit(
    job: Job,
    config: TrialConfig,
    model: Any,
    training: Part,
    fold: int,
    clock: Clock,
    before: Midway | None = None,
) -> Iterator[Epoch]:
    """Train `model` on its device for config.epochs epochs, yielding after each.

    before: the state to go on from, whose epoch is yielded once more, `again`; what follows is as if it had not been
    cut. Raises Diverged when the loss stays non-finite, and what torch raises (out of memory) as it is.
    """
    import torch

    rank, world, device = place(job)
    fused = config.fusion != "none"
    shards = nearest(job.shards, config.resolution)
    model.backbone.requires_grad_(not config.frozen_backbone)
    model.shift.copy_(_shift(config, training.targets))
    units = len(np.unique(training.study)) if fused else len(training)  # an epoch draws as many
    count = len(steps(units, config.batch_size * job.workers, world))
    trained = _wrap(model, world, device)
    optimizer, schedule = optimizer_of(model, config, math.ceil(count / config.accumulation) * config.epochs)
    average = Average(model, config)
    loss_of = _loss(config, training.targets, device)
    amp = device_.autocast(config.precision, device)
    piece = _piece(job, config, model, loss_of, amp, device, rank)
    forward = _Forward(trained, config.compile, device, piece, count * config.epochs)
    state = partial(state_of, model, optimizer, schedule, average)
    clock.lap("model")
    skipped, first = 0, 0
    if before:
        judged, first = restore(before, model, optimizer, schedule, average), before.epoch + 1
        yield Epoch(before.epoch, None, 0.0, judged, state, again=True)
    for epoch in range(first, config.epochs):
        # an epoch's randomness is its own, so that one entered anew is the same
        torch.manual_seed(int(np.random.SeedSequence([config.seed, fold, epoch, rank]).generate_state(1)[0]))
        shown = _draw(config, training, epoch, fold)
        started, images, losses_seen, number = time.monotonic(), 0, [], 0
        trained.train()
        if config.frozen_backbone:
            model.backbone.eval()
        stream = _streams(job, config, shards, shown, training, epoch, fold, rank, world, device)
        for number, (inputs, targets) in enumerate(stream, 1):
            clock.first("first_batch")
            beat()
            value = _backward(forward, inputs, targets, loss_of, piece, amp, world, config.accumulation)
            images += len(inputs[0]) * world
            if value is None:
                skipped += 1
                optimizer.zero_grad(set_to_none=True)
                if skipped >= MAX_SKIPPED:
                    raise Diverged(f"diverged: the loss was not finite {MAX_SKIPPED} steps in a row; lower lr")
                continue
            losses_seen.append(value)
            skipped = 0
            if number % config.accumulation == 0:
                take_step(model, optimizer, schedule, config, average)
            clock.first("first_step")
        if number % config.accumulation:
            take_step(model, optimizer, schedule, config, average)
        speed = images / (time.monotonic() - started)
        again = _streams(job, config, shards, shown, training, epoch, fold, rank, world, device)
        judged = average.judged(model, epoch, (inputs for inputs, _ in again), amp)
        clock.lap("training")
        yield Epoch(epoch, float(np.mean(losses_seen)) if losses_seen else None, speed, judged, state)
    if device.type == "cuda":
        torch.cuda.synchronize()


class Clock:
    """Where a fold's time goes: `lap` adds what passed since the last one to a part, `first` notes a first event.

    parts: what passed before, in a process that was cut off.
    """

    def __init__(self, parts: dict[str, float] | None = None) -> None:
        self.start = self.last = time.monotonic()
        self.parts: dict[str, float] = dict(parts or {})

    def lap(self, part: str) -> None:
        """Add the time since the last lap to `part`."""
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now

    def first(self, event: str) -> None:
        """Note when `event` came for the first time, since the start."""
        if event not in self.parts:
            self.parts[event] = time.monotonic() - self.start

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and from the start to each first event."""
        return {name: round(value, 3) for name, value in self.parts.items()}


def _draw(config: TrialConfig, training: Part, epoch: int, fold: int, sampler: str = "") -> Part:
    """The images of an epoch as the sampler draws them; whole studies where views are fused."""
    seed = config.seed + 1000 * fold
    sampler = sampler or config.sampler
    if config.fusion == "none":
        counts = sampling.expected(sampler, training.targets, config.epochs)
        return training.at(sampling.draws(counts, epoch, config.epochs, seed))
    order = np.argsort(training.study, kind="stable")
    first = np.flatnonzero(np.diff(training.study[order], prepend=-1))
    counts = sampling.expected(sampler, training.targets[order[first]], config.epochs)
    drawn = sampling.draws(counts, epoch, config.epochs, seed)
    sizes = np.diff(first, append=len(order))[drawn]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    shown = training.at(order[np.repeat(first[drawn], sizes) + within])
    # a study drawn twice is two: each is seen by itself
    return Part(shown.image_id, shown.targets, np.repeat(np.arange(len(drawn)), sizes), shown.view)


def _streams(
    job: Job,
    config: TrialConfig,
    shards: Shards,
    shown: Part,
    training: Part,
    epoch: int,
    fold: int,
    rank: int,
    world: int,
    device: torch.device,
) -> Iterator[tuple[Inputs, list[tuple[float, torch.Tensor]]]]:
    """The epoch's batches on the device: a model's inputs, and targets float [B, C] with the share each has in them."""
    import torch

    from cxrlt_ray.data.augment import mixed

    seed = config.seed + 1000 * fold
    hard = config.tail_augment > config.augment
    tail = np.array(rarity(training.targets)) == TAIL if hard else np.zeros(training.targets.shape[1], bool)

    def stream(part: Part, seed: int) -> Iterator[tuple[Batch, torch.Tensor]]:
        found = batches(
            shards,
            part.image_id,
            config.resolution,
            config.batch_size * job.workers,
            seed=seed,
            epoch=epoch,
            augment=config.augment,
            flip=config.flip,
            crop=config.crop,
            rank=rank,
            world=world,
            study=part.study if config.fusion != "none" else None,
            strong=(part.targets[:, tail] == 1).any(axis=1) if hard else None,
            strength=config.tail_augment if hard else 0.0,
            ingest=job.ingest,
        )
        return device_.ahead(found, device)

    def wanted(part: Part, batch: Batch) -> torch.Tensor:
        return torch.from_numpy(part.targets[batch.rows].astype(np.float32)).to(device, non_blocking=True)

    own = stream(shown, seed)
    if config.mix == "balanced_mixup":
        partner = _draw(config, training, epoch, fold, "class_aware")
        both: Iterator[Any] = zip(own, stream(partner, seed + 7), strict=False)
    else:
        partner, both = shown, ((each, None) for each in own)
    for number, ((batch, pixels), other) in enumerate(both):
        targets = [(1.0, wanted(shown, batch))]
        if config.fusion != "none":
            codes = (torch.from_numpy(values[batch.rows]).to(device) for values in (shown.study, shown.view))
            yield (pixels, *codes), targets
            continue
        if config.mix != "none":
            random = np.random.default_rng([seed, epoch, number, 3])
            beside = None if other is None else (other[1], wanted(partner, other[0]))
            pixels, targets = mixed(config.mix, pixels, targets[0][1], config.mix_alpha, random, beside)
        yield (pixels,), targets


def _loss(config: TrialConfig, targets: np.ndarray, device: torch.device) -> Callable[..., torch.Tensor]:
    """The loss of logits [B, C] and targets with their shares [(share, [B, C])], labels smoothed."""
    import torch

    from cxrlt_ray.objectives import losses

    positives, labelled = (targets == 1).sum(0), (targets >= 0).sum(0)
    weights = losses.class_weights(positives, labelled, config.class_weight_exponent)
    given = (torch.as_tensor(np.asarray(v), dtype=torch.float32, device=device) for v in (weights, positives, labelled))
    bound = losses.bound(config.loss, config.loss_settings, *given)

    def of(logits: torch.Tensor, wanted: list[tuple[float, torch.Tensor]]) -> torch.Tensor:
        smooth = config.smooth_pos > 0 or config.smooth_neg > 0
        terms = [
            share * bound(logits, losses.smoothed(each, config.smooth_pos, config.smooth_neg) if smooth else each)
            for share, each in wanted
        ]
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]

    return of


def _shift(config: TrialConfig, targets: np.ndarray) -> torch.Tensor:
    """Logit adjustment [C], zeros where there is none."""
    import torch

    from cxrlt_ray.objectives import losses

    if not config.logit_adjust:
        return torch.zeros(targets.shape[1])
    found = losses.logit_shift((targets == 1).sum(0), (targets >= 0).sum(0), config.logit_adjust)
    return torch.as_tensor(np.asarray(found), dtype=torch.float32)


class _Forward:
    """The model's forward pass, compiled from where that pays; batches of another size stay as they are."""

    def __init__(self, model: torch.nn.Module, mode: str, device: torch.device, size: int, steps: int) -> None:
        self.model, self.size, self.left = model, size, steps
        self.undecided = mode == "auto" and device.type == "cuda"
        self.called: Any = None
        self.ticks, self.since = 0, 0.0
        if mode == "on":
            self._compile()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return (self.called if self.called is not None and len(inputs[0]) == self.size else self.model)(*inputs)

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

        self.called = torch.compile(self.model, dynamic=False)


def _backward(
    forward: _Forward,
    inputs: Inputs,
    targets: list[tuple[float, torch.Tensor]],
    loss_of: Any,
    piece: int,
    amp: Callable[[], Any],
    world: int,
    accumulation: int,
) -> float | None:
    """Add a batch's gradients, in pieces that fit the device; its loss, or None where that is not finite.

    Pieces weigh by their images: the whole batch's gradient where images have equally many labels.
    """
    from torch.nn.parallel import DistributedDataParallel as DDP

    total, images = 0.0, len(inputs[0])
    for part in pieces(images, piece, inputs[1].cpu().numpy() if len(inputs) > 1 else None):
        share = (part.stop - part.start) / images
        # workers exchange gradients with a batch's last piece only
        alone = (
            forward.model.no_sync()
            if isinstance(forward.model, DDP) and part.stop < images
            else contextlib.nullcontext()
        )
        with alone:
            with amp():
                logits = forward(*(each[part] for each in inputs))
            loss = loss_of(logits.float(), [(weight, each[part]) for weight, each in targets])
            value = float(loss.detach())
            if not _all_finite(value, world, logits.device):
                return None
            (loss * (share / accumulation)).backward()
        total += share * value
    forward.tick()
    return total


def _piece(
    job: Job,
    config: TrialConfig,
    model: torch.nn.Module,
    loss_of: Any,
    amp: Callable[[], Any],
    device: torch.device,
    rank: int,
) -> int:
    """How many images of a batch fit the device at once; found by trying, once for all trials of this kind."""
    if device.type != "cuda":
        return config.batch_size if config.fusion == "none" else 1 << 30
    import torch

    def attempt(size: int) -> None:
        model.zero_grad(set_to_none=True)
        count = size + (size > 1)  # a last image joins the piece before
        images = torch.randint(0, 255, (count, config.resolution, config.resolution), dtype=torch.uint8, device=device)
        # what AdamW will hold once it has stepped
        later = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
        with amp():
            logits = model(images)
        loss_of(logits.float(), [(1.0, torch.zeros_like(logits, dtype=torch.float32))]).backward()
        del later

    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}  # batch norm must not learn from noise
    known, key = found_pieces(job, config, device)
    most = config.batch_size * (1 if config.fusion == "none" else 2)  # images of an average study
    try:
        return device_.fitting(most, attempt, known if rank == 0 else None, key)
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def found_pieces(job: Job, config: TrialConfig, device: torch.device) -> tuple[Store, str]:
    """Where it is kept how many images of this kind of trial fit the GPU `device` at once, and under what key."""
    kind = config.spec()
    key = f"{kind.backbone}-{kind.resolution}px-{kind.head}-{kind.fusion}-{config.precision}"
    key = key.replace("/", "_").replace(":", "_") + ("-frozen" if config.frozen_backbone else "")
    return Store(job.run.uri.rpartition("/")[0]) / "devices" / device_.name(device), key


def _all_finite(value: float, world: int, device: torch.device) -> bool:
    """Whether the loss is finite on every worker: they must skip a step together, or all-reduces no longer match."""
    if world == 1:
        return math.isfinite(value)
    import torch

    flag = torch.tensor(float(math.isfinite(value)), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag > 0)


def place(job: Job) -> tuple[int, int, torch.device]:
    """(rank, world size, device), in a Train worker group, in local mode or outside of Ray."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from ray.train.torch import get_device

        return torch.distributed.get_rank(), torch.distributed.get_world_size(), get_device()
    return 0, 1, torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu")


def _wrap(model: torch.nn.Module, world: int, device: torch.device) -> torch.nn.Module:
    if world == 1:
        return model
    import torch

    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        model = convert_sync_batchnorm(model)  # torch's own drops the activations of timm's fused layers
    ids = [device.index] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
