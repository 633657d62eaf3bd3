"""What a run has, read once for all sections of a page, at any time and whatever is missing or damaged.

    facts = Facts(load_run("runs", "task1-20261125-101500"))
    facts.trials, facts.unreadable, facts.manifest, facts.ensemble, facts.images("test")

Nothing here raises because a part of the run is not there yet: it is None then. What is damaged is among `faults`,
without paths: a page is passed on.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.shards import SUMMARY, Summary
from cxrlt_ray.data.tasks import rarity
from cxrlt_ray.ensembling.stored import CROSS_FITTED, PREDICTIONS
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.evaluation.scores import UNSEEN, Scores, evaluate
from cxrlt_ray.page.cohort_facts import Alike, indexed, near_duplicates
from cxrlt_ray.privacy import PHANTOM_MARKER
from cxrlt_ray.runs.ensemble_record import FILE, EnsembleRecord
from cxrlt_ray.runs.predictions import read_predictions, split_of
from cxrlt_ray.runs.records import FINISHED, PRUNED
from cxrlt_ray.runs.store import Run, Trial, best_first, read_trial
from cxrlt_ray.storage import Store

CHOSE = ("train", "val")  # splits on which weights are chosen
ROUNDS = 300  # bootstrap rounds of a finding's intervals: of these the standard error alone is used
PATH = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z]:\\|[^\s'\",;:()]*/)[^\s'\",;:)]*")
# DICOM's UIDs, MIMIC's ids of images, UUIDs, 32 hexadecimal digits (VinDr), 5 digits or more but of a decimal number
IDENTIFIER = re.compile(
    r"\b\d+(?:\.\d+){5,}\b|\b[0-9a-f]{8}(?:-[0-9a-f]{8}){4}\b|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
    r"|\b[0-9a-f]{32}\b|(?<!\d)(?<!\d\.)\d{5,}(?!\d|\.\d)",
    re.IGNORECASE,
)
PUBLISHED = re.compile(r"(?:hf-hub|transformers):\w[\w.-]*/\w[\w.-]*")  # a hub's OWNER/NAME


def public(text: object) -> str:
    """A text as a page may show it: without paths, URIs and long numbers, which may name a patient.

    >>> public("/data/p10/p10000032/s1.jpg cannot be read: 10000032")
    '(path) cannot be read: (number)'
    """
    return numberless(PATH.sub("(path)", str(text)))


def numberless(text: object) -> str:
    """A text without long numbers; for a name that is no path, though it may have a slash.

    >>> numberless("MULTIPLE RACE/ETHNICITY"), numberless("1.2.840.113619.2.55")
    ('MULTIPLE RACE/ETHNICITY', '(number)')
    """
    return IDENTIFIER.sub("(number)", str(text))


def origin(text: str) -> str:
    """Where weights come from as a page may show it: a hub's name stays, of a file's path nothing does.

    >>> origin("transformers:microsoft/rad-dino"), origin("/data/p10/kebert.pt")
    ('transformers:microsoft/rad-dino', '(path)')
    """
    return text if PUBLISHED.fullmatch(text) else public(text)


@dataclass(frozen=True)
class StoredEnsemble:
    """An ensemble of the run: its directory and its record."""

    store: Store
    record: EnsembleRecord

    @property
    def title(self) -> str:
        """What the ensemble is called among the systems of its scores."""
        systems = self.record.scores.get("systems")
        return list(systems)[-1] if isinstance(systems, dict) and systems else self.record.name


@dataclass(frozen=True)
class ScoredImages:
    """N labelled images and one system's scores of them.

    where: test, holdout, cross_fitted (validation images, scored by weights that were chosen without them) or
    optimistic (validation images that chose). system: what scored. targets: int8 [N, C], 1, 0 or -1. probabilities:
    float [N, C]. table: [N] rows of the manifest, with subject_id, sex, age, view and so on.
    """

    where: str
    system: str
    targets: np.ndarray
    probabilities: np.ndarray
    table: pd.DataFrame

    @property
    def subjects(self) -> np.ndarray:
        """[N]."""
        return self.table["subject_id"].to_numpy()

    def some(self, most: int) -> ScoredImages:
        """The images of subjects drawn (the same ones each time) until there are `most` images; all where no more."""
        if len(self.targets) <= most:
            return self
        _, subject = np.unique(self.subjects.astype(str), return_inverse=True)
        place = np.random.default_rng(0).permutation(int(subject.max()) + 1)[subject]
        rows = place <= np.partition(place, most - 1)[most - 1]
        table = self.table[rows].reset_index(drop=True)
        return ScoredImages(self.where, self.system, self.targets[rows], self.probabilities[rows], table)


@dataclass(frozen=True)
class Facts:
    """A run as it is now.

    ensemble_name: the ensemble to show; the newest without it. images_shown: whether patients' images may be shown.
    """

    run: Run
    ensemble_name: str | None = None
    images_shown: bool = False
    rounds: int = ROUNDS
    faults: list[str] = field(default_factory=list)

    @cached_property
    def _records(self) -> tuple[tuple[Trial, ...], dict[str, str]]:
        try:
            return tuple(self.run.trials()), {}
        except CxrltError:
            pass
        folder, trials, unreadable = self.run.store / "trials", [], {}
        for name in folder.list():
            try:
                trials.append(read_trial(folder / name))
            except CxrltError as error:
                unreadable[name] = public(error)
        return tuple(trials), unreadable

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials whose record can be read, by name."""
        return self._records[0]

    @property
    def unreadable(self) -> dict[str, str]:
        """Why the record of a trial cannot be read, by its name."""
        return self._records[1]

    @cached_property
    def files(self) -> dict[str, dict[str, int]]:
        """Bytes of the files that each trial has, by trial and relative path."""
        return self.run.files()

    def missing(self, trial: Trial) -> str:
        """Which file that a trial should have left is not there, or nothing."""
        files = self.files.get(trial.name, {})
        if trial.state not in (FINISHED, PRUNED) or not trial.predicts:
            return ""
        if not files.get("predictions/val.parquet"):
            return "its validation predictions are not there" if trial.state == FINISHED else ""
        weights = [size for path, size in files.items() if path.endswith("/model.safetensors")]
        whole = trial.record.dropped or (weights and all(weights))
        return "" if whole else "its checkpoint is not there"

    @cached_property
    def states(self) -> Counter[str]:
        """How many trials are in each state."""
        return Counter(trial.state for trial in self.trials)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The cohort as split for the run; None where it cannot be read."""
        try:
            return self.run.manifest()
        except CxrltError as error:
            self.faults.append(public(error))
            return None

    @property
    def findings(self) -> tuple[str, ...]:
        """[C], the task's."""
        return self.run.task.findings

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Head, medium or tail by training labels [C]; UNSEEN of what is asked for without any."""
        if self.manifest is None:
            return tuple(UNSEEN for _ in self.findings)
        kinds = rarity(self.manifest.of_cohort(MAIN).of_split("train").targets(self.findings))
        asking = self.run.record.asking
        asked = asking.asked if asking else ()
        return tuple(UNSEEN if name in asked else kind for name, kind in zip(self.findings, kinds, strict=True))

    @cached_property
    def phantom(self) -> bool:
        """Whether the images are drawn, of no patients."""
        roots = {self.run.record.data, self.manifest.root if self.manifest else None} - {None, ""}
        try:
            return any(Store(str(root)).exists(PHANTOM_MARKER) for root in roots)
        except CxrltError:
            return False

    @cached_property
    def ensembles(self) -> dict[str, StoredEnsemble]:
        """The run's ensembles by name, the newest first."""
        store = self.run.store / "ensembles"
        changed = {path.rpartition("/")[0]: at for path, (_, at) in store.files().items() if path.endswith(f"/{FILE}")}
        stored = {}
        for name in sorted(changed, key=lambda name: (-changed[name], name)):
            try:
                stored[name] = StoredEnsemble(store / name, EnsembleRecord.read(store / name, FILE))
            except CxrltError as error:
                self.faults.append(public(error))
        return stored

    @cached_property
    def ensemble(self) -> StoredEnsemble | None:
        """The ensemble that the page is about: the one that was asked for, else the newest; None without one."""
        if self.ensemble_name is not None:
            return self.ensembles.get(self.ensemble_name)
        return next(iter(self.ensembles.values()), None)

    @cached_property
    def submitted(self) -> str | None:
        """The split whose images the ensemble's predictions are of; None where it has none that can be read."""
        try:
            return None if self.ensemble is None else split_of(self.ensemble.store, PREDICTIONS)
        except CxrltError as error:
            self.faults.append(public(error))
            return None

    def images(self, where: str) -> ScoredImages | None:
        """The labelled images of `where` (ScoredImages) with the ensemble's scores; the best trial's if optimistic.

        None where they are not stored, or carry no label. Of trials whose predictions are damaged the next is taken.
        """
        if where not in self._images:
            try:
                self._images[where] = self._read_images(where)
            except CxrltError as error:
                self.faults.append(public(error))
                self._images[where] = None
        return self._images[where]

    @cached_property
    def honest(self) -> ScoredImages | None:
        """The labelled images that tell most: those submitted, else cross-fitted validation, else those that chose."""
        wheres = (*self.unseen, "optimistic")
        return next((images for where in wheres if (images := self.images(where)) is not None), None)

    @property
    def unseen(self) -> tuple[str, ...]:
        """The images on which the ensemble's weights were not chosen (`images`), those that tell most first."""
        own = () if self.submitted in (None, *CHOSE) else (str(self.submitted),)
        return (*own, "cross_fitted")

    @cached_property
    def scores(self) -> Scores | None:
        """What the scores of `honest` are worth, by finding and in all."""
        if (images := self.honest) is None:
            return None
        inputs = (images.targets, images.probabilities, self.findings, self.kinds, images.subjects)
        return evaluate(*inputs, rounds=self.rounds)

    @cached_property
    def shards(self) -> tuple[Summary, ...]:
        """What was written of the prepared images, by size; those whose summary is not there are left out."""
        known = []
        for shards in self.run.shards():
            try:
                known.append(Summary(**shards.store.read_json(SUMMARY)))
            except (CxrltError, TypeError):
                continue
        return tuple(known)

    @cached_property
    def indexed(self) -> pd.DataFrame | None:
        """The prepared images of the main cohort (cohort_facts.indexed); None where they are not known."""
        shards = self.run.shards()
        return indexed(self.manifest, shards[0]) if self.manifest is not None and shards else None

    @cached_property
    def alike(self) -> dict[str, Alike] | None:
        """Near-duplicate images of two splits, by "test and train"; None where it is not known."""
        return None if self.indexed is None else near_duplicates(self.indexed)

    @cached_property
    def _images(self) -> dict[str, ScoredImages | None]:
        return {}

    def _read_images(self, where: str) -> ScoredImages | None:
        if where == "optimistic":
            return self._of_best_trial(where)
        if self.ensemble is None:
            return None
        crossed, store = where == "cross_fitted", self.ensemble.store
        name, split = (CROSS_FITTED, "val") if crossed else (PREDICTIONS, where)
        if not store.exists(name) or (not crossed and self.submitted != where):
            return None
        stored = read_predictions(store, name, self.findings, split, self.run.record.fingerprint)
        return self._labelled(where, self.ensemble.title, stored.image_id, stored.probabilities)

    def _of_best_trial(self, where: str) -> ScoredImages | None:
        """The validation images with the scores of the best trial whose predictions can be read."""
        for trial in best_first(list(self.trials)):
            if trial.has_predictions():
                try:
                    stored = trial.stored_predictions()
                except CxrltError as error:
                    self.faults.append(public(error))
                    continue
                columns = [trial.record.findings.index(finding) for finding in self.findings]
                return self._labelled(where, trial.name, stored.image_id, stored.probabilities[:, columns])
        return None

    def _labelled(self, where: str, system: str, ids: np.ndarray, scores: np.ndarray) -> ScoredImages | None:
        if self.manifest is None:
            return None
        rows = pd.Index(self.manifest.table["image_id"]).get_indexer(ids)
        known = (rows >= 0) & np.isfinite(scores).all(axis=1)
        images = self.manifest.table.iloc[rows[known]].reset_index(drop=True)
        targets = self.manifest.targets(self.findings)[rows[known]]
        if not (targets == 1).any():
            return None
        return ScoredImages(where, system, targets, scores[known], images)
