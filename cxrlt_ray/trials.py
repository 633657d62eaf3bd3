"""`python -m cxrlt_ray.trials [RUN]`: list the runs, or the trials of one."""

from __future__ import annotations

from typing import Annotated

from cxrlt_ray import cli, output
from cxrlt_ray.data.features import FeatureStorage, features_folder
from cxrlt_ray.errors import UsageError
from cxrlt_ray.reporting.trials import runs_table, trials_table
from cxrlt_ray.runs.records import TRANSDUCTIVE
from cxrlt_ray.runs.store import DEFAULT_STORAGE, best_first, load_run, runs
from cxrlt_ray.storage import Store


def main(
    run: Annotated[str | None, cli.argument("the run whose trials to list; default: list the runs")] = None,
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
        line = f"{count} stores of features removed from {kept.folder}, {cli.size(size)}{in_use}"
        output.result(line, removed=count, bytes=size, bytes_in_use=left)
        return
    if run is None:
        if not (names := runs(storage)):
            raise UsageError(f"no run in {storage}: start one with `python -m cxrlt_ray.sweep task1`.")
        table = runs_table(storage)
    else:
        listed = load_run(storage, run)
        trials = listed.trials()
        table, names = trials_table(trials), [trial.name for trial in best_first(trials)]
    cli.console().print(table)
    if run is not None and listed.record.transductive:
        print(TRANSDUCTIVE)
    output.result("", brief="\n".join(names))


if __name__ == "__main__":
    cli.run("trials")
