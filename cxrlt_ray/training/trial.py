"""One trial: its folds, its stages, and what it leaves; the code that runs in Ray Train, on one device or on several.

After each epoch the validation images are scored; predictions and checkpoint of the best epoch of the stage are kept,
so that a trial that is stopped early leaves what it had. A stage begins with the weights that the one before ended
with (carried to its resolution, head and fusion), and with nothing of its scores: they are of another model.

With K folds a trial trains K models on the same folds as every other trial: its validation predictions are
out-of-fold over train. Fold 0 reports each epoch to the scheduler; the others follow. With `refit` one more model is
trained, on train and validation images together, and scores new images.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from cxrlt_ray.cluster.processors import available_processors
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.runs.pretrain_record import BEGAN, began_from
from cxrlt_ray.runs.records import (
    FINISHED,
    PRUNED,
    RUNNING,
    Environment,
    EpochRecord,
    Refit,
    TrialRecord,
    Value,
)
from cxrlt_ray.runs.store import RECORD, REFIT
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.training import device as device_
from cxrlt_ray.training import resume
from cxrlt_ray.training.context import Report, Stopped, TimeLeft, TrialContext
from cxrlt_ray.training.course import Course
from cxrlt_ray.training.inference import augmented_views
from cxrlt_ray.training.job import Images, Job, manifest_of, validation_images
from cxrlt_ray.training.resume import ResumeState
from cxrlt_ray.training.stage import Epoch
from cxrlt_ray.training.streams import validation_batches
from cxrlt_ray.training.validation import predict_images, score_augmented
from cxrlt_ray.training.workers import agree, worker_of

REPLANNED = (1, 3, 6, 12)  # epochs after which those of a trial that has a time are counted anew


def train(
    job: Job,
    name: str,
    config: TrialConfig,
    params: Mapping[str, Value],
    report: Report,
    time_left: TimeLeft | None = None,
) -> None:
    """Train trial `name`, write what it leaves to RUN/trials/NAME and report after each epoch.

    Goes on from the last epoch that an earlier process ended, where it left one; the epoch is reported again then. One
    that the sweep ends meanwhile writes no more after its epoch. time_left: where one process trains one model, the
    first epochs show how many it holds, and the trial has as many in the place of config.epochs. Raises Diverged when
    the loss stays non-finite, CxrltError when another process has taken the trial over, and what torch raises (out of
    memory) as it is.
    """
    import torch

    if job.threads:
        torch.set_num_threads(min(job.threads, available_processors()))  # of a cluster they are many machines'
    store, worker = job.run / "trials" / name, worker_of(job)
    existing = TrialRecord.read(store, RECORD) if store.exists(RECORD) else None
    if existing is not None and existing.state in (FINISHED, PRUNED):  # by a process that ended before it could say so
        score = float("nan") if existing.score is None else existing.score
        _report(report, config.metric, score, config.total_epochs + 1, existing.images_per_second or 0.0)
        return
    before = resume.latest(store)
    if not agree(before is not None, worker):
        before = None
    record = first_record(job, name, config, params, existing, before)
    if before is not None and record.config is not None:  # it may have been given other epochs
        config = config.model_copy(update={"epochs": record.config.epochs})
    if worker.world > 1 or job.models > 1 or config.stages or config.steps or config.refit:
        time_left = None
    own = store if worker.first else None
    trial = TrialContext(job, config, manifest_of(job.run), own, worker, record, report, before, time_left)
    trial.write()
    with contextlib.suppress(Stopped):
        while (epochs := _run(trial)) is not None:
            record.config = trial.config.model_copy(update={"epochs": epochs})
            trial = replace(trial, config=record.config, before=resume.latest(store))
            trial.update()


def _run(trial: TrialContext) -> int | None:
    """Train the folds and what follows them; or the epochs with which to go on from the last state instead.

    Raises Stopped where the sweep has ended the trial.
    """
    config, record = trial.config, trial.record
    try:
        for fold in range(trial.folds):
            trial.scored.append(_Fold(trial, fold).run())
    except _Length as length:  # with it the model and its optimizer are freed
        return length.epochs
    except _Enough:
        trial.end(PRUNED)
        return None
    if trial.predicts:
        record.score = trial.keep_predictions()
        trial.update()  # what follows may be cut off
    elif trial.folds > 1:
        bests = [record.best_of(fold, record.stage).score for fold in range(trial.folds)]
        record.score = float(np.mean([score for score in bests if score is not None]))
    if config.tta != "none" and trial.predicts and record.tta is None:
        score_augmented(trial)
    if config.refit:
        _Refit(trial).run()
    trial.end(FINISHED)
    if trial.folds > 1 or config.refit or config.tta != "none":
        speed = record.epochs[-1].images_per_second
        _report(trial.report, config.metric, record.score, config.total_epochs + 1, speed)
    return None


def _report(report: Report, metric: Metric, score: float | None, epoch: int, images_per_second: float) -> None:
    """Report to Ray Tune. epoch: how many are done; one more than there are for what follows the last."""
    value = float("nan") if score is None else score
    report({metric.name: value, "epoch": epoch, "images_per_second": images_per_second})


class _Enough(Exception):
    """A trial that had been stopped, and is trained again because its files were damaged, is as far as it was."""


class _Length(Exception):
    """The time left holds `epochs`, others than were planned."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs


