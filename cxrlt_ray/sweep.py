"""`python -m cxrlt_ray.sweep TASK`: train many trials, each a point of the search space.

The story of a run: data -> manifest -> plan of resources -> weights to be had? -> shards -> trials,
suggested by Optuna (multivariate TPE) inside Ray Tune, stopped early by ASHA on validation mAP ->
a table. A trial process is reused for the next trial: 0.1 s instead of 2 to 9 s of start.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cxrlt_ray import cli
from cxrlt_ray.cluster.start import DATA_CPUS
from cxrlt_ray.data.shards import QUALITY
from cxrlt_ray.data.stream import RAY
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.store import DEFAULT_STORAGE
from cxrlt_ray.search import plan as pricing
from cxrlt_ray.search.plan import GPUS
from cxrlt_ray.search.run_data import PHANTOM_IMAGES, cohort_of, few, others_of, phantom


@dataclasses.dataclass(frozen=True)
class Resources:
    """What is there and how trials share it."""

    cpus: float
    gpus: float
    cpus_per_trial: float
    gpus_per_trial: float
    workers_per_trial: int
    max_concurrent: int
    min_workers: int = 1  # with which a trial goes on where machines are lost

    @property
    def cpus_for_data(self) -> float:
        """What all trials together leave to Ray Data."""
        return self.cpus - self.max_concurrent * self.cpus_per_trial * max(self.workers_per_trial, 1)

    def __str__(self) -> str:
        """One line that explains the budget."""
        each = f"{self.cpus_per_trial:g} CPU" + (f" + {self.gpus_per_trial:g} GPU" if self.gpus_per_trial else "")
        if self.workers_per_trial > 1:
            each = f"{self.workers_per_trial} workers of {each}"
        return (
            f"{self.cpus:g} CPU, {self.gpus:g} GPU: {self.max_concurrent} trial(s) at a time, {each} each, "
            f"{self.cpus_for_data:g} CPU left"
        )


def plan_resources(
    cpus: float,
    gpus: float,
    *,
    max_concurrent: int | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    workers_per_trial: int = 1,
    min_workers: int | None = None,
    data_cpus: float = DATA_CPUS,
) -> Resources:
    """Fill in what was not asked for; raises UsageError, with the numbers, for more than there is.

    Trials that reserve every CPU would starve Ray Data and hang, so `data_cpus` at least stay free; none need
    where trials stream in threads of their own.
    """
    workers = max(workers_per_trial, 1)
    if min_workers is not None and not 1 <= min_workers <= workers:
        raise UsageError(f"--min-workers must be 1 to {workers} (--workers-per-trial), not {min_workers}.")
    per_gpu = gpus_per_trial if gpus_per_trial is not None else (1.0 if gpus else 0.0)
    fit_gpu = int(gpus // (per_gpu * workers)) if per_gpu else None
    if per_gpu and not fit_gpu:
        raise UsageError(
            f"--gpus-per-trial {per_gpu:g} x --workers-per-trial {workers} asks for {per_gpu * workers:g} GPU; "
            f"there are {gpus:g}."
        )
    concurrent = max_concurrent if max_concurrent is not None else (fit_gpu or 1)
    if concurrent < 1:
        raise UsageError(f"--max-concurrent must be at least 1, not {concurrent}.")
    if fit_gpu is not None and concurrent > fit_gpu:
        asked = concurrent * per_gpu * workers
        raise UsageError(
            f"--max-concurrent {concurrent} trials of {per_gpu * workers:g} GPU ask for {asked:g} GPU; "
            f"there are {gpus:g}: at most {fit_gpu} trials at a time."
        )
    if cpus_per_trial is None:
        share = (cpus - data_cpus) / (concurrent * workers)
        cpus_per_trial = 1.0 if share >= 1 else round(share - 0.05, 1)
    asked = concurrent * workers * cpus_per_trial
    if cpus_per_trial <= 0 or cpus - asked < data_cpus:
        free = f", and {data_cpus:g} must stay free to stream images" if data_cpus else ""
        raise UsageError(
            f"{concurrent} trial(s) x {workers} worker(s) x {cpus_per_trial:g} CPU ask for {asked:g} of {cpus:g} CPU"
            f"{free}: lower --max-concurrent, --cpus-per-trial or --workers-per-trial."
        )
    return Resources(cpus, gpus, cpus_per_trial, per_gpu, workers_per_trial, concurrent, min_workers or workers)


def main(
    task: Annotated[str, cli.argument("task1, task2, task3, auto (every finding of the data) or a YAML file")],
    data: Annotated[str | None, cli.option("the data's directory or URI; without it a phantom cohort is made")] = None,
    format: Annotated[str | None, cli.option("the data's format; found by looking without it")] = None,
    space: Annotated[str | None, cli.option("search space: a name or a path; laptop without a GPU")] = None,
    trials: Annotated[int | None, cli.option("how many trials; the space's number without it")] = None,
    epochs: Annotated[int | None, cli.option("epochs a trial; the space's without it")] = None,
    time_budget: Annotated[str | None, cli.option("stop after this long: 90s, 30m, 2h")] = None,
    max_concurrent: Annotated[int | None, cli.option("trials at a time; as many as the GPUs hold")] = None,
    gpus_per_trial: Annotated[float | None, cli.option("GPUs a worker; fractions share one")] = None,
    cpus_per_trial: Annotated[float | None, cli.option("CPUs a worker")] = None,
    workers_per_trial: Annotated[int, cli.option("Train workers a trial")] = 1,
    min_workers: Annotated[int | None, cli.option("with how few a trial goes on when machines are lost; all")] = None,
    folds: Annotated[int | None, cli.option("K: each trial trains K models, out-of-fold; 0 without it")] = None,
    cohort: Annotated[list[str] | None, cli.option("NAME=DIR: another cohort to train on, as stages name it")] = None,
    holdout: Annotated[float, cli.option("share of validation subjects kept from all but the last score")] = 0.0,
    views: Annotated[str, cli.option("views to train on: all or frontal")] = "all",
    uncertain: Annotated[str, cli.option("CheXpert's -1: null, zero or one")] = "null",
    max_bad: Annotated[float, cli.option("the share of images that may be undecodable")] = 0.05,
    sizes: Annotated[str | None, cli.option("edges of the prepared images; the space's resolutions without it")] = None,
    quality: Annotated[str, cli.option("of the prepared images: 1 to 100 for JPEG, or lossless")] = str(QUALITY),
    ingest: Annotated[str, cli.option("streaming: threads, ray, or auto: ray on a cluster of several nodes")] = "auto",
    cache_gb: Annotated[float | None, cli.option("decoded images kept in a machine's memory; a quarter of it")] = None,
    objectives: Annotated[str, cli.option("map, or map,cost: also few GFLOPs an image")] = "map",
    seed: Annotated[int, cli.option("seed of the search, the splits and the trials")] = 0,
    name: Annotated[str | None, cli.option("the run's name; task and time without it")] = None,
    storage: Annotated[str, cli.option("where runs go: a directory or URI")] = DEFAULT_STORAGE,
    address: Annotated[str | None, cli.option("join a Ray cluster, from its head: auto")] = None,
    resume: Annotated[bool, cli.option("continue the run --name, or the latest", "--resume")] = False,
    retries: Annotated[int, cli.option("how often a trial that ended by a fault is begun anew")] = 2,
    hung_after: Annotated[str, cli.option("end a trial that has done no batch for so long: 90s, 10m")] = "10m",
    keep_checkpoints: Annotated[int | None, cli.option("of the N best trials only; of all without it")] = None,
    search_db: Annotated[str | None, cli.option("the search's database by URL; SQLite in the run without it")] = None,
    dry_run: Annotated[bool, cli.option("build all models without memory, plan, start nothing", "--dry-run")] = False,
    smoke: Annotated[bool, cli.option("the space in small: tiny models, few images, minutes", "--smoke")] = False,
    plan: Annotated[bool, cli.option("say what it will cost (time, GPU-hours, disk), start nothing", "--plan")] = False,
    probe: Annotated[bool, cli.option("measure the plan's rates here, about a minute", "--probe")] = False,
    images: Annotated[int | None, cli.option("plan for so many images; of --smoke: draw so many")] = None,
    gpu: Annotated[str | None, cli.option(f"plan for this GPU: {', '.join(GPUS)}; the one here, or H100")] = None,
    price: Annotated[float, cli.option("of a GPU-hour, in any currency, for the plan")] = 3.0,
) -> None:
    """Train many classifiers, each a point of a search space.

    python -m cxrlt_ray.sweep task1
    python -m cxrlt_ray.sweep auto --data DIR --space laptop --trials 12
    python -m cxrlt_ray.sweep task1 --data /data/mimic --space task1 --trials 60 --address auto
    python -m cxrlt_ray.sweep task1 --space team_d --smoke
    python -m cxrlt_ray.sweep task1 --space team_d --dry-run --images 377110
    """
    from cxrlt_ray import models
    from cxrlt_ray.cluster.start import forget_decoded, start_ray
    from cxrlt_ray.data.cohort import parse_cohorts
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.data.shards import parse_quality
    from cxrlt_ray.doctor import preflight
    from cxrlt_ray.runs import store as store
    from cxrlt_ray.runs.records import RunRecord, ShardsRecord
    from cxrlt_ray.search.optuna_study import check_url
    from cxrlt_ray.search.tuner import Care, reopen_damaged
    from cxrlt_ray.search.watchdog import Room
    from cxrlt_ray.storage import Store
    from cxrlt_ray.training.stage import Job

    _check_options(task, views, holdout, trials, folds, sizes, ingest, cache_gb, objectives)
    _check_plan(plan or dry_run, smoke, images, gpu, price)
    hung = _patience(hung_after)
    if retries < 0:
        raise UsageError(f"--retries is 0 or more, not {retries}.")
    if keep_checkpoints is not None and keep_checkpoints < 1:
        raise UsageError(f"--keep-checkpoints must be at least 1, not {keep_checkpoints}: the ensemble needs them.")
    search_db = check_url(search_db) if search_db else None
    others = parse_cohorts(cohort or [])
    wanted_quality = parse_quality(quality)
    budget = _seconds(time_budget)
    given: dict[str, Any] = {"data": data, "format": format, "space": space}
    given |= {"folds": folds or None, "holdout": holdout or None}
    given |= {"objectives": objectives if objectives != "map" else None}
    given |= {"sizes": sizes, "quality": wanted_quality if quality != str(QUALITY) else None}
    given |= {"cohorts": others or None, "smoke": smoke or None}
    given |= {"views": views if views != "all" else None, "uncertain": uncertain if uncertain != "null" else None}
    run = _run_to_resume(storage, name, {**given, "seed": seed or None, "task_argument": task}) if resume else None
    if run:
        record = run.record
        folds, views, seed, max_bad = record.folds, record.views, record.seed, record.max_bad
        wanted_quality, smoke = record.quality, record.smoke
        trials, epochs = trials or record.trials, epochs or record.epochs
        search_db = search_db or record.search_db
        if not dry_run and not plan:
            run.write(record.model_copy(update={"trials": trials, "epochs": epochs, "search_db": search_db}))
    elif not dry_run and not plan:
        Store(storage).check_writable()
        name = name or f"{Path(task).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        store.check_free(storage, name)
    cpus, gpus = _machine(address)
    engine = _engine(ingest, address)
    resources = plan_resources(
        cpus,
        gpus,
        max_concurrent=max_concurrent,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        workers_per_trial=workers_per_trial,
        min_workers=min_workers,
        data_cpus=DATA_CPUS if engine == RAY else 0.0,
    )
    searched, text = _space(space, run, task, gpus, epochs, smoke, storage)
    folds = searched.folds if folds is None else folds
    threads = 0 if resources.gpus_per_trial else max(1, int(cpus // resources.max_concurrent))
    trials = trials or searched.trials
    print(f"Resources: {resources}")
    print(f"Plan: {trials} trials of up to {searched.epochs} epochs" + (f" x {folds} folds" if folds else ""))
    priced = pricing.Sweep(searched, trials, folds, seed, resources, threads, Store(storage), address, gpu)
    if probe:
        priced.probe()
    if dry_run:
        _show_models(searched, task)
    if (plan or dry_run) and (images or not (run or data)):
        named = {name for each in searched.cohorts() for name in each.split("+")}
        priced.show(price, images or searched.images or PHANTOM_IMAGES, named | set(others))
        return
    if run:
        manifest, wanted = run.manifest(), run.task
    else:
        drawn = (images if smoke else None) or searched.images or PHANTOM_IMAGES
        others = others_of(searched, others, storage if smoke and not data else None, seed, drawn)
        own = data is not None
        data = data or phantom(storage, seed, drawn)
        manifest, wanted = cohort_of(data, format, task, uncertain, seed, folds, holdout, views, others)
        if smoke and own:
            manifest = few(manifest, drawn, seed)
    if plan or dry_run:
        priced.show(price, manifest)
        return
    specs = searched.specs()
    models.check_weights(specs, wanted.findings)
    ray = start_ray(address)
    edges = run.record.sizes_of_shards if run else _edges(sizes, specs)
    preflight(storage, ray, manifest, edges, wanted_quality, specs, address)
    shards = prepare(manifest, storage, edges, max_bad, wanted_quality)
    if not run:
        record = RunRecord(
            name=str(name),
            task=wanted,
            task_argument=task,
            data=Store(data).absolute().uri if data else None,
            format=manifest.source,
            space=searched.name,
            trials=trials,
            epochs=None if searched.staged else searched.epochs,
            smoke=smoke,
            cohorts=others,
            folds=folds,
            holdout=holdout,
            objectives=objectives,
            views=views,
            uncertain=uncertain,
            seed=seed,
            max_bad=max_bad,
            sizes=sizes,
            quality=wanted_quality,
            search_db=search_db,
            shards=tuple(ShardsRecord(name=each.name(), size=each.size) for each in shards),
        )
        run = store.create_run(storage, record, manifest, {"space.yaml": text})
    job = Job(
        run.store.absolute(),
        shards,
        wanted.findings,
        run.record.fingerprint,
        views,
        folds,
        seed,
        threads=threads,
        gpu=resources.gpus_per_trial > 0,
        workers=max(resources.workers_per_trial, 1),
        ingest=_ingest(engine, resources, cache_gb),
    )
    most, left = priced.trial_bytes(manifest)
    care = Care(retries, hung, keep_checkpoints, search_db, Room(run.store, most, resources.max_concurrent))
    _tell_disk(run.store, most * resources.max_concurrent + left * min(trials, keep_checkpoints or trials))
    foreseen, before, started = priced.plan(manifest), len(run.trials()), time.monotonic()
    try:
        with claimed(run):
            if resume:
                reopen_damaged(run)
            why = _search(run, job, searched, resources, trials, budget, seed, care)
    except KeyboardInterrupt:
        why = "by the second Ctrl-C"
    except CxrltError as error:
        raise CxrltError(
            f"{str(error).rstrip('.')}; when it is mended, continue with `{_again(run, storage)}`"
        ) from None
    finally:
        forget_decoded()
    _summary(run, why, trials, storage)
    if not before:
        priced.compare(foreseen, run.trials(), time.monotonic() - started)


@contextmanager
def claimed(run: Any) -> Iterator[None]:
    """Keep other sweeps from the run while this one lives. Raises UsageError where another does.

    Of a run on an object store nobody can say whether the other still lives: there a trial's own record keeps a process
    that was taken over from writing.
    """
    if run.store.local is None:
        yield
        return
    with open(run.store.local / ".claim", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UsageError(f"run {run.name} is being swept by another process ({file.read().strip()}).") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _tell_disk(store: Any, wanted: float) -> None:
    """How much the sweep will take, and what is free."""
    free = store.free()
    told = f"Disk: this sweep will take up to {cli.size(wanted)}"
    print(told + (f", {cli.size(free)} are free in {store.uri}" if free is not None else f" of {store.uri}"))
    if free is not None and wanted > free:
        print("      more than there is: it will stop before the disk is full; --keep-checkpoints N takes less")


def _check_plan(asked: bool, smoke: bool, images: int | None, gpu: str | None, price: float) -> None:
    if images is not None and (images < 10 or not (asked or smoke)):
        raise UsageError(f"--images is for --plan, --dry-run and --smoke, and at least 10, not {images}.")
    if gpu is not None and not asked:
        raise UsageError("--gpu is for --plan: a sweep trains on what there is.")
    if gpu is not None and gpu not in GPUS:
        raise UsageError(f"--gpu is one of {', '.join(GPUS)}, not '{gpu}'.")
    if price < 0:
        raise UsageError(f"--price is 0 or more, not {price:g}.")


def _check_options(
    task: str,
    views: str,
    holdout: float,
    trials: int | None,
    folds: int | None,
    sizes: str | None,
    ingest: str,
    cache_gb: float | None,
    objectives: str,
) -> None:
    """Refuse what is wrong whatever the data."""
    from cxrlt_ray.data.shards import parse_sizes
    from cxrlt_ray.data.stream import ENGINES

    if sizes is not None:
        parse_sizes(sizes)
    if ingest not in ("auto", *ENGINES):
        raise UsageError(f"--ingest is auto, {' or '.join(ENGINES)}, not '{ingest}'.")
    if objectives not in ("map", "map,cost"):
        raise UsageError(f"--objectives is map or map,cost, not '{objectives}'.")
    if cache_gb is not None and cache_gb < 0:
        raise UsageError(f"--cache-gb is 0 (none) or more, not {cache_gb:g}.")
    if views not in ("all", "frontal"):
        raise UsageError(f"--views is all or frontal, not '{views}'.")
    if not 0 <= holdout < 1:
        raise UsageError(f"--holdout is a share from 0 to below 1, not {holdout:g}.")
    if trials is not None and trials < 1:
        raise UsageError(f"--trials must be at least 1, not {trials}.")
    if folds is not None and (folds < 0 or folds == 1):
        raise UsageError(f"--folds needs at least 2 folds, not {folds}.")
    if task == "task3":
        raise UsageError(
            "task3's five findings are not labelled in training: its zero-shot models are not built yet. "
            "Sweep task1 or task2."
        )


def _front(trials: list[Any]) -> str:
    """The finished trials that no other beats in both mAP and cost, cheapest first."""
    from cxrlt_ray.runs.cost import gflops
    from cxrlt_ray.runs.records import FINISHED

    done = [trial for trial in trials if trial.state == FINISHED]
    best, told = -1.0, []
    for cost, trial in sorted(zip(gflops(done), done, strict=True), key=lambda pair: (pair[0], -pair[1].score)):
        if trial.score > best:
            best = trial.score
            told.append(f"{trial.name} {cli.short(best)} at {cost:.3g}")
    return f"No other trial has both more mAP and fewer GFLOPs: {', '.join(told)}"


def _edges(sizes: str | None, specs: list[Any]) -> list[int]:
    """The sizes to prepare: those asked for, else every resolution of the space, so that a trial decodes no more."""
    from cxrlt_ray.data.shards import parse_sizes

    wanted = sorted({spec.resolution for spec in specs})
    if sizes is None:
        return wanted
    given = parse_sizes(sizes)
    if given[-1] < wanted[-1]:
        print(f"--sizes ends at {given[-1]} px: trials at up to {wanted[-1]} px will enlarge these images.")
    return given


def _engine(asked: str, address: str | None) -> str:
    """What streams images: Ray Data on a cluster of several machines, whose cores can help; else threads."""
    from cxrlt_ray.data.stream import RAY, THREADS

    if asked != "auto":
        return asked
    if address is None:
        return THREADS
    import ray

    return RAY if sum(node["Alive"] for node in ray.nodes()) > 1 else THREADS


def _ingest(engine: str, resources: Resources, cache_gb: float | None) -> Any:
    """How trials stream images, told in a line."""
    from cxrlt_ray.cluster.node_cache import memory_bound
    from cxrlt_ray.data import stream

    side_by_side = resources.max_concurrent * max(resources.workers_per_trial, 1)
    threads = max(1, min(8, round(resources.cpus / side_by_side)))
    memory = memory_bound(cache_gb)
    how = f"{threads} threads a trial" if engine == stream.THREADS else "Ray Data tasks"
    print(f"Streaming: {how}; decoded images kept in up to {cli.size(memory)} of memory a machine, for all trials")
    return stream.Ingest(engine, threads, memory)


def _run_to_resume(storage: str, name: str | None, given: dict[str, Any]) -> Any:
    """The run to continue. Raises UsageError where an option `given` (None: not given) is not what it was made with."""
    from cxrlt_ray.runs.store import load_run
    from cxrlt_ray.storage import Store

    run = load_run(storage, name)
    if given["task_argument"] != run.record.task_argument:
        raise UsageError(
            f"run {run.name} is of {run.record.task_argument}, not {given['task_argument']}: name the run to "
            "continue by --name."
        )
    if given["data"] is not None:
        given = {**given, "data": Store(given["data"]).absolute().uri}
    if given["space"] is not None and _alike(run.store, given["space"]):
        given = {**given, "space": run.record.space}
    for option, value in given.items():
        original = getattr(run.record, option)
        if value is not None and value != original:
            raise UsageError(
                f"run {run.name} was made with --{option} {original}, not {value}; --resume goes on as it was made: "
                f"leave --{option} out."
            )
    return run


def _alike(store: Any, space: str) -> bool:
    """Whether a search space, by name or path, is what the run has kept."""
    from cxrlt_ray import config

    return config.find("search_spaces", space).read_bytes() == store.read("space.yaml")


def _space(
    space: str | None, run: Any, task: str, gpus: float, epochs: int | None, smoke: bool, storage: str
) -> tuple[Any, bytes]:
    """The search space and its file's text; a resumed run has kept its own."""
    from cxrlt_ray import config
    from cxrlt_ray.search.space_file import load_space

    if run:
        with run.store.fetched("space.yaml") as path:
            return load_space(str(path), epochs, smoke, storage), b""
    if space is None:
        space = "laptop" if not gpus else ("task2" if task == "task2" else "task1")
        print(f"Search space: {space}" + (" (no GPU here)" if not gpus else ""))
    searched = load_space(space, epochs, smoke, storage)
    for note in searched.notes:
        print(note)
    return searched, config.find("search_spaces", space).read_bytes()


