"""What a classifier makes of generated images, by models that have not seen the patients they descend from.

A teacher is a run's trial, its best one, or an ensemble. With folds each of its models has not seen the patients of one
fold, and an image is scored by those that have not seen its source subject; a model that has seen the positives from
which a generator learnt certifies its own memory (in a miniature AUROC .93 on generated images and .57 on real ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.data.fingerprints import keys_of_subjects, subject_keys
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.ensembling.score import StoredMember, member, score
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.runs.ensemble_record import FILE as ENSEMBLE
from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.runs.store import Run, Trial, best_first, load_run, read_run
from cxrlt_ray.storage import Store
from cxrlt_ray.training.job import Job, training_images

Interval = tuple[float, float, float]  # a value, and the ends of its 95 % interval


@dataclass(frozen=True)
class Teacher:
    """Trials [M] of a run with their weights float [M, C]; findings: [C].

    seen: of each fold the subjects learnt, by their ids in the run's manifest and by their keys (data/fingerprints.py).
    """

    name: str
    run: Run
    trials: tuple[Trial, ...]
    weights: np.ndarray
    findings: tuple[str, ...]
    seen: tuple[frozenset[str], ...]

    @property
    def members(self) -> list[StoredMember]:
        """Every trial's model of every fold: of the first trial all folds, then of the next."""
        whole = [member(trial, False, self.findings) for trial in self.trials]
        return [
            StoredMember(stored.views, (uri,), stored.precision, stored.findings)
            for trial, stored in zip(self.trials, whole, strict=True)
            for uri in checkpoints_of(trial, len(self.seen))
        ]

    def unseen(self, subjects: np.ndarray, release: str = "") -> np.ndarray:
        """Which fold's models have not seen each of N subjects: bool [N, K].

        release: what the ids are unique within; a subject is then known in any cohort of the teacher's run.
        """
        known = zip(subjects, subject_keys(release, subjects), strict=True)
        unseen = [[seen.isdisjoint(names) for seen in self.seen] for names in known]
        return np.array(unseen, bool).reshape(len(subjects), len(self.seen))

    def combined(self, scores: np.ndarray, models: np.ndarray) -> np.ndarray:
        """Float [N, C] of scores [N, M * K, C], the mean over the folds that `models`, bool [N, K], allow.

        nan for an image that none is allowed to judge.
        """
        trials, folds = len(self.trials), len(self.seen)
        by_fold = np.einsum("nmkc,mc->nkc", scores.reshape(len(scores), trials, folds, -1), self.weights)
        counts = models.sum(axis=1)[:, None]
        total = (by_fold * models[:, :, None]).sum(axis=1)
        return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class RealScores:
    """The teacher on real images that it had not seen: scores and targets [N, C], subject [N]."""

    scores: np.ndarray
    targets: np.ndarray
    subject: np.ndarray

    def threshold(self, column: int, share: float) -> float:
        """The score below which `share` of the real images without a finding lie; nan where there are none."""
        negatives = self.scores[self.targets[:, column] == 0, column]
        return float(np.quantile(negatives, share)) if len(negatives) else float("nan")


def find_teacher(name: str, storage: str) -> Teacher:
    """The teacher `name`: RUN, RUN/TRIAL, or the folder of an ensemble or its ensemble.json.

    Raises UsageError where there is none, its run is gone, or its checkpoints were dropped.
    """
    store, file = Store.holding(name) if name.endswith(ENSEMBLE) else (Store(name), ENSEMBLE)
    if store.exists(file):
        record = EnsembleRecord.read(store, file)
        if not Store(record.run).exists("run.json"):
            raise UsageError(f"--teacher {name}: its run {record.run} is gone.")
        run = read_run(Store(record.run))
        if run.record.fingerprint != record.fingerprint:
            raise UsageError(f"--teacher {name} was made of another run than {run.name}, which is in its place.")
        trials = [run.trial(of.trial) for of in record.members]
        weights = np.array([[of.weights[finding] for finding in record.findings] for of in record.members])
        return _teacher(name, run, trials, weights, record.findings)
    run_name, _, trial_name = name.partition("/")
    run = load_run(storage, run_name)
    named = [trial for trial in run.trials() if trial_name in ("", trial.name)]
    trials = [trial for trial in named if trial.predicts and trial.has_predictions()]
    if not trials:
        raise UsageError(f"--teacher {name}: run {run_name} has no such trial with predictions.")
    best = best_first(trials)[:1]
    findings = best[0].record.findings
    return _teacher(name, run, best, np.ones((1, len(findings))), findings)


