"""What the search knows: Optuna's study of a run, which follows the trial store and can be made again from it.

The store is the truth: a trial is written there before it is begun, and its end before Optuna learns of it. The study
lies in RUN/optuna.db (of a run on an object store: in a local file, copied there), or in a database given by URL. One
that lags behind the store, is damaged or lost is made anew from the store. What is suggested depends on the seed, the
trial's number and the ends of the trials before it alone, so that a search that is cut off goes on as it would have.
"""

from __future__ import annotations

import atexit
import datetime
import hashlib
import math
import shlex
import shutil
import sqlite3
import tempfile
import time
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
from cxrlt_ray.objectives.metric import VAL_MAP, Metric
from cxrlt_ray.runs.cost import gflops
from cxrlt_ray.runs.records import FAILED, FINISHED, PRUNED, RUNNING, TrialRecord
from cxrlt_ray.runs.store import RECORD, Run, Trial, read_trial
from cxrlt_ray.search.space import Space
from cxrlt_ray.search.trial_states import learning_curve, settle_trial, trial_name, trial_number

COST = "cost"
MADE = "made"  # a study's attribute: when its run was
COPYING = 0.02  # of a sweep's time, to copy its study: what a copy lacks is made again from the trials
STARTUP = 4  # trials that are drawn at random before TPE begins
FAULTS = (SQLAlchemyError, optuna.exceptions.OptunaError, KeyError, ValueError)  # of a database, or what is in it
UNREACHED = (SQLAlchemyError, optuna.exceptions.StorageInternalError)  # of a database that may answer again
ENDED = {FINISHED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}


