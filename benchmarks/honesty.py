"""Whether selection is honest, and its gain, where the truth is known: `python benchmarks/honesty.py --write`.

A population is 8 members on 8 findings, the rarest with 5 positives expected in 600 images (2 a subject), the most
common with 150. Each is drawn from 10 times: a validation set to choose on, and 9,600 images to judge by. Cut into sets
of the validation's size these give the AP to expect at that size (and, for coverage, with as many positives), which a
score on the validation set estimates; whole, the population's AP, lower for rare findings. Labels have the same errors
in both. Standard errors are over populations, not draws.

`--real RUN` judges the same selectors on a run's own members, chosen on validation, on its test images. They must have
been scored: `python -m cxrlt_ray.ensemble --run RUN --score-all`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from report import options, publish

from cxrlt_ray import cli
from cxrlt_ray.ensembling.ensemble_file import load_ensemble
from cxrlt_ray.ensembling.pool import candidates, gather
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.runs.store import load_run
from cxrlt_ray.selection import SPACES_OF, average_precision, spaces
from cxrlt_ray.selection.honest import combine, fit
from cxrlt_ray.selection.method import Method

POSITIVES = np.array([5, 8, 12, 20, 30, 50, 90, 150]) / 600  # of each finding, as a share of the images
MEMBERS, FAMILIES = 8, np.array([0, 0, 0, 0, 1, 1, 2, 3])  # members of a family share errors
DRAWS, EVERY = 10, 5  # draws of a population, and of how many one has the slow selectors too
TEST, ROUNDS, FOLDS = 9_600, 512, 5
NEAR = 20  # sets at least, those nearest in positives, that give the AP to expect of one
Results = list[dict[str, Any]]  # of `simulate`, a population each


@dataclass(frozen=True)
class Scenario:
    """A kind of population. noise: of the best, the second and the worst member. The last member may be special."""

    images: int = 600
    noise: tuple[float, float, float] = (0.7, 0.85, 1.8)
    apart: float = 0.3  # how differently skilled a member is at each finding: sd of the noise's logarithm
    useless: bool = False  # the last member sees nothing
    cheat: float = 0.0  # by how much the last member's evidence knows the validation labels
    wrong: float = 0.0  # the share of positives that are labelled negative; as many others are labelled positive


SCENARIOS = {
    "varied": Scenario(),
    "equal": Scenario(noise=(1.1, 1.1, 1.1), apart=0.0),
    "star": Scenario(noise=(0.5, 3.0, 3.0)),
    "useless": Scenario(useless=True),
    "cheat": Scenario(cheat=1.5),
    "noise": Scenario(wrong=0.25),
    "tiny": Scenario(images=200),
}
GREEDY, ADAPTIVE, AUTO = "ensembles/greedy.yaml", "the same, guard auto", "ensembles/auto.yaml"
CROSSED = ("best", "greedy", GREEDY, AUTO)  # what optimism is shown of
PICKED = {GREEDY: "selector", ADAPTIVE: "guard", AUTO: "selector"}  # what they choose by cross-fitting
SLOW = ("rank_mean", "logistic", ADAPTIVE, AUTO)
JUDGED = ("strongest member", "mean", "guarded greedy, cross-fitted", "the same, less mean", "guarded greedy, naive")
PARTS = {"mAP": range(len(POSITIVES)), "finding of 5 in 600": [0], "finding of 20 in 600": [3]}


def systems(rounds: int) -> dict[str, tuple[list[Method], float]]:
    """The systems that are compared, by name: methods in order of preference, and the margin (honest.fit)."""
    file = load_ensemble("greedy")[1]
    bagged = Method(file.selector, file.settings, file.guard)
    own: dict[str, Any] = {"greedy": {"rounds": rounds}, "greedy_global": {"rounds": rounds}}
    plain = ("best", "mean", "topk_mean", "ap_weighted", "rank_mean", "nnls", "logistic", "simplex", *own)
    methods = {name: ([Method(name, own.get(name, {}))], 1.0) for name in plain}
    methods |= {f"{name}, guard 20": ([Method(name, own.get(name, {}), 20.0)], 1.0) for name in ("nnls", "greedy")}
    methods["greedy_bagged, no guard"] = [replace(bagged, guard=0.0)], 1.0
    methods["greedy_bagged, guard 20"] = [bagged], 1.0
    methods[GREEDY] = file.methods(), file.margin()
    methods[ADAPTIVE] = [replace(bagged, guard="auto"), *file.methods()[1:]], file.margin()
    auto = load_ensemble("auto")[1]
    methods[AUTO] = auto.methods(), auto.margin()
    return methods


class Population:
    """Members of given skill, and the images they may meet."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        self.scenario, self.rng = scenario, rng
        self.shift = 1.0 - 0.65 * np.log10(POSITIVES) + rng.normal(0, 0.2, len(POSITIVES))  # rare ones stand out
        noise = np.append(scenario.noise[0], np.linspace(*scenario.noise[1:], MEMBERS - 1))
        self.noise = noise[:, None] * np.exp(rng.normal(0, scenario.apart, (MEMBERS, len(POSITIVES))))
        self.slope = 1 + (scenario.apart > 0) * rng.uniform(-0.4, 0.4, MEMBERS)  # over- or under-confident

    def sample(self, images: int, validation: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictions [M, N, C], targets [N, C], groups [N] of so many images."""
        s = self.scenario
        prior = np.log(POSITIVES / (1 - POSITIVES))
        ill = self._normal(images, 0.8) > [NormalDist().inv_cdf(1 - share) for share in POSITIVES]
        chance = np.where(ill, 1 - s.wrong, s.wrong * POSITIVES / (1 - POSITIVES))
        targets = (self.rng.random(chance.shape) < chance).astype(np.int8)
        difficulty = self._normal(images, 0.5)  # that all members see
        family = [self._normal(images, 0.5) for _ in range(FAMILIES.max() + 1)]
        predictions = np.empty((MEMBERS, *targets.shape), np.float32)
        for m in range(MEMBERS):
            evidence = self.shift * (ill - 0.5) + difficulty
            if m == MEMBERS - 1:
                evidence = evidence * (not s.useless) + s.cheat * validation * targets
            error = np.sqrt(0.5) * (family[FAMILIES[m]] + self._normal(images, 0.5))
            predictions[m] = 1 / (1 + np.exp(-prior - self.slope[m] * (evidence + self.noise[m] * error)))
        return predictions, targets, np.repeat(np.arange(images // 2), 2)

    def _normal(self, images: int, shared: float) -> np.ndarray:
        """Standard normal [images, C], the two images of a subject correlated by `shared`."""
        subject, image = (self.rng.standard_normal((n, len(POSITIVES)), np.float32) for n in (images // 2, images))
        return np.sqrt(shared) * np.repeat(subject, 2, axis=0) + np.sqrt(1 - shared) * image


def precisions(scores: Any, targets: np.ndarray) -> np.ndarray:
    """AP [S, C] of systems' scores [S, N, C]; nan without positives."""
    return average_precision.precisions(np.asarray(scores, np.float32), targets)


def simulate(name: str, population: int, seed: int) -> dict[str, Any]:
    """The draws of one population, by system each: mAP test, naive, crossed, sized; picked; covered."""
    warnings.simplefilter("ignore")  # of findings with too few positives: they are meant
    scenario = SCENARIOS[name]
    people = Population(scenario, np.random.default_rng([seed, *name.encode(), population]))
    result: dict[str, Any] = {key: [] for key in ("test", "naive", "crossed", "sized", "picked", "judged")}
    for d in range(DRAWS):
        (predictions, targets, groups), test = people.sample(scenario.images, True), people.sample(TEST, False)
        chosen, tested = {}, {JUDGED[0]: test[0][0]}
        fast = {name: method for name, method in systems(rounds=20).items() if name not in SLOW or d % EVERY == 0}
        for system, (methods, margin) in fast.items():
            folds, space = FOLDS if system in CROSSED + SLOW else 0, SPACES_OF[methods[0].selector]
            values, draw_seed = spaces.into(space, predictions, predictions), population * DRAWS + d
            chosen[system] = fit(methods, values, targets, groups, folds=folds, seed=draw_seed, margin=margin)
            tested[system] = combine(spaces.into(space, test[0], predictions), chosen[system].weights)
        judged = [system for system in (*JUDGED[:2], *CROSSED) if system in tested]
        stack, blocks = np.array([tested[s] for s in judged], np.float32), np.arange(TEST).reshape(-1, scenario.images)
        by_block = np.array([precisions(stack[:, block], test[1][block]) for block in blocks])  # [block, system, C]
        sized, counts = dict(zip(judged, by_block.swapaxes(0, 1), strict=True)), (test[1][blocks] == 1).sum(axis=1)
        size = {system: np.nanmean(ap, axis=0) for system, ap in sized.items()}
        whole = dict(zip(tested, precisions(list(tested.values()), test[1]), strict=True))
        crossed = {system: chosen[system].crossed[0] for system in judged[2:]}
        naive = {system: combine(predictions, chosen[system].weights) for system in judged[2:]}
        scores = [predictions[0], predictions.mean(axis=0), crossed[GREEDY], naive[GREEDY]]
        truths = [(sized[s], whole[s]) for s in (*JUDGED[:2], GREEDY, GREEDY)]
        result["judged"].append((targets, groups, scores, *map(np.array, zip(*truths, strict=True)), counts))
        present = (targets == 1).any(axis=0)  # the truth of a mean is over the findings that it holds
        result["test"].append({system: ap.mean() for system, ap in whole.items()})
        result["sized"].append({system: size[system][present].mean() for system in crossed})
        for key, by_system in (("naive", naive), ("crossed", crossed)):
            ap = precisions(list(by_system.values()), targets)[:, present]
            result[key].append(dict(zip(by_system, ap.mean(axis=1), strict=True)))
        result["picked"].append({system: chosen[system].method for system in PICKED if system in chosen})
    return result | {"covered": covers(result.pop("judged"))}


def covers(judged: list[Any]) -> np.ndarray:
    """Whether intervals hold a truth, [D, JUDGED, PARTS, expected or population's, percentile or taken]; nan: none."""
    sized, counts = np.concatenate([j[3] for j in judged], axis=1), np.concatenate([j[5] for j in judged])
    population = np.mean([j[4] for j in judged], axis=0)
    held = np.full((len(judged), len(JUDGED), len(PARTS), 2, 2), np.nan)
    for d, (targets, groups, scores, *_) in enumerate(judged):
        expected = np.full(population.shape, np.nan)  # of sets of this size that hold as many positives
        for c, positives in enumerate((targets == 1).sum(axis=0)):
            distance = np.where(counts[:, c] > 0, abs(counts[:, c] - positives), np.inf)
            expected[:, c] = sized[:, distance <= np.sort(distance)[NEAR], c].mean(axis=1)
        truth = np.stack([expected, population], axis=1)  # [system, expected or population's, C]
        sample = Sample.of(targets, groups)
        for part, columns in enumerate(PARTS.values()):
            present = [c for c in columns if (targets[:, c] == 1).any()]
            if not present:
                continue
            subset = [system_scores[:, present] for system_scores in scores]
            draws = metrics.bootstrap_map(targets[:, present], subset, groups, rounds=ROUNDS, seed=d)
            ap, goal = precisions(subset, targets[:, present]).mean(axis=1), truth[:, :, present].mean(axis=2)
            draws, ap, goal = (np.insert(values, 3, values[2] - values[1], axis=0) for values in (draws, ap, goal))
            makers = [Estimate.of_difference if "less" in name else Estimate.of_score for name in JUDGED]
            rows = zip(makers, ap, draws, strict=True)
            taken = np.array([astuple(make(*row, sample.part(present)))[1:] for make, *row in rows]).T
            for k, (least, most) in enumerate((np.nanquantile(draws, [0.025, 0.975], axis=1), taken)):
                inside = (least[:, None] <= goal) & (goal <= most[:, None])
                held[d, :, part, :, k] = np.where(np.isnan(least)[:, None], np.nan, inside)
    return held


def less(results: Results, system: str, other: str, key: str = "test", than: str = "test", digits: int = 3) -> str:
    """`key` of one system less `than` of the other, ± its standard error over populations; of "test", 1.96 of them."""
    pairs = [zip(population[key], population[than], strict=True) for population in results]
    means = [np.mean([a[system] - b[other] for a, b in pair if system in a]) for pair in pairs]
    error = np.std(means, ddof=1) / np.sqrt(len(means)) * (1.96 if key == "test" else 1)
    return f"{np.mean(means):+.{digits}f} ± {error:.{digits}f}"


def table(heads: list[str], rows: Any) -> list[str]:
    """A table as lines of markdown, with an empty one after it."""
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)] + [""]


