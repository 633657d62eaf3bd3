"""`python -m cxrlt_ray.sweep TASK`: train many trials, each a point of the search space.

The steps of a run: data -> manifest -> plan of resources -> check that weights are available -> shards -> trials,
suggested by Optuna (multivariate TPE) inside Ray Tune, stopped early by ASHA on validation mAP -> a table. A trial
process is reused for the next trial: it starts in 0.1 s instead of 2 to 9 s.

The same from Python; `run` prints what the command prints and returns the run, from which the trials can be read:

    from cxrlt_ray import sweep
    run = sweep.run(sweep.SweepRequest(task="task1", data="/data/mimic", trials=60, storage="runs"))
    best = max(run.trials(), key=lambda trial: trial.score)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cxrlt_ray import cli, output
from cxrlt_ray.cluster.start import share_processors
from cxrlt_ray.data.asking import CORPUS
from cxrlt_ray.data.features import features_bound, features_folder
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.tasks import TASK1, load_task
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.records import FINISHED, PRUNED, RUNNING, RunRecord
from cxrlt_ray.runs.store import Run, Trial, best_first
from cxrlt_ray.search.asking import check_asking
from cxrlt_ray.search.begun_from import check_begun_from
from cxrlt_ray.search.promotion import check_promotion
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.resources import Resources, ingest_of, resources_for
from cxrlt_ray.search.resume import ensemble_command, resume_command, resumed, run_to_resume
from cxrlt_ray.search.run_data import (
    PHANTOM_IMAGES,
    RunData,
    check_boxes,
    check_reports,
    data_of,
    run_data,
    soft_targets_for,
)
from cxrlt_ray.search.run_setup import (
    claimed_name,
    draft_record,
    fitted_record,
    sizes_to_prepare,
    space_for,
    with_all_trials,
    with_contamination,
    write_run,
)
from cxrlt_ray.search.run_texts import (
    check_described,
    check_encoders,
    own_descriptions,
    run_texts,
    store_vectors,
    trial_encoders,
)
from cxrlt_ray.search.trial_states import has_ended
from cxrlt_ray.storage import Store
from cxrlt_ray.tracking import check_trackers, trackers_of

if TYPE_CHECKING:
    from cxrlt_ray.data.shards import Shards
    from cxrlt_ray.search.pacing import Pace
    from cxrlt_ray.search.plan import Forecast, Planner, TrialBytes
    from cxrlt_ray.search.space import Space
    from cxrlt_ray.search.tuner import Search

__all__ = ["SweepRequest", "main", "run"]


def run(request: SweepRequest) -> Run | None:
    """Train the trials of a new run, or the missing ones of a resumed run; returns None if only a plan is requested.

    Raises UsageError for a request that does not fit the data, the machine or the run, and CxrltError if the sweep is
    stopped before its end or no trial succeeds.
    """
    deadline = None if request.seconds is None else time.monotonic() + request.seconds
    if request.trackers:
        check_trackers(request.trackers)
    if request.address is None:
        share_processors()
    existing = run_to_resume(request)
    with claimed_name(request, existing) as name:
        return _sweep(request, existing, name, deadline)


def _sweep(request: SweepRequest, existing: Run | None, name: str, deadline: float | None) -> Run | None:
    """`run`, with the run's name. deadline: of the time budget, by time.monotonic()."""
    engine, resources = resources_for(request)
    space, space_file = space_for(request, existing, resources)
    soft, reading = soft_targets_for(request, space), check_reports(request, space)
    check_boxes(request, space)
    record = resumed(request, existing) if existing else draft_record(request, name, space)
    check_asking(space, bool(record.finding_folds))
    check_promotion(space, record)
    own = own_descriptions(request, existing)
    check_described(space, request.asked, own, request.descriptions is not None)
    planner = _planner(request, record, space, resources)
    if request.starts_nothing:
        _print_plan(request, existing, record, space, planner)
        return None
    data = data_of(existing) if existing else run_data(request, space, record.folds, soft, reading)
    if data.asking is not None and not existing:
        check_begun_from(space.specs(), data.asking)
    texts = run_texts(space, data.learnt, request.storage, own, existing)
    check_encoders(space, texts)
    shards = _prepare(request, existing, record, space, data)
    if not existing:
        record = with_contamination(record, space, data, shards)
    longest = space.epochs
    if deadline is not None and not existing:
        space, record, planner = _fit(request, record, space, planner, data.manifest, deadline - time.monotonic())
    store_vectors(space, data.corpora.values(), data.manifest, request.storage)
    pace = None if deadline is None else _pace(request, planner, record, data.manifest, deadline, longest)
    if pace is not None and not existing and (first := pace.probes_first(space)) != space:
        space, record = first, record.model_copy(update={"start": first.start})
    own_run = write_run(request, existing, record, data, shards, space_file, texts)
    trial_bytes, before = planner.trial_bytes(data.manifest), own_run.trials()
    search = _search(request, own_run, shards, space, resources, engine, trial_bytes, planner.features, pace)
    forecast, started = planner.forecast(data.manifest), time.monotonic()
    reason = _train(request, search)
    own_run = with_all_trials(own_run)
    _keep_rates(planner, own_run, before)
    _finish(own_run, reason, resume_command(own_run, request.storage, request, deadline))
    if not before:
        _compare(planner, forecast, own_run, time.monotonic() - started)
    _say_next(request, own_run)
    return own_run


