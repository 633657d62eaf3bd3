"""The trial store: what a sweep leaves behind, readable with pandas and json alone.

RUN/run.json                     what was asked, as RunRecord; the fingerprint of the manifest
RUN/manifest.parquet             the cohort as split for this run
RUN/space.yaml                   the search space as it was
RUN/soft_targets.parquet         predictions that objectives may learn, where --soft-targets gave any
RUN/corpus.parquet               the texts of its studies, where --reports gave any; corpus-K.parquet: of a fold
RUN/boxes.parquet                where findings are in its images, where --boxes gave any
RUN/mined.parquet                labels of seen findings by its reports, where track mined has folds
RUN/descriptions.yaml            the user's own descriptions of findings, where --descriptions gave any
RUN/label_embeddings.safetensors of all findings by text encoder and prompts, where a head reads texts
RUN/optuna.db                    the search's state, for optuna-dashboard; made anew from the trials where it lacks
RUN/trials/T0001/trial.json      TrialRecord: state, parameters, metrics by epoch, environment, reason of a failure
/fold-0/         the kept checkpoint: model.safetensors, model.json; refit/ beside it, if asked for
/predictions/val.parquet    image_id, then one float32 probability per finding
val-tta.parquet        the same, under test-time augmentation
/resume-000003.safetensors  while it runs: all it needs to go on after an epoch
/retries.json    why it was begun anew, where a fault ended it
/verdict.json    its record as the sweep wrote it, where the sweep ended it (verdict.py)
RUN/trials.jsonl.gz              on an object store: a copy of the records of trials that have ended (trial_index.py)
RUN/stages/KEY/                  weights of stages on other cohorts, for all trials that share them
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from cxrlt_ray.data.image_boxes import ImageBoxes
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.mined_labels import MinedLabels
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.soft_targets import SoftTargets
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.privacy import private_dir
from cxrlt_ray.runs.predictions import Predictions, read_predictions
from cxrlt_ray.runs.records import FINISHED, PRUNED, RUNNING, RunRecord, TrialRecord, now
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.runs.trial_index import RECORD as RECORD
from cxrlt_ray.runs.trial_index import read_index, write_index
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.whole import PART, WHOLE

if TYPE_CHECKING:
    from cxrlt_ray.text.corpus import Corpus

FOLD = "fold-"  # begins the name of a fold's checkpoint
REFIT = "refit"  # the checkpoint trained on train and validation images
DEFAULT_STORAGE = "runs"
KEPT = ("shards", "features", "devices", "rates.json")  # beside runs in a storage, and made room in


@dataclass(frozen=True)
class Trial:
    """One trial of a run: its directory and its record."""

    store: Store
    record: TrialRecord

    @property
    def name(self) -> str:
        """T0000, T0001 ... after the search's own number."""
        return self.record.name

    @property
    def state(self) -> str:
        """The trial's state: running, finished, pruned or failed."""
        return self.record.state

    @property
    def score(self) -> float:
        """The metric of the kept predictions (validation mAP of a multi-label trial); nan where there are none."""
        return float("nan") if self.record.score is None else self.record.score

    @property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints that score new images: the refit one, else one a fold; [] once dropped."""
        names = self.kept
        return [REFIT] if REFIT in names else names

    @property
    def kept(self) -> list[str]:
        """Names of all checkpoints, the folds' beside a refit one too."""
        return [name for name in self.store.list() if name == REFIT or name.startswith(FOLD)]

    @property
    def config(self) -> TrialConfig:
        """The configuration of the stage whose checkpoint and predictions are kept: the last it came to.

        Raises CxrltError for a trial that ended before it began.
        """
        if self.record.config is None:
            raise CxrltError(f"trial {self.name} ended before it began: it has no configuration.")
        return self.record.config.staged()[self.record.stage]

    @property
    def predicts(self) -> bool:
        """Whether the trial's objective gives predictions: a self-supervised one leaves weights alone."""
        return self.record.config is None or find_objective(self.record.config.staged()[-1].objective).predicts

    def has_predictions(self, split: str = "val") -> bool:
        """Whether the predictions of `split` were stored."""
        return self.store.exists(f"predictions/{split}.parquet")

    def predictions(self, split: str = "val") -> pd.DataFrame:
        """Probabilities in [0, 1]: float32, index image_id, one column per finding of the run's task.

        Raises CxrltError, naming the file, where it is of other findings, split or manifest.
        """
        return self.stored_predictions(split).frame()

    def stored_predictions(self, split: str = "val") -> Predictions:
        """As `predictions`, in the order of the file, as arrays: several times as fast where there are thousands."""
        record = self.record
        return read_predictions(self.store, f"predictions/{split}.parquet", record.findings, split, record.fingerprint)

    def write(self, record: TrialRecord) -> None:
        """Write the trial's record."""
        record.write(self.store, RECORD)
        _SETTLED.pop(self.store.uri, None)


