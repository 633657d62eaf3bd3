"""`python -m cxrlt_ray.ensemble --explain`: why these members, told, written and drawn.

explain.json    all of it
explain.png     what each member brings, who weighs what, who agrees with whom, what the next trial is worth
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.selection import explain
from cxrlt_ray.selection.explain import Contributions, Growth
from cxrlt_ray.selection.honest import Fitted
from cxrlt_ray.storage import Store

LARGE = 20_000_000  # scores above which the curve is of fewer subsets
UNSTABLE = 0.5  # of the weight that stays when subjects are drawn anew: below, the choice is not to be relied on
TOP = 2  # members named for each finding


@dataclass(frozen=True)
class Explanation:
    """What selection/explain.py finds of an ensemble of M members on C findings, with the names it is told by."""

    names: Sequence[str]
    findings: Sequence[str]
    positives: np.ndarray  # [C]
    weights: np.ndarray  # [M, C]
    costs: np.ndarray | None  # [M], in `unit` an image
    unit: str
    brings: Contributions
    correlation: np.ndarray  # [M, M]
    kept: np.ndarray  # [draws, C]
    growth: Growth

    @property
    def used(self) -> list[int]:
        """The members that have weight, the heaviest first."""
        order = np.argsort(-self.weights.sum(axis=1), kind="stable")
        return [int(m) for m in order if self.weights[m].any()]

    @property
    def stays(self) -> np.ndarray:
        """The share [C] of the weight that stays when subjects are drawn anew."""
        return self.kept.mean(axis=0)

    @property
    def unstable(self) -> np.ndarray:
        """The findings [C] whose choice is not to be relied on."""
        return self.stays < UNSTABLE

    @property
    def dearest(self) -> int | None:
        """The most expensive of the members used; None where costs are not known."""
        return None if self.costs is None else max(self.used, key=lambda m: self.costs[m])  # type: ignore[index]


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
) -> Explanation:
    """Examine the ensemble `fitted` of members' `values` [M, N, C]; prints what it is at, for it takes a while."""
    assert fitted.fold_weights is not None
    folds = len(fitted.fold_weights)
    options: dict[str, Any] = {"costs": costs, "seed": seed}
    print("Explaining: what each member brings ...", flush=True)
    brings = explain.contributions(values, targets, groups, fitted, seed=seed)
    print("Explaining: the choice made again on resampled subjects ...", flush=True)
    kept = explain.stability(fitted.method, values, targets, groups, fitted.weights, **options)
    print("Explaining: ensembles of fewer trials ...", flush=True)
    subsets = explain.SUBSETS if values.size <= LARGE else 3
    growth = explain.growth(fitted.method, values, targets, groups, folds=folds, subsets=subsets, **options)
    positives, alike = (targets == 1).sum(axis=0), explain.correlations(values)
    return Explanation(names, findings, positives, fitted.weights, costs, unit, brings, alike, kept, growth)


def tell(found: Explanation) -> None:
    """Print it."""
    from rich import box
    from rich.table import Table

    console, brings = cli.console(width=140), found.brings
    table = Table("member", "weight", "alone", "marginal", "without it", title="What each member brings, mAP")
    table.box = box.SIMPLE_HEAD
    if found.costs is not None:
        table.add_column(f"cost, {found.unit}")
    for m in found.used:
        row = [found.names[m], f"{found.weights[m].mean():.2f}", cli.ranged(*brings.alone[m, -1])]
        row += [_change(brings.marginal[m, -1]), _loss(brings.without[m, -1])]
        table.add_row(*row, *([] if found.costs is None else [f"{found.costs[m]:.3g}"]))
    console.print(table)
    whole, chance = cli.ranged(*brings.whole[-1]), cli.short(brings.chance[-1, 0])
    print("Marginal: the mean gain when members are added in random order (Shapley); together they are the ensemble's")
    print(
        f"cross-fitted {whole} less chance, {chance}. Without it: the change when it is taken out and the others keep"
    )
    print("their proportions. [ , ] are 95 % intervals by subject.")
    table = Table("finding", "positives", "AP", "members, weight", "most needed", "kept", title="Findings")
    table.box = box.SIMPLE_HEAD
    for c, finding in enumerate(found.findings):
        heavy = [int(m) for m in np.argsort(-found.weights[:, c], kind="stable") if found.weights[m, c] > 0]
        listed = ", ".join(f"{found.names[m]} {found.weights[m, c]:.2f}" for m in heavy[:TOP])
        more = f" +{len(heavy) - TOP}" if len(heavy) > TOP else ""
        needed = max(found.used, key=lambda m: np.nan_to_num(brings.without[m, c, 0], nan=-np.inf))
        change = -brings.without[needed, c, 0]
        told = f"{found.names[needed]} {_loss(brings.without[needed, c])}" if change == change else "-"
        stays = f"{found.stays[c]:.0%}" + (" !" if found.unstable[c] else "")
        score = cli.ranged(*brings.whole[c])
        table.add_row(finding, f"{found.positives[c]:,}", score, listed + more, told, stays)
    console.print(table)
    print(
        "Most needed: the member whose loss costs most, and what. Kept: the share of the weight that stays where it is"
    )
    print(f"when the choice is made on resampled subjects; ! marks less than {UNSTABLE:.0%}.")
    for line in summary(found):
        print(line)