def _planner(request: SweepRequest, record: RunRecord, space: Space, resources: Resources) -> Planner:
    """The planner of the sweep's cost; measures the rates first if requested."""
    from cxrlt_ray.search import plan

    folds = f" x {record.models} folds" + (" of findings" if record.finding_folds else "") if record.models > 1 else ""
    print(f"Resources: {resources}")
    print(f"Plan: {counted(record.trials, 'trial')} of up to {counted(space.epochs, 'epoch')}{folds}")
    storage = Store(request.storage)
    planner = plan.Planner(
        space,
        record.trials,
        record.models,
        record.seed,
        resources,
        storage,
        request.address,
        request.gpu,
        features_bound(storage, request.features_gb),
        of_findings=record.finding_folds > 0,
    )
    if request.probe:
        kinds = len(planner.rates_on(planner.device))
        print(f"Probing {kinds} kinds of models for {plan.PROBE_SECONDS:.0f} s on {planner.device}", flush=True)
        planner.probe()
    return planner


def _print_plan(request: SweepRequest, existing: Run | None, record: RunRecord, space: Space, planner: Planner) -> None:
    """Print the models of a dry run, and the plan for the data or for the requested number of images.

    Of a run that goes on: of the trials that are missing.
    """
    from cxrlt_ray.cluster.node_cache import memory_bound
    from cxrlt_ray.reporting.plan import print_models, print_plan
    from cxrlt_ray.search.dry_run import stage_models

    if request.dry_run:
        findings = load_task(request.task).findings or TASK1  # auto's are not known yet
        print_models(stage_models(space.kinds(), findings), len(findings))
    count: int | Manifest
    if request.images or not (existing or request.data):
        named = {name for cohorts in space.cohorts() for name in cohorts.split("+")} | set(request.cohorts)
        count = request.images or space.images or PHANTOM_IMAGES
    else:
        data = data_of(existing) if existing else run_data(request, space, record.folds)
        count, named = data.manifest, set()
    if existing:
        if (done := sum(has_ended(trial) for trial in existing.trials())) >= record.trials:
            print(f"All {record.trials} trials of {existing.name} are done; give --trials a larger number to add more.")
            return
        print(f"Done: {done} of {counted(record.trials, 'trial')}; the plan is of the others, to their end.")
        planner = planner.following(done)
    elif request.seconds is not None:
        _, _, planner = _fit(request, record, space, planner, count, request.seconds, named)
    plan = planner.plan(count, named, request.keep_checkpoints)
    sizes = record.sizes_of_shards or sizes_to_prepare(request, space)
    print_plan(plan, request.price, memory_bound(request.cache_gb), sizes, record.quality)


