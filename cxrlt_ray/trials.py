"""`python -m cxrlt_ray.trials [RUN]`: the runs there are, or the trials of one."""

from __future__ import annotations

from typing import Annotated

from cxrlt_ray import cli
from cxrlt_ray.data.features import FeatureStorage, features_folder
from cxrlt_ray.errors import UsageError
from cxrlt_ray.reporting.trials import runs_table, trials_table
from cxrlt_ray.runs.records import TRANSDUCTIVE
from cxrlt_ray.runs.store import DEFAULT_STORAGE, load_run, runs
from cxrlt_ray.storage import Store


def main(
    run: Annotated[str | None, cli.argument("the run whose trials to list; without it, the runs")] = None,
    storage: Annotated[str, cli.option("where the runs are: a directory or URI")] = DEFAULT_STORAGE,
    forget_features: Annotated[
        bool, cli.option("remove the stored features of frozen backbones and embeddings of texts")
    ] = False,
) -> None:
    """List runs, or the trials of one.

    python -m cxrlt_ray.trials
    python -m cxrlt_ray.trials RUN
    python -m cxrlt_ray.trials --forget-features
    """
    if forget_features:
        kept = FeatureStorage(features_folder(Store(storage)), 0)
        count, size = kept.forget()
        left = kept.held()
        in_use = f"; {cli.size(left)} are in use and stay" if left else ""
        print(f"{count} stores of features removed from {kept.folder}, {cli.size(size)}{in_use}")
        return
    console = cli.console()
    if run is None:
        if not runs(storage):
            raise UsageError(f"no run in {storage}: start one with `python -m cxrlt_ray.sweep task1`.")
        console.print(runs_table(storage))
    else:
        listed = load_run(storage, run)
        console.print(trials_table(listed.trials()))
        if listed.record.transductive:
            console.print(TRANSDUCTIVE)


if __name__ == "__main__":
    cli.run("trials")
