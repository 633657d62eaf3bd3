"""One stage of a trial: a model, training images, an objective, and after each epoch the model that is to be judged.

Images as the sampler draws them, mixed if asked for; bfloat16 where the device has it; gradients accumulated. A loss
that is not finite is skipped; MAX_SKIPPED steps in a row end the trial. A batch that does not fit the device is
taken in pieces.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.batching import steps
from cxrlt_ray.errors import Diverged, UsageError
from cxrlt_ray.objectives.registry import Objective, find_objective
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training import device as device_
from cxrlt_ray.training.clock import Clock
from cxrlt_ray.training.evidence import evidence_of
from cxrlt_ray.training.features import FrozenFeatures, frozen_features
from cxrlt_ray.training.heartbeat import beat
from cxrlt_ray.training.job import Images, Job
from cxrlt_ray.training.optimizer import Average, optimizer_of, restore, state_of, take_step
from cxrlt_ray.training.resume import ResumeState
from cxrlt_ray.training.step import Forward, backward, piece_that_fits
from cxrlt_ray.training.streams import Streams, drawn
from cxrlt_ray.training.texts import text_draws, with_reports
from cxrlt_ray.training.workers import Worker, share_norms, worker_of, wrap

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from cxrlt_ray.models import Classifier

MAX_SKIPPED = 10
Watch = Callable[[int, float, "torch.nn.Module", Objective], None]  # steps done in the stage, the last batch's loss


@dataclass(frozen=True)
class Epoch:
    """An epoch that is done: the mean loss, images/s, and what is to be judged: averaged weights, if there are any.

    model: the classifier. network: what the objective trains, with the classifier in it. state: the tensors with which
    training goes on after it. repeated: it was done before, in another process. features: of a frozen backbone.
    """

    number: int
    loss: float | None
    images_per_second: float
    model: Classifier
    network: torch.nn.Module
    objective: Objective
    state: Callable[[], dict[str, torch.Tensor]]
    repeated: bool = False
    features: FrozenFeatures | None = None

    def carried(self) -> dict[str, torch.Tensor]:
        """What goes on into a next stage of the same objective, beside the classifier: copies, on the CPU."""
        names, tensors = self.objective.carries, self.network.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items() if name.startswith(names)}


def train_stage(
    job: Job,
    config: TrialConfig,
    model: Classifier,
    training: Images,
    fold: int,
    clock: Clock,
    before: ResumeState | None = None,
    carried: Mapping[str, torch.Tensor] | None = None,
    watch: Watch | None = None,
) -> Iterator[Epoch]:
    """Train `model` on its device for config.epochs epochs, yielding after each; or until config.steps are done.

    carried: what the stage before left beside the classifier (`Epoch.carried`). before: the state to go on from, whose
    epoch is yielded once more, `repeated`; what follows is as if it had not been cut. watch: called after each step of
    the optimizer; it must leave weights and random numbers as they are. Raises UsageError for fewer training images
    than workers, Diverged when the loss stays non-finite, and what torch raises (out of memory) as it is.
    """
    import torch

    worker = worker_of(job)
    training = with_reports(training, find_objective(config.objective).needs, config.objective)
    objective, network, streams = _begun(job, config, model, training, fold, carried or {})
    count, total = _length(job, config, training, worker)
    wrapped = wrap(network, worker)
    optimizer, schedule = optimizer_of(network, config, total, model.backbone)
    objective.before_training(network, total)
    average = Average(network, config)
    amp = device_.autocast(config.precision, worker.device)
    piece = piece_that_fits(job, config, network, objective, amp, worker)
    forward = Forward(wrapped, _compile_mode(objective, config), worker.device, piece, count * config.epochs)
    state = partial(state_of, network, optimizer, schedule, average)
    step = _stepper(config, model, network, objective, optimizer, schedule, average, total, watch)
    clock.lap("model")
    skipped, first = 0, 0
    if before:
        judged, first = restore(before, network, optimizer, schedule, average), before.epoch + 1
        yield Epoch(before.epoch, None, 0.0, objective.classifier(judged), judged, objective, state, repeated=True)
    features = frozen_features(job, config, model, streams.shards, network)
    streams = replace(streams, features=features)
    for epoch in range(first, config.epochs):
        if schedule.last_epoch >= total:
            break
        _seed(config, fold, epoch, worker)
        shown = drawn(config, training, epoch, fold)
        streams.stored(epoch)
        clock.lap("features")
        started, images, losses, number = time.monotonic(), 0, [], 0
        wrapped.train()
        _hold(model, config, schedule.last_epoch)
        for number, (inputs, targets) in enumerate(streams.epoch(shown, epoch), 1):
            clock.first("first_batch")
            beat()
            loss = backward(forward, inputs, targets, objective, config, piece, amp, worker)
            images += len(inputs[0]) * worker.world
            if loss is None:
                skipped += 1
                optimizer.zero_grad(set_to_none=True)
                if skipped >= MAX_SKIPPED:
                    raise Diverged(f"diverged: the loss was not finite {MAX_SKIPPED} steps in a row; lower lr")
                continue
            losses.append(loss)
            skipped = 0
            if number % config.accumulation == 0:
                step(loss)
            clock.first("first_step")
            if schedule.last_epoch >= total:
                break
        if number % config.accumulation:
            step(losses[-1] if losses else math.nan)
        speed = images / (time.monotonic() - started)
        again = (inputs for inputs, _ in streams.epoch(shown, epoch))
        judged = share_norms(average.judged(network, epoch, again, amp), worker)
        clock.lap("training")
        yield Epoch(
            epoch, _mean(losses), speed, objective.classifier(judged), judged, objective, state, False, features
        )
    if worker.device.type == "cuda":
        torch.cuda.synchronize()


def _length(job: Job, config: TrialConfig, training: Images, worker: Worker) -> tuple[int, int]:
    """Batches of an epoch, and steps of the optimizer in the stage. Raises UsageError for fewer units than workers."""
    units = len(np.unique(training.study)) if config.fusion != "none" else len(training)  # an epoch draws as many
    if units < worker.world:
        what = "studies" if config.fusion != "none" else "images"
        raise UsageError(f"{units} training {what} are too few for {worker.world} workers: give a trial fewer workers.")
    count = len(steps(units, config.batch_size * job.workers, worker.world))
    total = math.ceil(count / config.accumulation) * config.epochs
    return count, min(total, config.steps or total)


def _stepper(
    config: TrialConfig,
    model: Classifier,
    network: torch.nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    schedule: LambdaLR,
    average: Average,
    total: int,
    watch: Watch | None,
) -> Callable[[float], None]:
    """A step of the optimizer, given the last batch's loss, and what comes before and after one. total: of the stage.

    In the first config.frozen_steps of a stage the backbone has no gradients, without which AdamW leaves weights alone.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def step(loss: float) -> None:
        if schedule.last_epoch < config.frozen_steps:
            model.backbone.zero_grad(set_to_none=True)
        objective.before_step(network)
        take_step(network, optimizer, schedule, config, average, trained, total)
        objective.after_step(network)
        if schedule.last_epoch == config.frozen_steps and not config.frozen_backbone:
            model.backbone.train()
            _hold(model, config, schedule.last_epoch)
        if watch is not None:
            watch(schedule.last_epoch, loss, network, objective)

    return step


