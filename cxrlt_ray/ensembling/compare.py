"""An ensemble beside the best single member and the plain mean: chosen on validation, scored wherever labels are.

`compare` fits the three systems; `judge` scores them, with intervals and paired gains; `as_json` is the comparison as
ensemble.json and report.json hold it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from cxrlt_ray import cli, output, selection
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.tasks import GROUPS
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.pool import Pool, Say
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.output.counting import Counter
from cxrlt_ray.selection import spaces
from cxrlt_ray.selection.honest import CHOOSING, Fitted, as_given, combine, fit
from cxrlt_ray.selection.method import AUTO
from cxrlt_ray.selection.registry import FindingDoubt, MemberDoubt
from cxrlt_ray.selection.views import StudyRule

OPTIMISTIC, CROSS_FITTED = "optimistic", "cross_fitted"  # the two ways of scoring validation images


@dataclass(frozen=True)
class System:
    """A system of the comparison, fitted on validation.

    optimistic: scores [N, C] by weights that were chosen on the same images. crossed: the same cross-fitted, for each
    repeat. values: [M, N, C], what the weights are for: the predictions in `space`, joined by `rule`.
    """

    title: str
    optimistic: np.ndarray
    crossed: list[np.ndarray]
    values: np.ndarray
    fitted: Fitted
    space: str
    rule: StudyRule

    @property
    def weights(self) -> np.ndarray:
        """[M, C], chosen on all validation images."""
        return self.fitted.weights

    @property
    def members(self) -> np.ndarray:
        """The members [M] that have weight, as a mask."""
        return self.weights.sum(axis=1) > 0


@dataclass(frozen=True)
class ScoredSplit:
    """A split's images, and each system's scores [N, C] of them; None where a member has not scored them."""

    images: Manifest
    scores: list[np.ndarray | None]


@dataclass(frozen=True)
class SystemScore:
    """A system's macro mAP, that of head, medium and tail, and each finding's AP, over repeats of cross-fitting.

    many_images: the mAP that many images would give (metrics.population_ap), by which sets of different size compare.
    """

    map: Estimate
    groups: dict[str, Estimate]
    ap: dict[str, float]
    many_images: float


@dataclass(frozen=True)
class SetScores:
    """The systems on one set of images, by title.

    prevalence: what chance would score. gains: the mAP of the last system less that of each other one, on the same
    resampled subjects.
    """

    images: int
    prevalence: float
    systems: dict[str, SystemScore]
    gains: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Systems by title, on validation (OPTIMISTIC, CROSS_FITTED) and each split with labels.

    groups: how many findings are head, medium and tail. Intervals: 95 %, bootstrap by subject.
    """

    systems: tuple[str, ...]
    groups: dict[str, int]
    sets: dict[str, SetScores]


def compare(file: EnsembleFile, title: str, pool: Pool, seed: int, say: Say = cli.say) -> list[System]:
    """The best single trial, the plain mean and the ensemble of `file`, on validation; `say` takes its choices."""
    from cxrlt_ray.evaluation.compiled import cache_directories

    if not any(path for place in cache_directories(Path(selection.__file__).parent) for path in place.rglob("*.nbi")):
        say("Compiling what selection counts with (once, about 20 s)")
    kind = "trial" if pool.trials else "member"
    best = _fitted(EnsembleFile(selector="best"), file, pool, seed)
    best = replace(best, title=f"best {kind} {pool.names[int(best.weights[:, 0].argmax())]}")
    mean = _fitted(EnsembleFile(selector="mean"), file, pool, seed)
    mean = replace(mean, title=f"mean of {counted(len(pool.names), kind)}")
    chosen = _fitted(file, file, pool, seed, say)
    return [best, mean, replace(chosen, title=f"{title} ensemble")]


def judge(
    findings: Sequence[str],
    kinds: Sequence[str],
    pool: Pool,
    systems: Sequence[System],
    splits: Mapping[str, ScoredSplit],
    rounds: int,
    seed: int,
) -> Comparison:
    """The systems' scores on validation and on each of `splits` that has labels.

    kinds [C]: head, medium or tail, as tasks.rarity.
    """
    titles = [system.title for system in systems]
    inputs = (titles, findings, kinds, rounds, seed)
    # of each system the scores, or those of each repeat of the cross-fitting
    optimistic: list[list[np.ndarray] | None] = [[system.optimistic] for system in systems]
    crossed: list[list[np.ndarray] | None] = [system.crossed for system in systems]
    sets = {
        OPTIMISTIC: _judged(pool.targets, pool.groups, optimistic, *inputs),
        CROSS_FITTED: _judged(pool.targets, pool.groups, crossed, *inputs),
    }
    for name, split in splits.items():
        targets = split.images.targets(tuple(findings))
        if (targets == 1).any():
            subjects = split.images.table["subject_id"].to_numpy()
            scores = [None if values is None else [values] for values in split.scores]
            sets[name] = _judged(targets, subjects, scores, *inputs)
    return Comparison(tuple(titles), {group: list(kinds).count(group) for group in GROUPS}, sets)


