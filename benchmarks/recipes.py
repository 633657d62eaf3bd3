"""Is a mixed library worth more than any one system? Every team's recipe in small, and greedy over all their trials.

Runs each recipe (`--smoke`, on one phantom of --images drawn X-rays) with its own ensemble, then lets
ensembles/greedy.yaml choose among the trials of all of them, on the same validation images. Scored on test images that
neither has seen; the differences are paired, their intervals bootstrapped by subject. Goes on where it was; about a
quarter of an hour on two cores.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
from report import options, publish

BUILD = Path(__file__).parent.parent / "build" / "recipes"
ROUNDS = 1000


def run_recipe(name: str, images: int) -> None:
    """Sweep and ensemble of one recipe, and every trial's scores of the test images."""
    from cxrlt_ray import ensemble, sweep

    storage, run = str(BUILD), f"{name}-{images}"
    there = (BUILD / run / "run.json").exists()
    lacking = [s for s in (name, "mean") if not (BUILD / run / "ensembles" / s / "ensemble.json").exists()]
    if not lacking:
        return
    if there:
        sweep.main("task1", name=run, storage=storage, resume=True)
    else:  # without folds: all trials are to be validated on the same images
        sweep.main("task1", space=name, smoke=True, images=images, name=run, storage=storage, folds=0)
    for select in lacking:
        ensemble.main(select=select, run=run, storage=storage, rounds=20, score_all=True)


def main() -> None:
    from cxrlt_ray import config, metrics
    from cxrlt_ray.ensemble import load_ensemble
    from cxrlt_ray.manifest import MAIN
    from cxrlt_ray.selection.honest import combine, fit, side_by_side
    from cxrlt_ray.trials import load_run, looked_at, read_predictions

    asked = options(__doc__, {"images": 1600}).parse_args()
    names = [name for name in config.names("search_spaces") if name.startswith("team_")]
    for name in names:
        print(f"== {name}", flush=True)
        with contextlib.redirect_stdout(io.StringIO()) as told:
            run_recipe(name, asked.images)
        print(
            "\n".join(line for line in told.getvalue().splitlines() if line[:1] == "[" and "/" in line[:6]), flush=True
        )

    runs = [load_run(str(BUILD), f"{name}-{asked.images}") for name in names]
    manifest, findings = runs[0].manifest().of_cohort(MAIN), runs[0].task.findings
    val, test = (manifest.of_split(split) for split in ("val", "test"))
    ids = test.table["image_id"].to_numpy()
    trials = [trial for run in runs for trial in run.trials() if trial.val_map == trial.val_map]

    def stacked(split: str, of: np.ndarray) -> np.ndarray:
        # each trial as its own recipe looks at images
        looked = [looked_at(split, trial.has_predictions(looked_at("test", True))) for trial in trials]
        return np.stack([t.predictions(s).loc[of].to_numpy(np.float32) for t, s in zip(trials, looked, strict=True)])

    values = side_by_side(stacked("val", val.table["image_id"].to_numpy()))
    subjects = val.table["subject_id"].to_numpy()
    fitted = fit(load_ensemble("greedy")[1].methods(), values, val.targets(findings), subjects)
    systems = [combine(stacked("test", ids), fitted.weights)]
    for name, run in zip(names, runs, strict=True):
        folder = run.store / "ensembles" / name
        frame = read_predictions(folder, "predictions.parquet", findings, "test", run.about["fingerprint"])
        systems.append(frame.loc[ids].to_numpy(float))
    targets, groups = test.targets(findings), test.table["subject_id"].to_numpy()
    drawn = metrics.bootstrap_map(targets, systems, groups, rounds=ROUNDS, seed=0)
    scores = [metrics.macro(metrics.per_finding(targets, each, which=("ap",))["ap"]) for each in systems]
    members = int((fitted.weights.sum(axis=1) > 0).sum())
    lines = ["| system | trials | test mAP | greedy over all less it |", "|---|---|---|---|"]
    lines.append(f"| greedy over all | {members} of {len(trials)} | {scores[0]:.3f} | |")
    beaten = 0
    for name, run, score, draws in zip(names, runs, scores[1:], drawn[1:], strict=True):
        low, high = metrics.interval(drawn[0] - draws)
        beaten += low > 0
        lines.append(
            f"| {name} | {len(run.trials())} | {score:.3f} | {scores[0] - score:+.3f} [{low:+.3f}, {high:+.3f}] |"
        )
    seen = (targets == 1).any(axis=0)
    lines += [
        "",
        f"{len(ids):,} test images, chance {(targets == 1).mean(axis=0)[seen].mean():.3f}. Greedy over all trials is",
        f"above {beaten} of {len(names)} recipes by more than the interval. The recipes are in small here (tiny",
        "networks from scratch, one epoch a stage): their order says nothing of the systems themselves.",
    ]
    publish("recipes", "A mixed library against each recipe", "", lines, asked.write)


if __name__ == "__main__":
    main()