# records of trials that have ended, by the directory's URI, with the file's state where it lies on a disk: read once
_SETTLED: dict[str, tuple[object, TrialRecord]] = {}
_INDEXED: dict[str, int] = {}  # how many records this process wrote to a run's index, by the run's URI
FEW = 64  # records of an object store that are read one by one, without the index


def read_trial(store: Store) -> Trial:
    """The trial in directory `store`. Raises CxrltError, UsageError as TrialRecord.read does."""
    return Trial(store, TrialRecord.read(store, RECORD))


def read_trials(folder: Store, names: Iterable[str] | None = None) -> list[Trial]:
    """The trials in `folder` that have a record, by name; of many, several are read at a time.

    A trial that has ended does not change by itself: its record is read again only where the file on disk has another
    time or size, or where this process has written it (Trial.write). At 10,000 trials on an object store reading all
    of them at every trial's end would take hours.
    """
    names = sorted(folder.list() if names is None else names)
    records: dict[str, TrialRecord] = {}
    states = {name: _state(folder, name) for name in names}
    for name in names:
        settled = _SETTLED.get((folder / name).uri)
        if settled is not None and settled[0] == states[name]:
            records[name] = settled[1]
    missing = [name for name in names if name not in records]
    if folder.local is None and len(missing) > FEW:
        for name, record in read_index(folder, missing).items():
            records[name] = record
            _SETTLED[(folder / name).uri] = (None, record)
    files = {f"{name}/{RECORD}": name for name in missing if name not in records}
    for file, content in folder.read_many(list(files)).items():
        store = folder / files[file]
        record = records[files[file]] = _parsed(store, content)
        if record.state != RUNNING:
            _SETTLED[store.uri] = (states[files[file]], record)
    return [Trial(folder / name, records[name].model_copy()) for name in names if name in records]


def _state(folder: Store, name: str) -> object:
    """What tells whether a record on a disk has changed; None for an object store."""
    if folder.local is None:
        return None
    try:
        status = (folder.local / name / RECORD).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _parsed(store: Store, content: bytes) -> TrialRecord:
    where = f"{store.uri}/{RECORD}"
    try:
        return TrialRecord.parse_json(content, where)
    except ValueError as error:
        raise CxrltError(f"{where} is damaged: it is no JSON ({error}).") from None


@dataclass(frozen=True)
class Run:
    """A sweep's directory and its record."""

    store: Store
    record: RunRecord

    @property
    def name(self) -> str:
        """The run's name."""
        return self.record.name

    @property
    def task(self) -> Task:
        """The task the run was trained for."""
        return self.record.task

    def shards(self) -> tuple[Shards, ...]:
        """The prepared images that the run's trials were trained on, by size; they lie beside the run."""
        storage = Store(self.store.absolute().uri.rpartition("/")[0])
        return tuple(Shards(storage / "shards" / shards.name, shards.size) for shards in self.record.shards)

    def manifest(self) -> Manifest:
        """The cohort as split for this run."""
        with self.store.fetched("manifest.parquet") as path:
            return Manifest.read(path)

    def trial(self, name: str) -> Trial:
        """The trial `name`."""
        return read_trial(self.store / "trials" / name)

    def trials(self) -> list[Trial]:
        """All trials that left a record, by name."""
        return read_trials(self.store / "trials")

    def files(self) -> dict[str, dict[str, int]]:
        """Bytes of the files that each trial has, by trial and relative path: one listing, however many trials."""
        by_trial: dict[str, dict[str, int]] = {}
        for path, (size, _) in self.store.files("trials").items():
            trial, _, file = path.partition("/")
            by_trial.setdefault(trial, {})[file] = size
        return by_trial

    def write(self, record: RunRecord) -> None:
        """Write the run's record."""
        record.write(self.store, "run.json")


def check_free(storage: str, name: str) -> None:
    """Raise UsageError if the run's name is taken, or is none."""
    if not name or "/" in name or name.startswith(".") or name.endswith((PART, WHOLE)):
        raise UsageError(f"--name '{name}' cannot be a directory's name.")
    if name in KEPT:
        raise UsageError(f"--name '{name}': the storage keeps its {name} there: give another name.")
    if (Store(storage) / name).exists("run.json"):
        raise UsageError(
            f"run '{name}' already exists in {storage}: give --resume to continue it, or another --name to start one."
        )


