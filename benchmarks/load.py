"""Under load: many trials at a time on few cores, a library larger than memory, a million images in a manifest.

Trials: a sweep of tiny ones on a small phantom, 8 at a time on 2 cores. Library: a run's directory of 2,000 trials with
predictions of the challenge's size, opened by `ensemble`; the scores are drawn in 4,096 steps of a logit, so that the
files stay below 6 GB (random bits do not compress), and the test images' files are links to one, since selection is
what is measured. Rows: a phantom's tables, read and split. Every command is a process of its own, watched from /proc.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from processes import Watched, watched
from report import Row, options, publish

from cxrlt_ray.data.tasks import TASK1

BUILD = Path(__file__).parent.parent / "build" / "load"
PARTS = ("trials", "library", "rows")
VALIDATION, TEST = 39_293, 2_000
STEPS, WIDEST = 4096, 12.0  # scores are sigmoids of so many logits, from -WIDEST to WIDEST
SPACE = """
trials: 64
epochs: 1
parameters:
  backbone: {choices: [test_convnext, test_resnet]}
  pretrained: false
  resolution: 32
  batch_size: 32
  lr: {low: 1.0e-3, high: 1.0e-2, log: true}
"""


def run_module(*arguments: object) -> Watched:
    """A command of the package, watched; the end of its output is printed. The benchmark ends where it fails."""
    result = watched([sys.executable, "-m", *map(str, arguments)])
    print(result.output[-3000:], f"{' '.join(map(str, arguments[:2]))}: {result.seconds:.0f} s", flush=True)
    if result.code:
        sys.exit(f"{arguments[0]} ended with {result.code}; its output stands above.")
    return result


def cells(result: Watched) -> str:
    """Seconds, peak of the driver, peak of all."""
    return f"{result.seconds:,.0f} | {result.peak / 2**20:,.0f} | {result.together / 2**20:,.0f}"


HEAD = "s | peak RSS of the driver, MiB | of all processes together (private), MiB"


def trials(count: int) -> tuple[list[str], list[Row]]:
    """A sweep of `count` tiny trials, 8 at a time."""
    from cxrlt_ray.phantom import write_phantom
    from cxrlt_ray.runs.records import FINISHED
    from cxrlt_ray.runs.store import load_run

    write_phantom(BUILD / "phantom-400", images=400, size=64)
    (BUILD / "tiny.yaml").write_text(SPACE)
    shutil.rmtree(BUILD / "runs" / "tiny", ignore_errors=True)
    storage = ["--storage", BUILD / "runs", "--name", "tiny"]
    resources = ["--max-concurrent", 8, "--cpus-per-trial", 0.2, "--trials", count]
    data = ["auto", "--data", BUILD / "phantom-400", "--space", BUILD / "tiny.yaml"]
    result = run_module("cxrlt_ray.sweep", *data, *resources, *storage)
    records = [trial.record for trial in load_run(str(BUILD / "runs"), "tiny").trials()]
    finished = sum(record.state == FINISHED for record in records)
    training = max(record.ended for record in records) - min(record.began for record in records)
    lines = [
        f"| tiny trials, 8 at a time | finished | {HEAD} | processes at once | left behind |",
        "|---|---|---|---|---|---|---|",
        f"| {count} | {finished} | {cells(result)} | {result.most} | {len(result.left)} |",
        "",
        f"{training:.0f} s of that from the first trial's start to the last one's end.",
    ]
    summary = (
        f"{finished} finish in {result.seconds:,.0f} s, {result.together / 2**30:.1f} GiB, {len(result.left)} left"
    )
    return lines, [(f"{count} tiny trials, 8 at a time", "all finish, no process left behind", summary, "all, 0")]


def library(count: int) -> Path:
    """The run's directory with `count` trials, made where it does not exist."""
    import pandas as pd

    from cxrlt_ray.data.manifest import MAIN, META, Manifest
    from cxrlt_ray.data.tasks import Task
    from cxrlt_ray.phantom.labels import PREVALENCE
    from cxrlt_ray.runs.predictions import Predictions
    from cxrlt_ray.runs.records import FINISHED, RunRecord, TrialRecord
    from cxrlt_ray.runs.store import Trial, create_run
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.storage import Store

    storage, name = str(BUILD / "library"), f"{count}-trials"
    if (BUILD / "library" / name / "whole").exists():
        return BUILD / "library" / name
    shutil.rmtree(BUILD / "library" / name, ignore_errors=True)
    rng = np.random.default_rng(0)
    images = VALIDATION + 2 * TEST
    subject = np.repeat(np.arange(images), rng.integers(3, 7, images))[:images]
    split = np.array(["val", "test", "train"])[
        np.searchsorted([VALIDATION, VALIDATION + TEST], np.arange(images), "right")
    ]
    shares = np.array([PREVALENCE[finding] for finding in TASK1])
    targets = rng.random((images, len(TASK1))) < shares
    targets[[0, 1, VALIDATION, -1]] = True
    rows = np.arange(images)
    table = pd.DataFrame({column: [None] * images for column in META})
    table = table.assign(image_id=[f"i{k:07d}" for k in rows], study_id=[f"s{k // 2}" for k in rows], view="PA")
    table = table.assign(subject_id=[f"{s}-{p}" for s, p in zip(subject, split, strict=True)], split=split, cohort=MAIN)
    labels = pd.DataFrame(targets.astype(np.int8), columns=list(TASK1)).astype("Int8")
    manifest = Manifest(pd.concat([table.assign(path=table["image_id"]), labels], axis=1), TASK1, "table", storage)
    record = RunRecord(name=name, task=Task("task1", TASK1, "test"), task_argument="task1", data=storage)
    run = create_run(storage, record, manifest, {})
    fingerprint = run.record.fingerprint
    ids = {part: table["image_id"][split == part].to_list() for part in ("val", "test")}
    truth = targets[:VALIDATION].astype(np.float32)
    shift = (1.5 - 0.5 * np.log10(shares)).astype(np.float32)
    difficulty = rng.standard_normal(truth.shape, np.float32)
    prior = np.log(shares / (1 - shares)).astype(np.float32)
    steps = (1 / (1 + np.exp(-np.linspace(-WIDEST, WIDEST, STEPS)))).astype(np.float32)
    config = TrialConfig(backbone="test_convnext", resolution=64, epochs=1, pretrained=False)
    for m in range(count):
        rng = np.random.default_rng([0, m + 1])
        noise = (rng.uniform(0.6, 1.6) * np.exp(rng.normal(0, 0.2, len(TASK1)))).astype(np.float32)
        evidence = shift * (truth - 0.5) + difficulty + noise * rng.standard_normal(truth.shape, np.float32)
        logits = prior + rng.uniform(0.5, 1.0) * evidence
        scores = steps[((logits + WIDEST) * ((STEPS - 1) / (2 * WIDEST)) + 0.5).clip(0, STEPS - 1).astype(np.int16)]
        store = run.store / "trials" / f"T{m:04d}"
        Predictions(ids["val"], scores, TASK1, "val", fingerprint).write(store, "predictions/val.parquet")
        test = "predictions/test.parquet"
        if m:
            os.link(Path(storage) / name / "trials/T0000" / test, Path(store.uri) / test)
        else:
            Predictions(ids["test"], scores[:TEST], TASK1, "test", fingerprint).write(store, test)
        trial = TrialRecord(
            name=store.uri.rpartition("/")[2],
            state=FINISHED,
            config=config,
            score=0.3,
            findings=TASK1,
            trained_findings=TASK1,
            fingerprint=fingerprint,
        )
        Trial(store, trial).write(trial)
    Store(storage).write(f"{name}/whole", b"")
    return BUILD / "library" / name


