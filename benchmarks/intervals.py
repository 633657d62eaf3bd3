"""How often 95 % intervals hold the truth, by method: `python benchmarks/intervals.py --write` (an hour on two cores).

A population has 20 findings of prevalence .3 to .01 in geometric steps; images belong to subjects of one or of one to
eight images, whose labels and scores are correlated (.5). Two systems score them, the second a little apart from the
first. The truth is the mean score of other samples of the same size ("expected"), or that of a million images
("population"). The method taken is tried on mAP `--draws` times, a quarter of it at 40,000 images; all the others, and
the other scores, on the first fifth of these samples.

Methods: percentile, basic, percentile moved by the bootstrap's bias, normal, BCa (Efron 1987), studentised, Bayesian
bootstrap (Rubin 1981), m out of n (m = n ** .8), infinitesimal jackknife; all by subject. The one taken,
`Estimate`, is value ± t standard errors of the bootstrap, of a score on the logit scale.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numba import njit
from report import options, publish

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample

FINDINGS, MANY, ROUNDS, CHUNK = 20, 1_000_000, 256, 25
STUDENTISED = 300  # images up to which it is tried, on means of findings: it needs a standard error in every draw
NORMAL = NormalDist()
Z = NORMAL.inv_cdf(0.975)
PREVALENCE = np.geomspace(0.3, 0.01, FINDINGS)
BINS = {"1": 1, "2 to 4": 2, "5 to 9": 5, "10 to 19": 10, "20 to 99": 20, "100 to 999": 100, "1,000 up": 1000}
TAKEN = "taken"
Held = dict[tuple[str, str, str], list[tuple[bool, bool, float]]]  # metric, what, method: expected, population, width


@dataclass(frozen=True)
class Scenario:
    """A kind of sample: images, the most images a subject has, by how much positives stand out."""

    images: int
    each: int = 1
    strong: bool = False

    def __str__(self) -> str:
        subjects = "1 a subject" if self.each == 1 else f"1 to {self.each} a subject"
        return f"{self.images:,} images, {subjects}, {'strong' if self.strong else 'weak'}"

    def sample(self, rng: np.random.Generator, images: int = 0) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Targets int8 [N, C], two systems' scores [N, C], subjects [N]."""
        images = images or self.images
        groups = np.repeat(np.arange(images), rng.integers(1, self.each + 1, images))[:images]

        def normal() -> np.ndarray:
            """Standard normal [N, C], the images of a subject correlated by one half."""
            subject, image = (rng.standard_normal((n, FINDINGS), np.float32) for n in (groups[-1] + 1, images))
            return (subject[groups] + image) / np.float32(np.sqrt(2)) if self.each > 1 else image

        targets = (normal() > [NORMAL.inv_cdf(1 - share) for share in PREVALENCE]).astype(np.int8)
        fixed = np.random.default_rng(0)
        apart = fixed.permutation(np.linspace(0.5, 1.8, FINDINGS)) + self.strong
        shared, systems = normal(), []
        for factor in (np.ones(FINDINGS), fixed.uniform(0.8, 1.15, FINDINGS)):
            evidence = targets * apart * factor + np.sqrt(0.6) * shared + np.sqrt(0.4) * normal()
            logit = apart * (evidence - apart / 2) + np.log(PREVALENCE / (1 - PREVALENCE))
            systems.append((1 / (1 + np.exp(-logit))).astype(np.float32))
        return targets, systems, groups


NAMES = ("ap", "auroc", "f1", "fnr")
SMALL = [Scenario(300), Scenario(300, 8), Scenario(300, 8, True)]
SCENARIOS = [Scenario(n, s.each, s.strong) for n in (300, 2_000, 40_000) for s in SMALL]


