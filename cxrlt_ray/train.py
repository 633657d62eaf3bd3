"""One trial: the loop that runs in Ray Train, on one device or on several, with the same code.

AdamW, linear warm-up and cosine decay by step, clipped gradients, accumulation, an exponential moving
average of the weights, bfloat16 where the device has it. After each epoch the validation images are
scored; predictions and checkpoint of the best epoch are kept, so that a trial that is stopped early
leaves what it had. Loss that is not finite is skipped; MAX_SKIPPED steps in a row end the trial.

With K folds a trial trains K models on the same folds as every other trial: its validation
predictions are out-of-fold over train. Fold 0 reports each epoch to the scheduler; the others follow.
"""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray import device as device_
from cxrlt_ray import metrics
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.manifest import FRONTAL, Manifest
from cxrlt_ray.prepare import Shards, nearest
from cxrlt_ray.search import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.stream import Ingest, batches, steps
from cxrlt_ray.trials import FINISHED, RUNNING, write_predictions

if TYPE_CHECKING:
    import torch

MAX_SKIPPED = 10
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What all trials of a run share. `findings`: the task's; `folds` 0 or 1: the val split validates."""

    run: Store
    shards: tuple[Shards, ...]
    findings: tuple[str, ...]
    fingerprint: str
    views: str = "all"
    folds: int = 0
    seed: int = 0
    threads: int = 0
    gpu: bool = True
    ingest: Ingest = field(default_factory=Ingest)


@dataclass(frozen=True)
class Part:
    """Images of one role, in manifest order: image_id [N], targets int8 [N, C]."""

    image_id: np.ndarray
    targets: np.ndarray


def train(job: Job, name: str, config: TrialConfig, params: dict[str, Any], report: Report) -> None:
    """Train trial `name`, write what it leaves to RUN/trials/NAME and report after each epoch.

    Raises CxrltError when the loss stays non-finite, and what torch raises (out of memory) as it is.
    """
    import torch

    from cxrlt_ray.models import weights

    if job.threads:
        torch.set_num_threads(job.threads)
    store = job.run / "trials" / name
    about: dict[str, Any] = {
        "name": name,
        "state": RUNNING,
        "params": params,
        "config": config.model_dump(),
        "findings": list(job.findings),
        "fingerprint": job.fingerprint,
        "environment": _environment(job),
        "weights": weights.source(config.spec()),
        "began": time.time(),
        "epochs": [],
        "val_map": None,
    }
    rank, _, _ = _place(job)
    keep = store if rank == 0 else None
    if keep:
        keep.write_json("trial.json", about)
    manifest = _manifest(job.run)
    found: list[tuple[Part, np.ndarray]] = []
    for fold in range(max(job.folds, 1)):
        training, validation = parts(manifest, job, fold)
        first = fold == 0
        scores = _fit(job, config, fold, training, validation, keep, about, report if first else lambda _: None)
        found.append((validation, scores))
    about["val_map"] = _keep_predictions(job, keep, found, about)
    about["state"] = FINISHED
    about["ended"] = time.time()
    _note(keep, about)
    if job.folds > 1:
        last = about["epochs"][-1]
        report(
            {"val_map": about["val_map"], "epoch": last["epoch"] + 1, "images_per_second": last["images_per_second"]}
        )


@lru_cache(maxsize=1)
def _manifest(run: Store) -> Manifest:
    """The run's manifest, read once by a process that runs many trials; it never changes."""
    with run.fetched("manifest.parquet") as path:
        return Manifest.read(path)


def parts(manifest: Manifest, job: Job, fold: int) -> tuple[Part, Part]:
    """Training and validation images of `fold`. The views option limits training only."""
    from cxrlt_ray.splits import assign_folds

    table = manifest.table
    training = (table["split"] == "train").to_numpy()
    validation = (table["split"] == "val").to_numpy()
    targets = manifest.targets(job.findings)
    if job.folds > 1:
        rows = np.flatnonzero(training)
        of = assign_folds(targets[rows], table["subject_id"].to_numpy()[rows], job.folds, job.seed)
        validation, training = np.zeros(len(table), bool), training.copy()
        validation[rows[of == fold]] = True
        training[rows[of == fold]] = False
    if job.views == "frontal":
        training = training & table["view"].isin(FRONTAL).to_numpy()
    ids = table["image_id"].to_numpy()
    return Part(ids[training], targets[training]), Part(ids[validation], targets[validation])