def _begun(
    job: Job,
    config: TrialConfig,
    model: Classifier,
    training: Images,
    fold: int,
    carried: Mapping[str, torch.Tensor],
) -> tuple[Objective, torch.nn.Module, Streams]:
    """The stage's objective, the network that it trains, on the device, and what its batches are made from."""
    from cxrlt_ray.models import train_part

    worker, make = worker_of(job), find_objective(config.objective)
    evidence = evidence_of(job, training, make.needs, fold)
    objective = make(config.objective_spec(), training.targets, training.soft, evidence)
    train_part(model.backbone, config.trained_part)
    network = objective.network(model).to(worker.device)
    _take_up(network, carried)
    texts = text_draws(job, config, objective, fold, config.seed + 1000 * fold)
    rows = objective.unchanged()
    unchanged = None if rows is None else training.image_id[rows]
    table = objective.table()
    streams = Streams(job, config, training, table, fold, worker, objective.needs, texts, unchanged=unchanged)
    return objective, network, streams


def _hold(model: Classifier, config: TrialConfig, step: int) -> None:
    """Put in evaluation what of a backbone in training stays as it is at this step of the stage."""
    from cxrlt_ray.models import hold

    if config.frozen_backbone or step < config.frozen_steps:
        model.backbone.eval()
    else:
        hold(model.backbone, config.frozen_layers)


def _take_up(network: torch.nn.Module, carried: Mapping[str, torch.Tensor]) -> None:
    """Put in the tensors that a stage before left; those of another shape stay as they begin."""
    own = network.state_dict()
    fitting = {name: t for name, t in carried.items() if name in own and own[name].shape == t.shape}
    network.load_state_dict(fitting, strict=False)


def _compile_mode(objective: Objective, config: TrialConfig) -> str:
    """Off where shapes vary from batch to batch: the network would be compiled for each."""
    return "off" if objective.needs.texts or objective.needs.eager else config.compile


def _seed(config: TrialConfig, fold: int, epoch: int, worker: Worker) -> None:
    """Seed torch for an epoch: its randomness is its own, so that one entered anew is the same."""
    import torch

    seed = np.random.SeedSequence([config.seed, fold, epoch, worker.rank])
    torch.manual_seed(int(seed.generate_state(1)[0]))


def _mean(losses: list[float]) -> float | None:
    return float(np.mean(losses)) if losses else None
