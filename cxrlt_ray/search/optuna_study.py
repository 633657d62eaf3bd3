"""What the search knows: Optuna's study of a run, which follows the trial store and can be made again from it.

The store is the truth: a trial is written there before it is begun, and its end before Optuna is told. The study lies
in RUN/optuna.db (of a run on an object store: in a local file, copied there), or in a database given by URL. One that
lags behind the store, is damaged or lost is made anew from the store. What is suggested depends on the seed, the
trial's number and the ends of the trials before it alone, so that a search that is cut off goes on as it would have.
"""

from __future__ import annotations

import atexit
import datetime
import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.cost import gflops
from cxrlt_ray.runs.records import (
    FAILED,
    FINISHED,
    PRUNED,
    RUNNING,
    Retraining,
    Retry,
    TrialRecord,
)
from cxrlt_ray.runs.store import RECORD, Run, Trial, read_trial
from cxrlt_ray.search.space import Space
from cxrlt_ray.storage import Store
from cxrlt_ray.training import resume

COST = "cost"
STARTUP = 4  # trials that are drawn at random before TPE begins
RETRIES = "retries.json"  # beside a trial's record, until the trial ends
FAULTS = (SQLAlchemyError, optuna.exceptions.OptunaError, KeyError, ValueError)  # of a database, or what is in it
ENDED = {FINISHED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}


class Study:
    """The study of a run: the next point to try, and how trials ended.

    With objectives map and cost it is of two directions, validation mAP up and GFLOPs an image down. url: of a
    database; without it the study is a SQLite file. Raises CxrltError where the database does not answer.
    """

    def __init__(self, run: Run, space: Space, seed: int, url: str | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.run, self.space, self.sampler = run, space, Seeded(seed)
        self.costs = COST in run.record.objectives
        self.file = None if url else _file(run)
        self.url = url or f"sqlite:///{self.file}"
        self.study = self._open()
        self._waiting = [trial.number for trial in self.study.get_trials(states=(TrialState.RUNNING,))]

    def next(self) -> tuple[int, dict[str, Any]]:
        """The number and parameters of the next trial, one that was cut off or a new one; it is in the store then."""
        if not self._waiting:
            self._waiting.append(self.study.ask().number)
        trial = self._live(self._waiting[0])
        self.space.define(trial)  # of one that was cut off in this: what it has already it keeps
        number, name, params = trial.number, trial_name(trial.number), dict(trial.params)
        store = self.run.store / "trials" / name
        if not store.exists(RECORD):
            record = TrialRecord(name=name, state=RUNNING, params=params)
            Trial(store, record).write(record)
        self._waiting.pop(0)
        return number, params

    def settle(self, number: int, error: bool = False, cut: bool = False) -> str:
        """Write a trial's last state to the store, then tell the study; its state. See `settle` for error and cut."""
        state = settle(self.run, number, error, cut)
        trial = read_trial(self.run.store / "trials" / trial_name(number))
        if self.study.get_trials(deepcopy=False)[number].state.is_finished():
            return state
        if not self.costs:
            told = self._live(number)
            for step, value in _curve(trial):
                told.report(value, step)
        as_told = _state_of(trial)
        self.study.tell(number, self._values(trial) if as_told == TrialState.COMPLETE else None, as_told)
        self.copy()
        return state

    def _live(self, number: int) -> optuna.Trial:
        return optuna.trial.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def copy(self) -> None:
        """Put a consistent copy of a local study beside a run on an object store."""
        if self.file is not None and self.run.store.local is None:
            with (
                self.run.store.place("optuna.db") as place,
                closing(sqlite3.connect(self.file)) as live,
                closing(sqlite3.connect(place)) as copy,
            ):
                live.backup(copy)

    def _open(self) -> optuna.Study:
        """The run's study, made anew unless it says what the store says."""
        trials = self.run.trials()
        storage = self._storage()
        try:
            there = {summary.study_name for summary in optuna.get_all_study_summaries(storage)}
            if self.run.name in there:
                study = optuna.load_study(study_name=self.run.name, storage=storage, sampler=self.sampler)
                if self._agrees(study.trials, trials):
                    for number in [t.number for t in study.trials if t.state == TrialState.RUNNING]:
                        self._catch_up(study, number)
                    return study
                optuna.delete_study(study_name=self.run.name, storage=storage)
            return self._made(storage, trials)
        except FAULTS as error:
            if self.file is None:
                raise CxrltError(f"the search's database cannot be used: {_told(error)}.") from None
            self.file.unlink(missing_ok=True)  # damaged
            return self._made(self._storage(), trials)

    def _storage(self) -> Any:
        options = {"pool_pre_ping": True} if self.file is None else {"connect_args": {"timeout": 60}}
        try:
            return optuna.storages.RDBStorage(self.url, engine_kwargs=options)
        except FAULTS as error:
            if self.file is None:
                raise CxrltError(
                    f"the search's database cannot be opened: {_told(error)}. Is --search-db right, does the server "
                    "answer, and is the password in PGPASSWORD or ~/.pgpass?"
                ) from None
            self.file.unlink(missing_ok=True)
            return optuna.storages.RDBStorage(self.url, engine_kwargs=options)

    def _agrees(self, told: list[FrozenTrial], trials: list[Trial]) -> bool:
        """Whether the study has the store's trials with their parameters, and says of none that it ended too soon."""
        numbers = {number_of(trial): trial for trial in trials}
        if len(told) < max(len(self.space.start), max(numbers, default=-1) + 1):
            return False
        for number, trial in numbers.items():
            params, state = told[number].params, told[number].state
            if trial.record.params and params != trial.record.params:
                return False
            if trial.state == RUNNING and state.is_finished():
                return False
        return True

    def _catch_up(self, study: optuna.Study, number: int) -> None:
        """Tell the study of a trial that the store has ended and the study has not."""
        store = self.run.store / "trials" / trial_name(number)
        if store.exists(RECORD) and (trial := read_trial(store)).state != RUNNING:
            state = _state_of(trial)
            study.tell(number, self._values(trial) if state == TrialState.COMPLETE else None, state)

    def _made(self, storage: Any, trials: list[Trial]) -> optuna.Study:
        """A new study with all trials of the store, and the space's start points that none of them took."""
        directions = [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if self.costs else [])]
        study = optuna.create_study(
            storage=storage,
            sampler=self.sampler,
            pruner=optuna.pruners.NopPruner(),
            study_name=self.run.name,
            directions=directions,
        )
        numbers = {number_of(trial): trial for trial in trials}
        count = max(numbers, default=-1) + 1
        for number in range(count):
            study.add_trial(self._frozen(numbers.get(number)))
        for point in self.space.start[count:]:
            study.enqueue_trial(point)
        return study

    def _frozen(self, trial: Trial | None) -> FrozenTrial:
        """A trial of the store as Optuna has it; None: one that is not there any more."""
        now = datetime.datetime.now()
        state = TrialState.FAIL if trial is None else _state_of(trial)
        params = {} if trial is None else trial.record.params
        defined = optuna.trial.FixedTrial(params)
        if params:
            self.space.define(defined)
        values = self._values(trial) if trial and state == TrialState.COMPLETE else None
        curve = dict(_curve(trial)) if trial and not self.costs else {}
        if trial and state == TrialState.PRUNED and not self.costs:
            values = [trial.score]
        return FrozenTrial(
            number=0,
            trial_id=0,
            state=state,
            value=None,
            values=values,
            datetime_start=now,
            datetime_complete=None if state == TrialState.RUNNING else now,
            params=params,
            distributions=defined.distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values=curve,
        )

    def _values(self, trial: Trial) -> list[float]:
        return [trial.score, float(gflops([trial])[0])] if self.costs else [trial.score]


