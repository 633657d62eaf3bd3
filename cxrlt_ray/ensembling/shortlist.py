"""Which trials of a run are chosen among where not all fit into memory. Here each trial's predictions are read once.

For greedy selectors: the trials that greedy selection among all of them picks, for any finding, by all subjects or
without one fold of them. For selector greedy that loses nothing: chosen among these, its weights and its cross-fitted
scores are those of all trials (selection/first_pass.py), as long as no more are picked than may stay. What is averaged
with it or leaned on (ensembles/greedy.yaml, and findings of fewer than FEW positives) sees the shortlist alone. Other
selectors: the foremost by AP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.splits import assign_folds
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.scratch import ScratchScores, has_room, scratch_scores
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.selection import settings
from cxrlt_ray.selection.registry import FEW, within

Say = Callable[[str], None]  # takes a line for the user
GREEDY = ("greedy", "greedy_bagged")  # selectors that pick for each finding by greedy selection
SEEN = "by all subjects: cross-fitting does not undo that choice"
AHEAD = 8  # trials whose predictions are read at a time: on an object store most of it is waiting


@dataclass(frozen=True)
class FirstPass:
    """How greedy selection among all trials picks: its rounds, and the folds of subjects that are left out in turn."""

    rounds: int
    folds: int
    repeats: int
    seed: int


def first_pass_of(file: EnsembleFile, seed: int) -> FirstPass | None:
    """The first pass before an ensembles/ file's selection; None for a selector that does not pick greedily."""
    if file.selector not in GREEDY:
        return None
    rounds = (settings(file.selector) | file.settings)["rounds"]
    within("rounds", rounds, 1)
    return FirstPass(rounds, file.folds, file.repeats, seed)


def readable(trials: Iterable[Trial], say: Say) -> Iterator[tuple[Trial, Predictions]]:
    """Trials with their validation predictions, AHEAD read at a time; one whose file does not fit is named."""

    def read(trial: Trial) -> Predictions | CxrltError:
        try:
            return trial.stored_predictions()
        except CxrltError as error:
            return error

    rest = iter(trials)
    with ThreadPoolExecutor(AHEAD) as threads:
        while some := list(islice(rest, AHEAD)):
            for trial, result in zip(some, threads.map(read, some), strict=True):
                if isinstance(result, CxrltError):
                    say(f"Left out {trial.name}: {result}")
                else:
                    yield trial, result


def first_readable(trials: Iterable[Trial]) -> Predictions | None:
    """The validation predictions of the first trial whose file fits; None where none does."""
    for trial in trials:
        with suppress(CxrltError):
            return trial.stored_predictions()
    return None