class OptunaStudy:
    """Optuna's study of a run: the next point to try, and how trials ended.

    With objectives map and cost it has two directions, the metric's and GFLOPs an image down. url: of a database;
    without it the study is a SQLite file. Raises CxrltError where the database does not answer.
    """

    def __init__(self, run: Run, space: Space, seed: int, url: str | None = None, metric: Metric = VAL_MAP) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.run, self.space, self.sampler, self.metric = run, space, SeededTPE(seed), metric
        self.costs = COST in run.record.objectives
        self.file = None if url else _local_file(run)
        self.url = url or ""
        self.study = self._open()
        self._copied, self._copying = -math.inf, 0.0  # when the study was last copied, and how long that took
        self._waiting = [trial.number for trial in self.study.get_trials(states=(TrialState.RUNNING,))]

    @property
    def goes_on(self) -> bool:
        """Whether the next trial is one that was cut off."""
        return bool(self._waiting)

    def next(self) -> tuple[int, dict[str, Any]]:
        """The number and parameters of the next trial, one that was cut off or a new one; it is in the store then."""
        if not self._waiting:
            self._waiting.append(self.study.ask().number)
        optuna_trial = self._live(self._waiting[0])
        self.space.define(optuna_trial)  # one that was cut off while it was defined keeps the values it has
        number, name, params = optuna_trial.number, trial_name(optuna_trial.number), dict(optuna_trial.params)
        store = self.run.store / "trials" / name
        if not store.exists(RECORD):
            record = TrialRecord(name=name, state=RUNNING, params=params, metric=self.metric)
            Trial(store, record).write(record)
        self._waiting.pop(0)
        return number, params

    def settle(self, number: int, error: bool = False, cut: bool = False) -> str:
        """Write a trial's last state to the store, then to the study; returns it. error, cut: see `settle_trial`."""
        trial = settle_trial(self.run, number, error, cut)
        if number in self._waiting:  # it was cut off, and does not go on
            self._waiting.remove(number)
        if self.study.get_trials(deepcopy=False)[number].state.is_finished():
            return trial.state
        if not self.costs:
            optuna_trial = self._live(number)
            for step, value in _known_curve(trial):
                optuna_trial.report(value, step)
        self._tell(self.study, number, trial)
        self.copy(COPYING)
        return trial.state

    def copy(self, share: float = math.inf) -> None:
        """Put a consistent copy of a local study beside a run on an object store.

        share: of the time that copies may take, as a study grows with its trials; without it, it is copied now.
        """
        started = time.monotonic()
        if self.file is None or self.run.store.local is not None or started < self._copied + self._copying / share:
            return
        with (
            self.run.store.place("optuna.db") as path,
            closing(sqlite3.connect(self.file)) as live,
            closing(sqlite3.connect(path)) as copy,
        ):
            live.backup(copy)
        self._copied = time.monotonic()
        self._copying = self._copied - started

    def _live(self, number: int) -> optuna.Trial:
        return optuna.trial.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def _open(self) -> optuna.Study:
        """The run's study, made anew unless it agrees with the store."""
        trials = self.run.trials()
        storage = self._storage()
        try:
            names = {summary.study_name for summary in optuna.get_all_study_summaries(storage)}
            if self.run.name in names:
                study = optuna.load_study(study_name=self.run.name, storage=storage, sampler=self.sampler)
                self._check_own(study)
                known = study.get_trials(deepcopy=False)  # copies of 10,000 take 10 s
                if self._agrees(known, trials):
                    for number in [t.number for t in known if t.state == TrialState.RUNNING]:
                        self._catch_up(study, number)
                    return study
                optuna.delete_study(study_name=self.run.name, storage=storage)
            return self._remade(storage, trials)
        except FAULTS as error:
            if self.file is None:
                raise CxrltError(f"the search's database cannot be used: {_first_line(error)}.") from None
            self.file.unlink(missing_ok=True)  # damaged
            return self._remade(self._storage(), trials)

    def _check_own(self, study: optuna.Study) -> None:
        """Raise CxrltError for the study of another run of this name: a database by URL may be of many storages."""
        made = study.user_attrs.get(MADE)
        if made and made != self.run.record.created:
            raise CxrltError(
                f"the database holds the search of another run called {self.run.name}, made {made}: give another "
                f"--name, or remove that search (`optuna delete-study --study-name {shlex.quote(self.run.name)} "
                "--storage URL`)."
            )

    def _storage(self) -> optuna.storages.RDBStorage:
        if self.file is not None:
            try:
                return sqlite_storage(self.file)
            except FAULTS:
                self.file.unlink(missing_ok=True)
                return sqlite_storage(self.file)
        try:
            return optuna.storages.RDBStorage(self.url, engine_kwargs={"pool_pre_ping": True})
        except FAULTS as error:
            raise CxrltError(
                f"the search's database cannot be opened: {_first_line(error)}. Is --search-db right, does the "
                "server answer, and is the password in PGPASSWORD or ~/.pgpass?"
            ) from None

    def _agrees(self, known: list[FrozenTrial], trials: list[Trial]) -> bool:
        """Whether the study has the store's trials with their parameters, and says of none that it ended too soon."""
        numbers = {trial_number(trial): trial for trial in trials}
        if len(known) < max(len(self.space.start), max(numbers, default=-1) + 1):
            return False
        for number, trial in numbers.items():
            params, state = known[number].params, known[number].state
            if trial.record.params and params != trial.record.params:
                return False
            if trial.state == RUNNING and state.is_finished():
                return False
        return True

    def _catch_up(self, study: optuna.Study, number: int) -> None:
        """Tell the study of a trial that has ended in the store and not in the study."""
        store = self.run.store / "trials" / trial_name(number)
        if store.exists(RECORD) and (trial := read_trial(store)).state != RUNNING:
            self._tell(study, number, trial)

    def _tell(self, study: optuna.Study, number: int, trial: Trial) -> None:
        state = _optuna_state(trial)
        study.tell(number, self._values(trial) if state == TrialState.COMPLETE else None, state)

    def _remade(self, storage: Any, trials: list[Trial]) -> optuna.Study:
        """A new study with all trials of the store, and the space's start points that none of them took."""
        upwards = StudyDirection.MAXIMIZE if self.metric.mode == "max" else StudyDirection.MINIMIZE
        study = optuna.create_study(
            storage=storage,
            sampler=self.sampler,
            pruner=optuna.pruners.NopPruner(),
            study_name=self.run.name,
            directions=[upwards, *([StudyDirection.MINIMIZE] if self.costs else [])],
        )
        study.set_user_attr(MADE, self.run.record.created)
        numbers = {trial_number(trial): trial for trial in trials}
        count = max(numbers, default=-1) + 1
        for number in range(count):
            study.add_trial(self._frozen(numbers.get(number)))
        for point in self.space.start[count:]:
            study.enqueue_trial(point)
        return study

    def _frozen(self, trial: Trial | None) -> FrozenTrial:
        """A trial of the store as Optuna has it; None: one that is not in the store any more."""
        now = datetime.datetime.now()
        state = TrialState.FAIL if trial is None else _optuna_state(trial)
        params = {} if trial is None else trial.record.params
        defined = optuna.trial.FixedTrial(params)
        if params:
            self.space.define(defined)
        values = self._values(trial) if trial and state == TrialState.COMPLETE else None
        curve = dict(_known_curve(trial)) if trial and not self.costs else {}
        if trial and state == TrialState.PRUNED and not self.costs:
            values = [trial.score if trial.score == trial.score else list(curve.values())[-1]]
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