def simulation(by_scenario: dict[str, Results]) -> list[str]:
    """The section's tables: optimism, coverage, gains, choices; lines of markdown."""
    optimism, coverage, better, chosen, worse = [], [], [], [], []
    guarded = ("greedy, guard 20", "greedy_bagged, guard 20", *PICKED)
    draws = len(by_scenario["tiny"]) * DRAWS
    for name, results in by_scenario.items():
        optimism += [
            [name, system, *(less(results, system, system, key, "sized", 4) for key in ("naive", "crossed"))]
            for system in CROSSED
        ]
        covered = np.concatenate([population["covered"] for population in results])
        held = 100 * np.nanmean(covered, axis=0).reshape(len(JUDGED), -1, 2)
        for s, cells in zip(JUDGED, held, strict=True):
            coverage.append(
                [name, s, *(", ".join("-" if np.isnan(kind) else f"{kind:.0f}" for kind in cell) for cell in cells)]
            )
        best = "best" if less(results, "best", "mean", digits=9).startswith("+") else "mean"
        better.append([name, best, *(less(results, system, best, digits=4) for system in guarded)])
        cells = zip(guarded, (cell.split(" ± ") for cell in better[-1][2:]), strict=True)
        worse += [f"{system} in {name}" for system, (mean, noise) in cells if float(mean) < -float(noise)]
        picked = [draw for population in results for draw in population["picked"]]
        choices = ([getattr(draw[s], PICKED[s]) for draw in picked if s in draw] for s in PICKED)
        counts = [Counter(map(str, values)) for values in choices]
        chosen.append(
            [name, *(", ".join(f"{k} {100 * n / c.total():.0f} %" for k, n in c.most_common()) for c in counts)]
        )
    lines = [f"{draws:,} draws of each scenario, {draws // EVERY:,} for {'; '.join(SLOW)}; {MEMBERS} members,"]
    lines += [f"{FOLDS} folds, greedy with 20 rounds. 95 % are known to ± {(475 / draws) ** 0.5:.1f}.", ""]
    lines += ["### Optimism", "", "Validation mAP less the mAP to expect at that size, ± 1 standard error.", ""]
    lines += table(["scenario", "selector", "chosen and scored on the same images", "cross-fitted"], optimism)
    lines += ["### Coverage of 95 % intervals: percentile, the one taken (benchmarks/intervals.py)", ""]
    lines += ["Per cent of draws that hold the AP to expect of so many images and positives, or the population's.", ""]
    heads = [f"{part}, {truth}" for part in PARTS for truth in ("expected", "population")]
    lines += table(["scenario", "system", *heads], coverage)
    for other in ("best", "mean"):
        lines += [f"### Test mAP less that of {other}", "", "The population's mAP, with 95 % intervals.", ""]
        compared = [system for system in systems(1) if system != other]
        rows = [[system, *(less(results, system, other) for results in by_scenario.values())] for system in compared]
        lines += table(["selector", *by_scenario], rows)
    lines += ["### Test mAP less that of the better of best and mean", "", "The better on average over draws.", ""]
    lines += table(["scenario", "better", *guarded], better)
    lines += [f"Worse by more than the interval: {'; '.join(worse) or 'none'}.", "", "### What was chosen", ""]
    return lines + table(["scenario", *PICKED], chosen)[:-1]


