"""Whether the files that a trial should have left are there and whole: what is damaged is trained again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.checkpoint import whole
from cxrlt_ray.runs.records import FINISHED
from cxrlt_ray.runs.store import Run, Trial
from cxrlt_ray.storage.store import THREADS


def damage(trial: Trial, models: int = 1) -> str:
    """What is wrong with the files that a trial which ended well should have left, or nothing.

    models: that it trains on folds.
    """
    try:
        if _has_predicted(trial, models):
            trial.predictions()
    except CxrltError as error:
        return str(error).rstrip(".")
    if trial.record.dropped:
        return ""
    names = trial.checkpoints
    if not names:
        return "its checkpoint is not there"
    for name in names:
        with trial.store.fetched(f"{name}/model.safetensors") as path:
            if not path.exists() or not whole(path):
                return f"{trial.store.uri}/{name}/model.safetensors is damaged"
    return ""


def damages(run: Run, trials: list[Trial]) -> dict[str, str]:
    """What is wrong with the files of trials that ended well, by name, where something is: see `damage`.

    On an object store, which keeps an object whole or not at all, it is asked by one listing whether they are there.
    """
    if run.store.local is None:
        files = run.files()
        faults = [_absence(trial, files.get(trial.name, {}), run.record.models) for trial in trials]
    else:
        with ThreadPoolExecutor(THREADS) as threads:
            faults = list(threads.map(partial(damage, models=run.record.models), trials))
    return {trial.name: fault for trial, fault in zip(trials, faults, strict=True) if fault}


def _has_predicted(trial: Trial, models: int) -> bool:
    """Whether a trial that ended well left predictions: one of several folds does once all of them are trained."""
    return trial.predicts and (models <= 1 or trial.state == FINISHED)


def _absence(trial: Trial, files: dict[str, int], models: int) -> str:
    """Which file that a trial should have left is not among its `files`, or nothing."""
    if _has_predicted(trial, models) and not files.get("predictions/val.parquet"):
        return f"{trial.store.uri}/predictions/val.parquet is not there"
    if trial.record.dropped:
        return ""
    weights = {path: size for path, size in files.items() if path.endswith("/model.safetensors")}
    return "" if weights and all(weights.values()) else "its checkpoint is not there"
