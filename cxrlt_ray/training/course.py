"""One model's way through the stages of a trial, entered where an earlier process left it.

A stage of other cohorts' images is alike for many trials: its weights are kept in RUN/stages and taken up by the next
trial with the same stages up to there.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.manifest import MAIN
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import NotThere, Store
from cxrlt_ray.training import resume
from cxrlt_ray.training.clock import Clock
from cxrlt_ray.training.context import TrialContext
from cxrlt_ray.training.job import Job, embeddings_of, training_images
from cxrlt_ray.training.resume import ResumeState
from cxrlt_ray.training.stage import Epoch, Watch, train_stage
from cxrlt_ray.training.workers import agree, worker_of

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier


class Course:
    """One model's way through the stages: a fold's, or the refit's. Subclasses judge each epoch."""

    def __init__(self, trial: TrialContext, fold: int) -> None:
        self.trial, self.fold, self.record = trial, fold, trial.record
        before = trial.before
        self.before = before if before and before.fold == fold else None
        self.clock, self.done = Clock(self.record.seconds if self.before else None), 0

    def walk(self, stages: list[TrialConfig], with_validation: bool, shared: bool) -> Classifier:
        """Train all stages; the model that is judged at last.

        with_validation: validation images train too. shared: weights of outside stages are kept for others.
        """
        job, model = self.trial.job, None
        carried: dict[str, torch.Tensor] = {}
        storage = job.run / "stages"
        for number, stage in enumerate(stages):
            following = stages[number + 1] if number + 1 < len(stages) else None
            outside = following is not None and stage.cohorts != MAIN and not _carries(stage, following)
            key = self._key(stages[: number + 1]) if shared and outside else ""
            before = self.before if self.before and self.before.stage == number else None
            if self.before and number < self.before.stage:
                self.done += stage.epochs
                continue
            if key and not before and (taken := shared_stage(storage, key, job)) is not None:
                model = taken
                self.done += stage.epochs
                continue
            training = training_images(self.trial.manifest, job, self.fold, stage.cohorts, with_validation)
            if before and number:  # the shape of it, whose tensors are put back
                model = begin(job, stages[0], None, None)
            model = begin(job, stage, model, stages[number - 1] if number and not before else stages[0])
            watch = self.watch(number, stage)
            for epoch in train_stage(job, stage, model, training, self.fold, self.clock, before, carried, watch):
                model = epoch.model
                self.judge(number, stage, epoch)
                if stage.patience and agree(self.is_over(number, stage), worker_of(job)):
                    break
            carried = epoch.carried() if following and _carries(stage, following) else {}
            self.done += stage.epochs
            if key and self.trial.store:
                self.save(storage, key, stage, model)
        assert model is not None
        return model

    def judge(self, number: int, stage: TrialConfig, epoch: Epoch) -> None:
        """An epoch of stage `number` is done."""
        raise NotImplementedError

    def watch(self, number: int, stage: TrialConfig) -> Watch | None:
        """What is called after each step of stage `number`, if anything."""
        return None

    def is_over(self, number: int, stage: TrialConfig) -> bool:
        """Whether stage `number` ends before its last epoch."""
        return False

    def keep(self, number: int, epoch: Epoch, scores: np.ndarray | None = None) -> None:
        """Write the resume state after an epoch, with all scores so far."""
        import torch

        if not self.trial.store:
            return
        self.trial.check_mine()
        scored = [scores for _, scores in self.trial.scored] + ([] if scores is None else [scores])
        tensors = {f"scores/{fold}": torch.from_numpy(values) for fold, values in enumerate(scored)}
        state = ResumeState(self.fold, number, epoch.number, self.record, {**epoch.state(), **tensors})
        resume.keep(self.trial.store, state)

    def save(self, store: Store, name: str, stage: TrialConfig, model: Classifier) -> None:
        """Write a model's checkpoint as directory `name`, whole or not at all."""
        from cxrlt_ray import models

        with store.place(name) as folder:
            folder.mkdir()
            models.save(model, stage.spec(), self.trial.job.trained, folder)

    def _key(self, stages: list[TrialConfig]) -> str:
        """What the weights that these stages lead to are kept under, for every trial that has them."""
        settings = [stage.model_dump(exclude={"stages", "system", "tta", "refit"}) for stage in stages]
        return hashlib.sha256(json.dumps([settings, self.fold], sort_keys=True).encode()).hexdigest()[:12]


def _carries(stage: TrialConfig, following: TrialConfig) -> bool:
    """Whether more than the classifier goes on into the stage that follows; of that RUN/stages keeps nothing."""
    return stage.objective == following.objective and bool(find_objective(stage.objective).carries)


def begin(job: Job, stage: TrialConfig, before: Classifier | None, previous: TrialConfig | None) -> Classifier:
    """The model with which `stage` begins, on its device: a new one, or `before` of stage `previous` carried over."""
    import torch

    from cxrlt_ray import models

    torch.manual_seed(stage.seed)
    if before is None or previous is None:
        model = models.build(stage.spec(), job.trained, embeddings_of(job, stage.spec()))
    else:
        spec, own = previous.spec(), stage.spec()
        model = models.carry(before.cpu(), spec, own, job.trained, stage.fresh_head, embeddings_of(job, own))
    # channels last: up to 1.6 times as fast here on convolutions, and what tensor cores want
    return model.to(worker_of(job).device).to(memory_format=torch.channels_last)


def shared_stage(storage: Store, key: str, job: Job) -> Classifier | None:
    """The model that an earlier trial's stages led to, on every worker; None where there is none, or it is damaged.

    Storage that does not answer, and any other error, is raised: training the stage again would hide it.
    """
    from safetensors import SafetensorError

    from cxrlt_ray import models

    model = None
    if storage.exists(f"{key}/model.safetensors"):
        try:
            with storage.fetched(key) as folder:
                model = models.load(folder)[0]
        except (SafetensorError, json.JSONDecodeError, NotThere, FileNotFoundError) as error:
            kind = type(error).__name__
            print(f"  {storage.uri}/{key} is damaged ({kind}): its stage is trained again", flush=True)
    return model if agree(model is not None, worker_of(job)) else None