def _teacher(name: str, run: Run, trials: Sequence[Trial], weights: np.ndarray, findings: tuple[str, ...]) -> Teacher:
    folds = max(run.record.folds, 1)
    for trial in trials:
        if len(checkpoints_of(trial, folds)) < folds:
            raise UsageError(
                f"--teacher {name}: trial {trial.name} has not kept the models of its {folds} folds: sweep again "
                "without --keep-checkpoints."
            )
    return Teacher(name, run, tuple(trials), weights, findings, _seen(run, trials, folds))


def checkpoints_of(trial: Trial, folds: int) -> list[str]:
    """The URIs of a trial's models of its folds; the refitted one has seen all subjects and is left out."""
    there = set(trial.store.list())
    names = [name for name in (f"fold-{fold}" for fold in range(folds)) if name in there]
    return [(trial.store.absolute() / name).uri for name in names]


def _seen(run: Run, trials: Sequence[Trial], folds: int) -> tuple[frozenset[str], ...]:
    """The subjects that the trials' models of each fold have learnt, in any stage."""
    record, manifest = run.record, run.manifest()
    job = Job(run.store, run.shards(), record.predicted, record.fingerprint, folds=record.folds, seed=record.seed)
    keys = keys_of_subjects(manifest, record.data or "", record.cohorts)
    subject = manifest.table.assign(key=keys).set_index("image_id")[["subject_id", "key"]]
    cohorts = {stage.cohorts for trial in trials if trial.record.config for stage in trial.record.config.staged()}
    ids = [
        np.concatenate([training_images(manifest, job, fold, name).image_id for name in sorted(cohorts)])
        for fold in range(folds)
    ]
    return tuple(frozenset(map(str, np.unique(subject.loc[of_fold].to_numpy(str)))) for of_fold in ids)


def check_teacher(teacher: Teacher, source: np.ndarray, allowed: bool, release: str = "") -> np.ndarray:
    """Which fold's models judge each of N images, bool [N, K]: those that have not seen its source subject.

    source: [N] subjects; release: as of `Teacher.unseen`. allowed: with --seen-teacher, all models judge an image of
    which all have seen the source.
    Raises UsageError where there is such an image and that is not allowed.
    """
    models = teacher.unseen(source, release)
    none = ~models.any(axis=1)
    if none.any() and not allowed:
        raise UsageError(
            f"--teacher {teacher.name} has seen the source subjects of {none.sum():,} of {len(source):,} images, and "
            f"would certify its own memory: give a run with "
            "--folds, or --seen-teacher, which is recorded."
        )
    models[none] = True
    return models


def real_scores(teacher: Teacher) -> RealScores:
    """The teacher's stored predictions of validation images: out of fold where it has folds."""
    manifest = teacher.run.manifest()
    frames = [trial.predictions()[list(teacher.findings)] for trial in teacher.trials]
    shared = frames[0].index
    for frame in frames[1:]:
        shared = shared.intersection(frame.index)
    stacked = np.stack([frame.loc[shared].to_numpy(float) for frame in frames])
    table = manifest.table.set_index("image_id").loc[shared].reset_index()
    targets = Manifest(table, manifest.findings, manifest.source, manifest.root).targets(teacher.findings)
    scores = np.einsum("mnc,mc->nc", stacked, teacher.weights)
    return RealScores(scores, targets, table["subject_id"].to_numpy(str))


def scores_of(teacher: Teacher, work: Store, shards: tuple[Shards, ...], images: pd.DataFrame) -> np.ndarray:
    """Every model's scores float [N, M * K, C] of images, rows of a manifest; nan for one in quarantine."""
    frame = score(work, shards, teacher.members, images)
    ids = images["image_id"].to_numpy()
    scores = np.full((len(ids), len(teacher.members), len(teacher.findings)), np.nan)
    rows = np.flatnonzero(np.isin(ids, frame.index))
    scores[rows] = np.stack(frame.loc[ids[rows], "scores"].to_list())
    return scores


def auroc_interval(targets: np.ndarray, scores: np.ndarray, groups: np.ndarray, rounds: int = 500) -> Interval:
    """AUROC of one finding, targets int8 [N] and scores [N], with its 95 % interval by groups (percentiles)."""
    known = np.isfinite(scores)
    targets, scores, groups = targets[known, None], scores[known, None], groups[known]
    value = metrics.auroc(targets[:, 0], scores[:, 0]) if len(targets) else float("nan")
    if value != value:
        return (float("nan"),) * 3
    draws = metrics.bootstrap_scores(targets, scores.clip(0, 1), groups, rounds)["auroc"][0]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return value, float(low), float(high)
