"""`ensemble --explain`: why these members, in figures and sentences; explain.json holds all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from cxrlt_ray import cli
from cxrlt_ray.ensembling.compare import System
from cxrlt_ray.ensembling.pool import Pool, Say
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.selection import explain
from cxrlt_ray.selection.explain import Contributions, Growth
from cxrlt_ray.selection.honest import Fitted

LARGE = 20_000_000  # scores above which the curve is of fewer subsets
UNSTABLE = 0.5  # of the weight that stays when subjects are drawn anew: below, the choice is not to be relied on


@dataclass(frozen=True)
class Explanation:
    """What selection/explain.py computes of an ensemble of M members on C findings, with their names.

    positives: [C]. weights: [M, C]. costs: [M] in `unit` an image; None where not known. correlation: [M, M], Spearman.
    retained: [draws, C], the share of the weight that stays when subjects are drawn anew.
    """

    names: Sequence[str]
    findings: Sequence[str]
    positives: np.ndarray
    weights: np.ndarray
    costs: np.ndarray | None
    unit: str
    contributions: Contributions
    correlation: np.ndarray
    retained: np.ndarray
    growth: Growth

    @property
    def used(self) -> list[int]:
        """The members that have weight, the heaviest first."""
        order = np.argsort(-self.weights.sum(axis=1), kind="stable")
        return [int(m) for m in order if self.weights[m].any()]

    @property
    def retained_share(self) -> np.ndarray:
        """The share [C] of the weight that stays when subjects are drawn anew, the mean over draws."""
        return self.retained.mean(axis=0)

    @property
    def unstable(self) -> np.ndarray:
        """The findings [C] whose choice is not to be relied on."""
        return self.retained_share < UNSTABLE

    @property
    def most_expensive(self) -> int | None:
        """The most expensive of the members used; None where costs are not known."""
        costs = self.costs
        return None if costs is None else max(self.used, key=lambda m: costs[m])


def explain_system(
    pool: Pool, system: System, findings: Sequence[str], unit: str, seed: int, say: Say = cli.say
) -> Explanation:
    """Explain a fitted system of the pool's members. Raises CxrltError where nothing was cross-fitted."""
    fitted = system.fitted
    if fitted.fold is None:
        raise CxrltError("--explain needs images of 2 subjects or more: it tells of cross-fitted scores.")
    if others := sum(rule != fitted.rule for rule in fitted.rules):
        say(f"Note: explained as if all folds had chosen {system.rule}; {others} of {len(fitted.rules)} did not")
    inputs = (system.values, pool.targets, pool.groups, fitted, pool.costs)
    return examine(pool.names, findings, *inputs, unit, seed, say)


def examine(
    names: Sequence[str],
    findings: Sequence[str],
    values: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    fitted: Fitted,
    costs: np.ndarray | None,
    unit: str,
    seed: int,
    say: Say = cli.say,
) -> Explanation:
    """Examine the ensemble `fitted` of members' `values` [M, N, C]; `say` takes what it is at, for it takes a while."""
    assert fitted.fold_weights is not None
    inputs = (fitted.method, values, targets, groups)
    say("Explaining: what each member brings ...")
    contributions = explain.contributions(values, targets, groups, fitted, seed=seed)
    say("Explaining: the choice made again on resampled subjects ...")
    retained = explain.stability(*inputs, fitted.weights, costs=costs, seed=seed)
    say("Explaining: ensembles of fewer trials ...")
    subsets = explain.SUBSETS if values.size <= LARGE else 3
    growth = explain.growth(*inputs, folds=len(fitted.fold_weights), subsets=subsets, costs=costs, seed=seed)
    positives, correlation = (targets == 1).sum(axis=0), explain.correlations(values)
    return Explanation(
        names, findings, positives, fitted.weights, costs, unit, contributions, correlation, retained, growth
    )


def change(figure: np.ndarray) -> str:
    """A difference (value, low, high) for a table."""
    return cli.gained(*figure)


def loss(figure: np.ndarray) -> str:
    """What the others lose without a member, as the change that its loss makes."""
    value, low, high = figure
    return change(np.array([-value, -high, -low]))