def ensembles(count: int, most: list[int]) -> tuple[list[str], list[Row]]:
    """Ensembles of the library's trials: as memory allows, and of the best few hundred."""
    began = time.monotonic()
    run = library(count)
    seconds = time.monotonic() - began
    size = sum(path.stat().st_size for path in run.glob("trials/*/predictions/val.parquet")) / 1e9
    raw = count * VALIDATION * len(TASK1) * 4 / 1e9
    lines = [f"| `ensemble` of {count:,} trials | chosen among | {HEAD} |", "|---|---|---|---|---|"]
    rows: list[Row] = []
    for limit in most:
        result = run_module("cxrlt_ray.ensemble", "--run", run.name, "--storage", run.parent, "--most", limit)
        lines.append(f"| `--most {limit}` | {limit} | {cells(result)} |")
        work = f"{count:,} stored trials of {VALIDATION:,} x {len(TASK1)} opened, --most {limit}"
        rows.append((work, "goal", f"{result.peak / 2**30:.1f} GiB, {result.seconds:,.0f} s", "memory"))
    lines += ["", f"{raw:.1f} GB of predictions in float32, {size:.1f} GB as Parquet ({seconds:.0f} s to write)."]
    return lines, rows


def million(count: int) -> tuple[list[str], list[Row]]:
    """A phantom's tables, read and split."""
    folder = BUILD / f"rows-{count}"
    shutil.rmtree(folder, ignore_errors=True)
    drawing = run_module("cxrlt_ray.phantom", folder, "--images", count, "--no-pictures")
    reading = run_module("cxrlt_ray.cohort", folder, "--task", "task1", "--no-files")
    splitting = watched([sys.executable, __file__, "--split", folder])
    print(splitting.output)
    steps = json.loads(splitting.output.splitlines()[-1])
    lines = [
        f"| {count:,} rows | {HEAD} |",
        "|---|---|---|---|",
        f"| `phantom --no-pictures` | {cells(drawing)} |",
        f"| `cohort --no-files` | {cells(reading)} |",
        f"| read, hold out 15 %, 5 folds, write, read again | {cells(splitting)} |",
        "",
        f"Of the last: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in steps.items())}.",
    ]
    summary = f"{reading.seconds:,.0f} s, {reading.peak / 2**30:.1f} GiB"
    return lines, [(f"{count:,} rows read, checked and summed up by `cohort`", "goal", summary, "minutes")]


