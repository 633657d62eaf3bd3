"""How long a run of 10,000 finished trials takes to open, and how much memory: on a disk and on an object store.

The run is written on the spot: records of 6 epochs, predictions of 100 images x 4 findings, checkpoints of one number.
On the object store (moto, a server in Python in this process: it takes 2 to 10 ms a request, one after the other)
its index stands beside it, as a sweep leaves it. Measured in processes of their own: `trials`, `ensemble --most`, and
what a resumed sweep does before Ray runs anything: read the trials, check their files, open the study, tell ASHA. The
study's file is there (as a sweep leaves it) unless --lost asks for it to be made again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from processes import Watched, watched
from report import Row, options, publish

BUILD = Path(__file__).parent.parent / "build" / "opened"
FINDINGS, IMAGES, EPOCHS = ("Mass", "Nodule", "Edema", "Hernia"), 100, 6
SPACE = """
trials: {count}
epochs: 6
parameters:
  backbone: {{choices: [test_convnext, test_resnet]}}
  pretrained: false
  resolution: 32
  lr: {{low: 1.0e-5, high: 1.0e-2, log: true}}
"""


def write_run(storage: str, count: int) -> None:
    """Write the run `many` of so many finished trials."""
    from concurrent.futures import ThreadPoolExecutor

    import pandas as pd
    from safetensors.numpy import save

    from cxrlt_ray.data.manifest import MAIN, META, Manifest
    from cxrlt_ray.data.tasks import Task
    from cxrlt_ray.runs.predictions import Predictions
    from cxrlt_ray.runs.records import FINISHED, EpochRecord, RunRecord, TrialRecord
    from cxrlt_ray.runs.store import Trial, create_run, keep_index
    from cxrlt_ray.runs.trial_config import TrialConfig

    rng = np.random.default_rng(0)
    rows = np.arange(2 * IMAGES)
    targets = (rng.random((2 * IMAGES, len(FINDINGS))) < 0.25).astype(np.int8)
    table = pd.DataFrame({column: [None] * len(rows) for column in META})
    table = table.assign(image_id=[f"i{k:04d}" for k in rows], study_id=[f"s{k}" for k in rows], view="PA")
    table = table.assign(subject_id=[str(k // 2) for k in rows], path="x.jpg", cohort=MAIN)
    table["split"] = np.where(rows < IMAGES, "val", "train")
    labels = pd.DataFrame(targets, columns=list(FINDINGS)).astype("Int8")
    manifest = Manifest(pd.concat([table, labels], axis=1), FINDINGS, "table", storage)
    record = RunRecord(name="many", task=Task("auto", FINDINGS, "test"), task_argument="auto", data="/data")
    space = SPACE.format(count=count).encode()
    run = create_run(storage, record.model_copy(update={"trials": count}), manifest, {"space.yaml": space})
    ids, weights = table["image_id"].to_numpy()[:IMAGES], save({"weight": np.zeros(1, np.float32)})

    def write(m: int) -> None:
        rng = np.random.default_rng([0, m])
        params = {"backbone": "test_convnext", "lr": float(10 ** rng.uniform(-5, -2))}
        config = TrialConfig(**params, pretrained=False, resolution=32, epochs=EPOCHS)
        scores = [round(float(score), 4) for score in np.sort(rng.uniform(0.2, 0.4, EPOCHS))]
        epochs = [EpochRecord(fold=0, stage=0, epoch=k, score=score) for k, score in enumerate(scores)]
        trial = TrialRecord(name=f"T{m:04d}", state=FINISHED, params=params, config=config, score=scores[-1])
        changes = {"findings": FINDINGS, "fingerprint": run.record.fingerprint, "epochs": epochs, "stage": 0}
        store = run.store / "trials" / trial.name
        logits = 2.0 * targets[:IMAGES] + rng.normal(0, rng.uniform(1, 3), (IMAGES, len(FINDINGS)))
        probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
        Predictions(ids, probabilities, FINDINGS, "val", run.record.fingerprint).write(store, "predictions/val.parquet")
        store.write("fold-0/model.safetensors", weights)
        Trial(store, trial).write(trial.model_copy(update=changes))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(write, range(count)))
    keep_index(run)
    start(storage)  # leaves the study's file


def start(storage: str) -> None:
    """What a resumed sweep does before Ray runs anything."""
    from cxrlt_ray.runs.store import load_run
    from cxrlt_ray.search.asha import scheduler_of
    from cxrlt_ray.search.optuna_study import OptunaStudy
    from cxrlt_ray.search.space_file import load_space
    from cxrlt_ray.search.tuner import missing_trials, reopen_damaged

    began = time.perf_counter()

    def lap(what: str) -> None:
        print(f"{what} after {time.perf_counter() - began:.1f} s", flush=True)

    run = load_run(storage, "many")
    with run.store.fetched("space.yaml") as path:
        space = load_space(str(path))
    reopen_damaged(run)
    lap("checked")
    OptunaStudy(run, space, 0, None, space.metric).copy()
    lap("study opened")
    scheduler_of(space, space.epochs, run, space.metric)
    lap("ASHA told")
    assert missing_trials(run, run.record.trials) == 0


def measured(storage: str, most: int, lost: bool) -> list[tuple[str, Watched]]:
    """Each command's name and what it took."""
    from cxrlt_ray.storage import Store

    places = ["--storage", storage]
    if lost:
        Store(f"{storage}/many").delete("optuna.db")
    commands = {
        "`trials many`": ["-m", "cxrlt_ray.trials", "many", *places],
        f"`ensemble --most {most}`": ["-m", "cxrlt_ray.ensemble", "--run", "many", "--most", str(most), *places],
        "start of `sweep --resume`" + (", the study made anew" if lost else ""): [__file__, "--start", storage],
    }
    results = []
    for name, command in commands.items():
        result = watched([sys.executable, *command])
        print(result.output[-1500:], f"{name}: {result.seconds:.1f} s", flush=True)
        if result.code:
            sys.exit(f"{name} ended with {result.code}; its output stands above.")
        results.append((name, result))
    return results


