"""What a sweep's run is made of before its trials: its name, its space, its record and its directory."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from cxrlt_ray import config
from cxrlt_ray.data.asking import MINED, REPORTS
from cxrlt_ray.data.shards import Shards, parse_sizes
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.pretrain_record import contaminations, judged_splits
from cxrlt_ray.runs.records import Promote, RunRecord, ShardsRecord
from cxrlt_ray.runs.store import Run, check_free, create_run
from cxrlt_ray.search.budget import SearchSize
from cxrlt_ray.search.given_labels import record_of_labels
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.resources import Resources
from cxrlt_ray.search.resume import claimed
from cxrlt_ray.search.run_data import RunData
from cxrlt_ray.search.run_texts import RunTexts, provenance_of_descriptions
from cxrlt_ray.search.space import Space
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.search.warm_start import warm_points
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.claim import Taken, claim
from cxrlt_ray.training.trial import origin_of


@contextmanager
def claimed_name(request: SweepRequest, existing: Run | None) -> Iterator[str]:
    """The run's name, kept from other sweeps while this one lives: one that is chosen here and taken becomes NAME-2.

    Raises UsageError where a name that was given is taken, CxrltError where the storage cannot be written.
    """
    name = request.name or f"{Path(request.task).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    if request.starts_nothing:
        if request.name and not existing:
            check_free(request.storage, name)
        yield existing.name if existing else name
        return
    if existing:
        with claimed(existing):
            yield existing.name
        return
    Store(request.storage).check_writable()
    names = [name] if request.name else (name if k == 1 else f"{name}-{k}" for k in itertools.count(1))
    with ExitStack() as claims:
        yield next(free for free in names if _claim_free(request, free, claims))


def _claim_free(request: SweepRequest, name: str, claims: ExitStack) -> bool:
    """Claim a new run's name; False where it is taken, UsageError where it was asked for."""
    store, given = Store(request.storage) / name, request.name is not None
    if given or not store.exists("run.json"):
        check_free(request.storage, name)
        try:
            claims.enter_context(claim(store))
            return True
        except Taken as other:
            if given:
                raise UsageError(
                    f"run '{name}' is being made in {request.storage} by another sweep ({other}): give another --name."
                ) from None
    return False


def space_for(request: SweepRequest, existing: Run | None, resources: Resources) -> tuple[Space, bytes]:
    """The search space and its file's text; a resumed run has kept its own."""
    if existing:
        epochs = request.epochs or existing.record.epochs
        with existing.store.fetched("space.yaml") as path:
            space = load_space(str(path), epochs, existing.record.smoke, request.storage)
        return _as_fitted(space, existing.record), b""
    name = request.space
    if name is None:
        name = _default_space(request, bool(resources.gpus))
        print(f"Search space: {name}" + (" (no GPU here)" if not resources.gpus else ""))
    space = load_space(name, request.epochs, request.smoke, request.storage)
    for note in space.notes:
        print(note)
    if request.promote is not None:
        space = dataclasses.replace(space, promote=cast(Promote, request.promote))
    if request.warm_from:
        points = warm_points(request.storage, request.warm_from, space, space.metric)
        space = dataclasses.replace(space, start=(*points, *(point for point in space.start if point not in points)))
    return space, config.find("search_spaces", name).read_bytes()


def _default_space(request: SweepRequest, gpus: bool) -> str:
    """The space of a sweep that names none."""
    if request.asked:
        of_reports = (request.reports if request.track != MINED else None, request.reworded, request.scrub)
        reads = request.track == REPORTS or any(given is not None for given in of_reports)
        without, with_reports = ("task3", "team_g_task3") if gpus else ("laptop_text", "laptop_reports")
        return with_reports if reads else without
    return ("task2" if request.task == "task2" else "task1") if gpus else "laptop"


def _as_fitted(space: Space, record: RunRecord) -> Space:
    """The space as its start points and a time budget were when the run was made."""
    if record.start:
        space = dataclasses.replace(space, start=record.start)
    space = dataclasses.replace(space, promote=record.promote)
    if record.pixels is not None:
        space = space.capped(record.pixels)
    return space if record.prune is None else dataclasses.replace(space, prune=record.prune)


