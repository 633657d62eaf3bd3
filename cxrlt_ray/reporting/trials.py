"""Tables of runs and of trials."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cxrlt_ray.runs.store import Trial, load_run, runs, short


def runs_table(storage: str) -> Any:
    """A rich table of the runs in `storage`."""
    from rich import box
    from rich.table import Table

    table = Table("run", "task", "created", "data", "trials", "best val mAP", box=box.SIMPLE_HEAD)
    for name in runs(storage):
        run = load_run(storage, name)
        trials = run.trials()
        best = max((t.val_map for t in trials if t.val_map == t.val_map), default=float("nan"))
        states = ", ".join(
            f"{count} {state}" for state, count in pd.Series([t.state for t in trials]).value_counts().items()
        )
        table.add_row(name, run.task.name, run.about["created"][:16], str(run.about["data"]), states, f"{best:.4f}")
    return table


def trials_table(trials: list[Trial]) -> Any:
    """A rich table of trials, best first."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("trial", "state", "val mAP", "epochs", "backbone", "px", "loss", "lr", "images/s"):
        table.add_column(column, no_wrap=True)
    table.add_column("note")
    for trial in sorted(trials, key=lambda t: -t.val_map if t.val_map == t.val_map else 1):
        config = trial.about["config"]  # {} where a trial ended before it began
        speed = trial.about.get("images_per_second")
        table.add_row(
            trial.name,
            trial.state,
            f"{trial.val_map:.4f}" if trial.val_map == trial.val_map else "",
            str(len(trial.about.get("epochs", []))),
            config.get("backbone", ""),
            str(config.get("resolution", "")),
            config.get("loss", ""),
            f"{config['lr']:.1e}" if "lr" in config else "",
            f"{speed:.0f}" if speed else "",
            short(trial.about.get("reason") or ""),
        )
    return table