def _prepare(
    request: SweepRequest, existing: Run | None, record: RunRecord, space: Space, data: RunData
) -> tuple[Shards, ...]:
    """Check the weights and every machine, start Ray, and make missing shards."""
    from cxrlt_ray import models
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.doctor import preflight

    specs = space.specs()
    models.check_weights(specs, data.learnt)
    for spec, part in space.parts():
        models.check_part(spec, part)
    ray = start_ray(request.address)
    sizes = record.sizes_of_shards if existing else sizes_to_prepare(request, space)
    encoders = trial_encoders(space)
    preflight(request.storage, ray, data.manifest, sizes, record.quality, specs, request.address, encoders)
    return prepare(data.manifest, request.storage, sizes, record.max_bad, record.quality, checksum=request.checksum)


def _fit(
    request: SweepRequest,
    record: RunRecord,
    space: Space,
    planner: Planner,
    images: int | Manifest,
    left: float,
    others: Iterable[str] = (),
) -> tuple[Space, RunRecord, Planner]:
    """Fit a new run's space, record and plan to the seconds that are left, and print a line that says so.

    Who asks for a number of trials wants an ensemble: two at least. A sweep that is to start measures rates that are
    not known. others: published cohorts beside a number of images.
    """
    assert request.seconds is not None
    fewest = 1 if request.trials is None else 2
    fit = planner.fit(left, images, fewest, measured=not request.starts_nothing, others=others)
    space = space.fitted(fit.size)
    record = fitted_record(record, space, fit.size)
    if not fit.size.full:
        planner = planner.fitted(space, record.trials)
    rate = planner.first_rate()
    known = not rate.source.startswith("estimated")
    print(fit.line(request.seconds, rate.rate, known, request.trials is None, rate.resolution), flush=True)
    return space, record, planner


def _pace(
    request: SweepRequest, planner: Planner, record: RunRecord, manifest: Manifest, deadline: float, longest: int
) -> Pace:
    """The pace of a sweep with a deadline: a requested number of trials is not exceeded."""
    from cxrlt_ray.search.pacing import Pace
    from cxrlt_ray.search.plan import draw_trials

    together, open_ended = planner.resources.max_concurrent, request.trials is None
    start = tuple(draw_trials(planner.space, len(planner.space.start), record.seed))
    seconds = planner.epoch_seconds(manifest)
    return Pace(deadline, seconds, record.trials, longest, open_ended, together, start, planner.folds)


def _search(
    request: SweepRequest,
    run: Run,
    shards: tuple[Shards, ...],
    space: Space,
    resources: Resources,
    engine: str,
    trial_bytes: TrialBytes,
    features: int,
    pace: Pace | None,
) -> Search:
    """The trials to run, with what they share; prints how images are streamed, and the disk space needed.

    features: bytes that stored features may take.
    """
    from cxrlt_ray.reporting.sweep import print_disk, print_features, print_ingest
    from cxrlt_ray.search.disk import DiskRoom
    from cxrlt_ray.search.tuner import FaultPolicy, Search
    from cxrlt_ray.text.label_embeddings import FILE
    from cxrlt_ray.training.job import Job

    record, ingest = run.record, ingest_of(engine, resources, request.cache_gb)
    print_ingest(ingest)
    frozen = any(stage.frozen_copies is not None for config in space.kinds() for stage in config.staged())
    print_features(str(features_folder(Store(request.storage))), features, frozen)
    ended = [trial for trial in run.trials() if has_ended(trial)]
    kept = sum(trial.state in (FINISHED, PRUNED) and not trial.record.dropped for trial in ended)
    missing = max(0, record.trials - len(ended))
    checkpoints = missing if request.keep_checkpoints is None else max(0, request.keep_checkpoints - kept)
    print_disk(run.store, trial_bytes.of_sweep(missing, resources.max_concurrent, min(missing, checkpoints)))
    job = Job(
        run.store.absolute(),
        shards,
        record.predicted,
        record.fingerprint,
        record.views,
        record.folds,
        record.seed,
        threads=resources.threads,
        gpu=resources.gpus_per_trial > 0,
        workers=max(resources.workers_per_trial, 1),
        ingest=ingest,
        trained_findings=record.asking.trained if record.asking else (),
        soft_targets=record.soft_targets is not None,
        corpus=run.store.exists(CORPUS),
        boxes=record.boxes is not None,
        features=features,
        asking=record.asking,
        label_embeddings=run.store.exists(FILE),
    )
    trackers = request.trackers or trackers_of(run)
    disk = DiskRoom(run.store, trial_bytes.most, resources.max_concurrent)
    policy = FaultPolicy(request.retries, request.hung_seconds, request.keep_checkpoints, disk)
    return Search(run, job, space, resources, record.trials, pace, record.seed, policy, record.search_db, trackers)