def aligned(predictions: Predictions, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, C] of the images `ids`, nan of those that are not there, and which are there, bool [N]."""
    scores = predictions.probabilities
    if np.array_equal(predictions.image_id, ids):
        return scores, np.ones(len(ids), bool)
    rows = pd.Index(predictions.image_id).get_indexer(pd.Index(ids))
    return np.where((rows >= 0)[:, None], scores[rows], np.float32(np.nan)), rows >= 0


def shortlist(
    manifest: Manifest, targets: np.ndarray, trials: list[Trial], most: int, first: FirstPass | None, say: Say
) -> list[Trial]:
    """The `most` of the trials to choose among, by name; `say` takes a line that tells which they are.

    targets: int8 [N, C] of the manifest's images, the labels by which trials may be chosen (pool.chosen_by).
    """
    labels = _Labels(manifest, targets)
    if first is not None:
        predictions = first_readable(trials)
        if predictions is None:
            return trials  # to be told of each why it does not fit
        images = len(predictions.image_id)
        if has_room(len(trials), images, targets.shape[1]):
            with scratch_scores(len(trials), images, targets.shape[1]) as scratch:
                return _picked(labels, trials, most, first, scratch, say)
        say("The folder of temporary files (TMPDIR) has no room for all predictions: trials are taken by their own AP")
    return _foremost(labels, trials, most, say)


class _Labels:
    """The labels of a run's images by id."""

    def __init__(self, manifest: Manifest, targets: np.ndarray) -> None:
        self._rows = pd.Index(manifest.table["image_id"])
        self._targets = targets
        self._subjects = manifest.table["subject_id"].to_numpy()

    def of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Targets int8 [N, C] and subjects [N] of images."""
        rows = self._rows.get_indexer(ids)
        return self._targets[rows], self._subjects[rows]


def _picked(
    labels: _Labels, trials: list[Trial], most: int, first: FirstPass, scratch: ScratchScores, say: Say
) -> list[Trial]:
    """The trials that greedy selection picks, the earliest first, then the foremost by AP; as many as `most`."""
    from cxrlt_ray.selection.first_pass import follow

    able: list[Trial] = []
    for trial, predictions in readable(trials, say):
        if not able:
            ids, shared = predictions.image_id, np.ones(len(predictions.image_id), bool)
        scores, present = aligned(predictions, ids)
        shared &= present
        scratch.add(scores)
        able.append(trial)
    if len(able) <= most:
        return able
    targets, subjects = labels.of(ids)
    targets = np.where(shared[:, None], targets, np.int8(-1))
    paths = follow(scratch.finding, _sets(targets, subjects, shared, first), len(able), first.rounds)
    order = np.lexsort([by_ap(_known(paths.ap, targets)), rounds := paths.earliest()])
    picked = int((rounds < first.rounds).sum())
    rest = f" and the {most - picked:,} next by validation AP, {SEEN}" if most > picked else ""
    part = f"the first {most:,} of " if picked > most else ""
    say(
        f"Chosen among: {part}the {picked:,} that greedy selection among all {len(able):,} picks for some finding, by "
        f"all subjects or without a fold{rest}"
    )
    return [able[m] for m in np.sort(order[:most])]


def _sets(targets: np.ndarray, subjects: np.ndarray, shared: np.ndarray, first: FirstPass) -> list[np.ndarray]:
    """The labels, and those without each fold, as selection.honest.fit forms them of the images that all share."""
    sets = [targets]
    folds = min(first.folds, len(np.unique(subjects[shared])))
    for repeat in range(first.repeats if folds > 1 else 0):
        fold = np.full(len(targets), -1)
        fold[shared] = assign_folds(targets[shared], subjects[shared], folds, first.seed + repeat)
        sets += [np.where((fold == k)[:, None], np.int8(-1), targets) for k in range(folds)]
    return sets


def _foremost(labels: _Labels, trials: list[Trial], most: int, say: Say) -> list[Trial]:
    """The foremost of the trials by AP; their predictions are not kept."""
    from cxrlt_ray.selection.average_precision import precisions

    able: list[Trial] = []
    rows, ids = [], None
    for trial, predictions in readable(trials, say):
        if ids is None or not np.array_equal(predictions.image_id, ids):
            ids = predictions.image_id
            targets, _ = labels.of(ids)
        ap = precisions(np.asarray(predictions.probabilities)[None], targets)
        rows.append(_known(ap, targets)[0])
        able.append(trial)
    say(f"Chosen among: the {most:,} first by validation AP, each finding's and over all, in turn, {SEEN}")
    return [able[m] for m in foremost(np.array(rows), most)] if able else trials


def _known(ap: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP [M, C] with nan where too few positives say anything."""
    return np.where((targets == 1).sum(axis=0) < FEW, np.nan, ap)


def foremost(ap: np.ndarray, most: int) -> np.ndarray:
    """Which `most` of M members to choose among, int [P] in order, by their AP [M, C]; nan where it says nothing.

    Taken in turn: each finding's best member and the best by the mean over findings, then each one's second ...;
    of those equally high in some list, the better by the mean. One that is good at a rare finding alone is not lost.
    """
    return np.sort(by_ap(ap).argsort()[:most])


def by_ap(ap: np.ndarray) -> np.ndarray:
    """The place [M] from 0 of each member in the order of `foremost`."""
    known = ~np.isnan(ap).all(axis=0)
    means = np.nanmean(ap[:, known], axis=1) if known.any() else np.zeros(len(ap))
    lists = -np.column_stack([means, np.nan_to_num(ap[:, known])]).round(12)
    ranks = lists.argsort(axis=0, kind="stable").argsort(axis=0)
    return np.lexsort([ranks[:, 0], ranks.min(axis=1)]).argsort()
