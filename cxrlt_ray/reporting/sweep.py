"""What a sweep prints before its trials and after them."""

from __future__ import annotations

from collections.abc import Sequence

from cxrlt_ray import cli
from cxrlt_ray.data.stream import THREADS, Ingest
from cxrlt_ray.reporting.trials import trials_table
from cxrlt_ray.runs.cost import gflops
from cxrlt_ray.runs.records import FINISHED, TRANSDUCTIVE
from cxrlt_ray.runs.store import Run, Trial
from cxrlt_ray.storage import Store


def print_disk(store: Store, needed: float) -> None:
    """Print how many bytes the sweep will take, and what is free."""
    free = store.free()
    line = f"Disk: this sweep will take up to {cli.size(needed)}"
    print(line + (f", {cli.size(free)} are free in {store.uri}" if free is not None else f" of {store.uri}"))
    if free is not None and needed > free:
        print("      more than there is: it will stop before the disk is full; --keep-checkpoints N takes less")


def print_ingest(ingest: Ingest) -> None:
    """Print how trials stream images."""
    how = f"{ingest.threads} threads a trial" if ingest.engine == THREADS else "Ray Data tasks"
    memory = cli.size(ingest.memory)
    print(f"Streaming: {how}; decoded images kept in up to {memory} of memory a machine, for all trials")


def print_features(folder: str, bound: float, needed: bool) -> None:
    """Print where features of frozen backbones are stored, if any trial has one."""
    if needed:
        where = f"stored in up to {cli.size(bound)} of {folder}, for all runs" if bound else "computed in every epoch"
        print(f"Features of frozen backbones: {where}")


def print_trials(run: Run, trials: Sequence[Trial]) -> None:
    """Print the table of a run's trials, those that no other beats in score and cost, and the disk they take."""
    cli.console().print(trials_table(list(trials)))
    if run.record.transductive:
        print(TRANSDUCTIVE)
    if "cost" in run.record.objectives:
        print(_front(trials))
    free = run.store.free()
    left = "" if free is None else f", {cli.size(free)} free"
    print(f"Disk: {run.store.uri} holds {cli.size(run.store.size())}{left}")


def _front(trials: Sequence[Trial]) -> str:
    """The finished trials that no other beats in both mAP and cost, cheapest first."""
    finished = [trial for trial in trials if trial.state == FINISHED]
    best, front = -1.0, []
    for cost, trial in sorted(zip(gflops(finished), finished, strict=True), key=lambda pair: (pair[0], -pair[1].score)):
        if trial.score > best:
            best = trial.score
            front.append(f"{trial.name} {cli.short(best)} at {cost:.3g}")
    return f"No other trial has both more mAP and fewer GFLOPs: {', '.join(front)}"


def print_comparison(planned_seconds: float, planned_epochs: int, seconds: float, trials: Sequence[Trial]) -> None:
    """Print how a plan compares with what the sweep took."""
    epochs = sum(len(trial.record.epochs) for trial in trials)
    print(
        f"Planned {cli.duration(planned_seconds)} and {planned_epochs} epochs, took {cli.duration(seconds)} and "
        f"{epochs}: {seconds / planned_seconds:.2f} times the plan. Rates kept for the next plan (--plan)."
    )
