"""A diffusion model trained on shards, stopped and gone on with at any step.

What a step does is a function of the seed and its number alone: the images by the stream (data/stream.py), times, noise
and hidden conditions by a generator of the step's own. All the next step needs is in OUT.partial/state.safetensors; a
process that is begun again comes to the same weights, bit for bit on the same machine and number of threads.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.data.batching import steps as batches_of
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.stream import Batch, batches
from cxrlt_ray.errors import CxrltError, Diverged, UsageError
from cxrlt_ray.generation.config import GeneratorConfig
from cxrlt_ray.generation.records import GENERATOR, GeneratorRecord, Learnt
from cxrlt_ray.generation.training_rows import TrainingRows
from cxrlt_ray.output.forms import LINE_SECONDS
from cxrlt_ray.privacy import private_dir
from cxrlt_ray.runs.records import now
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.messages import explained
from cxrlt_ray.training import device as device_

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.generation.diffusion import Diffusion

STATE = "state.safetensors"
KEEP_SECONDS = 120.0  # between two states on disk
TENTHS = 10
BUDGET = "the time budget"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Lesson:
    """What is learnt: the rows, their prepared images, and the words for it in records."""

    rows: TrainingRows
    shards: Shards
    learnt: Learnt


@dataclass
class State:
    """What training goes on from: everything that a step changes. step: how many are done."""

    model: Diffusion
    optimizer: torch.optim.Optimizer
    average: list[torch.Tensor]
    step: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()  # the sum of each tenth


def train_generator(
    config: GeneratorConfig,
    lesson: Lesson,
    out: Path,
    say: Say,
    seed: int = 0,
    budget: float | None = None,
    smoke: bool = False,
    keep_seconds: float = KEEP_SECONDS,
) -> GeneratorRecord:
    """Train a generator and leave it in the folder `out`; what is there of an earlier process is gone on with.

    budget: seconds after which this process stops, whatever is left; the generator is written all the same, and the
    next call goes on. Raises UsageError where `out` holds a finished generator or OUT.partial one of other settings;
    Diverged where the loss is not finite; CxrltError where the disk does not take it: the last state stays.
    """
    import torch

    from cxrlt_ray.generation.loading import build

    if (out / GENERATOR).is_file() and not (_partial(out) / STATE).is_file():
        raise UsageError(f"--out {out} holds a generator: give another folder.")
    if out.exists() and not (out / GENERATOR).is_file():
        raise UsageError(f"--out {out} exists and holds no generator: give another folder.")
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(config, lesson.rows.findings).to(device)
    model.unet.train()
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    state = State(model, optimizer, [weight.detach().clone() for weight in model.unet.parameters()])
    settings = json.dumps([config.model_dump(mode="json"), lesson.learnt.model_dump(mode="json"), seed])
    _restore(state, settings, _partial(out))
    private_dir(_partial(out))  # its rows have patients' ids
    _train(state, lesson, seed, budget, settings, out, keep_seconds, say)
    stopped = BUDGET if state.step < config.steps else None
    record = GeneratorRecord(
        config=config,
        learnt=lesson.learnt,
        seed=seed,
        steps=state.step,
        seconds=round(state.seconds, 1),
        stopped=stopped,
        losses=mean_losses(state.losses, state.step, config.steps),
        parameters=sum(weight.numel() for weight in model.unet.parameters()),
        smoke=smoke,
        created=now(),
    )
    _leave(state, lesson, record, settings, out)
    return record


def mean_losses(sums: tuple[float, ...], done: int, steps: int) -> tuple[float, ...]:
    """The mean loss of each tenth of all steps that has been begun, of the sums.

    >>> mean_losses((30.0, 10.0), 15, 100)
    (3.0, 2.0)
    """
    counts = np.bincount(np.arange(done) * TENTHS // steps, minlength=len(sums))[: len(sums)]
    return tuple(round(total / max(1, int(count)), 5) for total, count in zip(sums, counts, strict=True))


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _train(
    state: State,
    lesson: Lesson,
    seed: int,
    budget: float | None,
    settings: str,
    out: Path,
    keep_seconds: float,
    say: Say,
) -> None:
    """Take the steps that are left, as far as the budget allows; the state is kept every `keep_seconds`."""
    config, first, before = state.model.config, state.step, state.seconds
    began = kept = told = time.monotonic()
    for batch in _batches(lesson, config, seed, first):
        loss = _step(state, batch, lesson.rows.targets, seed)
        if not np.isfinite(loss):
            raise Diverged(
                f"diverged: the loss was not finite at step {state.step + 1:,}; lower lr in the configuration"
            )
        tenth = state.step * TENTHS // config.steps
        state.losses += (0.0,) * (tenth + 1 - len(state.losses))
        state.losses = (*state.losses[:tenth], state.losses[tenth] + loss)
        state.step += 1
        now_ = time.monotonic()
        state.seconds = before + now_ - began
        if now_ - told > LINE_SECONDS or state.step == config.steps:
            told = now_
            pace = (now_ - began) / (state.step - first)
            left = pace * (config.steps - state.step)
            left = left if budget is None else min(left, max(0.0, budget - (now_ - began)))
            say(f"  step {state.step:,} of {config.steps:,}: loss {loss:.4f}, {cli.duration(left)} left")
        if budget is not None and now_ - began >= budget and state.step < config.steps:
            say(f"  stopped after {state.step:,} of {config.steps:,} steps by --time-budget; the same command goes on")
            return
        if now_ - kept > keep_seconds:
            _keep(state, settings, _partial(out))
            kept = time.monotonic()


def _batches(lesson: Lesson, config: GeneratorConfig, seed: int, first: int) -> Iterator[Batch]:
    """The batches of steps `first` to config.steps: whole passes over the images, one after the other."""
    an_epoch = len(batches_of(len(lesson.rows), config.batch_size, 1))
    done = first
    while done < config.steps:
        epoch, start = divmod(done, an_epoch)
        stream = batches(
            lesson.shards,
            lesson.rows.image_id,
            config.resolution,
            config.batch_size,
            seed=seed,
            epoch=epoch,
            augment=config.augment,
            start=start,
        )
        for batch in stream:
            yield batch
            done += 1
            if done == config.steps:
                return


def _step(state: State, batch: Batch, targets: np.ndarray, seed: int) -> float:
    """One step of the optimizer and of the average; the loss (mean squared error, Ho et al. 2020, eq. 14)."""
    import torch

    from cxrlt_ray.generation.diffusion import noise_options, require_diffusers

    model, config = state.model, state.model.config
    random = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, state.step]).generate_state(1)[0]))
    noising = require_diffusers().DDPMScheduler(**noise_options(config))
    device = model.device
    clean = model.latents(torch.from_numpy(batch.images).to(device), random)
    noise = torch.randn(clean.shape, generator=random).to(device)
    times = torch.randint(0, config.noise_steps, (len(clean),), generator=random).to(device)
    hidden = (torch.rand(len(clean), generator=random) < config.drop_condition).to(device)
    condition = model.condition(targets[batch.rows]).hidden(hidden, model.null)
    noisy = noising.add_noise(clean, noise, times)
    wanted = noise if config.prediction == "epsilon" else noising.get_velocity(clean, noise, times)
    with device_.autocast(config.precision, device)():
        output = model.predict(noisy, times, condition)
    loss = torch.nn.functional.mse_loss(output.float(), wanted)
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * min(1.0, (state.step + 1) / max(1, config.warmup))
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.unet.parameters(), config.clip_norm)
    state.optimizer.step()
    # an average that begins short, or the first weights, which are noise, would stay in it for long
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(state.average, list(model.unet.parameters()), 1 - decay)
    return float(loss.detach())


def _keep(state: State, settings: str, partial: Path) -> None:
    """Write the state, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"network/{name}": tensor for name, tensor in state.model.unet.state_dict().items()}
    tensors |= {f"average/{number}": tensor for number, tensor in enumerate(state.average)}
    for number, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": moment for name, moment in moments.items()}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    progress = {"step": state.step, "seconds": state.seconds, "losses": state.losses}
    with explained(f"{partial / STATE} cannot be written"):
        private_dir(partial)
        new = partial / f"{STATE}.new"
        try:
            save_file(tensors, new, {"settings": settings, "progress": json.dumps(progress)})
            os.replace(new, partial / STATE)
        finally:
            new.unlink(missing_ok=True)