def split(folder: str) -> None:
    """Print the seconds of each step from tables to folds."""
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.data.splits import assign_folds, holdout

    seconds, at = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal at
        seconds[name], at = time.perf_counter() - at, time.perf_counter()

    manifest = read_cohort(folder, task="task1").manifest
    lap("read")
    train = manifest.of_split("train")
    inputs = train.targets(), train.table["subject_id"].to_numpy()
    lap("targets")
    holdout(*inputs, 0.15, 0)
    lap("hold out")
    assign_folds(*inputs, 5, 0)
    lap("folds")
    manifest.write(f"{folder}/manifest.parquet")
    lap("write")
    Manifest.read(f"{folder}/manifest.parquet")
    lap("read again")
    print(json.dumps(seconds))


def main() -> None:
    if sys.argv[1:2] == ["--split"]:
        split(sys.argv[2])
        return
    parser = options(__doc__, {"trials": 64, "members": 2000, "rows": 1_000_000})
    parser.add_argument("--only", choices=PARTS, help="one part of the three")
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    work = {
        "trials": lambda: trials(args.trials),
        "library": lambda: ensembles(args.members, [200]),
        "rows": lambda: million(args.rows),
    }
    lines: list[str] = []
    rows: list[Row] = []
    for name in [args.only] if args.only else PARTS:
        part_lines, part_rows = work[name]()
        lines += [*([""] if lines else []), *part_lines]
        rows += part_rows
    publish("load", "Load", ":", lines, args.write and not args.only, rows)


if __name__ == "__main__":
    main()
