"""An ensemble as a teacher: its members without what saw validation images, their scores, and whom they saw.

By default it is the plain mean of the members' probabilities, image by image: validation chose neither weights, nor how
views are joined, nor test-time augmentation. Members score by their fold's checkpoints, never by a refit one. With K
folds there are K teachers, one without each fold's subjects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from pydantic import JsonValue

from cxrlt_ray.data.fingerprints import keys_of_subjects
from cxrlt_ray.data.manifest import MAIN, Manifest, studies
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.teacher import EVERY, TeacherMember, Weights
from cxrlt_ray.ensembling.apply import Ensemble, applied
from cxrlt_ray.ensembling.stored import load
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.ensemble_record import weights_fingerprint
from cxrlt_ray.runs.predictions import augmented_name
from cxrlt_ray.runs.store import Run, Trial, read_run
from cxrlt_ray.storage import Store
from cxrlt_ray.training.job import folds_of, rows_of_cohorts


@dataclass(frozen=True)
class Validation:
    """A teacher's scores [V, C] of validation images (with folds: of training images, by the teacher of their fold).

    targets: int8 [V, C]. subjects: [V]. fold: int64 [V], 0 without folds.
    """

    scores: np.ndarray
    targets: np.ndarray
    subjects: np.ndarray
    fold: np.ndarray


@dataclass(frozen=True)
class EnsembleTeacher:
    """The members of an ensemble of `run` as a teacher of its findings."""

    run: Run
    ensemble: Ensemble
    weights: Weights

    @property
    def folds(self) -> int:
        """How many folds of images the run has; 0 without."""
        return self.run.record.folds if self.run.record.folds > 1 else 0

    @property
    def teachers(self) -> int:
        """K, one a fold; 1 without folds."""
        return max(self.folds, 1)

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings [C] that it knows."""
        return self.ensemble.findings

    @cached_property
    def manifest(self) -> Manifest:
        """The run's cohort."""
        return self.run.manifest()

    @cached_property
    def checkpoints(self) -> list[tuple[str, ...]]:
        """The names of each member's checkpoints, one a fold. Raises UsageError where a member lacks one."""
        return [_checkpoints(trial, self.teachers) for trial in self.ensemble.trials]

    @cached_property
    def members(self) -> tuple[TeacherMember, ...]:
        """The members with the fingerprints of the checkpoints that score."""
        return tuple(
            TeacherMember(
                trial=trial.name, checkpoints={name: weights_fingerprint(trial.store, name) for name in names}
            )
            for trial, names in zip(self.ensemble.trials, self.checkpoints, strict=True)
        )

    @property
    def way(self) -> dict[str, JsonValue] | None:
        """How the ensemble joins its members, as its record says it; None for the plain mean."""
        if self.weights == "mean":
            return None
        keys = {"space", "aggregation", "views", "gating", "members"}
        return self.ensemble.record.model_dump(mode="json", include=keys)

    def score(self, work: Store, shards: tuple[Shards, ...], images: pd.DataFrame) -> np.ndarray:
        """Scores float64 [K, N, C] of `images`, rows of a manifest, by each fold's teacher; nan in quarantine.

        work: where the scores of finished shards are kept until all are done.
        """
        from cxrlt_ray.ensembling import score as scoring

        stored = [
            scoring.member(trial, tta, self.findings)
            for trial, tta in zip(self.ensemble.trials, self._tta, strict=True)
        ]
        each = [
            replace(member, checkpoints=((trial.store.absolute() / names[fold]).uri,))
            for fold in range(self.teachers)
            for member, trial, names in zip(stored, self.ensemble.trials, self.checkpoints, strict=True)
        ]
        ids = images["image_id"].to_numpy()
        frame = scoring.score(work, shards, each, images)
        scores = np.full((len(each), len(ids), len(self.findings)), np.nan, np.float32)
        rows = np.flatnonzero(np.isin(ids, frame.index))
        scores[:, rows] = np.stack(frame.loc[ids[rows], "scores"].to_list(), axis=1)
        by_fold = scores.reshape(self.teachers, len(stored), *scores.shape[1:])
        return np.stack([self._joined(predictions, images) for predictions in by_fold])

    def on_validation(self) -> Validation:
        """What its calibration is fitted on: the stored predictions of images that their teacher did not train on."""
        names = [augmented_name("val", tta) for tta in self._tta]
        frames = [trial.predictions(name) for trial, name in zip(self.ensemble.trials, names, strict=True)]
        shared = frames[0].index
        for frame in frames[1:]:
            shared = shared.intersection(frame.index)
        table = self.manifest.table
        rows = pd.Index(table["image_id"]).get_indexer(shared)
        predictions = np.stack([frame.loc[shared, list(self.findings)].to_numpy(np.float32) for frame in frames])
        images = table.iloc[rows]
        fold = self._fold_of[rows] if self.folds else np.zeros(len(rows), np.int64)
        targets = self.manifest.targets(self.findings)[rows]
        return Validation(self._joined(predictions, images), targets, images["subject_id"].to_numpy(), fold)

    def seen(self) -> dict[int, list[str]]:
        """The subjects that trained a member, by the fold whose teacher they did not train, or EVERY.

        Each by its id in the run's manifest and by its key, which it has in any cohort (data/fingerprints.py).
        """
        table, rows = self.manifest.table, np.zeros(len(self.manifest.table), bool)
        for trial in self.ensemble.trials:
            for stage in trial.record.config.staged() if trial.record.config else ():
                rows |= rows_of_cohorts(self.manifest, stage.cohorts)
        rows &= (table["split"] == "train").to_numpy()
        left_out = np.where(self.manifest.cohorts == MAIN, self._fold_of, EVERY)
        keys = keys_of_subjects(self.manifest, self.run.record.data or "", self.run.record.cohorts)
        both = np.concatenate([table["subject_id"].astype(str).to_numpy(object)[rows], keys[rows]])
        by_subject = pd.Series(np.tile(left_out[rows], 2), both).groupby(level=0).first()
        names = by_subject.index.astype(str)
        return {int(fold): list(names[by_subject == fold]) for fold in sorted(by_subject.unique())}

    def prevalence(self) -> np.ndarray:
        """Share of positives [K, C] among labelled training images of the main cohort, without each fold's subjects."""
        from cxrlt_ray.evaluation.parts import shares

        main = self.manifest.of_cohort(MAIN).of_split("train")
        targets = main.targets(self.findings)
        fold_of = self._fold_of[
            ((self.manifest.cohorts == MAIN) & (self.manifest.table["split"] == "train")).to_numpy()
        ]
        return np.stack([shares(targets[fold_of != fold]) for fold in range(self.teachers)])

    @cached_property
    def _fold_of(self) -> np.ndarray:
        """The fold of each image of the run's manifest, int64 [N]; EVERY without folds, and of others than training."""
        if not self.folds:
            return np.full(len(self.manifest.table), EVERY)
        return folds_of(self.manifest, self.run.record.predicted, self.folds, self.run.record.seed)

    @property
    def _tta(self) -> list[bool]:
        return self.ensemble.tta if self.weights == "chosen" else [False] * len(self.ensemble.trials)

    def _joined(self, predictions: np.ndarray, images: pd.DataFrame) -> np.ndarray:
        """Scores float64 [N, C] of the members' predictions [M, N, C]."""
        if self.weights == "mean":
            return predictions.mean(axis=0, dtype=np.float64)
        ensemble = self.ensemble
        space, weights = ensemble.record.space, ensemble.weights
        return applied(space, ensemble.rule, predictions, ensemble.references(), weights, *studies(images))