def as_json(comparison: Comparison) -> dict[str, JsonValue]:
    """The comparison as JSON can hold it, but for nan.

    systems: {title: {set: {map, low, high, many_images, head, medium, tail, intervals, ap}}}. gains: {set: {title:
    {map, low, high}}}. prevalence, images: {set: number}. groups: {head, medium, tail: number of findings}.
    """

    def score(system: SystemScore) -> dict[str, JsonValue]:
        return {
            **estimate(system.map),
            "many_images": system.many_images,
            **{group: value.value for group, value in system.groups.items()},
            "intervals": {group: [value.low, value.high] for group, value in system.groups.items()},
            "ap": dict(system.ap),
        }

    def estimate(value: Estimate) -> dict[str, JsonValue]:
        return {"map": value.value, "low": value.low, "high": value.high}

    sets = comparison.sets
    return {
        "systems": {
            title: {name: score(scores.systems[title]) for name, scores in sets.items() if title in scores.systems}
            for title in comparison.systems
        },
        "gains": {
            name: {title: estimate(gain) for title, gain in scores.gains.items()} for name, scores in sets.items()
        },
        "prevalence": {name: scores.prevalence for name, scores in sets.items()},
        "groups": dict(comparison.groups),
        "images": {name: scores.images for name, scores in sets.items()},
    }


def _judged(
    targets: np.ndarray,
    groups: np.ndarray,
    scores: Sequence[list[np.ndarray] | None],
    titles: Sequence[str],
    findings: Sequence[str],
    kinds: Sequence[str],
    rounds: int,
    seed: int,
) -> SetScores:
    """The systems' `scores`, each R repeats of [N, C] or None, on images with labels: those that all of them score."""
    scored = [k for k, repeats in enumerate(scores) if repeats is not None]
    by_system = [repeats for repeats in scores if repeats is not None]
    finite = np.all([np.isfinite(values).all(axis=1) for repeats in by_system for values in repeats], axis=0)
    targets, groups = targets[finite], groups[finite]
    by_system = [[values[finite] for values in repeats] for repeats in by_system]
    every = [values for repeats in by_system for values in repeats]
    draws = metrics.bootstrap_ap(targets, every, groups, rounds=rounds, seed=seed)
    draws = draws.reshape(len(by_system), -1, *draws.shape[1:]).mean(axis=1)  # [system, C, rounds], over repeats
    macro, sample = metrics.means(draws), Sample.of(targets, groups)
    systems = {
        titles[k]: _system_score(targets, groups, repeats, of_system, sample, findings, kinds)
        for k, repeats, of_system in zip(scored, by_system, draws, strict=True)
    }
    last = systems[titles[scored[-1]]].map.value
    gains = {
        titles[k]: Estimate.of_difference(last - systems[titles[k]].map.value, macro[-1] - other, sample)
        for k, other in zip(scored[:-1], macro[:-1], strict=True)
    }
    return SetScores(int(finite.sum()), metrics.chance(targets), systems, gains)


def _system_score(
    targets: np.ndarray,
    subjects: np.ndarray,
    repeats: Sequence[np.ndarray],
    draws: np.ndarray,
    sample: Sample,
    findings: Sequence[str],
    kinds: Sequence[str],
) -> SystemScore:
    """A system's score from its repeats [N, C] and the bootstrapped AP [C, rounds]."""
    ap = np.mean([metrics.per_finding(targets, values, which=("ap",))["ap"] for values in repeats], axis=0)
    groups = {}
    for group, value in metrics.by_rarity(ap, kinds).items():
        part = np.array(kinds) == group
        groups[group] = Estimate.of_score(value, metrics.means(draws[part]), sample.part(part))
    many = [metrics.population_map(targets, values, subjects) for values in repeats]
    return SystemScore(
        Estimate.of_score(metrics.macro(ap), metrics.means(draws), sample),
        groups,
        dict(zip(findings, ap.tolist(), strict=True)),
        float(np.mean(many)),
    )


