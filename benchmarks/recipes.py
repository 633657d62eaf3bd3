"""Is a mixed library worth more than any one system? Every team's recipe in small, and greedy over all their trials.

Runs each recipe (`--smoke`, on one phantom of --images drawn X-rays, stages of --epochs, as in one epoch the tiny
networks learn next to nothing) with its own ensemble, then lets greedy (ensembles/all_winners.yaml, and greedy.yaml,
which joins no images of a study) choose among the trials of all recipes, on the same validation images. Scored on test
images that neither has seen; the differences are paired, their intervals bootstrapped by subject. Resumable; about a
quarter of an hour on two cores at 1,600 images and one epoch.
"""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from report import options, publish

if TYPE_CHECKING:
    from cxrlt_ray.selection.views import StudyRule

BUILD = Path(__file__).parent.parent / "build" / "recipes"
ROUNDS = 1000
MIXED = ("all_winners", "greedy")  # files of ensembles/ for the mixed library


def longer(name: str, epochs: int) -> str:
    """A recipe whose stages last so many epochs in small: its path."""
    import yaml

    from cxrlt_ray import config

    content = config.read_yaml(config.find("search_spaces", name))
    content["smoke"] = {**content["smoke"], "epochs": epochs}
    path = BUILD / f"spaces-{epochs}" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def run_recipe(name: str, run: str, images: int, epochs: int) -> None:
    """Sweep and ensemble of one recipe, and every trial's scores of the test images."""
    from cxrlt_ray import ensemble, sweep
    from cxrlt_ray.ensemble import EnsembleRequest
    from cxrlt_ray.sweep import SweepRequest

    storage, space = str(BUILD), longer(name, epochs)
    missing = [file for file in (name, "mean") if not (BUILD / run / "ensembles" / file / "ensemble.json").exists()]
    if not missing:
        return
    if (BUILD / run / "run.json").exists():
        request = SweepRequest(task="task1", name=run, storage=storage, resume=True)
    else:  # without folds: all trials must be validated on the same images
        request = SweepRequest(task="task1", space=space, smoke=True, images=images, name=run, storage=storage, folds=0)
    sweep.run(request)
    for select in missing:
        ensemble.run(EnsembleRequest(select=select, run=run, storage=storage, rounds=20, score_all=True))


def main() -> None:
    from cxrlt_ray import config
    from cxrlt_ray.data.manifest import MAIN, studies
    from cxrlt_ray.ensembling.ensemble_file import load_ensemble
    from cxrlt_ray.evaluation import metrics
    from cxrlt_ray.runs.predictions import augmented_name, read_predictions
    from cxrlt_ray.runs.records import FINISHED, PRUNED
    from cxrlt_ray.runs.store import load_run
    from cxrlt_ray.selection.honest import combine, fit, side_by_side

    args = options(__doc__, {"images": 1600, "epochs": 1}).parse_args()
    spaces = config.names("search_spaces")
    names = [name for name in spaces if name.startswith("team_") and not name.endswith("task3")]
    for name in names:
        print(f"== {name}", flush=True)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            run_recipe(name, f"{name}-{args.images}-{args.epochs}", args.images, args.epochs)
        progress = [line for line in output.getvalue().splitlines() if line[:1] == "[" and "/" in line[:6]]
        print("\n".join(progress), flush=True)

    from cxrlt_ray import cli
    from cxrlt_ray.evaluation.estimate import Estimate, Sample

    runs = [load_run(str(BUILD), f"{name}-{args.images}-{args.epochs}") for name in names]
    manifest, findings = runs[0].manifest().of_cohort(MAIN), runs[0].task.findings
    val, test = (manifest.of_split(split) for split in ("val", "test"))
    ids = test.table["image_id"].to_numpy()
    trials = [trial for run in runs for trial in run.trials() if trial.state in (FINISHED, PRUNED)]

    def stacked(split: str, image_id: np.ndarray) -> np.ndarray:
        # each trial under its own recipe's test-time augmentation, or plain
        names = [augmented_name(split, trial.has_predictions(augmented_name("test", True))) for trial in trials]
        frames = [trial.predictions(name) for trial, name in zip(trials, names, strict=True)]
        return np.stack([frame.loc[image_id].to_numpy(np.float32) for frame in frames])

    values = side_by_side(stacked("val", val.table["image_id"].to_numpy()))
    unseen = stacked("test", ids)
    systems, members, rule_names = [], [], []
    for name in MIXED:
        file = load_ensemble(name)[1]
        rules = file.rules()
        joined = [partial(_joined, rule, *studies(val.table)) for rule in rules]
        fitted = fit(file.methods(), values, val.targets(findings), val.table["subject_id"].to_numpy(), rules=joined)
        systems.append(combine(_joined(rules[fitted.rule], *studies(test.table), unseen), fitted.weights))
        members.append(int((fitted.weights.sum(axis=1) > 0).sum()))
        rule_names.append(str(rules[fitted.rule]))
    for name, run in zip(names, runs, strict=True):
        folder = run.store / "ensembles" / name
        predictions = read_predictions(folder, "predictions.parquet", findings, "test", run.record.fingerprint)
        systems.append(predictions.frame().loc[ids].to_numpy(float))
    targets, groups = test.targets(findings), test.table["subject_id"].to_numpy()
    bootstrap = metrics.bootstrap_map(targets, systems, groups, rounds=ROUNDS, seed=0)
    scores = [metrics.macro(metrics.per_finding(targets, system, which=("ap",))["ap"]) for system in systems]
    heads = " | ".join(f"{name} over all less it" for name in MIXED)
    lines = [f"| system | trials | test mAP | {heads} |", "|---|---|---|---|---|"]
    for name, count, score, rule in zip(MIXED, members, scores, rule_names, strict=False):
        lines.append(f"| {name} over all ({rule}) | {count} of {len(trials)} | {score:.3f} | | |")
    sample = Sample.of(targets, groups)
    above, below = [0] * len(MIXED), [0] * len(MIXED)
    for name, run, score, draws in zip(names, runs, scores[len(MIXED) :], bootstrap[len(MIXED) :], strict=True):
        cells = []
        for m in range(len(MIXED)):
            gain = Estimate.of_difference(scores[m] - score, bootstrap[m] - draws, sample)
            above[m] += gain.low > 0
            below[m] += gain.high < 0
            cells.append(cli.gained(gain.value, gain.low, gain.high))
        lines.append(f"| {name} | {len(run.trials())} | {score:.3f} | {' | '.join(cells)} |")
    shares = (targets == 1).mean(axis=0)
    chance = shares[shares > 0].mean()
    lines += [
        "",
        f"{len(val.table):,} validation and {len(ids):,} test images, chance {chance:.3f}.",
        *(
            f"{name} over all trials is above {above[m]} of {len(names)} recipes by more than the interval, below "
            f"{below[m]}."
            for m, name in enumerate(MIXED)
        ),
        f"The recipes are in small here (tiny networks from scratch, epochs a stage: {args.epochs}): their order says",
        "nothing of the systems themselves.",
    ]
    publish("recipes", "A mixed library against each recipe", "", lines, args.write)


def _joined(rule: StudyRule, study: np.ndarray, view: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Predictions [M, N, C], the images of a study joined."""
    return rule.values("probability", predictions, predictions, study, view)


if __name__ == "__main__":
    main()
