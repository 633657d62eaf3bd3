"""Under load: many trials at a time on few cores, a library larger than memory, a million images in a manifest.

Trials: a sweep of tiny ones on a small phantom, 8 at a time on 2 cores. Library: a run's directory of 2,000 trials with
predictions of the challenge's size, opened by `ensemble`; the scores are drawn in 4,096 steps of a logit, so that the
files stay below 6 GB (random bits do not compress), and the test images' files are links to one, for what is measured
is choosing. Rows: a phantom's tables, read and split. Every command is a process of its own, watched from /proc.
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


def ran(*arguments: object) -> Watched:
    """A command of the package, watched; its end is printed, and the benchmark ends where it fails."""
    found = watched([sys.executable, "-m", *map(str, arguments)])
    print(found.said[-3000:], f"{' '.join(map(str, arguments[:2]))}: {found.seconds:.0f} s", flush=True)
    if found.code:
        sys.exit(f"{arguments[0]} ended with {found.code}; what it said stands above.")
    return found


def cells(found: Watched) -> str:
    """Seconds, peak of the driver, peak of all."""
    return f"{found.seconds:,.0f} | {found.peak / 2**20:,.0f} | {found.together / 2**20:,.0f}"


HEAD = "s | peak RSS of the driver, MiB | of all processes together (private), MiB"


def trials(count: int) -> tuple[list[str], list[Row]]:
    """A sweep of `count` tiny trials, 8 at a time."""
    from cxrlt_ray.phantom import write_phantom
    from cxrlt_ray.runs.store import load_run

    write_phantom(BUILD / "phantom-400", images=400, size=64)
    (BUILD / "tiny.yaml").write_text(SPACE)
    shutil.rmtree(BUILD / "runs" / "tiny", ignore_errors=True)
    place = ["--storage", BUILD / "runs", "--name", "tiny"]
    share = ["--max-concurrent", 8, "--cpus-per-trial", 0.2, "--trials", count]
    given = ["auto", "--data", BUILD / "phantom-400", "--space", BUILD / "tiny.yaml"]
    found = ran("cxrlt_ray.sweep", *given, *share, *place)
    done = load_run(str(BUILD / "runs"), "tiny").trials()
    finished = sum(trial.state == "finished" for trial in done)
    working = max(trial.about["ended"] for trial in done) - min(trial.about["began"] for trial in done)
    lines = [
        f"| tiny trials, 8 at a time | finished | {HEAD} | processes at once | left behind |",
        "|---|---|---|---|---|---|---|",
        f"| {count} | {finished} | {cells(found)} | {found.most} | {len(found.left)} |",
        "",
        f"{working:.0f} s of that from the first trial's start to the last one's end.",
    ]
    told = f"{finished} finish in {found.seconds:,.0f} s, {found.together / 2**30:.1f} GiB, {len(found.left)} left"
    return lines, [(f"{count} tiny trials, 8 at a time", "all finish, no process left behind", told, "all, 0")]


def library(count: int) -> Path:
    """The run's directory with `count` trials; what is there is kept."""
    import pandas as pd

    from cxrlt_ray.data.manifest import MAIN, META, Manifest
    from cxrlt_ray.phantom.labels import PREVALENCE
    from cxrlt_ray.runs.store import create_run, load_run, write_predictions
    from cxrlt_ray.storage import Store
    from cxrlt_ray.training.config import TrialConfig

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
    about = {"task": {"name": "task1", "findings": TASK1, "scored_split": "test"}, "task_argument": "task1"}
    about |= {"data": storage, "seed": 0, "uncertain": "null", "quality": 95, "shards": [], "folds": 0}
    run = create_run(storage, name, about, manifest, {})
    fingerprint = load_run(storage, name).about["fingerprint"]
    ids = {part: table["image_id"][split == part].to_list() for part in ("val", "test")}
    truth = targets[:VALIDATION].astype(np.float32)
    shift = (1.5 - 0.5 * np.log10(shares)).astype(np.float32)
    difficulty = rng.standard_normal(truth.shape, np.float32)
    prior = np.log(shares / (1 - shares)).astype(np.float32)
    steps = (1 / (1 + np.exp(-np.linspace(-WIDEST, WIDEST, STEPS)))).astype(np.float32)
    config = TrialConfig(backbone="test_convnext", resolution=64, epochs=1, pretrained=False).model_dump()
    for m in range(count):
        rng = np.random.default_rng([0, m + 1])
        noise = (rng.uniform(0.6, 1.6) * np.exp(rng.normal(0, 0.2, len(TASK1)))).astype(np.float32)
        seen = shift * (truth - 0.5) + difficulty + noise * rng.standard_normal(truth.shape, np.float32)
        logits = prior + rng.uniform(0.5, 1.0) * seen
        scores = steps[((logits + WIDEST) * ((STEPS - 1) / (2 * WIDEST)) + 0.5).clip(0, STEPS - 1).astype(np.int16)]
        store = run.store / "trials" / f"T{m:04d}"
        write_predictions(store, "predictions/val.parquet", ids["val"], scores, TASK1, "val", fingerprint)
        test = store / "predictions"
        if m:
            os.link(Path(storage) / name / "trials/T0000/predictions/test.parquet", Path(test.uri) / "test.parquet")
        else:
            write_predictions(test, "test.parquet", ids["test"], scores[:TEST], TASK1, "test", fingerprint)
        trial = {"name": f"T{m:04d}", "state": "finished", "params": {}, "config": config, "epochs": [], "weights": ""}
        store.write_json("trial.json", {**trial, "findings": TASK1, "fingerprint": fingerprint, "val_map": 0.3})
    Store(storage).write(f"{name}/whole", b"")
    return BUILD / "library" / name


