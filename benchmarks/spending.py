"""What so many epochs are best spent on: many trials, folds, or length. `python benchmarks/spending.py --write`.

Every way trains networks for the same number of epochs in all on the same images (space laptop without early stopping),
ends in the default ensemble, and is scored on the test images. `search` tries the space's points, `start` only its
first start point, with a seed a trial; one plain training has all epochs. `stopped` is the space as it is, with early
stopping: its first three points, each until it has learnt, whatever epochs that takes. `--probe`: a training that is
PROBE epochs shorter, and the space's second point, a probe on stored features. The data: nih384, and the
phantom of job.py with 4,000 test images, at 64 pixels. Folds: with validation images among those that are folded.
Results are kept in build/spending: a run that was cut goes on. Intervals: paired, by subject, of the mean over seeds.
About 7 minutes a way and seed at 24 epochs of nih384 on two slow cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from job import cohort
from lengths import NIH
from paired import ROUNDS, paired
from report import publish

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "spending"
PROBE = 4  # epochs of nih384 at 112 pixels that take as long as a probe does


@dataclass(frozen=True)
class Way:
    """Trials of so many epochs and folds. like: all of the space's first start point. stopped: by its patience.

    probed: the space's first start point and its probe.
    """

    trials: int
    epochs: int
    folds: int = 0
    like: bool = False
    stopped: bool = False
    probed: bool = False

    def __str__(self) -> str:
        if self.stopped:
            return f"the space's first {self.trials} points, up to {self.epochs} epochs each, early stopping"
        if self.probed:
            return f"one plain training, {self.epochs} epochs, and the probe"
        folds = f" x {self.folds} folds" if self.folds else ""
        what = ("start" if self.like else "search") if self.trials > 1 or self.folds else "one plain training"
        return f"{what}, {self.trials} x {self.epochs} epochs{folds}"


@dataclass(frozen=True)
class Spent:
    """What a way came to: mAP cross-fitted on validation, and epochs in all."""

    validation: float
    epochs: int


def ways(total: int) -> dict[str, Way]:
    """The ways to spend so many epochs, by name; the first is what the others are compared with."""
    return {
        "plain": Way(1, total, like=True),
        "folds5": Way(1, round(total / 5), 5, like=True),
        "folds3": Way(1, total // 3, 3, like=True),
        "three": Way(3, total // 3, like=True),
        "search": Way(max(total // 6, 1), 6),
        "stopped": Way(3, total, stopped=True),
    }


def lengths(total: int) -> list[Way]:
    """One plain training of all epochs, and shorter ones."""
    return [Way(1, epochs, like=True) for epochs in (total, 3 * total // 4, total // 2)]


def probed(total: int) -> list[Way]:
    """One plain training of all epochs, and a shorter one with the probe beside it."""
    return [Way(1, total, like=True), Way(2, total - PROBE, probed=True)]


def data_of(text: str) -> tuple[str, int]:
    """The data set and the pixels of an argument such as phantom:64."""
    name, _, pixels = text.partition(":")
    return name, int(pixels or 112)


def spend(data: str, way: Way, total: int, seed: int) -> Path:
    """Sweep and ensemble of a way, unless they are done; their folder."""
    from cxrlt_ray import ensemble, sweep

    cohort_name, pixels = data_of(data)
    name = f"{cohort_name}-{pixels}-{total}-{way.trials}x{way.epochs}f{way.folds}{kind(way)}-{seed}"
    run = BUILD / name
    if (run / "spent.json").exists():
        return run
    request: dict[str, Any] = {"task": "auto", "storage": str(BUILD), "name": name}
    if (run / "run.json").exists():
        request["resume"] = True
    else:
        request |= {
            "data": str(NIH if cohort_name == "nih384" else cohort(cohort_name)),
            "space": str(space(way, pixels)),
            "trials": way.trials,
            "seed": seed,
        }
        request |= {"folds": way.folds} if way.folds else {}
    with contextlib.redirect_stdout(io.StringIO()):
        swept = sweep.run(sweep.SweepRequest(**request))
        stacked = ensemble.run(ensemble.EnsembleRequest(run=name, storage=str(BUILD), rounds=ROUNDS))
    assert swept is not None
    systems = stacked.comparison.sets["cross_fitted"].systems
    value = next(score.map.value for title, score in systems.items() if title.startswith("greedy"))
    epochs = sum(len(trial.record.epochs) for trial in swept.trials())
    (run / "spent.json").write_text(json.dumps(asdict(Spent(value, epochs))))
    return run


def kind(way: Way) -> str:
    """A letter of a way for names of files."""
    return "s" if way.like else "p" if way.stopped else "q" if way.probed else ""


def space(way: Way, pixels: int) -> Path:
    """The space laptop for a way at one resolution, as a file."""
    import yaml

    from cxrlt_ray import config

    content = config.read_yaml(config.find("search_spaces", "laptop"))
    content |= {"epochs": way.epochs, "prune": False}
    resolution, frozen = content["parameters"]["resolution"], {"frozen_backbone": True}
    content["parameters"]["resolution"] = [rule for rule in resolution if rule.get("when") == frozen]
    content["parameters"]["resolution"].append({"value": pixels})
    if not way.stopped:
        content["parameters"]["patience"] = 0
    for point in content["start"]:
        if not point.get("frozen_backbone"):
            point.pop("resolution", None)
    if not way.probed:  # the other ways are of trainings
        content["start"] = [point for point in content["start"] if not point.get("frozen_backbone")]
        content["parameters"]["frozen_backbone"] = False
        for point in content["start"]:
            point.pop("frozen_backbone", None)
    if way.like:
        first = content["start"][0]
        content["start"] = []
        names = content["parameters"] | {name: {"value": value} for name, value in first.items()}
        names = {name: domain for name, domain in names.items() if name not in ("focal_gamma", "gamma_neg")}
        names["class_weight_exponent"] = {"value": 0.0}
        names["resolution"] = {"value": pixels}
        content["parameters"] = names | {"seed": {"low": 0, "high": 100_000, "int": True}}
    path = BUILD / "spaces" / f"{pixels}-{way.epochs}{kind(way)}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def section(data: list[str], total: int, seeds: list[int], compared_ways: list[Way]) -> list[str]:
    """The table: test mAP of every way, less that of one plain training."""
    rows = []
    for name in data:
        runs: dict[Way, list[Path]] = {way: [] for way in compared_ways}
        for seed in seeds:
            for way, done in runs.items():
                done.append(spend(name, way, total, seed))
                spent = Spent(**json.loads((done[-1] / "spent.json").read_text()))
                print(f"{name}, seed {seed}: {way}: {spent}", flush=True)
        rows += compared(name, runs)
    lines = [
        f"Test mAP of the ensemble, the mean of seeds {', '.join(map(str, seeds))} (of each), and what it is above"
    ]
    lines += ["one plain training, paired by subject. val: cross-fitted on validation images, which differ by way.", ""]
    heads = ["data, pixels", "way", "epochs", "val", "test", "above one plain training"]
    return lines + ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def compared(data: str, runs: dict[Way, list[Path]]) -> list[list[str]]:
    """A row a way."""
    from cxrlt_ray.runs.store import load_run

    scores: dict[Way, list[np.ndarray]] = {}
    for way, folders in runs.items():
        swept = [load_run(str(BUILD), folder.name) for folder in folders]
        findings, images = swept[0].task.findings, swept[0].manifest().of_split(swept[0].task.scored_split)
        scores[way] = [test_scores(folder, images.table["image_id"].tolist(), list(findings)) for folder in folders]
    result = paired(scores, images.targets(findings), images.table["subject_id"].to_numpy().astype(str))
    rows, plain = [], next(iter(runs))
    for way, folders in runs.items():
        spent = [Spent(**json.loads((folder / "spent.json").read_text())) for folder in folders]
        values = result.values[way]
        row = ["{}, {}".format(*data_of(data)), str(way), f"{np.mean([s.epochs for s in spent]):.0f}"]
        row += [f"{np.mean([s.validation for s in spent]):.3f}", f"{values.mean():.3f}"]
        row[-1] += f" ({', '.join(f'{value:.3f}' for value in values)})"
        rows.append([*row, "" if way == plain else result.gain(way, plain)])
    return rows


def test_scores(run: Path, image_id: list[str], findings: list[str]) -> np.ndarray:
    """The default ensemble's scores [N, C] of the test images."""
    import pandas as pd

    table = pd.read_parquet(run / "ensembles" / "greedy" / "predictions.parquet").set_index("image_id")
    return table.reindex(image_id)[findings].to_numpy(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["nih384", "phantom:64"], help="name or name:pixels")
    parser.add_argument("--epochs", type=int, default=24, help="of all networks of a way together")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(ways(1)), default=list(ways(1)), help="plain first")
    parser.add_argument("--lengths", action="store_true", help="instead: one plain training of fewer epochs")
    parser.add_argument("--probe", action="store_true", help="instead: a training with a probe beside it")
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    args = parser.parse_args()
    named = ways(args.epochs)
    compared_ways = lengths(args.epochs) if args.lengths else [named[name] for name in args.ways]
    compared_ways = probed(args.epochs) if args.probe else compared_ways
    lines = section(args.data, args.epochs, args.seeds, compared_ways)
    if args.lengths:
        publish("spending-lengths", "What longer training is worth", ".", lines, args.write)
    elif args.probe:
        publish("spending-probe", "What a probe adds to one training", ".", lines, args.write)
    else:
        only = f"-{args.data[0].partition(':')[0]}" if len(args.data) == 1 else ""
        title = f"What epochs are best spent on: trials, folds or length{only.replace('-', ', ')}"
        publish(f"spending{only}", title, ".", lines, args.write)


if __name__ == "__main__":
    main()
