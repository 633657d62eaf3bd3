"""One backbone's way through the stages of its pretraining, entered where an earlier process left it.

    OUT/backbone.safetensors    after each epoch, and at the end
    OUT/pretrain.json           PretrainRecord: what is measured is added as it comes
    OUT/state/run/              manifest, resume state and trial.json; removed when it is done

It is a trial's course (training/course.py) that is judged by nothing: the last weights are kept, unless k-NN fell.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.data.batching import steps as batches_of
from cxrlt_ray.errors import CxrltError, Diverged
from cxrlt_ray.objectives.registry import Objective
from cxrlt_ray.output.forms import LINE_SECONDS
from cxrlt_ray.pretraining.measures import collapse, fallen
from cxrlt_ray.pretraining.monitor import Monitored, measure
from cxrlt_ray.pretraining.settings import Monitoring
from cxrlt_ray.runs.pretrain_record import FILE, WEIGHTS, Point, PretrainRecord
from cxrlt_ray.runs.records import EpochRecord
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.training.context import TrialContext
from cxrlt_ray.training.course import Course
from cxrlt_ray.training.job import training_images
from cxrlt_ray.training.stage import Epoch, Watch
from cxrlt_ray.training.workers import agree

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier

    Say = Callable[[str], None]

LOOKS = 10  # steps between two looks at the clock of a time budget, which all workers take together


class Ended(Exception):
    """The end before the last step, for a reason that is no fault."""


@dataclass
class Progress:
    """Lines on how far it is, every LINE_SECONDS. total: steps of all stages."""

    total: int
    say: Say
    started: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)
    first: int = -1  # the step with which this process began

    def seen(self, done: int, loss: float, last: Point | None) -> None:
        """`done` of all steps are done."""
        if self.first < 0:
            self.first = done - 1
        now = time.monotonic()
        if now - self.told < LINE_SECONDS and done < self.total:
            return
        self.told = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        left = cli.duration(max(0, self.total - done) / rate)
        self.say(f"  step {done:,} of {self.total:,}: loss {loss:.3f}{_said(last)}, {rate:.2f} steps/s, {left} left")


def _said(point: Point | None) -> str:
    if point is None:
        return ""
    knn = "" if point.knn is None else f", k-NN mAP {cli.short(point.knn)} (chance {cli.short(point.chance or 0.0)})"
    return f", rank {point.effective_rank:.1f}{knn}"


class Pretraining(Course):
    """The stages of a pretraining. record: what is told of it; written by the first worker alone, to `out`.

    deadline: by time.time(), where there is a time budget.
    """

    def __init__(
        self,
        trial: TrialContext,
        record: PretrainRecord,
        out: Store,
        monitored: Monitored,
        monitoring: Monitoring,
        say: Say,
        deadline: float | None = None,
    ) -> None:
        super().__init__(trial, 0)
        self.told, self.out, self.monitored, self.monitoring = record, out, monitored, monitoring
        self.deadline, self.stages = deadline, trial.config.staged()
        self.lengths = [self._length(stage) for stage in self.stages]
        self.progress = Progress(sum(self.lengths), say)
        if all(stage.frozen_steps >= length for stage, length in zip(self.stages, self.lengths, strict=True)):
            say(
                f"Warning: frozen_steps is {self.stages[0].frozen_steps:,}, and there are {self.lengths[0]:,} steps: "
                "the backbone stays as it was, the heads alone are trained. Take more steps, or --set frozen_steps=..."
            )
        self.loss = float("nan")
        self.network: tuple[torch.nn.Module, Objective] | None = None
        at = (-1, 0)
        if self.before is not None:
            at = (self.before.stage, int(self.before.tensors["schedule/step"]))
        self.told.curve = [point for point in self.told.curve if (point.stage, point.step) <= at]

    def run(self) -> None:
        """Train to the end, or until a reason to end before it; the record says which."""
        told = self.told
        try:
            self.walk(self.stages, with_validation=False, shared=False)
            told.state = "finished"
        except Ended as reason:
            told.state, told.reason = "stopped", str(reason)
            if not told.epoch and self.network is not None:
                network, objective = self.network
                self._publish(objective.classifier(network))
        except Diverged as fault:
            told.state, told.reason = "failed", str(fault)
            self._write()
            raise
        told.seconds = round(sum(self.clock.parts.values()), 1)
        self._write()

    def watch(self, number: int, stage: TrialConfig) -> Watch:
        """Measure every so many steps, say how far it is, and end where there is a reason."""
        before = sum(self.lengths[:number])

        def seen(step: int, loss: float, network: torch.nn.Module, objective: Objective) -> None:
            self.loss, self.network, self.told.steps = loss, (network, objective), before + step
            if step == 1 or step % self.monitoring.every == 0:  # the first one is what it began with
                self._measure(number, stage, step)
            if self.trial.worker.first:
                self.progress.seen(before + step, loss, self.told.curve[-1] if self.told.curve else None)
            late = self.deadline is not None and time.time() > self.deadline
            if self.deadline is not None and step % LOOKS == 0 and not agree(not late, self.trial.worker):
                raise Ended(f"the time budget ended after {before + step:,} of {self.progress.total:,} steps")

        return seen

    def judge(self, number: int, stage: TrialConfig, epoch: Epoch) -> None:
        """Keep the state, then the backbone; the last step of a stage is measured in any case."""
        told, record = self.told, self.record
        if not epoch.repeated:
            self._measure_last(number, stage, epoch)
            speed = round(epoch.images_per_second, 1)
            record.epochs.append(
                EpochRecord(
                    fold=0, stage=number, epoch=self.done + epoch.number, loss=epoch.loss, images_per_second=speed
                )
            )
            record.seconds, record.images_per_second = self.clock.seconds(), speed
            told.epoch, told.images_per_second = self.done + epoch.number + 1, speed
            self.keep(number, epoch)
        self._publish(epoch.model)
        self._write()
        self.trial.update()

    def _measure_last(self, number: int, stage: TrialConfig, epoch: Epoch) -> None:
        """Measure what a stage ends with, unless its last step was measured."""
        step = self.told.steps - sum(self.lengths[:number])
        over = epoch.number + 1 >= stage.epochs or step >= self.lengths[number]
        measured = bool(self.told.curve) and (self.told.curve[-1].stage, self.told.curve[-1].step) == (number, step)
        if over and not measured:
            self.network = (epoch.network, epoch.objective)
            self._measure(number, stage, step)

    def _measure(self, number: int, stage: TrialConfig, step: int) -> None:
        """Add a measurement. Raises Diverged for a collapse, Ended where k-NN fell; on all workers alike."""
        worker, told, fault, fell = self.trial.worker, self.told, "", False
        if worker.first and len(self.monitored.image_id):
            assert self.network is not None
            network, objective = self.network
            job, device = self.trial.job, worker.device
            point = measure(network, objective, job, stage, self.monitored, device, (number, step), self.loss)
            told.curve = [*told.curve, point]
            fault, fell = collapse(told.curve, self.monitoring.limits), fallen(told.curve, self.monitoring.limits)
            self._write()
        if not agree(not fault, worker):
            raise Diverged(f"diverged after {told.steps:,} steps: {fault or 'the first worker says why'}.")
        if not agree(not fell, worker) and not told.epoch:
            raise Diverged("diverged: k-NN fell before the first epoch was done; lower lr, or raise frozen_steps.")
        if not agree(not fell, worker):
            raise Ended(
                f"k-NN fell by more than {self.monitoring.limits.knn_fall:.0%} of its best value: the backbone is that "
                f"of the last epoch before it, {told.epoch}; lower lr, or let the heads warm up for longer"
            )

    def _length(self, stage: TrialConfig) -> int:
        """Steps of the optimizer in a stage."""
        job = self.trial.job
        images = len(training_images(self.trial.manifest, job, 0, stage.cohorts))
        count = len(batches_of(images, stage.batch_size * job.workers, self.trial.worker.world))
        total = -(-count // stage.accumulation) * stage.epochs
        return min(total, stage.steps or total)

    def _publish(self, model: Classifier) -> None:
        """Write the backbone as `checkpoint:` of a search space reads it."""
        if not self.trial.store:
            return
        from safetensors.torch import save_file

        from cxrlt_ray.models.adapters import weights_of

        state = weights_of(model.backbone)
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        if bad := [name for name, tensor in tensors.items() if not np.isfinite(float(tensor.float().sum()))]:
            raise Diverged(f"diverged: weights of the backbone are not finite ({bad[0]}); lower lr.")
        about = {"backbone": self.told.config.backbone, "method": self.told.method, "resolution": model_edge(self.told)}
        with self.out.place(WEIGHTS) as path:
            save_file(tensors, path, {"cxrlt_ray": json.dumps(about)})

    def _write(self) -> None:
        """Write the record."""
        if self.trial.store:
            self.told.write(self.out, FILE)


def model_edge(record: PretrainRecord) -> int:
    """The resolution of the last stage, which the weights are for."""
    return record.config.staged()[-1].resolution


def with_steps(config: TrialConfig, images: int, batch: int, world: int) -> TrialConfig:
    """`config` with as many epochs as its `steps` take. batch: images of a step of all workers together."""
    if not config.steps:
        return config
    count = -(-len(batches_of(images, batch, world)) // config.accumulation)
    if not count:
        raise CxrltError("there is no image to train on.")
    return config.model_copy(update={"epochs": -(-config.steps // count)})