def opened(count: int, most: list[int]) -> tuple[list[str], list[Row]]:
    """Ensembles of the library's trials: as memory allows, and of the best few hundred."""
    began = time.monotonic()
    run = library(count)
    made = time.monotonic() - began
    size = sum(path.stat().st_size for path in run.glob("trials/*/predictions/val.parquet")) / 1e9
    raw = count * VALIDATION * len(TASK1) * 4 / 1e9
    lines = [f"| `ensemble` of {count:,} trials | chosen among | {HEAD} |", "|---|---|---|---|---|"]
    rows: list[Row] = []
    for limit in most:
        found = ran("cxrlt_ray.ensemble", "--run", run.name, "--storage", run.parent, "--most", limit)
        lines.append(f"| `--most {limit}` | {limit} | {cells(found)} |")
        told = f"{found.peak / 2**30:.1f} GiB, {found.seconds:,.0f} s"
        rows.append(
            (f"{count:,} stored trials of {VALIDATION:,} x {len(TASK1)} opened, --most {limit}", "goal", told, "memory")
        )
    lines += ["", f"{raw:.1f} GB of predictions in float32, {size:.1f} GB as Parquet ({made:.0f} s to write)."]
    return lines, rows


def million(count: int) -> tuple[list[str], list[Row]]:
    """A phantom's tables, read and split."""
    folder = BUILD / f"rows-{count}"
    shutil.rmtree(folder, ignore_errors=True)
    drawn = ran("cxrlt_ray.phantom", folder, "--images", count, "--no-pictures")
    read = ran("cxrlt_ray.cohort", folder, "--task", "task1", "--no-files")
    part = watched([sys.executable, __file__, "--split", folder])
    print(part.said)
    each = json.loads(part.said.splitlines()[-1])
    lines = [
        f"| {count:,} rows | {HEAD} |",
        "|---|---|---|---|",
        f"| `phantom --no-pictures` | {cells(drawn)} |",
        f"| `cohort --no-files` | {cells(read)} |",
        f"| read, hold out 15 %, 5 folds, write, read again | {cells(part)} |",
        "",
        f"Of the last: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in each.items())}.",
    ]
    told = f"{read.seconds:,.0f} s, {read.peak / 2**30:.1f} GiB"
    return lines, [(f"{count:,} rows read, checked and summed up by `cohort`", "goal", told, "minutes")]


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
        "library": lambda: opened(args.members, [200]),
        "rows": lambda: million(args.rows),
    }
    lines: list[str] = []
    rows: list[Row] = []
    for name in [args.only] if args.only else PARTS:
        more, also = work[name]()
        lines += [*([""] if lines else []), *more]
        rows += also
    publish("load", "Load", ":", lines, args.write and not args.only, rows)


if __name__ == "__main__":
    main()