def summary(explanation: Explanation) -> list[str]:
    """The sentences: correlation, the most expensive member, unstable choices, the next trial."""
    lines: list[str] = []
    used = explanation.used
    if len(used) > 1:
        correlation = explanation.correlation[np.ix_(used, used)]
        pairs = correlation[np.triu_indices(len(used), 1)]
        if not np.isnan(pairs).all():
            apart = np.where(np.eye(len(used)), np.nan, correlation)
            most, least = (np.unravel_index(place(apart), correlation.shape) for place in (np.nanargmax, np.nanargmin))
            lines.append(
                f"Correlation of scores (Spearman), mean {np.nanmean(pairs):.2f}: most alike "
                f"{_pair(explanation, used, most)}, least {_pair(explanation, used, least)}."
            )
    if (member := explanation.most_expensive) is not None and len(used) > 1:
        assert explanation.costs is not None
        share = explanation.costs[member] / explanation.costs[used].sum()
        cost_of_loss = loss(explanation.contributions.without[member, -1])
        lines.append(
            f"Without the most expensive member, {explanation.names[member]} ({share:.0%} of the cost), mAP changes by "
            f"{cost_of_loss}."
        )
    unstable = [name for name, loose in zip(explanation.findings, explanation.unstable, strict=True) if loose]
    if unstable:
        lines.append(f"Not to be relied on is which members {', '.join(unstable)} chose: other subjects choose others.")
    return [*lines, _worth(explanation)]


def document(explanation: Explanation) -> dict[str, JsonValue]:
    """The content of explain.json, but for nan."""

    def figures(values: np.ndarray, c: int) -> dict[str, JsonValue]:
        return dict(zip(("value", "low", "high"), map(float, values[c]), strict=True))

    kinds = {
        "alone": explanation.contributions.alone,
        "marginal": explanation.contributions.marginal,
        "without": explanation.contributions.without,
    }
    members: dict[str, JsonValue] = {}
    for m in explanation.used:
        members[explanation.names[m]] = {
            "weight": float(explanation.weights[m].mean()),
            "cost": None if explanation.costs is None else float(explanation.costs[m]),
            **{kind: figures(values[m], -1) for kind, values in kinds.items()},
            "findings": {
                finding: {
                    "weight": float(explanation.weights[m, c]),
                    **{kind: figures(values[m], c) for kind, values in kinds.items()},
                }
                for c, finding in enumerate(explanation.findings)
            },
        }
    findings: dict[str, JsonValue] = {
        finding: {
            "positives": int(explanation.positives[c]),
            "ap": figures(explanation.contributions.whole, c),
            "chance": float(explanation.contributions.chance[c, 0]),
            "kept": float(explanation.retained_share[c]),
            "unstable": bool(explanation.unstable[c]),
        }
        for c, finding in enumerate(explanation.findings)
    }
    growth, expensive = explanation.growth, explanation.most_expensive
    return {
        "macro_ap": figures(explanation.contributions.whole, -1),
        "chance": float(explanation.contributions.chance[-1, 0]),
        "cost_unit": explanation.unit if explanation.costs is not None else None,
        "most_expensive": None if expensive is None else explanation.names[expensive],
        "members": members,
        "findings": findings,
        "correlation": {"members": list(explanation.names), "spearman": explanation.correlation.tolist()},
        "growth": {
            "measured": [{"trials": int(n), **figures(growth.scores, s)} for s, n in enumerate(growth.sizes)],
            "law": [
                {"trials": int(n), **figures(growth.curve, a), "gain": figures(growth.gains, a)}
                for a, n in enumerate(growth.ahead)
            ],
        },
        "summary": [*summary(explanation)],
    }


def _worth(explanation: Explanation) -> str:
    growth, members = explanation.growth, len(explanation.names)
    if np.isnan(growth.gains).all():
        return f"What the next trial is worth takes 4 trials or more to tell; there are {members}."
    ahead = growth.ahead.tolist()
    parts = []
    for more in (1, members):
        parts.append(f"{more} more {change(growth.gains[ahead.index(members + more)])}")
    return f"What more like these are worth in mAP, by the power law through the curve: {'; '.join(parts)}."


def _pair(explanation: Explanation, used: list[int], places: Sequence[np.intp]) -> str:
    a, b = (used[int(k)] for k in places)
    return f"{explanation.names[a]} and {explanation.names[b]} {explanation.correlation[a, b]:.2f}"