def real(path: Path, seed: int) -> list[str]:
    """The same selectors, with their own settings, on the members of a run: a table, lines of markdown."""
    run = load_run(str(path.parent), path.name)
    split, findings, manifest = run.task.scored_split, run.task.findings, run.manifest()
    images = manifest.of_split(split)
    targets, groups = images.targets(findings), images.table["subject_id"].to_numpy()
    scored = [trial for trial in candidates(run, None) if trial.has_predictions(split)]
    if len(scored) < 2 or not (targets == 1).any():
        sys.exit(f"{path} needs labels of {split} and trials that scored it: there are {len(scored)}; see --help.")
    pool = gather(run, manifest, scored)
    frames = (trial.predictions(split).reindex(images.table["image_id"]) for trial in pool.trials)
    test = np.stack([frame[list(findings)].to_numpy(np.float32) for frame in frames])
    good = np.isfinite(test).all(axis=(0, 2))  # images that could be read
    test, targets, groups = test[:, good], targets[good], groups[good]
    rows, scores = {}, {}
    for name, (methods, margin) in systems(rounds=50).items():
        space = SPACES_OF[methods[0].selector]
        values = spaces.into(space, pool.predictions, pool.predictions)
        fitted = fit(methods, values, pool.targets, pool.groups, folds=FOLDS, seed=seed, margin=margin)
        both = precisions([combine(values, fitted.weights), fitted.crossed[0]], pool.targets)
        picked = f" ({fitted.method.selector}, guard {fitted.method.guard:g})" if name in PICKED else ""
        rows[name] = [name + picked, *(f"{metrics.macro(ap):.3f}" for ap in both)]
        scores[name] = combine(spaces.into(space, test, pool.predictions), fitted.weights)
    value = dict(zip(scores, map(metrics.macro, precisions(list(scores.values()), targets)), strict=True))
    draws = dict(zip(scores, metrics.bootstrap_map(targets, list(scores.values()), groups, seed=seed), strict=True))
    sample = Sample.of(targets, groups)
    for name, row in rows.items():
        row.append(cli.ranged(*astuple(Estimate.of_score(value[name], draws[name], sample))))
        for other in ("best", "mean"):
            gain = Estimate.of_difference(value[name] - value[other], draws[name] - draws[other], sample)
            row.append("" if name == other else cli.gained(*astuple(gain)))
    record = run.record
    sweep = f"sweep {record.task_argument} --data {Path(record.data or '').name} --space {record.space}"
    head = f"{len(pool.trials)} members, of `{sweep} --trials {record.trials}`; chosen on {len(pool.image_id):,} "
    head += "validation images, which epoch choice and search have seen; "
    head += f"judged on {len(targets):,} of {split}, with 95 % intervals by subject (paired)."
    heads = ["selector", "same images", "cross-fitted", split, "less best", "less mean"]
    return [head, "", *table(heads, rows.values())[:-1]]


def main() -> None:
    parser = options(__doc__, {"draws": 300, "workers": 2, "seed": 0})
    parser.add_argument("--real", type=Path, metavar="RUN", help="a run's directory: judge its members, simulate none")
    args = parser.parse_args()
    if min(args.draws // DRAWS, args.workers, args.seed + 1) < 1:
        parser.error(f"need at least {DRAWS} draws of each scenario, 1 worker and a seed from 0")
    if args.real:
        name, title, lines = "honesty-real", f"Selection on real members: {args.real.name}", real(args.real, args.seed)
    else:
        os.environ |= dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        jobs = [(name, p, args.seed) for p in range(args.draws // DRAWS) for name in SCENARIOS]
        results: dict[str, Results] = {name: [] for name in SCENARIOS}
        with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
            for (name, *_), result in zip(jobs, pool.map(simulate, *zip(*jobs, strict=True)), strict=True):
                results[name].append(result)
                print(f"\r{sum(map(len, results.values()))} of {len(jobs)} populations", end="", file=sys.stderr)
        name, title, lines = "honesty", "Honesty of selection, simulated", simulation(results)
    publish(name, title, ".", lines, args.write)


if __name__ == "__main__":
    main()