def fitted_record(record: RunRecord, space: Space, size: SearchSize) -> RunRecord:
    """The record of a new run whose search was brought to `size`, and its space with it, by a time budget."""
    if size.full:
        return record
    epochs = None if space.staged else space.epochs
    changes = {"trials": size.trials, "epochs": epochs, "pixels": size.pixels, "prune": space.prune}
    return record.model_copy(update=changes)


def draft_record(request: SweepRequest, name: str, space: Space) -> RunRecord:
    """The record of a new run, as far as the data is not needed."""
    return RunRecord(
        name=name,
        task=Task(request.task, ()),
        task_argument=request.task,
        space=space.name,
        trials=request.trials or space.trials,
        epochs=None if space.staged else space.epochs,
        smoke=request.smoke,
        folds=0 if request.asked else space.folds if request.folds is None else request.folds,
        ask=request.ask,
        finding_folds=request.models,
        descriptions=provenance_of_descriptions(request.descriptions),
        holdout=request.holdout,
        objectives=request.objectives,
        promote=space.promote,
        views=request.views,
        val_like=request.val_like,
        uncertain=request.uncertain,
        seed=request.seed,
        max_bad=request.max_bad,
        sizes=request.sizes,
        quality=request.jpeg_quality,
        search_db=request.database,
        warm_from=tuple(request.warm_from or ()),
        start=space.start if request.warm_from else (),
    )


def sizes_to_prepare(request: SweepRequest, space: Space) -> list[int]:
    """The sizes to prepare: those asked for, else every edge of the space's images, so that a trial decodes no more."""
    edges = sorted({stage.edge for config in space.kinds() for stage in config.staged()})
    if request.sizes is None:
        return edges
    sizes = parse_sizes(request.sizes)
    if sizes[-1] < edges[-1]:
        print(f"--sizes ends at {sizes[-1]} px: trials at up to {edges[-1]} px will enlarge these images.")
    return sizes


def write_run(
    request: SweepRequest,
    existing: Run | None,
    record: RunRecord,
    data: RunData,
    shards: tuple[Shards, ...],
    space_file: bytes,
    texts: RunTexts,
) -> Run:
    """Write the new run, or what of a run that goes on has changed. Raises UsageError if the name is taken by now."""
    if existing:
        for name, content in texts.files().items():
            if not existing.store.exists(name):
                existing.store.write(name, content)
        existing.write(record)
        return dataclasses.replace(existing, record=record)
    record = record.model_copy(
        update={
            "task": data.task,
            "data": Store(data.data).absolute().uri,
            "format": data.manifest.source,
            "cohorts": data.cohorts,
            "asking": data.asking,
            "scrub": None if request.scrub is None else Store(request.scrub).absolute().uri,
            "reports": None if data.reports is None else Store(data.reports).absolute().uri,
            "reworded": None if request.reworded is None else Store(request.reworded).absolute().uri,
            **record_of_labels(data.labels, data.labellings),
            "shards": tuple(ShardsRecord(name=size.name(), size=size.size) for size in shards),
        }
    )
    files = {"space.yaml": space_file, **texts.files()}
    return create_run(request.storage, record, data.manifest, files, data.soft, data.corpora, data.boxes, data.mined)


def with_contamination(record: RunRecord, space: Space, data: RunData, shards: tuple[Shards, ...]) -> RunRecord:
    """The record of a new run with what its checkpoints' pretraining has seen of the images that judge it; says so.

    Raises CxrltError where a pretrain.json beside a checkpoint is damaged.
    """
    from cxrlt_ray.models import weights

    begun = sorted({origin_of(weights.source(spec)) for spec in space.specs() if spec.pretrained and spec.checkpoint})
    splits = judged_splits(record.folds)
    seen = [known for source in begun for known in contaminations(source, data.manifest, data.data, shards[0], splits)]
    seen = list(dict.fromkeys(seen))
    for contamination in seen:
        print(contamination.sentence)
    return record.model_copy(update={"seen": tuple(seen)})


def with_all_trials(run: Run) -> Run:
    """The run, whose record counts the trials that a time budget held beyond those that were planned."""
    count = len(run.trials())
    if count <= run.record.trials:
        return run
    record = run.record.model_copy(update={"trials": count})
    run.write(record)
    return dataclasses.replace(run, record=record)
