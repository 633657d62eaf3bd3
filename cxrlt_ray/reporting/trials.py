"""Tables of runs and of trials."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.runs.store import Trial, best_first, load_run, runs


def runs_table(storage: str) -> Any:
    """A rich table of the runs in `storage`."""
    from cxrlt_ray.output.tables import RecordTable

    table = RecordTable("runs", "run", "task", "track", "created", "data", "trials", "best score")
    for name in runs(storage):
        run = load_run(storage, name)
        trials = run.trials()
        best = next(iter(best_first(trials)), None)
        score = f"{best.record.metric.title} {best.score:.4f}" if best and best.score == best.score else ""
        counts = pd.Series([t.state for t in trials]).value_counts().to_dict()
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        record = run.record  # track: what training has seen of findings that are asked for by text
        values: dict[str, object] = {
            "run": name,
            "task": run.task.name,
            "track": record.track,
            "created": record.created,
        }
        values |= {"data": record.data, "trials": counts, "best": None if best is None else trial_record(best)}
        cells = (name, run.task.name, record.track or "", record.created[:16], str(record.data), states, score)
        table.add_record(values, *cells)
    return table


def trial_record(trial: Trial) -> dict[str, object]:
    """A trial's numbers as it left them."""
    record, config = trial.record, trial.record.config  # None where a trial ended before it began
    chosen = ("backbone", "resolution", "loss", "lr")
    return {
        "trial": trial.name,
        "state": trial.state,
        "metric": record.metric.name,
        "score": trial.score,
        "epochs": len(record.epochs),
        "images_per_second": record.images_per_second,
        **{name: getattr(config, name) if config else None for name in chosen},
        "reason": record.reason,
    }


def trials_table(trials: list[Trial]) -> Any:
    """A rich table of trials, best first."""
    from cxrlt_ray.output.tables import RecordTable

    table = RecordTable("trials")
    score = " / ".join(sorted({trial.record.metric.title for trial in trials})) or "val mAP"
    for column in ("trial", "state", score, "epochs", "backbone", "px", "loss", "lr", "images/s"):
        table.add_column(column, no_wrap=True)
    table.add_column("note")
    for trial in best_first(trials):
        record, config = trial.record, trial.record.config  # None where a trial ended before it began
        table.add_record(
            trial_record(trial),
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