class SeededTPE(optuna.samplers.BaseSampler):
    """Multivariate TPE whose randomness in each trial depends on the seed and the trial's number alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._sampler = self._seeded(0)

    def _seeded(self, *key: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self.seed, *key]).generate_state(1)[0])
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP, seed=seed
        )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Any:
        """As TPESampler, with which a trial begins."""
        self._sampler = self._seeded(trial.number)
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> Any:
        """As TPESampler."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        """As TPESampler; seeded by the parameter's name too: a trial that was cut off does not ask for all again."""
        sampler = self._seeded(trial.number, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
        return sampler.sample_independent(study, trial, name, distribution)


def _known_curve(trial: Trial) -> Iterator[tuple[int, float]]:
    return ((step, value) for step, value in learning_curve(trial) if value == value)


def _optuna_state(trial: Trial) -> TrialState:
    """Optuna's name for a trial's state; one of which no score is known failed, whatever its record says.

    One that was pruned in its first fold has no score of all folds, but those of its epochs.
    """
    if trial.state == RUNNING:
        return TrialState.RUNNING
    known = trial.score == trial.score or (trial.state == PRUNED and any(_known_curve(trial)))
    return ENDED[trial.state] if known else TrialState.FAIL


def sqlite_storage(file: Path) -> optuna.storages.RDBStorage:
    """Optuna's storage in a SQLite file, by its path: in a URL %, ? and { of a folder's name would mean something."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(file, timeout=60, check_same_thread=False)
        connection.execute("PRAGMA synchronous=OFF")  # what a power cut damages is made again from the store
        return connection

    return optuna.storages.RDBStorage("sqlite:///optuna.db", engine_kwargs={"creator": connect})


def check_url(url: str) -> str:
    """The URL of a database as SQLAlchemy takes it. Raises UsageError for one with a password or of an unknown kind."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UsageError("--search-db is no URL of a database, such as postgresql://user@host/name.") from None
    if parsed.password:
        raise UsageError(
            "--search-db holds a password, which would be written into the run: leave it out, and put it into the "
            "environment variable PGPASSWORD or into ~/.pgpass."
        )
    kind = parsed.get_backend_name()
    if kind == "postgresql" and parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if kind not in ("postgresql", "mysql", "sqlite"):
        raise UsageError(f"--search-db is of postgresql, mysql or sqlite, not {kind}.")
    try:
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        hint = "`pip install 'cxrlt-ray[postgres]'`" if kind == "postgresql" else f"the package {error.name}"
        raise UsageError(f"--search-db of {kind} needs {hint}.") from None
    return parsed.render_as_string()


def _local_file(run: Run) -> Path:
    """The study's SQLite file: in the run, or for a run on an object store a local copy of the one in it."""
    if run.store.local is not None:
        return run.store.local / "optuna.db"
    path = Path(tempfile.mkdtemp(prefix="cxrlt_ray-")) / "optuna.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    with suppress(CxrltError):  # made again from the trials
        if run.store.exists("optuna.db"):
            with run.store.fetched("optuna.db") as stored:
                shutil.copy(stored, path)
    return path


def _first_line(error: Exception) -> str:
    """The first line of a database's complaint."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0].rstrip(".")
