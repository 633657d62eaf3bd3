"""The three systems of a run that asks for findings by text: one vector of weights for all findings.

Weights are chosen by the mean log(AP / prevalence) of the seen findings, each predicted by models that were trained
without its labels, and never by an asked finding. Cross-fitting is by folds of findings: those of a fold are scored by
weights that the other folds chose, as the asked ones are by weights that they had no part in.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.data.asking import ALWAYS, MINED
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.ensembling.compare import ScoredSplit, System
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.pool import Pool, Say
from cxrlt_ray.evaluation.lift import lifts, mean_log_lift
from cxrlt_ray.evaluation.metrics import macro
from cxrlt_ray.selection import SELECTORS, settings, spaces
from cxrlt_ray.selection.honest import Fitted, combine
from cxrlt_ray.selection.method import Method
from cxrlt_ray.selection.views import StudyRule

GREEDY, BEST = "greedy_lift", "best"
MINED_NOTE = (
    "  A mined label says what a report mentions: what it leaves out counts as absent. The models learned labels made "
    "so, and repeat their faults: these figures can flatter them."
)
OWN_CHOICE = ("mean", GREEDY)  # selectors that an ensembles/ file may name here
PER_FINDING = ("guard", "lean", "blend", "fallback", "members", "folds", "repeats")  # keys that mean nothing here


def compare_asked(file: EnsembleFile, title: str, pool: Pool, seed: int, say: Say = cli.say) -> list[System]:
    """The best single trial, the plain mean and the ensemble of `file`, by seen findings; `say` takes its choices."""
    selector = file.selector if file.selector in (*OWN_CHOICE, BEST) else GREEDY
    if selector != file.selector:
        say(
            f"Findings without labels share one choice: {title} chooses by each finding's own labels, so {selector} "
            "takes its place (greedy selection on the mean log lift of seen findings)"
        )
    elif ignored := [key for key in PER_FINDING if getattr(file, key) != EnsembleFile.model_fields[key].default]:
        say(f"Findings without labels share one choice: {title}'s {', '.join(ignored)} do not apply")
    space = file.space or "probability"
    best = _fitted(BEST, {}, space, file, pool, seed)
    best = replace(best, title=f"best trial {pool.names[int(best.weights[:, 0].argmax())]}")
    mean = replace(_fitted("mean", {}, space, file, pool, seed), title=f"mean of {counted(len(pool.names), 'trial')}")
    own = dict(file.settings) if selector == file.selector else {}
    known = {key: value for key, value in own.items() if selector in SELECTORS and key in settings(selector)}
    chosen = _fitted(selector, known, space, file, pool, seed)
    if len(file.rules(pool.findings)) > 1:
        say(f"Chosen by cross-fitting: {chosen.rule}")
    return [best, mean, replace(chosen, title=f"{title} ensemble")]


def _fitted(
    selector: str, options: Mapping[str, object], space: str, file: EnsembleFile, pool: Pool, seed: int
) -> System:
    """The system of a selector, by the rule whose cross-fitted log lift is the highest.

    Its cross-fitted scores of a fold of findings are by the rule that is the best for the other folds' findings.
    """
    assert pool.asking is not None
    taken: System | None = None
    highest = -np.inf
    by_rule: list[np.ndarray] = []
    for rule in file.rules(pool.findings):  # one system at a time: its predictions are as large as the pool's
        system = _by_rule(selector, options, space, rule, pool, seed)
        by_rule.append(system.crossed[0])
        if (merit := _merit(pool.targets, system.crossed[0])) > highest:
            taken, highest = system, merit
    assert taken is not None
    fold, crossed = pool.asking.fold_of_predicted, taken.crossed[0].copy()
    for k in range(pool.asking.folds) if pool.asking.folds > 1 and len(by_rule) > 1 else ():
        others = (fold != k) & (fold != ALWAYS)
        best = int(np.argmax([_merit(pool.targets[:, others], scores[:, others]) for scores in by_rule]))
        crossed[:, fold == k] = by_rule[best][:, fold == k]
    return replace(taken, crossed=[crossed])


def _merit(targets: np.ndarray, scores: np.ndarray) -> float:
    return float(np.nan_to_num(mean_log_lift(targets, scores), nan=-1e9))


def _by_rule(
    selector: str, options: Mapping[str, object], space: str, rule: StudyRule, pool: Pool, seed: int
) -> System:
    """The system of a selector whose studies are joined by `rule`."""
    assert pool.asking is not None
    assert pool.study is not None
    assert pool.view is not None
    values = rule.values(space, pool.predictions, pool.predictions, pool.study, pool.view)
    fold = pool.asking.fold_of_predicted

    def without(left_out: np.ndarray) -> np.ndarray:
        targets = np.where(left_out, np.int8(-1), pool.targets)
        if selector == BEST:
            return best_by_lift(values, targets)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that findings without positives do not choose is meant
            return SELECTORS[selector](values, targets, pool.groups, together=True, seed=seed, **options)

    weights = without(np.zeros(len(fold), bool))
    crossed = combine(values, weights)
    folds = range(pool.asking.folds) if pool.asking.folds > 1 else ()
    for k in folds:
        crossed[:, fold == k] = combine(values, without(fold == k))[:, fold == k]
    fitted = Fitted(weights, np.zeros_like(weights), Method(selector, dict(options), np.inf), crossed[None])
    return System(
        "", spaces.out_of(space, combine(values, weights)), [spaces.out_of(space, crossed)], values, fitted, space, rule
    )


def best_by_lift(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights [M, C]: 1 for the member [M, N, C] of the highest mean log lift, the first of equals."""
    merits = [mean_log_lift(targets, np.asarray(member, float)) for member in values]
    weights = np.zeros((len(values), values.shape[2]))
    weights[int(np.argmax(np.nan_to_num(merits, nan=-1e9)))] = 1
    return weights