def _fit(
    job: Job,
    config: TrialConfig,
    fold: int,
    training: Part,
    validation: Part,
    store: Store | None,
    about: dict[str, Any],
    report: Report,
) -> np.ndarray:
    """Train one model; returns its best epoch's probabilities [N, C] for `validation`."""
    import torch

    from cxrlt_ray import losses, models

    clock = Clock()
    torch.manual_seed(config.seed)
    rank, world, device = _place(job)
    spec = config.spec()
    shards = nearest(job.shards, spec.resolution)
    # channels last: up to 1.6 times as fast here on convolutions, and what tensor cores want
    model = models.build(spec, len(job.findings)).to(device).to(memory_format=torch.channels_last)
    if config.frozen_backbone:
        model.backbone.requires_grad_(False)
    trained = _wrap(model, world, device)
    loss_of = losses.bound(config.loss, config.loss_settings, _class_weights(config, training.targets, device))
    count = len(steps(len(training.image_id), config.batch_size, world))
    optimizer, schedule = _optimizer(model, config, math.ceil(count / config.accumulation) * config.epochs)
    average = _average(model, config)
    targets = torch.from_numpy(training.targets.astype(np.float32))
    amp = device_.autocast(config.precision, device)
    piece = _piece(job, config, model, loss_of, amp, device, rank)
    forward = _Forward(trained, config.compile, device, piece, count * config.epochs)
    clock.lap("model")
    best, best_scores, skipped = -math.inf, np.full(validation.targets.shape, np.nan, np.float32), 0
    for epoch in range(config.epochs):
        started, images, losses_seen = time.monotonic(), 0, []
        trained.train()
        if config.frozen_backbone:
            model.backbone.eval()
        stream = batches(
            shards,
            training.image_id,
            spec.resolution,
            config.batch_size,
            seed=config.seed + 1000 * fold,
            epoch=epoch,
            augment=config.augment,
            flip=config.flip,
            crop=config.crop,
            rank=rank,
            world=world,
            ingest=job.ingest,
        )
        for number, (batch, pixels) in enumerate(device_.ahead(stream, device), 1):
            clock.first("first_batch")
            wanted = targets[batch.rows].to(device, non_blocking=True)
            value = _backward(forward, pixels, wanted, loss_of, piece, amp, world, config.accumulation)
            images += len(batch.rows) * world
            if value is not None:
                losses_seen.append(value)
                skipped = 0
            else:
                skipped += 1
                optimizer.zero_grad(set_to_none=True)
                if skipped >= MAX_SKIPPED:
                    raise CxrltError(f"diverged: the loss was not finite {MAX_SKIPPED} steps in a row; lower lr")
                continue
            if number % config.accumulation == 0:
                _step(model, optimizer, schedule, config, average)
            clock.first("first_step")
        if number % config.accumulation:
            _step(model, optimizer, schedule, config, average)
        speed = images / (time.monotonic() - started)
        clock.lap("training")
        judged = average.module if average is not None else model
        scores = predict_part(judged, shards, validation.image_id, spec.resolution, config, amp, job.ingest)
        value = _map(validation.targets, scores)
        clock.lap("validation")
        about["epochs"].append(
            {
                "fold": fold,
                "epoch": epoch,
                "val_map": value,
                "loss": float(np.mean(losses_seen)) if losses_seen else None,
                "images_per_second": round(speed, 1),
            }
        )
        if value > best or epoch == 0:
            best, best_scores = value, scores
            if store:
                with store.place(f"fold-{fold}") as folder:
                    folder.mkdir()
                    models.save(judged, spec, job.findings, folder)
        if store and job.folds <= 1:
            about["val_map"], about["best_epoch"] = best, int(np.argmax([e["val_map"] for e in about["epochs"]]))
            if best_scores is scores:
                _keep_predictions(job, store, [(validation, scores)], about)
        about["images_per_second"] = round(speed, 1)
        clock.lap("writing")
        about["seconds"], about["ended"] = clock.seconds(), time.time()
        _note(store, about)
        report({"val_map": best, "epoch": epoch + 1, "images_per_second": speed})
        clock.lap("reporting")
    return best_scores


class Clock:
    """Where a fold's time goes: `lap` adds what passed since the last one to a part, `first` notes a first event."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()
        self.parts: dict[str, float] = {}

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


class _Forward:
    """The model's forward pass, compiled from where that pays; batches of another size stay as they are."""

    def __init__(self, model: torch.nn.Module, mode: str, device: torch.device, size: int, steps: int) -> None:
        self.model, self.size, self.left = model, size, steps
        self.undecided = mode == "auto" and device.type == "cuda"
        self.called: Any = None
        self.ticks, self.since = 0, 0.0
        if mode == "on":
            self._compile()

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return (self.called if self.called is not None and len(pixels) == self.size else self.model)(pixels)

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
    pixels: torch.Tensor,
    wanted: torch.Tensor,
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

    total = 0.0
    for first in range(0, len(pixels), piece):
        part = slice(first, first + piece)
        share = len(pixels[part]) / len(pixels)
        # workers exchange gradients with a batch's last piece only
        alone = (
            forward.model.no_sync()
            if isinstance(forward.model, DDP) and first + piece < len(pixels)
            else contextlib.nullcontext()
        )
        with alone:
            with amp():
                logits = forward(pixels[part])
            loss = loss_of(logits.float(), wanted[part])
            value = float(loss.detach())
            if not _all_finite(value, world, pixels.device):
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
        return config.batch_size
    import torch

    def attempt(size: int) -> None:
        model.zero_grad(set_to_none=True)
        images = torch.randint(0, 255, (size, config.resolution, config.resolution), dtype=torch.uint8, device=device)
        # what AdamW will hold once it has stepped
        later = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
        with amp():
            logits = model(images)
        loss_of(logits.float(), torch.zeros_like(logits, dtype=torch.float32)).backward()
        del later

    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}  # batch norm must not learn from noise
    known = Store(job.run.uri.rpartition("/")[0]) / "devices" / device_.name(device) if rank == 0 else None
    kind = config.spec()
    key = f"{kind.backbone}-{kind.resolution}px-{config.precision}".replace("/", "_").replace(":", "_")
    try:
        return device_.fitting(config.batch_size, attempt, known, key + ("-frozen" if config.frozen_backbone else ""))
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def _note(store: Store | None, about: dict[str, Any]) -> None:
    """Write trial.json, unless the trial was ended from outside: a worker group may be an epoch behind that."""
    if store and store.read_json("trial.json")["state"] == RUNNING:
        store.write_json("trial.json", about)


