"""Selection against the plain mean on real predictions: `python benchmarks/halves.py --write`.

A pool is the predictions of a run's trials, finished and pruned, on its validation and test images together. Subjects
are halved again and again: an ensemble is chosen on some of one half and scored on the other half. `--make NAME` trains
a pool's run first (20 minutes to 3 hours on two cores); the pools named by no `--make` yet are left out. `phantom-8000`
is the trials of `phantom` on 8,000 images of another drawing. Pools made of others: with a member that predicts noise
(`broken`), with five copies of one member (`clones`), with every other member blurred by noise of its own (`unequal`).

The splits overlap: their spread says nothing of chance. The interval beside a pool's gain is of subjects drawn anew,
with the choices as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from report import publish, ratios, spread, turns

from cxrlt_ray import config
from cxrlt_ray.ensembling.ensemble_file import load_ensemble
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.selection import SPACES_OF, spaces
from cxrlt_ray.selection.average_precision import precisions
from cxrlt_ray.selection.explain import stability
from cxrlt_ray.selection.honest import combine, fit, side_by_side
from cxrlt_ray.selection.method import Method

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "halves"
SHARED = HERE.parent.parent / "shared" / "data"
SIZES = (100, 200, 400, 1_000)
DRAWS = 100
RUNS = {  # a pool: its task, data, epochs a trial and, where fewer pixels must do, the resolution
    "nih384": ("auto", SHARED / "nih384", 6, None),
    "nih64": ("auto", SHARED / "nih64", 6, 64),
    "phantom": ("task1", BUILD / "phantom-1600", 6, 64),
}
OUTSIDE = {"phantom-8000": ("phantom", 8_000, 1)}  # a pool: whose trials, and their number of images and seed
TRIALS = 24
DERIVED = ("broken", "clones", "unequal")
DEFAULT, BEFORE = "ensembles/greedy.yaml", "the default before"
STEADY = 200  # images chosen on, for the shares of weight that stay
COST, CHALLENGE = (4_000, 20), (39_293, 40)  # images to choose on and findings, for the cost
SYSTEMS: dict[str, list[Method]] = {
    "best": [Method("best")],
    "mean": [Method("mean")],
    "greedy": [Method("greedy", {"rounds": 50})],
    "greedy_global": [Method("greedy_global", {"rounds": 50})],
    "nnls": [Method("nnls")],
    "simplex": [Method("simplex")],
    BEFORE: [
        Method("greedy_bagged", {"rounds": 20}, 20.0, 12),
        Method("best", members=12),
        Method("mean", members=12),
    ],
    "bagged greedy that leans on the mean, 50": [Method("greedy_bagged", {"rounds": 20}, 50.0, lean="mean")],
    "simplex that leans on the mean, 50": [Method("simplex", {}, 50.0, lean="mean")],
    "the mean of the sound": [Method("mean", guard=1e9, lean="sound")],
}
for _space in ("logit", "rank"):
    SYSTEMS[f"mean in {_space}"] = [Method("mean")]
PLAIN = ("best", "mean", "greedy", "simplex", "nnls")  # the default must be within .002 of the best of these


@dataclass(frozen=True)
class RealPool:
    """Predictions float32 [M, N, C] of a run's trials, targets int8 [N, C], subjects [N], which trials finished [M]."""

    predictions: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    finished: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What a system scored on the other halves: mAP [splits], and how much of it is above the mean's."""

    values: np.ndarray
    gains: np.ndarray
    interval: tuple[float, float]
    positives: float


def make(name: str) -> None:
    """Train the run of a pool, score its images with all trials and keep the predictions."""
    if name in OUTSIDE:
        np.savez(BUILD / f"{name}.npz", **vars(outside(*OUTSIDE[name])))
        return
    task, data, epochs, resolution = RUNS[name]
    if name.startswith("phantom") and not data.exists():
        _command("phantom", str(data), "--images", data.name.partition("-")[2])
    run = ["--storage", str(BUILD / "runs")]
    new = ["--data", str(data), "--space", str(_space(name, epochs, resolution))]
    resume = ["--resume"] if (BUILD / "runs" / name).exists() else new
    _command("sweep", task, "--name", name, *run, *resume)
    _command("ensemble", "--run", name, *run, "--select", "mean", "--pruned", "--score-all")
    np.savez(BUILD / f"{name}.npz", **vars(gathered(name)))


