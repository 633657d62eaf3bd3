"""`python -m cxrlt_ray.pretrain --method simclr --cohort NAME=DIR ...`: a backbone from images without labels.

The steps: cohorts -> manifest of their training subjects, some held out for measurements -> shards -> an objective that
needs no labels, in this process or in a group of Ray Train workers -> OUT/backbone.safetensors, which search spaces
read by `checkpoint:`, and OUT/pretrain.json, from which sweeps and ensembles compute which of their images it has seen.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from cxrlt_ray import cli, output
from cxrlt_ray.cluster.start import forget_decoded, share_processors, start_ray
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.doctor import preflight
from cxrlt_ray.errors import CxrltError, Diverged, UsageError
from cxrlt_ray.pretraining.cohorts import TRAIN, PretrainData, read_cohorts
from cxrlt_ray.pretraining.launch import FINDINGS, STATE, Assignment, run_here, run_in_workers
from cxrlt_ray.pretraining.plan import plan_stages
from cxrlt_ray.pretraining.request import SMOKE_IMAGES, PretrainRequest
from cxrlt_ray.pretraining.settings import Settings, check_backbone, load_settings
from cxrlt_ray.privacy import private_dir
from cxrlt_ray.reporting.pretraining import flags, plan_lines, summary_lines
from cxrlt_ray.runs.pretrain_record import FILE, WEIGHTS, PretrainRecord, hashed, records_of
from cxrlt_ray.search.resources import Resources, available, engine_of, ingest_of, plan_resources
from cxrlt_ray.search.run_data import phantom
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.claim import Taken, claim
from cxrlt_ray.training.job import Job
from cxrlt_ray.training.trial import origin_of

__all__ = ["PretrainRequest", "main", "run"]


def run(request: PretrainRequest) -> PretrainRecord | None:
    """Pretrain a backbone, or continue; returns its record, or None if only a plan is requested.

        from cxrlt_ray import pretrain
        pretrain.run(pretrain.PretrainRequest(method="simclr", cohort=["nih=/data/nih"], out="pretrained/nih"))

    Raises UsageError for options, settings or cohorts that do not fit, Diverged if the training collapses, and
    CxrltError if it cannot continue or is stopped.
    """
    deadline = None if request.seconds is None else time.time() + request.seconds
    out = Store(request.folder).absolute()
    existing = _existing(request, out)
    if existing is not None:
        request = request.gone_on(existing.options)
    settings = load_settings(
        request.config, request.method, request.of_model, request.assignments or (), request.smoke, request.seed
    )
    check_backbone(settings.config)
    if request.address is None:
        share_processors()
    engine, resources = _resources(request)
    if request.plan:
        _print_plan(request, settings, resources)
        return None
    with _claimed(out):
        return _pretrain(request, existing, settings, out, engine, resources, deadline)


def _pretrain(
    request: PretrainRequest,
    existing: PretrainRecord | None,
    settings: Settings,
    out: Store,
    engine: str,
    resources: Resources,
    deadline: float | None,
) -> PretrainRecord:
    """`run`, with the directory for this process alone."""
    from cxrlt_ray import models

    data = _data(request, settings)
    if existing is not None:
        _check_same(out / STATE / "run", data)
    config, again = settings.config, f"python -m cxrlt_ray.pretrain --resume --out {shlex.quote(out.uri)}"
    models.check_weights(config.specs())
    shards = _prepare(request, settings, data)
    record = existing or _record(request, settings, data, shards, out)
    for line in flags(record):
        cli.say(line)
    job = Job(
        out / STATE / "run",
        shards,
        FINDINGS,
        data.manifest.fingerprint,
        seed=request.seed,
        threads=_threads(request, resources),
        gpu=resources.gpus_per_trial > 0,
        workers=max(resources.workers_per_trial, 1),
        ingest=ingest_of(engine, resources, None),
    )
    _write_state(job, data, record, out)
    assignment = Assignment(job, out, settings.monitoring, deadline)
    try:
        if request.workers > 1:
            run_in_workers(assignment, resources, cli.say)
        else:
            run_here(assignment, cli.say)
    except Diverged as fault:
        raise Diverged(f"{str(fault).rstrip('.')}. Its curve is in {out.uri}/{FILE}.") from None
    except KeyboardInterrupt:
        raise CxrltError(f"stopped; what is done is kept: go on with `{again}`.") from None
    except UsageError:
        raise
    except CxrltError as error:
        raise CxrltError(f"{str(error).rstrip('.')}; when it is mended, go on with `{again}`.") from None
    finally:
        forget_decoded()
    record = PretrainRecord.read(out, FILE)
    (out / STATE).remove()
    weights = f"{out.uri}/{WEIGHTS}"
    output.result("\n".join(summary_lines(record, weights)), [weights, f"{out.uri}/{FILE}"])
    return record


def _existing(request: PretrainRequest, out: Store) -> PretrainRecord | None:
    """The record of a pretraining to continue. Raises UsageError if there is none, or if one is in the way."""
    there = out.exists(FILE)
    if not request.resume:
        if there and not request.plan:
            raise UsageError(f"--out {out.uri} holds a pretraining: give --resume to go on, or another --out.")
        return None
    if not there:
        raise UsageError(f"--resume: there is no {FILE} in {out.uri}.")
    record = PretrainRecord.read(out, FILE)
    if record.state in ("finished", "stopped"):
        raise UsageError(f"--resume: the pretraining in {out.uri} has {record.state}; begin from it by --checkpoint.")
    return record


@contextmanager
def _claimed(out: Store) -> Iterator[None]:
    """The directory for this process alone. Raises UsageError if another process holds it."""
    if out.local is not None:
        private_dir(out.local)
    try:
        mine = claim(out)
        with mine:
            yield
    except Taken as other:
        raise UsageError(f"--out {out.uri} is being written by another pretraining ({other}).") from None


def _resources(request: PretrainRequest) -> tuple[str, Resources]:
    """What streams images, and the CPUs and GPUs of each worker."""
    cpus, gpus = available(request.address)
    engine = engine_of(request.ingest, request.address)
    return engine, plan_resources(cpus, gpus, max_concurrent=1, workers_per_trial=request.workers, data_cpus=0.0)


def _threads(request: PretrainRequest, resources: Resources) -> int:
    """Threads with which a worker computes on the CPU; 0 if it has a GPU."""
    if resources.gpus_per_trial:
        return 0
    return request.threads or max(1, resources.threads // max(request.workers, 1))


def _data(request: PretrainRequest, settings: Settings) -> PretrainData:
    """The images of the requested cohorts; with --smoke and no cohort, those of a phantom."""
    cohorts = request.cohorts if request.cohort else {"phantom": _phantom(request)}
    data = read_cohorts(cohorts, request.splits, settings.monitoring.images, request.seed)
    for note in data.notes:
        cli.say(note)
    kept = int((data.manifest.table["split"] == "val").sum())
    cli.say(f"{len(data.manifest.table) - kept:,} images to learn from, {kept:,} of other subjects to measure by")
    return data


def _phantom(request: PretrainRequest) -> str:
    return phantom(request.storage, request.seed, SMOKE_IMAGES, "No --cohort: the built-in phantom cohort")


def _prepare(request: PretrainRequest, settings: Settings, data: PretrainData) -> tuple[Shards, ...]:
    """Check every machine, start Ray, and make the shards that are missing."""
    from cxrlt_ray.data.prepare import prepare

    specs = settings.config.specs()
    sizes = sorted({spec.resolution for spec in specs})
    table = data.manifest.table
    whole = replace(data.manifest, table=table.assign(split="train"))
    ray = start_ray(request.address)
    preflight(request.storage, ray, whole, sizes, request.jpeg_quality, specs, request.address)
    return prepare(whole, request.storage, sizes, request.max_bad, request.jpeg_quality, say=cli.say)


def _record(
    request: PretrainRequest, settings: Settings, data: PretrainData, shards: tuple[Shards, ...], out: Store
) -> PretrainRecord:
    """The record of a new pretraining: what was asked, and whose images it will have seen."""
    from cxrlt_ray.models import weights

    config = settings.config
    source = origin_of(weights.source(config.staged()[0].spec()))
    own = hashed(data.manifest, dict(data.releases), shards[0], secrets.token_hex(8))
    options = request.model_copy(update={"out": None}).model_dump(mode="json")
    if not request.cohort:
        options["cohort"] = [f"{use.name}={use.data}" for use in data.uses]
    return PretrainRecord(
        method=config.staged()[0].objective,
        config=config,
        weights=source,
        smoke=request.smoke,
        all_splits=request.splits != TRAIN,
        options=options,
        cohorts=list(data.uses),
        seen=[own, *(seen for _, before in records_of(source) for seen in before.seen)],
    )


def _check_same(run: Store, data: PretrainData) -> None:
    """Raises UsageError where the images are not those that the pretraining has learnt from until now."""
    if not run.exists("manifest.parquet"):
        return
    with run.fetched("manifest.parquet") as path:
        kept = Manifest.read(path)
    if kept.fingerprint != data.manifest.fingerprint:
        raise UsageError(
            f"--resume: the cohorts have {len(data.manifest.table):,} images now, and this pretraining began with "
            f"{len(kept.table):,}, or others of them are to learn from or to measure by. Bring them back to what they "
            "were, or begin anew with another --out."
        )


def _write_state(job: Job, data: PretrainData, record: PretrainRecord, out: Store) -> None:
    """Write what workers read, readable by the owner only: it holds ids."""
    if job.run.local is not None:
        private_dir(job.run.local)
    with job.run.place("manifest.parquet") as path:
        data.manifest.write(path)
    kept = (record.workers, record.threads)
    if record.curve and kept != (job.workers, job.threads):
        cli.say(
            f"It was begun on {kept[0]} worker(s) of {kept[1]} threads and goes on with {job.workers} of "
            f"{job.threads}: the weights will differ in their last digits from those of a run that was not cut."
        )
    record.workers, record.threads, record.state, record.reason = job.workers, job.threads, "running", None
    record.write(out, FILE)


def _print_plan(request: PretrainRequest, settings: Settings, resources: Resources) -> None:
    """Print the expected cost of the pretraining."""
    import torch

    from cxrlt_ray.training import device

    data = _data(request, settings)
    here = torch.device("cuda" if resources.gpus_per_trial else "cpu")
    threads = _threads(request, resources)
    name = request.gpu or device.label(here, threads)
    images = int((data.manifest.table["split"] == "train").sum())
    stages = list(plan_stages(settings.config, images, request.workers, name, max(1, threads), Store(request.storage)))
    for line in plan_lines(stages, images, request.workers, name):
        cli.say(line)


main = cli.command(
    PretrainRequest,
    run,
    """Train a backbone on images without labels, for `checkpoint:` of search spaces.

    python -m cxrlt_ray.pretrain --method simclr --smoke
    python -m cxrlt_ray.pretrain --method dinov2 --cohort nih=/data/nih --cohort more=/data/png --out pretrained/mine
    python -m cxrlt_ray.pretrain --config dinov2_vitl --cohort mimic=/data/mimic --workers 8 --plan
    python -m cxrlt_ray.pretrain --resume --out pretrained/mine
    """,
    many=("--cohort", "--set"),
)


if __name__ == "__main__":
    cli.run("pretrain")