def _train(request: SweepRequest, search: Search) -> str:
    """Run the missing trials; returns the reason why the sweep was stopped before its end, or an empty text."""
    from cxrlt_ray.cluster.start import forget_decoded
    from cxrlt_ray.search.tuner import missing_trials, reopen_damaged, tune_trials

    run, reason = search.run, ""
    try:
        if request.resume:
            reopen_damaged(run)
        if (missing := missing_trials(run, search.trials)) or search.open_ended:
            more = f"{counted(missing, 'trial')} to go" + (", and more as time allows" if search.open_ended else "")
            print(f"Run {run.name}: {more}, in {run.store.uri}", flush=True)
            reason = tune_trials(search)
        else:
            print(f"All {search.trials} trials of {run.name} are done; give --trials a larger number to add more.")
    except KeyboardInterrupt:
        reason = "by the second Ctrl-C"
    except CxrltError as error:
        again = resume_command(run, request.storage, request, search.deadline)
        raise CxrltError(f"{str(error).rstrip('.')}; when it is mended, continue with `{again}`") from None
    finally:
        forget_decoded()
    return reason


def _finish(run: Run, reason: str, going_on: str) -> None:
    """Print the trials. Raises CxrltError if the sweep was stopped, or if no trial succeeded.

    going_on: the command that continues the run.
    """
    from cxrlt_ray.reporting.sweep import print_trials

    trials = run.trials()
    print_trials(run, trials)
    running = sum(trial.state == RUNNING for trial in trials)
    ended = sum(trial.state in (FINISHED, PRUNED) for trial in trials)
    if reason:
        begun = f", {running} more begun and saved" if running else ""
        so_far = f"with {ended} of {run.record.trials} trials done{begun}"
        stopped = f"{reason} {so_far}" if reason.startswith(("by", "before")) else f"{so_far}: {reason}"
        raise CxrltError(f"stopped {stopped}; continue with `{going_on}`")
    if not ended:
        raise CxrltError(f"no trial of run {run.name} ended well; the table's notes say why.")
    if again := sum(not has_ended(trial) for trial in trials):
        print(f"{counted(again, 'trial')} failed for no setting's fault: `{going_on}` tries again")


def _say_next(request: SweepRequest, run: Run) -> None:
    """Print the next command, and for machines the location of the run and its best trial."""
    from cxrlt_ray.reporting.trials import trial_record

    best = next(trial for trial in best_first(run.trials()) if trial.state in (FINISHED, PRUNED))
    following = f"Next: {ensemble_command(run, request.storage, request.address)}"
    output.result(following, [run.store.absolute().uri], run=run.name, best=trial_record(best))


def _keep_rates(planner: Planner, run: Run, before: Sequence[Trial]) -> None:
    """Keep the rates of the trials that this sweep trained, however it ended. before: the run's as it began."""
    ended = {trial.name for trial in before if trial.state != RUNNING}
    with suppress(CxrltError):  # the next plan estimates
        planner.keep_rates([trial for trial in run.trials() if trial.name not in ended])


def _compare(planner: Planner, forecast: Forecast, run: Run, seconds: float) -> None:
    """Compare the plan of a new run with the outcome."""
    from cxrlt_ray.reporting.sweep import print_comparison

    trials, planned = run.trials(), forecast.pruned
    print_comparison(planned.wall, int(planned.epochs.sum()) * planner.folds, seconds, trials)


main = cli.command(
    SweepRequest,
    run,
    """Train many classifiers, each a point of a search space.

    python -m cxrlt_ray.sweep task1
    python -m cxrlt_ray.sweep auto --data DIR --space laptop --trials 12
    python -m cxrlt_ray.sweep task1 --data /data/mimic --space task1 --trials 60 --address auto
    python -m cxrlt_ray.sweep task1 --space team_d --smoke
    python -m cxrlt_ray.sweep task1 --space team_d --dry-run --images 377110
    """,
    many=("--cohort", "--warm-from"),
)

if __name__ == "__main__":
    cli.run("sweep")