def _all_finite(value: float, world: int, device: torch.device) -> bool:
    """Whether the loss is finite on every worker: they must skip a step together, or all-reduces no longer match."""
    if world == 1:
        return math.isfinite(value)
    import torch

    flag = torch.tensor(float(math.isfinite(value)), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag > 0)


def predict_part(
    model: torch.nn.Module,
    shards: Shards,
    image_ids: np.ndarray,
    resolution: int,
    config: TrialConfig,
    amp: Callable[[], Any],
    ingest: Ingest | None = None,
) -> np.ndarray:
    """Probabilities float32 [N, C] of `image_ids`, in their order; nan where an image is in quarantine."""
    import torch

    device = next(model.parameters()).device
    model.eval()
    scores: np.ndarray | None = None
    stream = batches(shards, image_ids, resolution, config.batch_size * 2, crop=config.crop, ingest=ingest)
    with torch.inference_mode():
        for batch, pixels in device_.ahead(stream, device):
            with amp():
                logits = model(pixels)
            found = logits.float().sigmoid().cpu().numpy()
            if not np.isfinite(found).all():
                raise CxrltError("diverged: the model's predictions are not finite; lower lr")
            if scores is None:
                scores = np.full((len(image_ids), found.shape[1]), np.nan, np.float32)
            scores[batch.rows] = found
    if scores is None:
        raise CxrltError("none of the images to score could be decoded: see quarantine.parquet beside the shards.")
    return scores


def _keep_predictions(
    job: Job, store: Store | None, found: list[tuple[Part, np.ndarray]], about: dict[str, Any]
) -> float:
    """Store the validation predictions of all folds together; returns their macro mAP."""
    ids = np.concatenate([part.image_id for part, _ in found])
    targets = np.concatenate([part.targets for part, _ in found])
    scores = np.concatenate([scores for _, scores in found])
    seen = _seen(scores)
    if store:
        write_predictions(
            store, "predictions/val.parquet", ids[seen], scores[seen], job.findings, "val", job.fingerprint
        )
    return _map(targets, scores)


def _seen(scores: np.ndarray) -> np.ndarray:
    """The rows [N] of images that were scored: those in quarantine have nan."""
    return ~np.isnan(scores).any(axis=1)


def _map(targets: np.ndarray, scores: np.ndarray) -> float:
    """Macro mAP of the images that were scored."""
    seen = _seen(scores)
    return metrics.macro(metrics.per_finding(targets[seen], scores[seen], ("ap",))["ap"])


def _class_weights(config: TrialConfig, targets: np.ndarray, device: torch.device) -> torch.Tensor:
    from cxrlt_ray import losses

    weights = losses.class_weights((targets == 1).sum(0), (targets >= 0).sum(0), config.class_weight_exponent)
    import torch

    return torch.as_tensor(np.asarray(weights), dtype=torch.float32, device=device)


def _optimizer(model: torch.nn.Module, config: TrialConfig, steps: int) -> tuple[Any, Any]:
    import torch

    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]  # norms and biases
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    warm = max(1, round(config.warmup_fraction * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _step(model: torch.nn.Module, optimizer: Any, schedule: Any, config: TrialConfig, average: Any) -> None:
    import torch

    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    if average is not None:
        average.update(model, step=schedule.last_epoch)  # the step's number: without it there is no warm-up


def _average(model: torch.nn.Module, config: TrialConfig) -> Any:
    if not config.ema_decay:
        return None
    from timm.utils import ModelEmaV3

    # warm-up of the decay: short runs would otherwise keep their random start
    return ModelEmaV3(model, decay=config.ema_decay, use_warmup=True, warmup_power=0.75)


def _place(job: Job) -> tuple[int, int, torch.device]:
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


def _environment(job: Job) -> dict[str, Any]:
    import timm
    import torch

    from cxrlt_ray import __version__

    return {
        "cxrlt_ray": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": device_.label(_place(job)[2], torch.get_num_threads()),
    }


def epochs_of(about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The epochs of the first fold, which the scheduler saw."""
    return (epoch for epoch in about["epochs"] if epoch["fold"] == 0)