def _space(name: str, epochs: int, resolution: int | None) -> Path:
    """The laptop space with so many trials, of which ASHA ends the weak ones: a pool has finished and pruned ones."""
    content = config.read_yaml(config.find("search_spaces", "laptop"))
    content |= {"trials": TRIALS, "epochs": epochs, "prune": True}
    if resolution:
        content["parameters"]["resolution"] = resolution
        content["start"] = [{**point, "resolution": resolution} for point in content["start"]]
    path = BUILD / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def gathered(name: str) -> RealPool:
    """The pool of a run whose trials have scored validation and test images."""
    from cxrlt_ray.runs.records import FINISHED
    from cxrlt_ray.runs.store import load_run

    run = load_run(str(BUILD / "runs"), name)
    manifest, findings, split = run.manifest(), run.task.findings, run.task.scored_split
    trials = [trial for trial in run.trials() if trial.has_predictions("val") and trial.has_predictions(split)]
    parts, images = [], [manifest.of_split(part) for part in ("val", split)]
    for part, some in zip(("val", split), images, strict=True):
        frames = (trial.predictions(part).reindex(some.table["image_id"])[list(findings)] for trial in trials)
        parts.append(np.stack([frame.to_numpy(np.float32) for frame in frames]))
    predictions = np.concatenate(parts, axis=1)
    targets = np.concatenate([some.targets(findings) for some in images])
    groups = np.concatenate([some.table["subject_id"].to_numpy().astype(str) for some in images])
    good = np.isfinite(predictions).all(axis=(0, 2))
    finished = np.array([trial.state == FINISHED for trial in trials])
    return RealPool(predictions[:, good], targets[good], groups[good], finished)


def outside(name: str, images: int, seed: int) -> RealPool:
    """The pool of a run's trials on the images of a phantom that none of them has seen."""
    import ray

    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.ensembling.score import member, score
    from cxrlt_ray.runs.records import FINISHED
    from cxrlt_ray.runs.store import load_run
    from cxrlt_ray.storage import Store

    folder, run = BUILD / f"phantom-{images}-{seed}", load_run(str(BUILD / "runs"), name)
    _command("phantom", str(folder), "--images", str(images), "--seed", str(seed))
    manifest = read_cohort(str(folder), task="task1").manifest
    trials = [trial for trial in run.trials() if trial.has_predictions("val")]
    start_ray()
    shards = prepare(manifest, str(BUILD / "runs"), [source.size for source in run.shards()])
    members = [member(trial, findings=run.task.findings) for trial in trials]
    frame = score(Store(str(BUILD / f"scoring-{name}-{images}")), shards, members, manifest.table)
    ray.shutdown()
    rows = manifest.table.set_index("image_id").index.get_indexer(frame.index)
    groups, targets = manifest.table["subject_id"].to_numpy().astype(str), manifest.targets(run.task.findings)
    finished = np.array([trial.state == FINISHED for trial in trials])
    return RealPool(np.stack(frame["scores"].to_list(), axis=1), targets[rows], groups[rows], finished)


def read(name: str) -> RealPool:
    """A pool that was made, or one derived of it: `nih384`, `nih384, finished`, `nih384, broken` ..."""
    base, _, change = name.partition(", ")
    with np.load(BUILD / f"{base}.npz") as content:
        pool = RealPool(**content)
    rng, values = np.random.default_rng(0), pool.predictions
    if change == "finished":
        return replace(pool, predictions=values[pool.finished], finished=pool.finished[pool.finished])
    if change == "broken":
        values = np.concatenate([values, rng.random((1, *values.shape[1:]), np.float32)])
    if change == "clones":
        values = np.concatenate([values, np.repeat(values[:1], 5, axis=0)])
    if change == "unequal":
        logits = np.log(np.clip(values, 1e-6, 1 - 1e-6) / (1 - np.clip(values, 1e-6, 1 - 1e-6)))
        blur = rng.standard_normal(values.shape, np.float32) * logits.std(axis=1, keepdims=True) * 2
        blur[::2] = 0
        values = (1 / (1 + np.exp(-logits - blur))).astype(np.float32)
    return replace(pool, predictions=values, finished=np.resize(pool.finished, len(values)))