def _restore(state: State, settings: str, partial: Path) -> None:
    """Take over the state of an earlier process, if there is one.

    Raises UsageError for one of other settings, CxrltError for one that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not (partial / STATE).is_file():
        return
    try:
        with safe_open(partial / STATE, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        progress = json.loads(about["progress"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CxrltError(f"{partial / STATE} cannot be read ({error}): remove {partial} and begin anew.") from None
    if about["settings"] != settings:
        raise UsageError(f"{partial} was begun with other options or data: give those, remove it, or another --out.")
    own = {name.removeprefix("network/"): value for name, value in tensors.items() if name.startswith("network/")}
    state.model.unet.load_state_dict(own)
    state.average = [tensors[f"average/{k}"].to(state.model.device) for k in range(len(state.average))]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/")
            moments.setdefault(int(number), {})[key] = tensor
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
    state.step, state.seconds, state.losses = progress["step"], progress["seconds"], tuple(progress["losses"])


def _leave(state: State, lesson: Lesson, record: GeneratorRecord, settings: str, out: Path) -> None:
    """Leave the averaged weights, the rows and the record in `out`; the state stays where steps are left."""
    import torch

    partial = _partial(out)
    if record.stopped:
        _keep(state, settings, partial)
    own = [weight.detach().clone() for weight in state.model.unet.parameters()]
    with torch.no_grad():
        torch._foreach_copy_(list(state.model.unet.parameters()), state.average)
    with Store(str(out.parent)).place(out.name) as folder:
        private_dir(folder)
        state.model.save(folder)
        lesson.rows.write(Store(str(folder)))
        record.write(Store(str(folder)), GENERATOR)
    with torch.no_grad():
        torch._foreach_copy_(list(state.model.unet.parameters()), own)
    if not record.stopped:
        shutil.rmtree(partial, ignore_errors=True)  # a process that was killed may have left a half-written state