def teacher_of(uri: str, weights: str) -> EnsembleTeacher:
    """The ensemble in a directory or ensemble.json as a teacher.

    Raises UsageError for one that cannot teach, CxrltError where its run or a member is gone or has changed.
    """
    ensemble = load(uri)
    run = read_run(Store(ensemble.trials[0].store.uri.rpartition("/trials/")[0]))
    if run.record.fingerprint != ensemble.record.fingerprint:
        raise UsageError(f"{uri} was made of another run than {run.name}, which is in its place: make it anew.")
    if run.record.asking is not None:
        raise UsageError(
            f"run {run.name} asks for findings by text, for which no labels calibrate scores: take an ensemble of a "
            "run that was trained on labels of its findings."
        )
    teacher = EnsembleTeacher(run, ensemble, "chosen" if weights == "chosen" else "mean")
    _ = teacher.checkpoints  # raises where a member cannot teach
    return teacher


def _checkpoints(trial: Trial, count: int) -> tuple[str, ...]:
    """The checkpoints of a trial that saw no validation image, one a fold."""
    names = [f"fold-{fold}" for fold in range(count)]
    if missing := [name for name in names if not trial.store.exists(f"{name}/model.safetensors")]:
        raise UsageError(
            f"trial {trial.name} of the ensemble cannot teach: its {missing[0]} checkpoint is gone"
            + (", and its refit one was trained on validation images" if trial.store.exists("refit") else "")
            + ": select anew among trials whose checkpoints were kept."
        )
    return tuple(names)
