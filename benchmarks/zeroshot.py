"""Zero-shot learning on the phantom `--for-text`, with its controls. `python benchmarks/zeroshot.py --write`.

Five findings have no labels in training: each arm answers for them on three cohorts, one a seed, and is scored by lift
(AP / prevalence) on test images in which they come without their usual company. Trained arms (zeroshot_arms.py) are one
trial each, by `sweep` and `ensemble`. Made of arm `seen`: `ill`, 1 - p(Normal) for each of the five, which is what a
model reaches that tells them from healthy studies alone; `proxy`, the seen finding whose description is nearest, and
ConSE, seen probabilities weighed by similarity, their prompts and neighbours chosen on folds of seen findings. Made of
the others: `permuted`, a model asked for each finding with the prompt of another.

Results are kept in build/zeroshot by arm and seed: a run that was cut goes on. `--minutes M` begins no trial that would
end after M minutes, and prints what there is. Intervals are by subject, over the seeds that both arms have.
`--enriched .1` gives the five to more training studies, nearly as many as the release has of Bulla: another section.
A trial of 2,000 images and 3 + 6 epochs shows about 1,400 training images nine times: 3 to 4 minutes at 90 images/s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from report import publish
from zeroshot_arms import (
    ARMS,
    BESIDE,
    CONTROLLED,
    MINED,
    SEEN,
    SHUFFLED,
    SUPERVISED,
    Arm,
    Size,
    Trained,
    train,
    trained,
)
from zeroshot_data import BUILD, cohorts
from zeroshot_parts import (
    NEIGHBOURS,
    Choice,
    LogLift,
    choose,
    conse,
    cosines,
    log_lift,
    mean_of,
    permutations,
    rank_correlation,
)

if TYPE_CHECKING:
    from cxrlt_ray.evaluation.estimate import Estimate

STYLES = ("name", "names", "description", "keywords")  # of the prompts by which seen findings are compared
NEAREST, PROXY, CONSE, PERMUTED, CHANCE = "proxy, nearest by name", "proxy", "ConSE", "permuted", "chance"
ILL = "ill, 1 - p(Normal)"
By = dict[str, dict[int, LogLift]]  # arm -> seed -> its lift


def trials(folder: Path, arms: Sequence[Arm], seeds: Sequence[int], size: Size, minutes: float) -> list[str]:
    """Train what is missing, a seed after the other, as far as the time goes; lines on what was left out or failed."""
    from cxrlt_ray.errors import CxrltError, UsageError

    end, longest, notes, left = time.monotonic() + 60 * minutes, 0.0, [], 0
    for seed in seeds:
        data = cohort_of(size, seed)
        for arm in arms:
            if trained(folder, arm, seed) is not None:
                continue
            if time.monotonic() + longest > end:
                left += 1
                continue
            began = time.monotonic()
            try:
                result = train(folder, arm, size, data, seed)
                merit = "" if result.fold_log_lift is None else f", log lift on folds {result.fold_log_lift:.3f}"
                print(f"seed {seed}: {arm.name}: {result.seconds:.0f} s{merit}", flush=True)
            except (CxrltError, UsageError) as error:
                notes.append(f"seed {seed}: {arm.name} failed: {error}")
                print(notes[-1], flush=True)
            longest = max(longest, time.monotonic() - began)
    return [*notes, *([f"{left} trials were left out for time: the same command goes on with them."] if left else [])]


def cohort_of(size: Size, seed: int) -> Path:
    """The folder of a seed's cohort, drawn where it is not there yet."""
    apart = None if size.apart == 60 else size.apart
    (folder,) = cohorts(size.images, size.size, [seed], apart=apart, enriched=size.enriched)
    return folder


def scored(folder: Path, arms: Sequence[Arm], seeds: Sequence[int], size: Size) -> tuple[By, dict[int, dict[str, str]]]:
    """The lift of every arm and seed that is there, and what ConSE and proxy were chosen to be."""
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.tasks import TASK3

    by: By = {CHANCE: {}}
    choices: dict[int, dict[str, str]] = {}
    for seed in seeds:
        data = cohort_of(size, seed)
        images = read_cohort(str(data), task="task3", seed=seed).manifest.of_split("test")
        targets = images.targets(TASK3)
        groups, ids = images.table["subject_id"].to_numpy().astype(str), images.table["image_id"].astype(str)
        scores = {}
        for arm in arms:
            if (result := trained(folder, arm, seed)) is None:
                continue
            if arm is SEEN:
                derived, choices[seed] = from_seen(result, data, seed)
                scores |= {name: [table.loc[ids].to_numpy()] for name, table in derived.items()}
                continue
            scores[arm.name] = [result.scores.loc[ids, list(TASK3)].to_numpy(np.float64)]
            if arm.track == "reports" and arm.reports == "own" and not arm.random:
                scores[f"{arm.name}, {PERMUTED}"] = list(permutations(*scores[arm.name]))
        scores[CHANCE] = [np.zeros(targets.shape)]
        for name, systems in scores.items():
            by.setdefault(name, {})[seed] = log_lift(targets, systems, groups)
    return by, choices