def first_record(
    job: Job,
    name: str,
    config: TrialConfig,
    params: Mapping[str, Value],
    existing: TrialRecord | None,
    before: ResumeState | None,
) -> TrialRecord:
    """The record with which a process begins, or goes on with, a trial."""
    from cxrlt_ray import models
    from cxrlt_ray.models import weights
    from cxrlt_ray.training.job import soft_targets_of

    record = before.record if before else None
    if record is None:
        first = config.staged()[0]
        record = TrialRecord(
            name=name,
            state=RUNNING,
            params=dict(params),
            config=config,
            metric=config.metric,
            findings=job.findings,
            trained_findings=job.trained,
            fingerprint=job.fingerprint,
            weights=origin_of(weights.source(first.spec())),
            soft_targets=soft_targets_of(job.run).provenance if job.soft_targets else None,
            began=time.time(),
        )
    with contextlib.suppress(CxrltError, RuntimeError, ValueError):  # a model that cannot be built fails where it is
        record.flops = models.flops(config.spec(), len(job.findings))
    record.precision = device_.precision(config.staged()[-1].precision, worker_of(job).device)
    record.environment = _environment(job)
    record.attempt = (existing.attempt if existing else 0) + 1
    if existing is not None:
        record.retraining, record.retries = existing.retraining or record.retraining, existing.retries
    return record


def origin_of(source: str) -> str:
    """Where weights come from; of those that an earlier trial (init_from) or pretraining left also where those began.

    >>> origin_of("timm resnet50")
    'timm resnet50'
    """
    folder = source.removesuffix("/model.safetensors").rpartition("/")[0]
    store = Store(folder or ".")
    if not source.endswith("/model.safetensors") or not store.exists(RECORD):
        return began_from(source)
    return f"{source}{BEGAN}{TrialRecord.read(store, RECORD).weights}"