def scores_of(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """NAMES [4, C]."""
    values = metrics.per_finding(targets, scores, NAMES)
    return np.stack([values[name] for name in NAMES])


def truths(scenario: Scenario, samples: int, seed: int) -> np.ndarray:
    """The scores [2 kinds, 2 systems, 4, C] to expect of a sample, and those of the population."""
    rng = np.random.default_rng([seed, 1])
    by_sample = []
    for _ in range(samples):
        targets, systems, _groups = scenario.sample(rng)
        by_sample.append([scores_of(targets, scores) for scores in systems])
    targets, systems, _groups = scenario.sample(rng, MANY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.stack([np.nanmean(by_sample, axis=0), [scores_of(targets, scores) for scores in systems]])


@njit(cache=True)
def influence(positive, last, group, weight):  # type: ignore[no-untyped-def]
    """AP under weights a subject, and its derivatives by them [G]; images from the highest score down."""
    size = positive.size
    true, seen = np.zeros(size), np.zeros(size)
    a = t = 0.0
    start = 0
    for n in range(size):
        t += weight[group[n]]
        if positive[n]:
            a += weight[group[n]]
        if last[n]:
            true[start : n + 1] = a
            seen[start : n + 1] = max(t, 1e-12)
            start = n + 1
    result = np.zeros(weight.size)
    if a == 0:
        return np.nan, result
    ap = 0.0
    for n in range(size):
        if positive[n]:
            ap += weight[group[n]] * true[n] / seen[n]
    ap /= a
    more = less = 0.0
    end = size
    while end > 0:
        start = end - 1
        while start > 0 and not last[start - 1]:
            start -= 1
        for n in range(start, end):
            if positive[n]:
                more += weight[group[n]] / seen[n]
                less += weight[group[n]] * true[n] / seen[n] ** 2
        for n in range(start, end):
            result[group[n]] += (positive[n] * (true[n] / seen[n] + more - ap) - less) / a
        end = start
    return ap, result


class Resampled:
    """What the methods need of one sample: for every system and finding draws of AP by each kind of resampling."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator, seed: int, every: bool) -> None:
        self.targets, self.systems, self.groups = scenario.sample(rng)
        order = np.unique(self.groups.astype(str), return_inverse=True)[1]
        self.count = int(order.max()) + 1
        self.sample = Sample.of(self.targets, self.groups)
        self.values = np.stack([scores_of(self.targets, scores) for scores in self.systems])  # [2, 4, C]
        self.every = every  # method and score
        if not every:
            self.draws = metrics.bootstrap_ap(self.targets, self.systems, self.groups, ROUNDS, seed)[:, None]
            return
        draws = [metrics.bootstrap_scores(self.targets, s, self.groups, ROUNDS, seed) for s in self.systems]
        self.draws = np.stack([[by_name[name] for name in NAMES] for by_name in draws])  # [2, 4, C, R]
        bayes = np.minimum(rng.exponential(256, (ROUNDS, self.count)).round(), 65_535)
        self.bayes = self._weighted(bayes)
        self.fewer = max(int(self.count**0.8), 2)
        drawn = (np.bincount(rng.integers(0, self.count, self.fewer), minlength=self.count) for _ in range(ROUNDS))
        self.few = self._weighted(np.array(list(drawn)))
        columns = [zip(self.targets.T, scores.T, strict=True) for scores in self.systems]
        ordered = [[metrics.sorted_images(*column, order) for column in some] for some in columns]
        ones = np.ones(self.count)
        self.slope = np.array([[influence(*column, ones)[1] for column in some] for some in ordered])  # [2, C, G]
        self.studentised = len(self.groups) <= STUDENTISED
        if self.studentised:
            again = np.random.default_rng(seed)
            w = [np.bincount(again.integers(0, self.count, self.count), minlength=self.count) for _ in range(ROUNDS)]
            self.t_draws = [[[influence(*column, np.float64(x)) for x in w] for column in some] for some in ordered]
            self.weights = np.array(w, float)

    def _weighted(self, weights: np.ndarray) -> np.ndarray:
        """AP [2, C, R] where subjects count by `weights`."""
        return np.stack([v[0] for v in metrics.reweighted(self.targets, self.systems, self.groups, weights)])

    def errors(self, combine: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Standard errors [R] in each draw of the combination of systems [2] and findings, by its influences."""
        result = np.empty(ROUNDS)
        for r in range(ROUNDS):
            total = np.zeros(self.count)
            known = [c for c in rows if not np.isnan(self.t_draws[0][c][r][0])]
            for s in np.flatnonzero(combine):
                for c in known:
                    total += combine[s] * self.t_draws[s][c][r][1] / max(len(known), 1)
            result[r] = np.sqrt((self.weights[r] * total**2).sum())
        return result


def methods(
    value: float,
    draws: np.ndarray,
    more: tuple[np.ndarray, np.ndarray, np.ndarray, Any] | None,
    sample: Sample,
    fewer: float,
) -> Iterator[tuple[str, float, float]]:
    """Every method's interval. more: Bayesian draws, m-out-of-n draws, influences, standard errors; for AP only."""
    known = draws[~np.isnan(draws)]
    if not known.size:
        return
    low, high = np.quantile(known, [0.025, 0.975])
    lift, error = known.mean() - value, known.std()
    yield "percentile", low, high
    yield "basic", 2 * value - high, 2 * value - low
    yield "percentile, moved", low - lift, high - lift
    yield "normal", value - Z * error, value + Z * error
    if more is None:
        return
    bayes, few, slope, errors = more
    below = np.clip((known < value).mean(), 1 / len(known), 1 - 1 / len(known))
    start, skew = NORMAL.inv_cdf(below), (slope**3).sum() / (6 * max((slope**2).sum() ** 1.5, 1e-300))
    ends = [NORMAL.cdf(start + (start + z) / (1 - skew * (start + z))) for z in (-Z, Z)]
    yield "BCa", *np.quantile(known, np.clip(ends, 0, 1))
    yield "Bayesian", *np.nanquantile(bayes, [0.025, 0.975])
    low, high = np.nanquantile(few - np.nanmean(few), [0.025, 0.975]) * fewer
    yield "m out of n", value + low, value + high
    error = np.sqrt((slope**2).sum() * len(slope) / (len(slope) - 1))
    yield "jackknife", value - Z * error, value + Z * error
    if errors is not None:
        pivot = (draws - value) / np.where(errors > 0, errors, np.nan)
        if not np.isnan(pivot).all():
            low, high = np.nanquantile(pivot, [0.025, 0.975])
            yield "studentised", value - high * error, value - low * error


def tried(scenario: Scenario, truth: np.ndarray, seed: int, chunk: int, count: int) -> tuple[Held, list[Any]]:
    """Whether each method's interval held the truths, in `count` samples; and mAP by both estimates."""
    warnings.simplefilter("ignore")
    held: Held = defaultdict(list)
    biases = []
    rng = np.random.default_rng([seed, 2, chunk])
    for k in range(count):
        data = Resampled(scenario, rng, 1000 * chunk + k, every=5 * k < count)
        present = np.flatnonzero((data.targets == 1).any(axis=0))
        many = metrics.population_map(data.targets, data.systems[0], data.groups)
        enough = np.flatnonzero(data.sample.positives > 1)
        biases.append([data.values[0, 0, enough].mean(), many, truth[1, 0, 0, enough].mean()])
        for m, name in enumerate(NAMES if data.every else NAMES[:1]):
            parts = [("macro", present, np.array([1.0, 0.0]))]
            parts += [
                (b, np.array([c]), np.array([1.0, 0.0])) for c in present if (b := _bin(data.sample.positives[c]))
            ]
            parts += [("difference", present, np.array([-1.0, 1.0]))] if name == "ap" else []
            for what, rows, combine in parts:
                _try(held, data, truth, name, m, what, rows, combine, many)
    return dict(held), biases


def _try(
    held: Held,
    data: Resampled,
    truth: np.ndarray,
    name: str,
    m: int,
    what: str,
    rows: np.ndarray,
    combine: np.ndarray,
    many: float,
) -> None:
    """Add to `held` every method on the mean of findings `rows` of a combination of the systems."""

    def mean(values: np.ndarray) -> np.ndarray:
        """Of values [2, C, ...] the combination's mean over the findings that have one."""
        return np.nanmean(np.tensordot(combine, values[:, rows], 1), axis=0)

    value, goals = float(mean(data.values[:, m])), [float(mean(truth[kind, :, m])) for kind in (0, 1)]
    draws, sample = mean(data.draws[:, m]), data.sample.part(rows)
    more, intervals = None, []
    if name == "ap" and data.every:
        errors = data.errors(combine, rows) if data.studentised and what not in BINS else None
        more = (mean(data.bayes), mean(data.few), mean(data.slope), errors)
    taken = Estimate.of_difference if what == "difference" else Estimate.of_score
    if data.every:
        intervals = list(methods(value, draws, more, sample, np.sqrt(data.fewer / data.count)))
    intervals.append((TAKEN, *astuple(taken(value, draws, sample))[1:]))
    if name == "ap" and what == "macro":
        intervals.append(("taken, for many images", *astuple(Estimate.of_score(many, draws, sample))[1:]))
    for method, low, high in intervals:
        if not np.isnan(low):
            held[name, what, method].append((low <= goals[0] <= high, low <= goals[1] <= high, high - low))


def _bin(positives: int) -> str:
    return [name for name, least in BINS.items() if positives >= least][-1] if positives else ""


def rates(held: Held, name: str, what: str, method: str, kind: int = 0) -> str:
    """Per cent held and the median width."""
    tries = held.get((name, what, method), [])
    if len(tries) < 20:
        return ""
    return f"{100 * np.mean([t[kind] for t in tries]):.0f} ({np.median([t[2] for t in tries]):.3f})"


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A table as lines of markdown, with an empty one after it."""
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)] + [""]


def merged(parts: list[Held]) -> Held:
    """All tries together."""
    result: Held = defaultdict(list)
    for part in parts:
        for key, tries in part.items():
            result[key] += tries
    return dict(result)


def section(results: dict[Scenario, tuple[Held, list[Any]]]) -> list[str]:
    """The section's tables."""
    known = list(BINS)[3:]  # 10 positive subjects up
    lines = ["Per cent of samples whose 95 % interval held the truth, and (the median width).", ""]
    lines += ["### The method taken: value ± t standard errors, a score on the logit scale", ""]
    rows = []
    for scenario, (held, _) in results.items():
        tries = [t for b in known for t in held.get(("ap", b, TAKEN), [])]
        finding = f"{100 * np.mean([t[0] for t in tries]):.0f}" if tries else ""
        cells = [rates(held, "ap", what, TAKEN) for what in ("macro", "difference")]
        rows.append([str(scenario), str(len(held["ap", "macro", TAKEN])), *cells, finding])
        rows[-1] += [rates(held, "ap", "macro", "taken, for many images", 1)]
    heads = ["sample", "samples", "macro mAP, expected", "paired difference, expected", "AP of findings of 10+"]
    lines += table([*heads, "macro mAP of many images, population"], rows)
    for what, title in (("macro", "Macro mAP"), ("difference", "Paired difference of macro mAP")):
        lines += [f"### {title} by method: expected; population", ""]
        names = list(dict.fromkeys(m for held, _ in results.values() for n, w, m in held if (n, w) == ("ap", what)))
        rows = []
        for method in names:
            cells = ((rates(held, "ap", what, method, kind) for kind in (0, 1)) for held, _ in results.values())
            rows.append([method, *("; ".join(filter(None, cell)) for cell in cells)])
        lines += table(["method", *map(str, results)], rows)
    every = merged([held for held, _ in results.values()])
    for name, title in {"ap": "AP", "auroc": "AUROC", "f1": "F1 at .5", "fnr": "FNR at .5"}.items():
        lines += [f"### {title} of one finding by its positive subjects, all samples together: expected", ""]
        names = list(dict.fromkeys(m for n, w, m in every if n == name and w in BINS))
        rows = [[method, *(rates(every, name, what, method) for what in (*BINS, "macro"))] for method in names]
        lines += table(["method", *BINS, "macro"], rows)
    lines += ["### What few images add to macro mAP, and what is left of it in `population_map`", ""]
    rows = []
    for scenario, (_, biases) in results.items():
        plain, many, truth = np.array(biases).T
        rows.append(
            [str(scenario), f"{truth.mean():.3f}", f"{(plain - truth).mean():+.4f}", f"{(many - truth).mean():+.4f}"]
        )
        rows[-1].append(f"{plain.std():.4f}, {many.std():.4f}")
    heads = ["sample", "population", "mAP less it", "population_map less it", "standard deviations"]
    return lines + table(heads, rows) + speed()


def speed() -> list[str]:
    """What intervals cost at the challenge's size, against the bootstrap of mAP and AUROC alone."""
    rng = np.random.default_rng(0)
    targets = (rng.random((39_293, 40)) < np.geomspace(0.3, 0.001, 40)).astype(np.int8)
    scores, groups = rng.random(targets.shape).astype(np.float32), np.repeat(np.arange(19_647), 2)[:39_293]
    work = {
        "bootstrap of mAP and mAUROC": lambda: metrics.bootstrap(targets, [scores], groups),
        "bootstrap of all scores": lambda: metrics.bootstrap_scores(targets, scores, groups),
        "population_map": lambda: metrics.population_map(targets, scores, groups),
    }
    work["population_map"]()
    metrics.bootstrap(targets[:100], [scores[:100]], groups[:100], 64)  # compiles
    seconds = {}
    for name, run in work.items():
        started = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - started
    first = next(iter(seconds.values()))
    rows = [[name, f"{value:.2f}", f"{value / first:.2f}"] for name, value in seconds.items()]
    return ["### Time of 1,000 rounds of 39,293 images x 40 findings", "", *table(["", "s", "ratio"], rows)][:-1]


def main() -> None:
    parser = options(__doc__, {"draws": 400, "workers": 2, "seed": 0, "largest": 40_000})
    args = parser.parse_args()
    if min(args.draws // CHUNK, args.workers, args.seed + 1) < 1:
        parser.error(f"need at least {CHUNK} draws, 1 worker and a seed from 0")
    os.environ |= dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    scenarios = [scenario for scenario in SCENARIOS if scenario.images <= args.largest]
    results: dict[Scenario, tuple[Held, list[Any]]] = {}
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        samples = [200 if s.images > 2_000 else 600 for s in scenarios]
        known = [pool.submit(truths, s, n, args.seed) for s, n in zip(scenarios, samples, strict=True)]
        for scenario, truth in zip(scenarios, known, strict=True):
            chunks = max(1, args.draws // CHUNK // (4 if scenario.images > 2_000 else 1))
            futures = [pool.submit(tried, scenario, truth.result(), args.seed, c, CHUNK) for c in range(chunks)]
            parts = [future.result() for future in futures]
            results[scenario] = merged([part for part, _ in parts]), [b for _, some in parts for b in some]
            print(f"{scenario}: {rates(results[scenario][0], 'ap', 'macro', TAKEN)}", flush=True)
    publish("intervals", "Intervals that hold", ".", section(results), args.write)


if __name__ == "__main__":
    main()