def _search(
    run: Any, job: Any, space: Any, resources: Resources, trials: int, budget: float | None, seed: int, care: Any
) -> str:
    """Run the trials that are missing; why it was stopped before all were done, or nothing."""
    from cxrlt_ray.search.tuner import missing_trials, tune_trials

    missing = missing_trials(run, trials)
    if missing == 0:
        print(f"All {trials} trials of {run.name} are done; give --trials a larger number to add more.")
        return ""
    print(f"Run {run.name}: {missing} trials to go, in {run.store.uri}", flush=True)
    return tune_trials(run, job, space, resources, trials, budget, seed, care)


def _again(run: Any, storage: str) -> str:
    """The command that continues the run."""
    where = "" if storage == DEFAULT_STORAGE else f" --storage {storage}"
    return f"python -m cxrlt_ray.sweep {run.record.task_argument} --resume --name {run.name}{where}"


def _summary(run: Any, why: str, trials: int, storage: str) -> None:
    from cxrlt_ray import config
    from cxrlt_ray.reporting.trials import trials_table
    from cxrlt_ray.runs.records import FINISHED, PRUNED, RUNNING
    from cxrlt_ray.runs.store import load_run

    done = run.trials()
    cli.console().print(trials_table(done))
    if "cost" in run.record.objectives:
        print(_front(done))
    free = run.store.free()
    left = "" if free is None else f", {cli.size(free)} free"
    print(f"Disk: {run.store.uri} holds {cli.size(run.store.size())}{left}")
    again = f" --run {run.name}" + ("" if storage == DEFAULT_STORAGE else f" --storage {storage}")
    lasting = sum(t.state == RUNNING for t in done)
    count = sum(t.state in (FINISHED, PRUNED) for t in done)
    if why:
        begun = f", {lasting} more begun and saved" if lasting else ""
        done_so_far = f"with {count} of {trials} trials done{begun}"
        told = f"{why} {done_so_far}" if why.startswith(("by", "before")) else f"{done_so_far}: {why}"
        raise CxrltError(f"stopped {told}; continue with `{_again(run, storage)}`")
    if not any(t.state in (FINISHED, PRUNED) for t in done):
        raise CxrltError(f"no trial of run {run.name} ended well; the table's notes say why.")
    latest = again.replace(f" --run {run.name}", "") if load_run(storage).name == run.name else again
    select = run.record.space if run.record.space in config.names("ensembles") else "greedy"
    print(f"Next: python -m cxrlt_ray.ensemble --select {select}{latest}")


