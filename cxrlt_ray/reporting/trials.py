"""Tables of runs and of trials."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.runs.store import Trial, best_first, load_run, runs


def runs_table(storage: str) -> Any:
    """A rich table of the runs in `storage`."""
    from rich import box
    from rich.table import Table

    table = Table("run", "task", "track", "created", "data", "trials", "best score", box=box.SIMPLE_HEAD)
    for name in runs(storage):
        run = load_run(storage, name)
        trials = run.trials()
        best = next(iter(best_first(trials)), None)
        score = f"{best.record.metric.title} {best.score:.4f}" if best and best.score == best.score else ""
        states = ", ".join(
            f"{count} {state}" for state, count in pd.Series([t.state for t in trials]).value_counts().items()
        )
        record = run.record  # track: what training has seen of findings that are asked for by text
        table.add_row(name, run.task.name, record.track or "", record.created[:16], str(record.data), states, score)
    return table


def trials_table(trials: list[Trial]) -> Any:
    """A rich table of trials, best first."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    score = " / ".join(sorted({trial.record.metric.title for trial in trials})) or "val mAP"
    for column in ("trial", "state", score, "epochs", "backbone", "px", "loss", "lr", "images/s"):
        table.add_column(column, no_wrap=True)
    table.add_column("note")
    for trial in best_first(trials):
        record, config = trial.record, trial.record.config  # None where a trial ended before it began
        table.add_row(
            trial.name,
            trial.state,
            f"{trial.score:.4f}" if trial.score == trial.score else "",
            str(len(record.epochs)),
            config.backbone if config else "",
            str(config.resolution) if config else "",
            config.loss if config else "",
            f"{config.lr:.1e}" if config else "",
            f"{record.images_per_second:.0f}" if record.images_per_second else "",
            cli.shortened(record.reason or ""),
        )
    return table