def summary(found: Explanation) -> list[str]:
    """The sentences: correlation, the most expensive member, unstable choices, the next trial."""
    lines, used = [], found.used
    if len(used) > 1:
        alike = found.correlation[np.ix_(used, used)]
        pairs = alike[np.triu_indices(len(used), 1)]
        if not np.isnan(pairs).all():
            apart = np.where(np.eye(len(used)), np.nan, alike)
            most, least = (np.unravel_index(find(apart), alike.shape) for find in (np.nanargmax, np.nanargmin))
            lines.append(
                f"Correlation of scores (Spearman), mean {np.nanmean(pairs):.2f}: most alike "
                f"{_pair(found, used, most)}, least {_pair(found, used, least)}."
            )
    if (dear := found.dearest) is not None and len(used) > 1:
        assert found.costs is not None
        share = found.costs[dear] / found.costs[used].sum()
        change = _loss(found.brings.without[dear, -1])
        lines.append(
            f"Without the most expensive member, {found.names[dear]} ({share:.0%} of the cost), mAP changes by "
            f"{change}."
        )
    loose = [finding for finding, loose in zip(found.findings, found.unstable, strict=True) if loose]
    if loose:
        lines.append(f"Not to be relied on is which members {', '.join(loose)} chose: other subjects choose others.")
    return [*lines, _worth(found)]


def document(found: Explanation) -> dict[str, Any]:
    """Explain.json."""

    def figures(which: np.ndarray, c: int) -> dict[str, float]:
        return dict(zip(("value", "low", "high"), map(float, which[c]), strict=True))

    kinds = {"alone": found.brings.alone, "marginal": found.brings.marginal, "without": found.brings.without}
    members = {}
    for m in found.used:
        members[found.names[m]] = {
            "weight": float(found.weights[m].mean()),
            "cost": None if found.costs is None else float(found.costs[m]),
            **{kind: figures(values[m], -1) for kind, values in kinds.items()},
            "findings": {
                finding: {
                    "weight": float(found.weights[m, c]),
                    **{kind: figures(values[m], c) for kind, values in kinds.items()},
                }
                for c, finding in enumerate(found.findings)
            },
        }
    findings = {
        finding: {
            "positives": int(found.positives[c]),
            "ap": figures(found.brings.whole, c),
            "chance": float(found.brings.chance[c, 0]),
            "kept": float(found.stays[c]),
            "unstable": bool(found.unstable[c]),
        }
        for c, finding in enumerate(found.findings)
    }
    growth = found.growth
    return {
        "macro_ap": figures(found.brings.whole, -1),
        "chance": float(found.brings.chance[-1, 0]),
        "cost_unit": found.unit if found.costs is not None else None,
        "most_expensive": None if found.dearest is None else found.names[found.dearest],
        "members": members,
        "findings": findings,
        "correlation": {"members": list(found.names), "spearman": found.correlation.tolist()},
        "growth": {
            "measured": [{"trials": int(n), **figures(growth.scores, s)} for s, n in enumerate(growth.sizes)],
            "law": [
                {"trials": int(n), **figures(growth.curve, a), "gain": figures(growth.gains, a)}
                for a, n in enumerate(growth.ahead)
            ],
        },
        "summary": summary(found),
    }


