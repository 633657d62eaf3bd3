"""Promotion by what a trial adds to the ensemble: the third of a rung's trials that an ensemble gains most by goes on.

All trials are compared as they stood at the rung, by their predictions of a sample of the validation subjects
(selection/worth.py). A trial whose predictions cannot be used is compared by its own mAP, and a line says so: nothing
here ends a sweep. Each decision and the predictions behind it are kept with the trial, so that a resumed sweep decides
as it would have.

The sample bounds the time: of 39,293 images x 40 findings it has 2,000, and the rarest findings keep up to 30 positive
images each, so they are more frequent in it than in the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.splits import assign_folds
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.objectives.metric import VAL_MAP
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.runs.predictions import Predictions, read_predictions
from cxrlt_ray.runs.promotion_record import FILE, PromotionRecord, RungRecord, rung_file
from cxrlt_ray.runs.records import RUNNING, RunRecord
from cxrlt_ray.runs.store import Run, Trial
from cxrlt_ray.search.space import ENSEMBLE, REDUCTION, Space
from cxrlt_ray.search.trial_states import learning_curve, trial_number

IMAGES, POSITIVES, FOLDS = 2_000, 30, 3
SAME = 1e-4  # between a reported score and that of the predictions it was reported of
INSTEAD = "; leave out --promote ensemble (in a space's file `promote: ensemble`)"


def check_promotion(space: Space, record: RunRecord) -> None:
    """Raise UsageError where trials are to be promoted by the ensemble, and what that takes is not there."""
    if space.promote != ENSEMBLE:
        return
    if not space.prune and record.prune is None:
        raise UsageError(
            f"search space {space.name} stops no trial early (`prune: false`), so none is promoted{INSTEAD}, or give a "
            "space that prunes, such as --space task1."
        )
    if record.finding_folds:
        raise UsageError(
            f"trials that are asked for findings by text have no labels to promote by on validation images{INSTEAD}."
        )
    if record.folds > 1:
        raise UsageError(
            "promotion by the ensemble needs a validation split that every epoch predicts; trials of "
            f"{record.folds} folds have their predictions at their end{INSTEAD}, or give --folds 0."
        )
    last = [config.staged()[-1].objective for config in space.kinds()]
    if space.metric != VAL_MAP or not all(find_objective(objective).predicts for objective in last):
        raise UsageError(
            f"search space {space.name}: its trials are judged by {space.metric.title}, and promotion by the ensemble "
            f"needs validation mAP and predictions{INSTEAD}."
        )


@dataclass(frozen=True)
class Sample:
    """Validation images by which trials are compared: ids [n], int8 [n, C] labels, subjects and folds of them [n]."""

    image_id: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    fold: np.ndarray

    def of(self, predictions: Predictions) -> np.ndarray:
        """Their probabilities float32 [n, C]; nan where there are none."""
        rows = pd.Index(predictions.image_id).get_indexer(pd.Index(self.image_id))
        values = np.asarray(predictions.probabilities, np.float32)[rows]
        values[rows < 0] = np.nan
        return values

    def where(self, known: np.ndarray) -> np.ndarray:
        """Labels int8 [n, C], of the images `known` [n] only."""
        return np.where(known[:, None], self.targets, np.int8(-1))


@dataclass(frozen=True)
class Entry:
    """A trial at a rung: its score then, its predictions of the sample float32 [n, C] if known, and the decision."""

    name: str
    score: float
    predictions: np.ndarray | None = field(repr=False)
    promoted: bool = True


class Promoter:
    """Decides which trials of a run go on at `rungs`, in epochs, the lowest first."""

    def __init__(self, run: Run, rungs: Sequence[int]) -> None:
        self.run, self.rungs = run, tuple(rungs)
        self.findings = run.record.predicted
        self.pools: dict[int, dict[str, Entry]] = {rung: {} for rung in self.rungs}
        self.decided: dict[str, list[RungRecord]] = {}

    def goes_on(self, name: str, epochs: int, score: float) -> bool:
        """Whether trial `name`, whose best score after so many epochs is `score`, is not to be stopped now.

        A trial is judged once at a rung: where it reports again, the decision stands.
        """
        rung = max((rung for rung in self.rungs if rung <= epochs), default=None)
        if rung is None or score != score:
            return True
        passed = [pool[name] for at, pool in self.pools.items() if at >= rung and name in pool]
        return passed[0].promoted if passed else self._judge(name, rung, score)

    def recall(self, trials: Sequence[Trial]) -> list[int]:
        """Take up what trials had reported and what was decided; the numbers of those that run and should not."""
        self.decided = {trial.name: self._decisions(trial.name) for trial in trials}
        pairs = [(rung, trial) for trial in trials for rung in self.decided[trial.name]]
        for rung, trial in sorted(pairs, key=lambda pair: pair[0].others):  # as they came
            if rung.rung in self.pools:
                stored = self._at_rung(trial, rung.rung) if rung.predictions else None
                self.pools[rung.rung][trial.name] = Entry(trial.name, rung.score, stored, rung.promoted)
        stopped = []
        for trial in trials:
            going = [self.goes_on(trial.name, epochs, score) for epochs, score in learning_curve(trial)]
            if not all(going) and trial.state == RUNNING and trial.record.retraining is None:
                stopped.append(trial_number(trial))
        return stopped

    @cached_property
    def sample(self) -> Sample:
        """The images by which trials are compared: the same for all, also when the run is resumed."""
        table, targets, _ = self._validation
        rows = sampled(targets, table["subject_id"].to_numpy(), seed=self.run.record.seed)
        groups = metrics.numbered(table["subject_id"].to_numpy()[rows])
        folds = min(FOLDS, int(groups.max()) + 1)
        fold = assign_folds(targets[rows], groups, folds, self.run.record.seed)
        return Sample(table["image_id"].to_numpy()[rows], targets[rows], groups, fold)

    @cached_property
    def _validation(self) -> tuple[pd.DataFrame, np.ndarray, pd.Index]:
        """The table, labels int8 [N, C] and ids of all validation images."""
        manifest: Manifest = self.run.manifest().of_cohort(MAIN).of_split("val")
        return manifest.table, manifest.targets(self.findings), pd.Index(manifest.table["image_id"])

    def _judge(self, name: str, rung: int, score: float) -> bool:
        others = list(self.pools[rung].values())
        predictions, fault = None, ""
        try:
            predictions = self._current(name, score)
        except (CxrltError, UsageError, OSError, ValueError) as error:
            fault = _in_a_line(error)
        entry = Entry(name, score, predictions)
        ahead, worth = self._compared([*others, entry]) if others else (0, math.nan)
        entry = replace(entry, promoted=not others or ahead < math.ceil(len(others) / REDUCTION))
        if fault:
            print(f"  {name} is promoted by its own mAP at epoch {rung}, not by the ensemble: {fault}", flush=True)
        decision = RungRecord(
            rung=rung,
            score=score,
            worth=None if worth != worth else worth,
            predictions=predictions is not None,
            others=len(others),
            ahead=ahead,
            promoted=entry.promoted,
        )
        self._keep(entry, decision)
        self.pools[rung][name] = entry
        return entry.promoted

    def _compared(self, entries: list[Entry]) -> tuple[int, float]:
        """How many trials are ahead of the last one, and its worth; nan where that is not known."""
        from cxrlt_ray.selection.worth import gains, members_ahead

        last, scores = len(entries) - 1, np.array([entry.score for entry in entries])
        gain, known = np.full(len(entries), np.nan), [k for k, e in enumerate(entries) if e.predictions is not None]
        values = [entry.predictions for entry in entries if entry.predictions is not None]
        if len(known) < 2 or last not in known:
            return members_ahead(last, scores, gain, lambda others: np.zeros(len(others))), math.nan
        predictions = np.stack(values)
        seen = ~np.isnan(predictions).any(axis=(0, 2))
        predictions[:, ~seen] = 0.5
        result = gains(predictions, self.sample.where(seen), self.sample.groups, self.sample.fold)
        gain[known] = result.gain
        place = {k: row for row, k in enumerate(known)}

        def errors(others: np.ndarray) -> np.ndarray:
            return result.errors(place[last], np.array([place[int(k)] for k in others]))

        return members_ahead(last, scores, gain, errors), float(gain[last])

    def _current(self, name: str, score: float) -> np.ndarray:
        """The trial's present predictions of the sample. Raises CxrltError where they are not those of its score."""
        from cxrlt_ray.selection.average_precision import precision

        stored = self.run.trial(name).stored_predictions()
        _, targets, ids = self._validation
        rows = ids.get_indexer(pd.Index(stored.image_id))
        least = (1 - self.run.record.max_bad) * len(ids)
        if (rows < 0).any() or len(np.unique(rows)) < max(least, len(rows)):
            raise CxrltError("its predictions are not of this run's validation images")
        if not np.isfinite(stored.probabilities).all():
            raise CxrltError("its predictions are not all finite")
        own = metrics.macro(precision(np.asarray(stored.probabilities, np.float64), targets[rows]))
        if not abs(own - score) <= SAME:
            raise CxrltError(f"its predictions are of another epoch (mAP {own:.4f}, reported {score:.4f})")
        return self.sample.of(stored)

    def _at_rung(self, trial: Trial, rung: int) -> np.ndarray | None:
        """The predictions of the sample that were compared at a rung; None, and a line, where they are lost."""
        record = self.run.record
        try:
            stored = read_predictions(trial.store, rung_file(rung), self.findings, "val", record.fingerprint)
        except (CxrltError, OSError, ValueError) as error:
            print(f"  {trial.name} counts by its own mAP at epoch {rung}: {_in_a_line(error)}", flush=True)
            return None
        return self.sample.of(stored)

    def _decisions(self, name: str) -> list[RungRecord]:
        store = self.run.store / "trials" / name
        try:
            return PromotionRecord.read(store, FILE).rungs if store.exists(FILE) else []
        except (CxrltError, UsageError, OSError) as error:
            print(f"  {name} is judged again at its rungs: {_in_a_line(error)}", flush=True)
            return []

    def _keep(self, entry: Entry, decision: RungRecord) -> None:
        """Write the predictions first, then the decision, which says that they are there."""
        store, rung = self.run.store / "trials" / entry.name, decision.rung
        decisions = self.decided.setdefault(entry.name, [])
        decisions.append(decision)
        try:
            if entry.predictions is not None:
                known = ~np.isnan(entry.predictions).any(axis=1)
                Predictions(
                    self.sample.image_id[known],
                    entry.predictions[known],
                    self.findings,
                    "val",
                    self.run.record.fingerprint,
                ).write(store, rung_file(rung))
            PromotionRecord(rungs=decisions).write(store, FILE)
        except (CxrltError, OSError) as error:
            line = f"  {entry.name}: its decision at epoch {rung} is not kept for a resumed sweep"
            print(f"{line}: {_in_a_line(error)}", flush=True)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def sampled(
    targets: np.ndarray, subjects: np.ndarray, images: int = IMAGES, positives: int = POSITIVES, seed: int = 0
) -> np.ndarray:
    """Which of N images to compare trials by, bool [N]: all images of some subjects, about `images` at most.

    targets: int8 [N, C]. subjects: [N]. The rarest finding's positive images go first, up to `positives` of them, then
    the next one's; the rest is drawn at random. The order of images does not matter, the seed does.
    """
    number = metrics.numbered(subjects)
    sizes = np.bincount(number)
    order = np.random.default_rng(seed).permutation(len(sizes))
    if len(targets) <= images:
        return np.ones(len(targets), bool)
    kept = np.zeros(len(sizes), bool)
    for c in np.argsort((targets == 1).sum(axis=0), kind="stable"):
        counts = np.bincount(number[targets[:, c] == 1], minlength=len(sizes))[order]
        counts[kept[order]] = 0
        lacking = positives - int((targets[:, c] == 1)[kept[number]].sum())
        before = np.cumsum(counts) - counts
        _fill(kept, order[(counts > 0) & (before < lacking)], sizes, images)
    _fill(kept, order[~kept[order]], sizes, images)
    return kept[number]


def _fill(kept: np.ndarray, some: np.ndarray, sizes: np.ndarray, images: int) -> None:
    """Keep as many of `some` subjects, in their order, as there is room for."""
    kept[some[np.cumsum(sizes[some]) <= images - sizes[kept].sum()]] = True