def _fitted(file: EnsembleFile, folding: EnsembleFile, pool: Pool, seed: int, say: Say | None = None) -> System:
    """The system of `file`, cross-fitted as `folding` says; `say` takes doubts and what was chosen."""
    space, rules = file.used_space(), _rules(file, pool, say)
    transforms = [partial(_values, space, rule, pool) for rule in rules]
    single = len(rules) == 1  # is applied once; of several one is held at a time
    values = transforms[0](pool.predictions) if single else pool.predictions
    with warnings.catch_warnings(record=True) as doubts, _progress(say) as report:
        warnings.simplefilter("always")
        fitted = fit(
            file.methods(),
            values,
            pool.targets,
            pool.groups,
            folds=min(folding.folds, len(np.unique(pool.groups))),
            repeats=folding.repeats,
            seed=seed,
            costs=pool.costs,
            margin=file.margin(),
            rules=[as_given] if single else transforms,
            progress=report,
        )
    values = values if single else transforms[fitted.rule](pool.predictions)
    if say is not None:
        for doubt in dict.fromkeys(_named(warning.message, pool) for warning in doubts):
            say(f"Note: {doubt}")
        if choice := _choice(file, rules, fitted):
            say(f"Chosen by cross-fitting: {choice}")
    optimistic = spaces.out_of(space, combine(values, fitted.weights))
    crossed = [spaces.out_of(space, scores) for scores in fitted.crossed]
    return System("", optimistic, crossed, values, fitted, space, rules[fitted.rule])


def _named(doubt: Warning | str, pool: Pool) -> str:
    """A selector's warning with the names of the pool's members and findings in place of indices."""
    if isinstance(doubt, FindingDoubt) and pool.findings:
        return doubt.named(pool.findings)
    return doubt.named(pool.names) if isinstance(doubt, MemberDoubt) else str(doubt)


@contextmanager
def _progress(say: Say | None) -> Iterator[Callable[[float], None] | None]:
    """What takes the share of a selection that is done and shows it; None where nobody is told.

    The time left is by the pace since the first share: before it, code may have been compiled.
    """
    if say is None:
        yield None
        return
    began: list[tuple[float, float]] = []

    def line(counter: Counter) -> str:
        return f"  {counter.done:.0f}% of the selection done, {cli.duration(counter.known_left or 0)} left"

    def report(share: float) -> None:
        now = time.monotonic()
        if not began:
            began.append((now, share))
        elif share > began[0][1]:
            left = (now - began[0][0]) * (1 - share) / (share - began[0][1])
            counter.advance(100 * share - counter.done, left)

    with output.counter("% of the selection", 100, cli.heard_by(say), line) as counter:
        yield report


def _rules(file: EnsembleFile, pool: Pool, say: Say | None) -> list[StudyRule]:
    """The rules to choose among; of those that join studies the first alone where no study has two images."""
    rules = file.rules(pool.findings)
    alike = [rule for rule in rules if rule.joins_as(rules[0])]
    lines = []
    if file.gating == AUTO and not any(rule.gating for rule in rules):
        lines.append("Normal gating left out: no finding is called Normal or No Finding")
    if len(alike) < len(rules) and (pool.study is None or len(np.unique(pool.study)) == len(pool.study)):
        rules = alike
        lines.append(f"No study has two validation images: {rules[0]}, for there is nothing to choose by")
    if say is not None:
        for line in lines:
            say(line)
    return rules


def _values(space: str, rule: StudyRule, pool: Pool, predictions: np.ndarray) -> np.ndarray:
    """The pool's predictions in `space`, joined by `rule`; where no study is known each image stands by itself."""
    if pool.study is None or pool.view is None:
        predictions = rule.gated(predictions)
        return spaces.into(space, predictions, predictions)
    return rule.values(space, predictions, predictions, pool.study, pool.view)


def _choice(file: EnsembleFile, rules: list[StudyRule], fitted: Fitted) -> str:
    """What cross-fitting chose, and in how many folds it chose the same rule; "" where there was no choice."""
    if fitted.fold is None or fitted.fold.max() + 1 < CHOOSING:
        return ""
    parts = []
    if len(file.methods()) > 1 or file.guard == AUTO:
        guard = f", guard {fitted.method.guard:g}" if file.guard == AUTO else ""
        parts.append(f"selector {fitted.method.selector}{guard}")
    if len(rules) > 1 and fitted.rules:
        agreeing = sum(rule == fitted.rule for rule in fitted.rules)
        refused = any(rule.gating for rule in rules) and not rules[fitted.rule].gating
        chosen = f"{rules[fitted.rule]}{', no Normal gating' if refused else ''}"
        parts.append(f"{chosen} (so do {agreeing} of {len(fitted.rules)} folds)")
    return "; ".join(parts)