def draw(found: Explanation) -> bytes:
    """Explain.png: four panels."""
    from matplotlib.figure import Figure

    used = found.used
    names = [found.names[m] for m in used]
    tall = max(9.0, 0.3 * max(len(found.findings), 2 * len(used)) + 3)
    figure = Figure(figsize=(15, tall), layout="constrained")
    (bars, heat), (alike, curve) = figure.subplots(2, 2)
    places = np.arange(len(used))
    for kind, offset, colour, label in (
        ("marginal", -0.17, "C0", "marginal (Shapley)"),
        ("without", 0.17, "C1", "lost without it"),
    ):
        value, low, high = np.array([getattr(found.brings, kind)[m, -1] for m in used]).T
        bars.barh(places + offset, value, 0.32, color=colour, label=label)
        bars.hlines(places + offset, low, high, color="0.25", lw=1.2)
    plain = {"parse_math": False}  # a $ in a name is a $
    bars.set_yticks(places, names, **plain)
    bars.invert_yaxis()
    bars.axvline(0, color="0.5", lw=0.8)
    bars.set_xlabel("mAP, cross-fitted, with 95 % intervals")
    bars.set_title("What each member brings")
    bars.legend(loc="lower right")
    image = heat.imshow(found.weights[used].T, cmap="Blues", vmin=0, aspect="auto")
    heat.set_yticks(np.arange(len(found.findings)), [_marked(found, c) for c in range(len(found.findings))], **plain)
    heat.set_xticks(places, names, rotation=60, ha="right", **plain)
    heat.set_title("Weights (! choice not stable)")
    figure.colorbar(image, ax=heat)
    image = alike.imshow(found.correlation[np.ix_(used, used)], cmap="viridis", vmax=1)
    alike.set_yticks(places, names, **plain)
    alike.set_xticks(places, names, rotation=60, ha="right", **plain)
    alike.set_title("Spearman correlation of scores")
    figure.colorbar(image, ax=alike)
    growth = found.growth
    value, low, high = growth.curve.T
    curve.plot(growth.ahead, value, color="C0", label="power law")
    curve.fill_between(growth.ahead, low, high, color="C0", alpha=0.2, lw=0)
    value, low, high = growth.scores.T
    curve.vlines(growth.sizes, low, high, color="0.25", lw=1.2)
    curve.plot(growth.sizes, value, "o", color="C1", label="measured, random subsets")
    curve.axvline(len(found.names), color="0.5", ls=":", label="now")
    curve.set_xscale("log")
    ticks = np.unique([*growth.sizes, *growth.ahead[-2:]])
    curve.set_xticks(ticks, ticks)
    curve.minorticks_off()
    curve.set_xlabel("trials")
    curve.set_ylabel("mAP, cross-fitted")
    curve.set_title("What the next trial is worth")
    curve.legend(loc="lower right")
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=110)
    return made.getvalue()


def leave(found: Explanation, store: Store) -> None:
    """Write explain.json and explain.png."""
    store.write("explain.png", draw(found))
    store.write_json("explain.json", document(found))
    print(f"Left in {store.absolute().uri}: explain.json, explain.png")


def _worth(found: Explanation) -> str:
    growth, members = found.growth, len(found.names)
    if np.isnan(growth.gains).all():
        return f"What the next trial is worth takes 4 trials or more to tell; there are {members}."
    ahead = growth.ahead.tolist()
    parts = []
    for more in (1, members):
        gain, low, high = growth.gains[ahead.index(members + more)]
        parts.append(f"{more} more {gain:+.3f} [{low:+.3f}, {high:+.3f}]")
    return f"What more like these are worth in mAP, by the power law through the curve: {'; '.join(parts)}."


def _marked(found: Explanation, c: int) -> str:
    return found.findings[c] + (" !" if found.unstable[c] else "")


def _pair(found: Explanation, used: list[int], at: Any) -> str:
    a, b = (used[int(k)] for k in at)
    return f"{found.names[a]} and {found.names[b]} {found.correlation[a, b]:.2f}"


def _change(figure: np.ndarray) -> str:
    return f"{figure[0]:+.3f} [{figure[1]:+.3f}, {figure[2]:+.3f}]"


def _loss(figure: np.ndarray) -> str:
    """What the others bring without it is told as the change that its loss makes."""
    value, low, high = figure
    return _change(np.array([-value, -high, -low]))