def halves(groups: np.ndarray, images: int, splits: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images to choose on, about so many, of one half of the subjects; and all images of the other half."""
    names, subject = np.unique(groups, return_inverse=True)
    for s in range(splits):
        place = np.random.default_rng([seed, s]).permutation(len(names))[subject]
        first = np.flatnonzero(place < len(names) // 2)
        first = first[np.argsort(place[first], kind="stable")]
        taken = place[first[min(images, len(first)) - 1]]  # a subject is taken whole
        yield np.flatnonzero(place <= taken), np.flatnonzero(place >= len(names) // 2)


def outcomes(
    pool: RealPool, images: int, splits: int, seed: int, systems: dict[str, list[Method]]
) -> dict[str, Outcome]:
    """Every system on every split."""
    warnings.simplefilter("ignore")
    values: dict[str, list[float]] = {name: [] for name in systems}
    draws: dict[str, list[np.ndarray]] = {name: [] for name in systems}
    names = np.unique(pool.groups)
    rng, counts = np.random.default_rng(seed), []
    drawn = np.array([np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(DRAWS)])
    for choose, score in halves(pool.groups, images, splits, seed):
        inputs = (pool.predictions[:, choose], pool.targets[choose], pool.groups[choose])
        counts.append((inputs[1] == 1).sum())
        scores = [_scored(name, systems[name], pool.predictions[:, score], inputs, seed) for name in systems]
        targets, groups = pool.targets[score], pool.groups[score]
        weights = drawn[:, np.isin(names, groups)]
        again = metrics.reweighted(targets, scores, groups, weights)
        for name, ap, of_draws in zip(systems, precisions(np.array(scores, np.float32), targets), again, strict=True):
            values[name].append(metrics.macro(ap))
            draws[name].append(metrics.means(of_draws[0]))
    sample, result = Sample.of(pool.targets, pool.groups), {}
    for name in systems:
        gains = np.array(values[name]) - values["mean"]
        by_draw = (np.array(draws[name]) - draws["mean"]).mean(axis=0)
        gain = Estimate.of_difference(float(gains.mean()), by_draw, sample)
        result[name] = Outcome(np.array(values[name]), gains, (gain.low, gain.high), float(np.mean(counts)))
    return result


def _scored(
    name: str,
    methods: Sequence[Method],
    unseen: np.ndarray,
    chosen_on: tuple[np.ndarray, np.ndarray, np.ndarray],
    seed: int,
) -> np.ndarray:
    """Combined scores [N, C] of images unseen; where there are several methods cross-fitting chooses among them."""
    predictions, targets, groups = chosen_on
    space = name.partition(" in ")[2] or SPACES_OF[methods[0].selector]
    if name == DEFAULT:
        space = load_ensemble("greedy")[1].used_space()
    folds = min(5, len(np.unique(groups))) if len(methods) > 1 or methods[0].guard == "auto" else 0
    values = spaces.into(space, predictions, predictions)
    weights = fit(list(methods), values, targets, groups, folds=folds, seed=seed).weights
    return spaces.out_of(space, combine(spaces.into(space, unseen, predictions), weights))


def section(pools: Sequence[str], splits: int, seed: int, sizes: Sequence[int]) -> list[str]:
    """The table: what each system gains over the mean, by pool and number of images it was chosen on."""
    systems = {**SYSTEMS, DEFAULT: load_ensemble("greedy")[1].methods()}
    lines = [
        f"Test mAP less that of the plain mean, the mean of {splits} splits, and the share of splits ahead; of the"
    ]
    lines += ["default with its 95 % interval by subject.", ""]
    rows = []
    for name in pools:
        pool = read(name)
        for images in [size for size in sizes if size <= len(pool.groups) / 2]:
            rows.append(kept_row(name, pool, images, splits, seed, systems))
            print(" | ".join(rows[-1]), flush=True)
    heads = ["pool", "members", "images", "positives", *systems, f"default less the best of {', '.join(PLAIN)}"]
    return lines + table(heads, rows)


def kept_row(
    name: str, pool: RealPool, images: int, splits: int, seed: int, systems: dict[str, list[Method]]
) -> list[str]:
    """A pool's row at a size, kept in build/halves/rows: a command that was cut goes on."""
    what = repr((pool.predictions.sum(), pool.predictions.shape, splits, seed, systems))
    file = BUILD / "rows" / f"{name}, {images}, {hashlib.sha256(what.encode()).hexdigest()[:12]}.json"
    if file.exists():
        kept: list[str] = json.loads(file.read_text())
        return kept
    by_system = outcomes(pool, images, splits, seed, systems)
    default = by_system[DEFAULT]
    best = max(by_system[plain].values.mean() for plain in PLAIN)
    cells = [f"{o.gains.mean():+.4f}, {_ahead(o.gains):.2f}" for o in by_system.values()]
    cells[-1] += f" [{default.interval[0]:+.4f}, {default.interval[1]:+.4f}]"
    row = [name, str(len(pool.predictions)), f"{images:,}", f"{default.positives:,.0f}", *cells]
    row.append(f"{default.values.mean() - best:+.4f}")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(row))
    return row


