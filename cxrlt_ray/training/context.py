"""A trial while a process trains it: what its folds share, and what is written of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cxrlt_ray.data.asking import ALWAYS
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.runs import verdict
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.records import FINISHED, RUNNING, State, TrialRecord
from cxrlt_ray.runs.store import RECORD
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.training import resume
from cxrlt_ray.training.job import Images, Job
from cxrlt_ray.training.resume import ResumeState
from cxrlt_ray.training.workers import Worker

Report = Callable[[dict[str, float]], None]


class Stopped(Exception):
    """The sweep has ended the trial: its process has nothing more to write."""


@dataclass(frozen=True)
class TimeLeft:
    """How long a trial's epochs last: `until`, by time.time(), and `most` at most. They follow the rate it comes to.

    shortest: what another trial takes at least, as a share of what this one has taken.
    """

    until: float
    most: int
    shortest: float = 0.0

    def epochs(self, done: int, seconds: float, afterwards: float = 0.0) -> int:
        """As many as the time holds, those done counted, where one takes so many seconds; one more than are done.

        afterwards: seconds that follow the last one.
        """
        further = int((self.until - time.time() - afterwards) / max(seconds, 1e-9))
        return min(self.most, done + max(1, further))

    def holds_another(self, seconds: float) -> bool:
        """Whether another trial could follow one that ends now, after so many seconds."""
        return self.until - time.time() >= self.shortest * seconds


@dataclass
class TrialContext:
    """What the folds of a trial share in this process.

    store: None on all workers but the first. before: the state where an earlier process was cut off. time_left: None
    for the epochs of its config. scored: the validation images and scores [N, C] of the folds that are done.
    """

    job: Job
    config: TrialConfig
    manifest: Manifest
    store: Store | None
    worker: Worker
    record: TrialRecord
    report: Report
    before: ResumeState | None
    time_left: TimeLeft | None = None
    scored: list[tuple[Images, np.ndarray]] = field(default_factory=list)

    @property
    def folds(self) -> int:
        """How many models are trained on folds: one without folds."""
        return self.job.models

    @property
    def predicts(self) -> bool:
        """Whether the last stage's objective gives predictions."""
        return find_objective(self.config.staged()[-1].objective).predicts

    def check_mine(self) -> None:
        """Raise CxrltError if the trial was begun anew elsewhere: a process thought dead must not write into it.

        Raises Stopped if the sweep has ended it: what it left then is what its record says.
        """
        if self.store and self._mine().state != RUNNING:
            raise Stopped

    def _mine(self) -> TrialRecord:
        """The record as it is stored; raises CxrltError as `check_mine`."""
        assert self.store is not None
        stored = TrialRecord.read(self.store, RECORD)
        if stored.attempt != self.record.attempt:
            raise CxrltError(f"trial {self.record.name} was begun anew in another process; this one ends.")
        return stored

    def write(self) -> None:
        """Write the record; where the sweep has ended the trial meanwhile, its verdict stands."""
        if self.store:
            self.record.write(self.store, RECORD)
            verdict.uphold(self.store)

    def update(self) -> None:
        """Write the record, unless the trial was ended from outside: a worker group may be an epoch behind that."""
        if self.store and self._mine().state == RUNNING:
            self.write()

    def end(self, state: State) -> None:
        """The trial is done: write its last record, and remove its resume states."""
        self.record.state = state
        if state == FINISHED:
            self.record.ended = time.time()
        self.update()
        if self.store:
            resume.forget(self.store)

    def keep_predictions(self, scored: list[tuple[Images, np.ndarray]] | None = None, split: str = "val") -> float:
        """Store the validation predictions of all folds together; returns their score by the trial's metric."""
        scored = self.scored if scored is None else scored
        image_id, targets, scores = self._joined(scored)
        seen = ~np.isnan(scores).any(axis=1)  # those in quarantine have nan
        if self.store:
            job, track = self.job, self.job.asking.track if self.job.asking else None
            Predictions(
                image_id[seen], scores[seen], job.findings, split, job.fingerprint, self.record.precision, track
            ).write(self.store, f"predictions/{split}.parquet")
        return self.score(targets, scores)

    def _joined(self, scored: list[tuple[Images, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image ids, labels and scores of all folds: folds of images one after the other, of findings side by side."""
        targets = [images.targets for images, _ in scored]
        if self.job.asking is None:
            image_id = np.concatenate([images.image_id for images, _ in scored])
            return image_id, np.concatenate(targets), np.concatenate([scores for _, scores in scored])
        by_fold, fold = np.stack([scores for _, scores in scored]), self.job.asking.fold_of_predicted
        own = by_fold[np.maximum(fold, 0), :, np.arange(len(fold))].T
        return scored[0][0].image_id, np.max(targets, axis=0), np.where(fold == ALWAYS, by_fold.mean(axis=0), own)

    def score(self, targets: np.ndarray, scores: np.ndarray) -> float:
        """The last stage's metric of the images that were scored, by labels int8 [N, C] and scores [N, C]."""
        seen = ~np.isnan(scores).any(axis=1)
        config = self.config.staged()[-1]
        objective = find_objective(config.objective)
        empty = np.empty((0, len(self.job.trained)))
        return objective(config.objective_spec(), empty, empty).score(targets[seen], scores[seen])