def from_seen(result: Trained, data: Path, seed: int) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Scores of the test images by ill, proxy and ConSE, tables [N, 5] by image_id, and their choices in words."""
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.tasks import TASK1, TASK3
    from cxrlt_ray.evaluation.lift import prevalences
    from cxrlt_ray.text.finding_embeddings import finding_embeddings
    from cxrlt_ray.text.groups import finding_folds

    manifest = read_cohort(str(data), task="task1", seed=seed).manifest
    share = prevalences(manifest.of_split("train").targets(TASK1))
    fold = finding_folds(TASK1, share, 8, seed)
    validation = manifest.where(manifest.table["image_id"].isin(result.validation.index))
    table = result.validation.loc[validation.table["image_id"], list(TASK1)].to_numpy(np.float64)
    every = {style: finding_embeddings((*TASK1, *TASK3), "minilm", style) for style in STYLES}
    seen = {style: rows[: len(TASK1)] for style, rows in every.items()}
    targets = validation.targets(TASK1)
    chosen = {
        NEAREST: Choice("name", 1),
        PROXY: choose(targets, table, seen, fold, (1,)),
        CONSE: choose(targets, table, seen, fold, NEIGHBOURS),
    }
    probabilities = result.scores[list(TASK1)].to_numpy(np.float64)
    ill = np.repeat(1 - probabilities[:, [TASK1.index("Normal")]], len(TASK3), axis=1)
    scores, words = {ILL: pd.DataFrame(ill, result.scores.index, list(TASK3))}, {}
    for name, choice in chosen.items():
        similarity = cosines(every[choice.style][len(TASK1) :], seen[choice.style])
        values = conse(probabilities, similarity, choice.neighbours)
        scores[name] = pd.DataFrame(values, result.scores.index, list(TASK3))
        words[name] = f"prompts {choice.style}, neighbours {choice.neighbours}"
    nearest = cosines(every[chosen[PROXY].style][len(TASK1) :], seen[chosen[PROXY].style]).argmax(axis=1)
    words[PROXY] += f" ({', '.join(f'{one}: {TASK1[k]}' for one, k in zip(TASK3, nearest, strict=True))})"
    return scores, words


def table(by: By, fold_lift: dict[str, dict[int, float]]) -> list[str]:
    """A row an arm: lift with its interval, of each finding, mean AP, its share of the supervised, lift on folds."""
    from cxrlt_ray.data.tasks import TASK3

    heads = ["arm", "seeds", "lift", *TASK3, "AP", "of supervised", "lift of seen on folds"]
    rows = [heads, ["---"] * len(heads)]
    for name, by_seed in sorted(by.items(), key=lambda item: [*ORDER, item[0]].index(item[0])):
        parts = list(by_seed.values())
        lift = [interval(mean_of(parts)), *(interval(mean_of(parts, finding=c)) for c in range(len(TASK3)))]
        rows.append([name, str(len(parts)), *lift, f"{np.mean([part.ap.mean() for part in parts]):.3f}"])
        both = sorted(set(by_seed) & set(by.get(SUPERVISED.name, {})))
        ratio = [by_seed[seed].ap.mean() / by[SUPERVISED.name][seed].ap.mean() for seed in both]
        folds = list(fold_lift.get(name, {}).values())
        rows[-1] += [f"{np.mean(ratio):.2f}" if ratio else "", f"{np.exp(np.mean(folds)):.2f}" if folds else ""]
    return ["| " + " | ".join(row) + " |" for row in rows]


def comparisons(by: By, arms: Sequence[Arm]) -> list[str]:
    """How many times the lift of each arm on track reports is that of what it should be above, paired by subject."""
    pairs = []
    for arm in (arm for arm in arms if arm.track == "reports" and arm.reports == "own" and not arm.random):
        scrubbed = arm.name.replace("reports", "scrubbed")
        others = (f"{arm.name}, {PERMUTED}", ILL, PROXY, CONSE, scrubbed)
        pairs += [(arm.name, other) for other in others if other != arm.name]
    pairs += [(CONTROLLED, other) for other in (SHUFFLED, MINED)] + list(BESIDE.items())
    rows = [["arm", "above", "lift, times", "seeds"], ["---"] * 4]
    for name, other in pairs:
        if both := sorted(set(by.get(name, {})) & set(by.get(other, {}))):
            value = mean_of([by[name][seed] for seed in both], [by[other][seed] for seed in both])
            rows.append([name, other, interval(value), str(len(both))])
    return ["| " + " | ".join(row) + " |" for row in rows]


def interval(estimate: Estimate) -> str:
    """A value with its interval, if it has one."""
    value = f"{estimate.value:.2f}"
    return f"{value} [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.known else value


def correlated(by: By, fold_lift: dict[str, dict[int, float]]) -> str:
    """Whether the folds' ranking of trials is that on the five, in a line."""
    pairs = [
        (merit, float(by[name][seed].values.mean()))
        for name, merits in fold_lift.items()
        for seed, merit in merits.items()
        if seed in by.get(name, {})
    ]
    if len(pairs) < 3:
        return f"Rank correlation of lift on folds and on the five: needs 3 trials, there are {len(pairs)}."
    value = rank_correlation(*zip(*pairs, strict=True))
    return f"Rank correlation of lift on folds and on the five, {len(pairs)} trials: {interval(value)}."


