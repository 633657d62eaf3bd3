"""An ensemble applied to images: its members' predictions, in its space, joined by its rule, weighed and summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import Manifest, studies
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.tasks import normal_among
from cxrlt_ray.ensembling.asked import Asked
from cxrlt_ray.ensembling.compare import ScoredSplit, System
from cxrlt_ray.ensembling.pool import Pool, Say
from cxrlt_ray.ensembling.tta import AUGMENTED
from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.runs.store import Run, Trial
from cxrlt_ray.selection import spaces
from cxrlt_ray.selection.views import StudyRule
from cxrlt_ray.storage import Store


@dataclass(frozen=True)
class SplitPredictions:
    """A split's predictions float32 [N, C] by member m of a pool, read when asked for; nan for bad images."""

    pool: Pool
    split: str
    image_id: np.ndarray
    findings: list[str]

    def __getitem__(self, m: int) -> np.ndarray:
        frame = self.pool.trials[m].predictions(self.pool.split_of(m, self.split))
        return np.ascontiguousarray(frame.reindex(self.image_id)[self.findings], np.float32)


@dataclass(frozen=True)
class Ensemble:
    """A stored ensemble: its record and the trials [M] that are its members, in the record's order."""

    record: EnsembleRecord
    trials: list[Trial]

    @property
    def weights(self) -> np.ndarray:
        """float64 [M, C]."""
        return np.array([[member.weights[name] for name in self.findings] for member in self.record.members])

    @property
    def tta(self) -> list[bool]:
        """Which members [M] score under test-time augmentation."""
        return [member.tta for member in self.record.members]

    @property
    def rule(self) -> StudyRule:
        """How the images of a study are joined, and findings gated."""
        record = self.record
        return StudyRule(record.joined_by, record.views, record.gating, normal_among(self.findings))

    @property
    def findings(self) -> tuple[str, ...]:
        """The task's findings [C], in order."""
        return self.record.findings

    def score(
        self, work: Store, shards: tuple[Shards, ...], images: pd.DataFrame, asked: Asked | None = None
    ) -> np.ndarray:
        """Scores float64 [N, C] in [0, 1] of `images`, rows of a manifest; nan for those in quarantine.

        work: where the scores of finished shards are kept until all are done. asked: A findings more, whose scores come
        last, [N, C + A]: in the ensemble's space, a rank being among these images; its Normal does not gate them.
        """
        from cxrlt_ray.ensembling import score as scoring

        ids, count = images["image_id"].to_numpy(), len(self.findings)
        more = len(asked.findings) if asked else 0
        predictions = np.full((len(self.trials), len(ids), count + more), np.nan, np.float32)
        embeddings = asked.embeddings if asked else (None,) * len(self.trials)
        members = [
            replace(scoring.member(trial, tta, self.findings), asked=rows, more=more)
            for trial, tta, rows in zip(self.trials, self.tta, embeddings, strict=True)
        ]
        frame = scoring.score(work, shards, members, images)
        rows = np.flatnonzero(np.isin(ids, frame.index))
        predictions[:, rows] = np.stack(frame.loc[ids[rows], "scores"].to_list(), axis=1)
        space, (study, view) = self.record.space, studies(images)
        own, others = np.split(predictions, [count], axis=2)
        scores = applied(space, self.rule, own, self.references(), self.weights, study, view)
        if asked is None:
            return scores
        weights = np.repeat(asked.weights[:, None], more, axis=1)
        rule = replace(self.rule, gating=0.0, normal=None)
        return np.concatenate([scores, applied(space, rule, others, others, weights, study, view)], axis=1)

    def references(self) -> np.ndarray:
        """The members' validation predictions [M, V, C], which ranks refer to."""
        if self.record.space != "rank":
            return np.empty((len(self.trials), 0, len(self.findings)), np.float32)
        frames = [
            trial.predictions(AUGMENTED if tta else "val") for trial, tta in zip(self.trials, self.tta, strict=True)
        ]
        shared = frames[0].index
        for frame in frames[1:]:
            shared = shared.intersection(frame.index)
        return np.stack([frame.loc[shared, list(self.findings)].to_numpy(np.float32) for frame in frames])


def score_split(
    run: Run, pool: Pool, members: np.ndarray, images: pd.DataFrame, split: str, address: str | None
) -> SplitPredictions:
    """Have `split` scored by those of `members` (a mask [M]) that have not done so.

    images: image_id, study_id and view of a manifest. Which members score under test-time augmentation: Pool.tta.
    """
    from cxrlt_ray.ensembling.score import score_trials

    chosen = [int(m) for m in np.flatnonzero(members)]
    if any(not pool.trials[m].has_predictions(pool.split_of(m, split)) for m in chosen):
        from cxrlt_ray.cluster.start import start_ray

        start_ray(address)
        flags, trials = [pool.augmented(m) for m in chosen], [pool.trials[m] for m in chosen]
        score_trials(run.store.absolute(), run.shards(), trials, images, split, tta=flags, track=run.record.track)
    return SplitPredictions(pool, split, images["image_id"].to_numpy(), list(run.record.predicted))


def score_splits(
    run: Run,
    manifest: Manifest,
    pool: Pool,
    systems: Sequence[System],
    splits: Sequence[str],
    address: str | None,
    score_all: bool = False,
) -> dict[str, ScoredSplit]:
    """Each of `splits` that has images, scored by the systems' members; the plain mean's only with `score_all`.

    systems: as compare.compare gives them, the best, the mean and the ensemble.
    """
    best, mean, ensemble = systems
    needed = np.any([system.members for system in (best, *([mean] if score_all else []), ensemble)], axis=0)
    scored = {}
    for split in dict.fromkeys(splits):
        images = manifest.of_split(split)
        if not len(images.table):
            continue
        predictions = score_split(run, pool, needed, images.table, split, address)
        study, view = studies(images.table)
        scores = [
            None
            if (system.members & ~needed).any()  # a member that has not scored
            else applied(system.space, system.rule, predictions, pool.predictions, system.weights, study, view)
            for system in systems
        ]
        scored[split] = ScoredSplit(images, scores)
    return scored


def applied(
    space: str,
    rule: StudyRule,
    predictions: np.ndarray | SplitPredictions,
    reference: np.ndarray,
    weights: np.ndarray,
    study: np.ndarray,
    view: np.ndarray,
) -> np.ndarray:
    """An ensemble's scores float64 [N, C] in [0, 1] of predictions [M, N, C]; nan where a needed one is missing.

    reference: the members' validation predictions [M, V, C], images by themselves. study, view: [N].
    """
    total = np.zeros((len(study), weights.shape[1]))
    for m in np.flatnonzero(weights.sum(axis=1) > 0).tolist():  # one at a time: all would be as large as the pool
        (values,) = rule.values(space, predictions[m][None], reference[m][None], study, view)
        total += values * weights[m]
    return spaces.out_of(space, total)


def filled(scores: np.ndarray, say: Say = print) -> np.ndarray:
    """Scores [N, C] where images that could not be decoded get each finding's mean: a submission needs every row."""
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        say(f"{bad.sum()} image(s) could not be decoded: they get each finding's mean score (see quarantine.parquet)")
        scores = np.where(bad[:, None], np.nanmean(scores, axis=0), scores)
    return scores