def opened(args: argparse.Namespace, remote: bool) -> tuple[list[str], list[Row]]:
    """The table's rows of one kind of storage, and the summary's."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from s3 import served

    count = args.remote if remote else args.trials
    storage = "s3://bucket/runs" if remote else str(BUILD)
    shutil.rmtree(BUILD, ignore_errors=True)
    lines, rows = [], []
    with served("bucket") if remote else nullcontext():
        write_run(storage, count)
        for name, result in measured(storage, args.most, args.lost):
            where = "s3:// (moto)" if remote else "disk"
            lines.append(f"| {where} | {count:,} | {name} | {result.seconds:,.1f} | {result.peak / 2**20:,.0f} |")
            work = f"{count:,} finished trials on {where} opened by {name}"
            rows.append((work, "goal", f"{result.seconds:,.0f} s, {result.peak / 2**20:,.0f} MiB", "seconds"))
    return lines, rows


def main() -> None:
    if sys.argv[1:2] == ["--start"]:
        start(sys.argv[2])
        return
    parser = options(__doc__, {"trials": 10_000, "remote": 10_000, "most": 20})
    parser.add_argument("--lost", action="store_true", help="the study's file is lost and made again from the trials")
    args = parser.parse_args()
    lines = ["| storage | trials | command | s | peak memory, MiB |", "|---|---|---|---|---|"]
    rows: list[Row] = []
    for remote in [False] * bool(args.trials) + [True] * bool(args.remote):
        of_storage, summary = opened(args, remote)
        lines += of_storage
        rows += summary
    publish("opened", "Many finished trials", ":", lines, args.write, rows)


if __name__ == "__main__":
    main()