def lines_of(folder: Path, arms: Sequence[Arm], seeds: Sequence[int], size: Size) -> list[str]:
    """The section: what there is so far."""
    by, choices = scored(folder, arms, seeds, size)
    fold_lift = {
        arm.name: {
            seed: result.fold_log_lift
            for seed in seeds
            if (result := trained(folder, arm, seed)) is not None and result.fold_log_lift is not None
        }
        for arm in arms
    }
    seconds = [result.seconds for arm in arms for seed in seeds if (result := trained(folder, arm, seed))]
    chosen = [f"- seed {seed}, {name}: {words}" for seed, names in choices.items() for name, words in names.items()]
    return [
        "Lift is AP / prevalence, geometric mean over the five findings and the seeds; chance is 1. Intervals: 95 %,",
        "by subject. AP and its share of the supervised arm's are means over findings. Pictures and reports are drawn:",
        "no real pairs of both are at hand. `sweep task3 --data DIR --reports PATH` takes a user's own.",
        "",
        *table(by, fold_lift),
        "",
        "How many times the lift of the first is that of the second, paired by subject:",
        "",
        *comparisons(by, arms),
        "",
        correlated(by, fold_lift),
        "",
        "Chosen on folds of seen findings:",
        "",
        *chosen,
        "",
        f"{len(seconds)} trials, {np.sum(seconds) / 60:.0f} minutes in all.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="of each cohort, all splits")
    parser.add_argument("--epochs", type=int, nargs=2, default=[3, 6], help="of pretraining on reports, of training")
    # of 2,000 images, the test split of seed 1 has two studies too few for 60 of each finding
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 2, 3])
    parser.add_argument("--arms", nargs="+", metavar="NAME", help=f"of {', '.join(repr(arm.name) for arm in ARMS)}")
    parser.add_argument("--folds", type=int, default=1, help="of seen findings: so many models a trial")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--resolution", type=int, default=112)
    parser.add_argument("--size", type=int, default=128, help="of the drawn pictures")
    parser.add_argument("--apart", type=int, default=60, help="test studies of each of the five, at least")
    enriched = "share of the studies to learn from with each of the five, at least: a section of its own"
    parser.add_argument("--enriched", type=float, default=0.0, help=enriched)
    parser.add_argument("--cpus", type=float, help="of a trial; all without")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    args = parser.parse_args()
    names = args.arms or [arm.name for arm in ARMS]
    if unknown := [name for name in names if name not in {arm.name for arm in ARMS}]:
        parser.error(f"--arms: there is no '{unknown[0]}'")
    arms = [arm for arm in ARMS if arm.name in names]
    epochs, model = tuple(args.epochs), (args.backbone, args.resolution)
    size = Size(args.images, args.size, epochs, args.folds, *model, args.apart, args.enriched, args.cpus)
    folder = BUILD / size.name
    folder.mkdir(parents=True, exist_ok=True)
    notes = trials(folder, arms, args.seeds, size, args.minutes)
    lines = [*lines_of(folder, arms, args.seeds, size), *notes]
    section, title = "zeroshot", "Findings asked for by text, against their controls"
    if size.enriched:
        section, title = "zeroshot-enriched", f"{title}, where more reports are of them"
    publish(section, title, ".", lines, args.write)


ORDER = [CHANCE, ILL, NEAREST, PROXY, CONSE, *(arm.name for arm in ARMS)]

if __name__ == "__main__":
    main()