def compared() -> dict[str, list[Method]]:
    """The default beside the default before and plain greedy."""
    return {"greedy": SYSTEMS["greedy"], BEFORE: SYSTEMS[BEFORE], DEFAULT: load_ensemble("greedy")[1].methods()}


def steadiness(pools: Sequence[str], seed: int) -> list[str]:
    """How much of a choice stays on other subjects, by pool and system."""
    rows = []
    for name in pools:
        pool = read(name)
        rows_of, _ = next(halves(pool.groups, STEADY, 1, seed))
        inputs = (pool.predictions[:, rows_of], pool.targets[rows_of], pool.groups[rows_of])
        cells = []
        for methods in compared().values():
            weights = fit(methods[0], *inputs, folds=0, seed=seed).weights
            cells.append(f"{stability(methods[0], *inputs, weights, seed=seed).mean():.2f}")
        rows.append([name, *cells])
    lines = ["The share of the weight that stays on the same members when subjects are drawn anew, 20 times; chosen on"]
    return [*lines, f"{STEADY} images, without fallback.", "", *table(["pool", *compared()], rows), ""]


def cost(rounds: int, seed: int, size: tuple[int, int]) -> list[str]:
    """What the systems cost and gain on simulated members. size: images to choose on, and findings."""
    from selection import reference

    images, findings = size
    predictions, targets, groups = reference(50, 2 * images, findings, seed)
    first = groups < groups[images]
    inputs = (side_by_side(predictions[:, first]), targets[first], groups[first])
    systems = {"mean": SYSTEMS["mean"], **compared()}
    scores: dict[str, float] = {}

    def timed(name: str) -> float:
        started = time.perf_counter()
        weights = fit(systems[name], *inputs, folds=5, seed=seed).weights
        seconds = time.perf_counter() - started
        unseen = combine(predictions[:, ~first], weights)[None].astype(np.float32)
        scores[name] = metrics.macro(precisions(unseen, targets[~first])[0])
        return seconds

    seconds = turns({name: partial(timed, name) for name in systems}, rounds)
    what = f"{images:,} images, {findings} findings (benchmarks/selection.py)"
    lines = [f"Cross-fitted selection of 50 simulated members on {what},", "and mAP on as many new images.", ""]
    rows = [[n, spread(seconds[n], 1), ratios(seconds[n], seconds[BEFORE]), f"{scores[n]:.4f}"] for n in systems]
    return lines + table(["system", "s", "of the default before", "mAP"], rows)


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A table as lines of markdown."""
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def _ahead(gains: np.ndarray) -> float:
    """The share of splits that are ahead; equal ones count half."""
    return float((gains > 1e-9).mean() + (abs(gains) <= 1e-9).mean() / 2)


def _command(name: str, *options: str) -> None:
    subprocess.run([sys.executable, "-m", f"cxrlt_ray.{name}", *options], check=True, cwd=HERE.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--make", nargs="+", choices=[*RUNS, *OUTSIDE], default=[], help="train these pools' runs, no table"
    )
    parser.add_argument("--pools", nargs="+", default=[], help="only these; all that were made without it")
    parser.add_argument("--aside", action="store_true", help="instead: the default's cost and how steady it is")
    parser.add_argument("--challenge", action="store_true", help="instead: its cost at the challenge's size; no pool")
    parser.add_argument("--images", type=int, nargs="+", default=SIZES, help="to choose on; 4,000: half an hour")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    args = parser.parse_args()
    for name in args.make:
        make(name)
    if args.make:
        return
    if args.challenge:
        title = "What the default ensemble costs and gains at the challenge's size"
        publish("halves-challenge", title, ".", cost(1, args.seed, CHALLENGE), args.write)
        return
    made = [name for name in (*RUNS, *OUTSIDE) if (BUILD / f"{name}.npz").exists()]
    if not made:
        parser.error("there is no pool yet: --make one")
    pools = args.pools or [p for name in made for p in (name, f"{name}, finished")]
    if args.aside:
        lines = steadiness(pools, args.seed) + cost(2, args.seed, COST)
        publish("halves-aside", "What the default ensemble costs and how steady it is", ".", lines, args.write)
        return
    pools += [] if args.pools else [f"{made[0]}, {change}" for change in DERIVED]
    key, title = "halves", "Selection against the plain mean, repeated halves"
    if tuple(args.images) != SIZES:
        key = "-".join((key, *map(str, args.images)))
        title += f", chosen on {', '.join(f'{images:,}' for images in args.images)} images"
    publish(key, title, ".", section(pools, args.splits, args.seed, args.images), args.write)


if __name__ == "__main__":
    main()