def _machine(address: str | None) -> tuple[float, float]:
    """CPUs and GPUs of the cluster at `address`, or of this machine, without starting Ray here."""
    if address is None:
        import os

        import torch

        return float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count())
    from cxrlt_ray.cluster.start import start_ray

    there = start_ray(address).cluster_resources()
    if not there.get("CPU"):
        raise UsageError(
            "the cluster has no workers up (0 CPU): a sweep plans by what is there. Ask the autoscaler for some first: "
            'python -c \'import ray; from ray.autoscaler.sdk import request_resources; ray.init("auto"); '
            'request_resources(bundles=[{"GPU": 1}] * 4)\''
        )
    return there.get("CPU", 0.0), there.get("GPU", 0.0)


def _show_models(space: Any, task: str) -> None:
    """Every kind of model of the space, built without memory, and one training step of each."""
    from cxrlt_ray.data.tasks import TASK1, load_task
    from cxrlt_ray.search import dry_run

    findings = load_task(task).findings or TASK1  # auto's are not known yet
    found = dry_run.prints(space.kinds(), findings)
    cli.console(160).print(dry_run.table(found))
    print("\n".join(dry_run.sources(found)))
    print(f"{len(found)} kinds of models were built for {len(findings)} findings, and took a training step, on paper.")


def _patience(text: str) -> float:
    found = _seconds(text, "--hung-after")
    if not found or found <= 0:
        raise UsageError(f"--hung-after is longer than nothing, not '{text}'.")
    return found


def _seconds(text: str | None, option: str = "--time-budget") -> float | None:
    """'90s', '30m', '2h' in seconds."""
    if text is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise UsageError(f"{option} is a number and s, m, h or d, such as 2h; not '{text}'.") from None


main.many = ("--cohort",)  # type: ignore[attr-defined]

if __name__ == "__main__":
    cli.run("sweep")
