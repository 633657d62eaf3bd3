"""Going on with a run: what --resume may change, the claim that keeps two sweeps apart, the commands that come next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cxrlt_ray import config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.records import RunRecord
from cxrlt_ray.runs.store import DEFAULT_STORAGE, Run, load_run
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.run_texts import provenance_of_descriptions
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.claim import Taken, claim
from cxrlt_ray.storage.provenance import provenance_of

# what a run is made with, that --resume cannot change: the option, and its value as RunRecord has it
_FIXED: dict[str, Any] = {
    "data": lambda request: None if request.data is None else Store(request.data).absolute().uri,
    "format": lambda request: request.format,
    "space": lambda request: request.space,
    "folds": lambda request: request.folds,
    "ask": lambda request: request.ask,
    "finding_folds": lambda request: request.finding_folds,
    "track": lambda request: request.track,
    "choose_by": lambda request: request.choose_by,
    "descriptions": lambda request: provenance_of_descriptions(request.descriptions),
    "holdout": lambda request: request.holdout,
    "objectives": lambda request: request.objectives,
    "promote": lambda request: request.promote,
    "sizes": lambda request: request.sizes,
    "quality": lambda request: request.jpeg_quality,
    "cohort": lambda request: request.cohorts,
    "smoke": lambda request: request.smoke,
    "views": lambda request: request.views,
    "val_like": lambda request: request.val_like,
    "uncertain": lambda request: request.uncertain,
    "max_bad": lambda request: request.max_bad,
    "seed": lambda request: request.seed,
    "warm_from": lambda request: tuple(request.warm_from or ()),
    "soft_targets": lambda request: _provenance(request.soft_targets),
    "reports": lambda request: None if request.reports is None else Store(request.reports).absolute().uri,
    "reworded": lambda request: None if request.reworded is None else Store(request.reworded).absolute().uri,
    "boxes": lambda request: None if request.boxes is None else provenance_of(request.boxes, "--boxes"),
    "scrub": lambda request: None if request.scrub is None else Store(request.scrub).absolute().uri,
    "labels": lambda request: None if request.labels is None else provenance_of(request.labels, "--labels"),
    "labels_mode": lambda request: request.labels_mode,
    "labels_blank": lambda request: request.labels_blank,
}

# where and how a sweep runs, which a run does not keep: it is given again
_HOW = (
    "address", "max_concurrent", "gpus_per_trial", "cpus_per_trial", "workers_per_trial", "min_workers", "checksum",
    "ingest", "cache_gb", "features_gb", "retries", "hung_after", "keep_checkpoints",
)  # fmt: skip


def run_to_resume(request: SweepRequest) -> Run | None:
    """The run that the request continues; None where it begins one.

    Raises UsageError where an option that was given, be it at its default, is not what the run was made with.
    """
    if not request.resume:
        return None
    run = load_run(request.storage, request.name)
    if request.task != run.record.task_argument:
        raise UsageError(
            f"run {run.name} is of {run.record.task_argument}, not {request.task}: name the run to continue by --name."
        )
    for field in _FIXED:
        if field in request.model_fields_set:
            _check_unchanged(run, field, _FIXED[field](request))
    return run


def _check_unchanged(run: Run, field: str, value: object) -> None:
    original = getattr(run.record, {"cohort": "cohorts"}.get(field, field))
    if value is None or value == original:
        return
    if field == "space" and _is_space_of(run, str(value)):
        return
    option = field.replace("_", "-")
    raise UsageError(
        f"run {run.name} was made with --{option} {original}, not {value}; --resume goes on as it was made: leave "
        f"--{option} out."
    )


def _is_space_of(run: Run, space: str) -> bool:
    """Whether a search space, by name or path, is what the run has kept."""
    return config.find("search_spaces", space).read_bytes() == run.store.read("space.yaml")


def resumed(request: SweepRequest, run: Run) -> RunRecord:
    """The record of a run that goes on: with as many trials and epochs as are asked for, and the database given.

    A time budget may have begun more trials than the record says, and the sweep been killed before it counted them.
    """
    record = run.record
    return record.model_copy(
        update={
            "trials": request.trials or max(record.trials, len(run.trials())),
            "epochs": request.epochs or record.epochs,
            "search_db": request.database or record.search_db,
        }
    )


def _provenance(soft_targets: str | None) -> str | None:
    """What a run keeps of where its soft targets came from."""
    if soft_targets is None:
        return None
    from cxrlt_ray.data.soft_targets import read_soft_targets

    return read_soft_targets(soft_targets).provenance


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Keep other sweeps from the run while this one lives. Raises UsageError where another does.

    Of a run on an object store nobody can say whether the other still lives: there a trial's own record keeps a process
    that was taken over from writing.
    """
    if run.store.local is None:
        yield
        return
    with ExitStack() as claims:
        try:
            claims.enter_context(claim(run.store))
        except Taken as other:
            raise UsageError(f"run {run.name} is being swept by another process ({other}).") from None
        yield


def resume_command(run: Run, storage: str, request: SweepRequest | None = None, deadline: float | None = None) -> str:
    """The command that continues the run, where and how `request` was to run it.

    deadline: of a time budget, by time.monotonic(): the command has what is left of it, where that is a minute or more.
    """
    words = [run.record.task_argument, "--resume", "--name", run.name, *_storage_option(storage)]
    for field in _HOW if request is not None else ():
        value = getattr(request, field)
        if value != SweepRequest.model_fields[field].default:
            words += [f"--{field.replace('_', '-')}", *([] if value is True else [str(value)])]
    if deadline is not None and (minutes := int((deadline - time.monotonic()) / 60)) > 0:
        words += ["--time-budget", f"{minutes}m"]
    return f"python -m cxrlt_ray.sweep {shlex.join(words)}"


def ensemble_command(run: Run, storage: str, address: str | None = None) -> str:
    """The command that makes the run's ensemble, on the cluster at `address` if one is given."""
    select = run.record.space if run.record.space in config.names("ensembles") else "greedy"
    latest = [] if load_run(storage).name == run.name else ["--run", run.name]
    where = [] if address is None else ["--address", address]
    words = ["--select", select, *latest, *_storage_option(storage), *where]
    return f"python -m cxrlt_ray.ensemble {shlex.join(words)}"


def _storage_option(storage: str) -> list[str]:
    return [] if storage == DEFAULT_STORAGE else ["--storage", storage]
