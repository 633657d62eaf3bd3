"""`python -m cxrlt_ray.trials [RUN]`: the runs there are, or the trials of one."""

from __future__ import annotations

from typing import Annotated

from cxrlt_ray import cli
from cxrlt_ray.errors import UsageError
from cxrlt_ray.reporting.trials import runs_table, trials_table
from cxrlt_ray.runs.store import DEFAULT_STORAGE, load_run, runs


def main(
    run: Annotated[str | None, cli.argument("the run whose trials to list; without it, the runs")] = None,
    storage: Annotated[str, cli.option("where the runs are: a directory or URI")] = DEFAULT_STORAGE,
) -> None:
    """List runs, or the trials of one.

    python -m cxrlt_ray.trials
    python -m cxrlt_ray.trials RUN
    """
    console = cli.console()
    if run is None:
        if not runs(storage):
            raise UsageError(f"no run in {storage}: start one with `python -m cxrlt_ray.sweep task1`.")
        console.print(runs_table(storage))
    else:
        console.print(trials_table(load_run(storage, run).trials()))


if __name__ == "__main__":
    cli.run("trials")
