"""Real learning curves for benchmarks/search.py: a grid of small models, each trained once.

Trains every point of GRID on the phantom cohort and, where there is one, on a folder of real chest X-rays (DATASETS)
and writes benchmarks/curves.parquet: dataset, the point, epoch, val_map (validation mAP) of the epoch, seconds. A
trial's predictions after 1, 3 and 9 epochs, for selection, go to build/curves/ (not kept in git). An interrupted
command can be run again and continues. About an hour a dataset on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from cache import job

if TYPE_CHECKING:
    from cxrlt_ray.training.job import Job

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "curves"
CURVES = HERE / "curves.parquet"
DATASETS = {"phantom": None, "nih": HERE.parents[1] / "shared" / "data" / "nih384"}
EPOCHS, RUNGS, RESOLUTION = 9, (1, 3, 9), 64
GRID = {
    "backbone": ["tf_efficientnet_lite0", "test_resnet", "test_convnext", "test_efficientnet"],
    "lr": [3e-4, 1e-3, 3e-3, 1e-2],
    "loss": ["bce", "weighted_bce", "asl"],
    "augment": [0.1, 0.5],
}


def points() -> list[dict[str, Any]]:
    """All points of the grid, the backbone changing fastest, so that an interrupted table is of all kinds."""
    names = list(GRID)[::-1]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(GRID[name] for name in names))]


def job_of(dataset: str) -> Job:
    """The dataset prepared as a sweep prepares it: what all trials share."""
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.data.tasks import load_task
    from cxrlt_ray.phantom import write_phantom

    folder, task = DATASETS[dataset], "auto"
    if folder is None:
        folder, task = BUILD / "phantom-tree", "task1"
        write_phantom(str(folder), images=1600, size=128, seed=0)
    manifest = read_cohort(str(folder), task=task).manifest
    start_ray()
    shards = prepare(manifest, str(BUILD), [RESOLUTION])
    findings = load_task(task, manifest.findings).findings
    return job(BUILD / dataset, manifest, shards, findings, threads=1)


def curve(shared: Job, dataset: str, number: int, point: dict[str, Any]) -> None:
    """Train one point; write its curve and, at RUNGS, its predictions."""
    from cxrlt_ray.runs.store import read_trial
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.training.trial import train

    config = TrialConfig(
        resolution=RESOLUTION,
        epochs=EPOCHS,
        pretrained=point["backbone"] == "tf_efficientnet_lite0",
        ema_decay=0.99,
        **point,
    )
    name = f"T{number:04d}"
    store = shared.run / "trials" / name

    def keep(report: dict[str, float]) -> None:
        if report["epoch"] in RUNGS:
            store.write(f"rung-{report['epoch']}.parquet", store.read("predictions/val.parquet"))

    start = time.monotonic()
    train(shared, name, config, point, keep)
    epochs = read_trial(store).record.epochs
    seconds = (time.monotonic() - start) / EPOCHS
    rows = [
        {**point, "epoch": epoch.epoch + 1, "val_map": epoch.score, "seconds": round(seconds, 2)} for epoch in epochs
    ]
    store.write_json("curve.json", rows)
    best = max(row["val_map"] for row in rows)
    print(f"{dataset} {number + 1}/{len(points())} {point} {best:.4f} {seconds:.1f} s an epoch", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help=f"of {', '.join(DATASETS)}; those that exist unless given")
    existing = [name for name, folder in DATASETS.items() if folder is None or folder.is_dir()]
    for dataset in parser.parse_args().datasets or existing:
        shared = job_of(dataset)
        for number, point in enumerate(points()):
            if not (shared.run / "trials" / f"T{number:04d}").exists("curve.json"):
                curve(shared, dataset, number, point)
    rows = []
    for dataset in DATASETS:
        for path in sorted((BUILD / dataset).glob("trials/*/curve.json")):
            rows += [
                {"dataset": dataset, "number": int(path.parent.name[1:]), **row} for row in json.loads(path.read_text())
            ]
    pd.DataFrame(rows).to_parquet(CURVES, index=False)
    print(f"{CURVES}: {len(rows):,} epochs")


if __name__ == "__main__":
    main()