class _Fold(Course):
    """The model of one fold, judged on its validation images after every epoch."""

    def __init__(self, trial: TrialContext, fold: int) -> None:
        super().__init__(trial, fold)
        self.validation = validation_images(trial.manifest, trial.job, fold)
        self.scores = np.full(self.validation.targets.shape, np.nan, np.float32)
        if trial.before and fold <= trial.before.fold and f"scores/{fold}" in trial.before.tensors:
            self.scores = trial.before.tensors[f"scores/{fold}"].numpy()
        self.judged = [time.monotonic()]  # when epochs ended

    def run(self) -> tuple[Images, np.ndarray]:
        """Train; the validation images, and their probabilities [N, C] by the last stage's best epoch."""
        before = self.trial.before
        if not before or before.fold <= self.fold:
            self.walk(self.trial.config.staged(), with_validation=False, shared=True)
        return self.validation, self.scores

    def judge(self, number: int, stage: TrialConfig, epoch: Epoch) -> None:
        """Score the validation images; the state is kept first, then the checkpoint and predictions if they are best.

        In this order an end in between costs nothing: what is kept is written again from the state.
        """
        trial, record, clock, count = self.trial, self.record, self.clock, self.done + epoch.number
        scores = self.scores
        if not epoch.repeated:
            scores, score = self._scored(stage, epoch)
            speed = round(epoch.images_per_second, 1)
            clock.lap("validation")
            record.epochs.append(
                EpochRecord(
                    fold=self.fold, stage=number, epoch=count, score=score, loss=epoch.loss, images_per_second=speed
                )
            )
            record.seconds, record.ended = clock.seconds(), time.time()
            record.images_per_second = speed
        best = record.best_of(self.fold, number)
        if best.epoch == count:
            self.scores = scores
            record.stage = number
        if trial.folds <= 1:
            record.score, record.best_epoch = best.score, best.epoch
        if not epoch.repeated:
            self.keep(number, epoch, self.scores)
        if best.epoch == count:
            self._publish(stage, epoch)
        clock.lap("writing")
        trial.update()
        if self.fold == 0:
            speed = epoch.images_per_second or record.images_per_second or 0.0
            _report(trial.report, stage.metric, best.score, count + 1, speed)
            again = record.retraining
            if again is not None and again.state == PRUNED and count + 1 >= again.curve[-1][0]:
                raise _Enough
        clock.lap("reporting")
        if not epoch.repeated:
            self._check_length(count + 1, stage)

    def _check_length(self, done: int, stage: TrialConfig) -> None:
        """Raise _Length where the time left holds other epochs than the stage has."""
        self.judged.append(time.monotonic())
        time_left = self.trial.time_left
        if time_left is None or done not in REPLANNED or done >= stage.epochs:
            return
        seconds = (self.judged[-1] - self.judged[0]) / (len(self.judged) - 1)
        if (epochs := time_left.epochs(done, seconds, self._augmented_seconds(stage))) != stage.epochs:
            raise _Length(epochs)

    def _augmented_seconds(self, stage: TrialConfig) -> float:
        """What test-time augmentation will take: the validation images once as they are, and in all views."""
        if self.trial.config.tta == "none":
            return 0.0
        passes = 1 + len(augmented_views(stage.resolution, stage.crop, self.trial.config.tta))
        return passes * self.clock.parts["validation"] / len(self.record.epochs)

    def is_over(self, number: int, stage: TrialConfig) -> bool:
        """Whether no epoch has been better, by `patience_gain`, for `patience` epochs.

        A trial that has all the time left goes on where that would be too little for another: its rate is still to
        fall, and the time would be lost.
        """
        time_left, taken = self.trial.time_left, time.time() - (self.record.began or 0.0)
        if time_left is not None and not time_left.holds_another(taken):
            return False
        return self.record.out_of_patience(self.fold, number, stage.patience, stage.patience_gain)

    def _scored(self, stage: TrialConfig, epoch: Epoch) -> tuple[np.ndarray, float]:
        """Probabilities [N, C] of the validation images and their score; all nan where the objective predicts none."""
        job = self.trial.job
        if not epoch.objective.predicts:
            batches = validation_batches(job, stage, self.validation, epoch.objective, self.fold)
            return self.scores, epoch.objective.score_network(epoch.network.eval(), batches)
        scores = predict_images(job, stage, epoch.model, self.validation, epoch.features)
        seen = ~np.isnan(scores).any(axis=1)
        return scores, epoch.objective.score(self.validation.targets[seen], scores[seen])

    def _publish(self, stage: TrialConfig, epoch: Epoch) -> None:
        """Write the checkpoint that is kept, and of a trial without folds the predictions."""
        if not self.trial.store:
            return
        self.save(self.trial.store, f"fold-{self.fold}", stage, epoch.model)
        if self.trial.folds <= 1 and epoch.objective.predicts:
            self.trial.keep_predictions([(self.validation, self.scores)])


class _Refit(Course):
    """One more model, trained on train and validation images, its last stage for as many epochs as were best."""

    def __init__(self, trial: TrialContext) -> None:
        super().__init__(trial, trial.folds)
        if trial.record.refit is not None:
            self.clock.parts.update(trial.record.refit.seconds)

    def run(self) -> None:
        """Train and keep it."""
        stages = self.trial.config.staged()
        last, before = len(stages) - 1, sum(stage.epochs for stage in stages[:-1])
        best = [self.record.best_of(fold, last).epoch - before + 1 for fold in range(self.trial.folds)]
        stages[-1] = stages[-1].model_copy(update={"epochs": round(float(np.mean(best)))})
        model = self.walk(stages, with_validation=True, shared=False)
        if self.trial.store:
            self.save(self.trial.store, REFIT, stages[-1], model)
        self.record.refit = Refit(epochs=stages[-1].epochs, seconds=self.clock.seconds())

    def judge(self, number: int, stage: TrialConfig, epoch: Epoch) -> None:
        """Nothing is held out to judge by: only the state is kept."""
        if not epoch.repeated:
            self.record.refit = Refit(epochs=epoch.number + 1, seconds=self.clock.seconds())
            self.keep(number, epoch)


def _environment(job: Job) -> Environment:
    import timm
    import torch

    from cxrlt_ray import __version__

    return Environment(
        cxrlt_ray=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        timm=timm.__version__,
        device=device_.label(worker_of(job).device, torch.get_num_threads()),
    )