def mined_labels(manifest: Manifest, pool: Pool) -> np.ndarray | None:
    """Labels int8 [N, C] of the asked findings alone, mined from the validation images' reports; None without any."""
    asking = pool.asking
    if asking is None or asking.track != MINED:
        return None
    rows = pd.Index(manifest.table["image_id"]).get_indexer(pool.image_id)
    targets = np.where(np.isin(pool.findings, asking.asked), manifest.targets(pool.findings)[rows], np.int8(-1))
    return targets if (targets == 1).any() else None


def lift_lines(
    pool: Pool, systems: Sequence[System], scored: Mapping[str, ScoredSplit], mined: np.ndarray | None = None
) -> list[str]:
    """The systems' lift over seen findings and over the asked ones, a line each: for the console.

    mined: labels int8 [N, C] of the asked findings by reports, shown beside the folds of seen findings.
    """
    assert pool.asking is not None
    lines = []
    if not pool.asking.by_mined:
        held = int((pool.asking.fold_of_predicted != ALWAYS).sum())
        lines = [f"Lift (AP / prevalence, geometric mean) of {held} seen findings, asked for as if they had no labels:"]
        lines += [f"  {system.title}: {_lift(pool.targets, system.crossed[0])}" for system in systems]
    if mined is not None:
        role = "which chose trials and weights" if pool.asking.by_mined else "which chose nothing"
        lines.append(f"Lift of the asked findings by labels mined from validation reports, {role}:")
        lines += [f"  {system.title}: {_lift(mined, system.crossed[0])}" for system in systems]
        lines.append(MINED_NOTE)
    for name, split in scored.items():
        targets = split.images.targets(pool.findings)
        if not (targets == 1).any():
            continue
        lines.append(f"Lift of the asked findings on {name} (track {pool.asking.track}):")
        for system, scores in zip(systems, split.scores, strict=True):
            lines.append(f"  {system.title}: {'not scored' if scores is None else _lift(targets, scores)}")
    return lines


def _lift(targets: np.ndarray, scores: np.ndarray) -> str:
    known = np.isfinite(scores).all(axis=1)
    return cli.short(float(np.exp(macro(np.log(lifts(targets[known], scores[known]))))))