class Seeded(optuna.samplers.BaseSampler):
    """Multivariate TPE whose randomness in each trial is of its own, by the trial's number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._own = self._made(0)

    def _made(self, *of: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self.seed, *of]).generate_state(1)[0])
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP, seed=seed
        )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Any:
        """As TPESampler, with which a trial begins."""
        self._own = self._made(trial.number)
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> Any:
        """As TPESampler."""
        return self._own.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        """As TPESampler; by the parameter's name too, as a trial that was cut off does not ask for all again."""
        own = self._made(trial.number, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
        return own.sample_independent(study, trial, name, distribution)


def settle(run: Run, number: int, error: bool = False, cut: bool = False) -> str:
    """The last state of a trial that Tune has ended, written to its trial.json, with the reasons of its retries.

    error: it ended by a fault. cut: a time budget ended it: what it has stands as if it had been pruned.
    """
    store = run.store / "trials" / trial_name(number)
    trial = read_trial(store)
    record = trial.record
    if record.state == RUNNING:
        epochs = record.epochs_of()
        judged = bool(epochs) and not error
        # Tune stops a trial at its last report, before its own last word
        whole = judged and not cut and run.record.folds <= 1 and is_last(trial)
        record.state = FINISHED if whole else PRUNED if judged else FAILED
    record.retries = retries(trial)
    if record.state == FAILED and record.reason is None:
        record.reason = record.retries[-1].reason if record.retries else "it was stopped before an epoch was done"
    trial.write(record)
    resume.forget(store)
    if record.retries:
        store.delete(RETRIES)
    return record.state


def reopen(trial: Trial) -> None:
    """Make a trial that failed by a fault of its surroundings, or whose files are damaged, one that is to go on.

    One that had ended well is trained again as far as it was (`retraining`): what it left is not to be trusted.
    """
    changes: dict[str, Any] = {"state": RUNNING, "reason": None, "ended": None}
    if trial.state in (FINISHED, PRUNED):
        changes["retraining"] = Retraining(state=trial.record.state, curve=tuple(curve(trial)))
        changes |= {"epochs": [], "score": None}
        resume.forget(trial.store)
    trial.write(trial.record.model_copy(update=changes))


def retries(trial: Trial) -> list[Retry]:
    """Why a trial was begun anew, each time."""
    known = list(trial.record.retries)
    return known + [retry for retry in _noted_retries(trial.store) if retry not in known]


def note_retry(store: Store, reason: str, at: float) -> None:
    """Keep why a trial is begun anew, in a file of its own: its record is another process's to write."""
    noted = [*_noted_retries(store), Retry(reason=reason, at=at)]
    store.write_json(RETRIES, [retry.model_dump() for retry in noted])


def _noted_retries(store: Store) -> list[Retry]:
    return [Retry(**retry) for retry in store.read_json(RETRIES)] if store.exists(RETRIES) else []


def is_last(trial: Trial) -> bool:
    """Whether a trial has no more to do after the epochs of its record: no epoch, refit or test-time augmentation."""
    epochs, config = trial.record.epochs_of(), trial.record.config
    if not epochs or config is None:
        return False
    return epochs[-1].epoch + 1 == config.total_epochs and not config.refit and config.tta == "none"


def trial_name(number: int) -> str:
    """The name of the search's trial `number`."""
    return f"T{number:04d}"


def number_of(trial: Trial) -> int:
    """The search's number of a trial."""
    return int(trial.name.removeprefix("T"))


def curve(trial: Trial) -> Iterator[tuple[int, float]]:
    """What the trial reported after each epoch that it trained: the epochs done, and its stage's best score so far."""
    record = trial.record
    if record.retraining is not None:
        yield from record.retraining.curve
        return
    for stage in dict.fromkeys(epoch.stage for epoch in record.epochs_of()):
        for epoch in record.epochs_of(stage=stage):
            score = record.best_of(0, stage, before=epoch.epoch).score
            yield epoch.epoch + 1, float("nan") if score is None else score


def _curve(trial: Trial) -> Iterator[tuple[int, float]]:
    return ((step, value) for step, value in curve(trial) if value == value)


def _state_of(trial: Trial) -> TrialState:
    """Optuna's name for a trial's state; one without a score failed, whatever it says."""
    if trial.state == RUNNING:
        return TrialState.RUNNING
    return TrialState.FAIL if trial.score != trial.score else ENDED[trial.state]


def check_url(url: str) -> str:
    """The URL of a database as SQLAlchemy takes it. Raises UsageError for one with a password or of an unknown kind."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        made = make_url(url)
    except ArgumentError:
        raise UsageError("--search-db is no URL of a database, such as postgresql://user@host/name.") from None
    if made.password:
        raise UsageError(
            "--search-db holds a password, which would be written into the run: leave it out, and put it into the "
            "environment variable PGPASSWORD or into ~/.pgpass."
        )
    kind = made.get_backend_name()
    if kind == "postgresql" and made.drivername == "postgresql":
        made = made.set(drivername="postgresql+psycopg")
    if kind not in ("postgresql", "mysql", "sqlite"):
        raise UsageError(f"--search-db is of postgresql, mysql or sqlite, not {kind}.")
    try:
        made.get_dialect().import_dbapi()
    except ImportError as error:
        hint = "`pip install 'cxrlt-ray[postgres]'`" if kind == "postgresql" else f"the package {error.name}"
        raise UsageError(f"--search-db of {kind} needs {hint}.") from None
    return made.render_as_string()


def _file(run: Run) -> Path:
    """The study's SQLite file: in the run, or for a run on an object store a local copy of what is there."""
    if run.store.local is not None:
        return run.store.local / "optuna.db"
    path = Path(tempfile.mkdtemp(prefix="cxrlt_ray-")) / "optuna.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    with suppress(CxrltError):  # made again from the trials
        if run.store.exists("optuna.db"):
            with run.store.fetched("optuna.db") as there:
                shutil.copy(there, path)
    return path


def _told(error: Exception) -> str:
    """The first line of a database's complaint."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0].rstrip(".")