def create_run(
    storage: str,
    record: RunRecord,
    manifest: Manifest,
    files: dict[str, bytes],
    soft: SoftTargets | None = None,
    corpora: Mapping[str, Corpus] | None = None,
    boxes: ImageBoxes | None = None,
    mined: MinedLabels | None = None,
) -> Run:
    """Make RUN/ with manifest.parquet, all that is given (`corpora` and `files` by file name) and, last, run.json.

    The record is written with the time, the manifest's fingerprint and the provenance of soft targets and boxes.

    Raises UsageError if the name is taken.
    """
    check_free(storage, record.name)
    store = Store(storage) / record.name
    if store.local is not None:
        private_dir(store.local)  # ids are in it
    with store.place("manifest.parquet") as path:
        manifest.write(path)
    for file, content in files.items():
        store.write(file, content)
    if soft is not None:
        soft.write(store)
    for name, corpus in (corpora or {}).items():
        corpus.write(store, name)
    if boxes is not None:
        boxes.write(store)
    if mined is not None:
        mined.write(store)
    changes = {
        "created": now(),
        "fingerprint": manifest.fingerprint,
        "soft_targets": None if soft is None else soft.provenance,
        "transductive": soft is not None and soft.transductive,
        "boxes": None if boxes is None else boxes.provenance,
    }
    record = record.model_copy(update=changes)
    run = Run(store, record)
    run.write(record)
    return run


def load_run(storage: str = DEFAULT_STORAGE, name: str | None = None) -> Run:
    """The run `name`, or the latest. Raises UsageError, naming those there are."""
    names = runs(storage)
    if name is None:
        if not names:
            raise UsageError(f"no run in {storage}: start one with `python -m cxrlt_ray.sweep task1`.")
        latest = max(names, key=lambda name: str((Store(storage) / name).read_json("run.json").get("created")))
        return read_run(Store(storage) / latest)
    if name not in names:
        raise UsageError(f"no run '{name}' in {storage}; there are: {', '.join(names) or 'none'}.")
    return read_run(Store(storage) / name)


def read_run(store: Store) -> Run:
    """The run in directory `store`. Raises as RunRecord.read does."""
    return Run(store, RunRecord.read(store, "run.json"))


def keep_index(run: Run, every: int = FEW) -> None:
    """Of a run on an object store: write the index of its ended trials, where `every` more than it holds have ended.

    And a tenth more: all in all a record is written a dozen times, however many there are.
    """
    if run.store.local is not None:
        return
    ended = [trial.record for trial in run.trials() if trial.state != RUNNING]
    held = _INDEXED.get(run.store.uri, 0)
    if len(ended) >= held + max(every, held // 10 if every > 1 else 1):
        write_index(run.store / "trials", ended)
        _INDEXED[run.store.uri] = len(ended)


def drop_checkpoints(run: Run, keep: int) -> None:
    """Remove the checkpoints of trials that have ended and are not among the `keep` best; their predictions stay."""
    ended = [trial for trial in run.trials() if trial.state in (FINISHED, PRUNED) and not trial.record.dropped]
    for trial in best_first(ended)[keep:]:
        trial.write(trial.record.model_copy(update={"dropped": True}))
        for name in trial.kept:
            (trial.store / name).remove()


def best_first(trials: Iterable[Trial]) -> list[Trial]:
    """Trials by their score, those without one last."""

    def key(trial: Trial) -> tuple[bool, float]:
        unknown = trial.score != trial.score
        sign = -1.0 if trial.record.metric.mode == "max" else 1.0
        return unknown, 0.0 if unknown else sign * trial.score

    return sorted(trials, key=key)


def weights_of(storage: str, source: str, backbone: str) -> str:
    """Where the weights lie that `init_from: RUN/TRIAL` means, or RUN alone: those of its best trial of `backbone`.

    Raises UsageError where there is no such trial, or none of that backbone.
    """
    name, _, trial_name = source.partition("/")
    trials = load_run(storage, name).trials()
    named = [trial for trial in trials if trial_name in ("", trial.name)]
    if not named:
        raise UsageError(
            f"init_from '{source}': run {name} has no trial {trial_name}; it has {', '.join(t.name for t in trials)}."
        )
    with_weights = [trial for trial in named if trial.record.config is not None and trial.checkpoints]
    able = [trial for trial in with_weights if trial.config.backbone == backbone]
    if not able:
        backbones = sorted({trial.config.backbone for trial in with_weights})
        raise UsageError(
            f"init_from '{source}' has no weights of backbone '{backbone}'; it has "
            f"{', '.join(backbones) or 'none left'}."
        )
    best = best_first(able)[0]
    return (best.store.absolute() / best.checkpoints[0]).uri + "/model.safetensors"


def runs(storage: str) -> list[str]:
    """The names of the runs in `storage`, sorted."""
    store = Store(storage)
    return [name for name in store.list() if store.exists(f"{name}/run.json")]
