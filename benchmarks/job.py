"""The whole job against its peers at equal wall time. `python benchmarks/job.py --minutes 10 --write`.

On nih384 and on a phantom of 1,600 images to train and choose on and 4,000 test images (cohort `lengths.py` draws):

ours          `sweep --time-budget T` and `ensemble --select greedy`, with default options
plain         our own `sweep --trials 1` of the space's first start point with the same budget, and its test scores
timm          one fine-tuning with timm of the same weights (benchmarks/job_timm.py)
ray           what Ray's documentation shows: read_images, TorchTrainer, Tune with Optuna and ASHA, the mean of the best
              three trials (benchmarks/job_ray_docs.py)

The budget is the sweep's; timm and ray have the wall time that the sweep took, imports included. All begin with image
files: no storage has shards, stored features or rates of a run before. What chooses and scores the test images comes
after that: "whole" is the minutes of all. Test mAP of the mean of seeds; intervals are paired by subject. Runs are kept
in build/job: a command that was cut goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from lengths import NIH, cohort_of
from paired import paired
from report import publish

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "job"
START = 10.0  # seconds of imports
WAYS = ("ours", "plain", "timm", "ray")


def cohort(dataset: str) -> Path:
    """The data set as a folder with labels.csv, which `sweep auto` and the peers read."""
    folder = BUILD / "data" / dataset
    if not (folder / "labels.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        manifest = cohort_of(dataset)
        table = manifest.table[["image_id", "path", "subject_id", "study_id", "view", "split"]].copy()
        for path in table["path"]:  # a table's images lie below it
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(manifest.root) / path, folder / path)
        labels = manifest.table[list(manifest.findings)].fillna(0).astype(int)
        table.join(labels).to_csv(folder / "labels.csv", index=False)
    return folder


def spend(dataset: str, way: str, minutes: float, seed: int) -> dict[str, float]:
    """Run one way, unless it is done: its wall seconds until its sweep ends, and of all."""
    run = BUILD / f"{dataset}-{minutes:g}-{way}-{seed}"
    if (run / "spent.json").exists():
        spent: dict[str, float] = json.loads((run / "spent.json").read_text())
        return spent
    shutil.rmtree(run, ignore_errors=True)
    own = way in ("ours", "plain")
    seconds = minutes * 60 if own else spend(dataset, "ours", minutes, seed)["sweep"]
    started = time.monotonic()
    sweep = {"ours": _ours, "plain": _plain, "timm": _timm, "ray": _ray_docs}[way](dataset, run, seconds, seed)
    spent = {"sweep": sweep, "whole": time.monotonic() - started}
    (run / "spent.json").write_text(json.dumps(spent))
    print(f"{run.name}: {spent['whole']:.0f} s", flush=True)
    return spent


def _ours(dataset: str, run: Path, seconds: float, seed: int, *options: str) -> float:
    """The wall seconds of the sweep."""
    sweep = ["auto", "--data", str(cohort(dataset)), "--storage", str(run), "--name", "run", "--seed", str(seed)]
    started = time.monotonic()
    _python("-m", "cxrlt_ray.sweep", *sweep, "--time-budget", f"{seconds:.0f}s", *options)
    took = time.monotonic() - started
    _python("-m", "cxrlt_ray.ensemble", "--select", "greedy", "--run", "run", "--storage", str(run))
    _keep(dataset, run, run / "run" / "ensembles" / "greedy" / "predictions.parquet")
    return took


def _plain(dataset: str, run: Path, seconds: float, seed: int) -> float:
    """One trial of the first start point; its epochs are those that the time holds."""
    import yaml

    from cxrlt_ray.search.plan import draw_trials
    from cxrlt_ray.search.space_file import load_space

    (first,) = draw_trials(load_space("laptop"), 1)
    names = first.model_dump(exclude_defaults=True, exclude={"epochs", "seed"}) | {"patience": 0}
    space = {"trials": 1, "epochs": 500, "parameters": {name: {"value": value} for name, value in names.items()}}
    path = BUILD / "plain.yaml"
    path.write_text(yaml.safe_dump(space))
    return _ours(dataset, run, seconds, seed, "--space", str(path), "--trials", "1")


def _timm(dataset: str, run: Path, seconds: float, seed: int, script: str = "job_timm.py") -> float:
    run.mkdir(parents=True)
    labels = str(cohort(dataset) / "labels.csv")
    _python(str(HERE / script), labels, f"{seconds - START:.0f}", str(seed), str(run / "test.npy"))
    return seconds


def _ray_docs(dataset: str, run: Path, seconds: float, seed: int) -> float:
    return _timm(dataset, run, seconds, seed, "job_ray_docs.py")


def _keep(dataset: str, run: Path, predictions: Path) -> None:
    """The test images' scores in the order of labels.csv."""
    import pandas as pd

    table = pd.read_csv(cohort(dataset) / "labels.csv", dtype={"image_id": str})
    names = list(table.columns[6:])
    scores = pd.read_parquet(predictions).set_index("image_id")
    np.save(run / "test.npy", scores.reindex(table[table["split"] == "test"]["image_id"])[names].to_numpy(np.float32))


def _python(*arguments: str) -> None:
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}
    subprocess.run([sys.executable, *arguments], check=True, env=env, cwd=BUILD)


def rows_of(dataset: str, minutes: float, seeds: list[int], ways: list[str]) -> list[list[str]]:
    """A row a way."""
    import pandas as pd

    spent = {way: [spend(dataset, way, minutes, seed)["whole"] / 60 for seed in seeds] for way in ways}
    table = pd.read_csv(cohort(dataset) / "labels.csv", dtype={"subject_id": str})
    test = table[table["split"] == "test"]
    scores = {
        way: [np.load(BUILD / f"{dataset}-{minutes:g}-{way}-{seed}" / "test.npy") for seed in seeds] for way in ways
    }
    result = paired(scores, test.iloc[:, 6:].to_numpy(np.int8), test["subject_id"].to_numpy().astype(str))
    rows = []
    for way, values in result.values.items():
        row = [dataset, f"{minutes:g}", way, f"{np.mean(spent[way]):.1f}"]
        row += [f"{values.mean():.3f} ({', '.join(f'{value:.3f}' for value in values)})"]
        rows.append([*row, "" if way == ways[0] else result.gain(ways[0], way)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["phantom", "nih384"], choices=["phantom", "nih384"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[5, 10, 20])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="peers of ours")
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    args = parser.parse_args()
    ways = ["ours", *(way for way in args.ways if way != "ours")]
    assert NIH.is_dir() or "nih384" not in args.data, f"{NIH} is not here"
    heads = ["data", "minutes", "way", "whole", "test mAP (by seed)", "ours above it"]
    rows = [
        row for dataset in args.data for minutes in args.minutes for row in rows_of(dataset, minutes, args.seeds, ways)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    publish("job", "The whole job at equal wall time", ".", lines, args.write)


if __name__ == "__main__":
    main()
