"""Why these members, on the console and drawn: what `ensemble --explain` shows and leaves.

explain.json    all of it
explain.png     what each member brings, who weighs what, who agrees with whom, what the next trial is worth
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.ensembling.explain import UNSTABLE, Explanation, change, document, loss, summary
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from rich.table import Table

TOP = 2  # members named for each finding


def show(explanation: Explanation) -> None:
    """Print an explanation."""
    console, contributions = cli.console(width=140), explanation.contributions
    console.print(_members_table(explanation))
    score, chance = cli.ranged(*contributions.whole[-1]), cli.short(contributions.chance[-1, 0])
    print("Marginal: the mean gain when members are added in random order (Shapley); together they are the ensemble's")
    print(
        f"cross-fitted {score} less chance, {chance}. Without it: the change when it is taken out and the others keep"
    )
    print("their proportions. [ , ] are 95 % intervals by subject.")
    console.print(_findings_table(explanation))
    print(
        "Most needed: the member whose loss costs most, and what. Kept: the share of the weight that stays where it is"
    )
    print(f"when the choice is made on resampled subjects; ! marks less than {UNSTABLE:.0%}.")
    for line in summary(explanation):
        print(line)


def write(explanation: Explanation, store: Store) -> None:
    """Leave explain.json and explain.png."""
    store.write("explain.png", draw(explanation))
    store.write_json("explain.json", document(explanation))


def _members_table(explanation: Explanation) -> Table:
    from cxrlt_ray.output.tables import RecordTable

    contributions = explanation.contributions
    table = RecordTable("members", "member", "weight", "alone", "marginal", "without it")
    table.title = "What each member brings, mAP"
    if explanation.costs is not None:
        table.add_column(f"cost, {explanation.unit}")
    for m in explanation.used:
        row = [explanation.names[m], f"{explanation.weights[m].mean():.2f}", cli.ranged(*contributions.alone[m, -1])]
        row += [change(contributions.marginal[m, -1]), loss(contributions.without[m, -1])]
        cost = None if explanation.costs is None else float(explanation.costs[m])
        record = {"member": explanation.names[m], "weight": explanation.weights[m].mean(), "cost": cost}
        record |= {key: _bounds(getattr(contributions, key)[m, -1]) for key in ("alone", "marginal", "without")}
        table.add_record(record, *row, *([] if cost is None else [f"{cost:.3g}"]))
    return table


def _findings_table(explanation: Explanation) -> Table:
    from cxrlt_ray.output.tables import RecordTable

    table = RecordTable("member_findings", "finding", "positives", "AP", "members, weight", "most needed", "kept")
    table.title = "Findings"
    weights, names, without = explanation.weights, explanation.names, explanation.contributions.without
    for c, finding in enumerate(explanation.findings):
        heavy = [int(m) for m in np.argsort(-weights[:, c], kind="stable") if weights[m, c] > 0]
        members = ", ".join(f"{names[m]} {weights[m, c]:.2f}" for m in heavy[:TOP])
        more = f" +{len(heavy) - TOP}" if len(heavy) > TOP else ""
        needed = max(explanation.used, key=lambda m: np.nan_to_num(without[m, c, 0], nan=-np.inf))
        known = not np.isnan(without[needed, c, 0])
        most_needed = f"{names[needed]} {loss(without[needed, c])}" if known else "-"
        kept = f"{explanation.retained_share[c]:.0%}" + (" !" if explanation.unstable[c] else "")
        score = cli.ranged(*explanation.contributions.whole[c])
        record = {"finding": finding, "positives": explanation.positives[c], "kept": explanation.retained_share[c]}
        record |= {"ap": _bounds(explanation.contributions.whole[c])}
        record |= {"weights": {names[m]: weights[m, c] for m in heavy}, "most_needed": names[needed] if known else None}
        table.add_record(record, finding, f"{explanation.positives[c]:,}", score, members + more, most_needed, kept)
    return table


def _bounds(figure: np.ndarray) -> dict[str, float]:
    """A value [3] with the ends of its interval, by name."""
    return dict(zip(("value", "low", "high"), figure.tolist(), strict=True))


def draw(explanation: Explanation) -> bytes:
    """Explain.png: four panels."""
    from matplotlib.figure import Figure

    used = explanation.used
    tall = max(9.0, 0.3 * max(len(explanation.findings), 2 * len(used)) + 3)
    figure = Figure(figsize=(15, tall), layout="constrained")
    (bars, heat), (alike, curve) = figure.subplots(2, 2)
    _draw_contributions(bars, explanation)
    figure.colorbar(_draw_weights(heat, explanation), ax=heat)
    figure.colorbar(_draw_correlation(alike, explanation), ax=alike)
    _draw_growth(curve, explanation)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


_PLAIN = {"parse_math": False}  # a $ in a name is a $


def _draw_contributions(axes: Any, explanation: Explanation) -> None:
    used, names = explanation.used, _used_names(explanation)
    places = np.arange(len(used))
    for values, offset, colour, label in (
        (explanation.contributions.marginal, -0.17, "C0", "marginal (Shapley)"),
        (explanation.contributions.without, 0.17, "C1", "lost without it"),
    ):
        value, low, high = np.array([values[m, -1] for m in used]).T
        axes.barh(places + offset, value, 0.32, color=colour, label=label)
        axes.hlines(places + offset, low, high, color="0.25", lw=1.2)
    axes.set_yticks(places, names, **_PLAIN)
    axes.invert_yaxis()
    axes.axvline(0, color="0.5", lw=0.8)
    axes.set_xlabel("mAP, cross-fitted, with 95 % intervals")
    axes.set_title("What each member brings")
    axes.legend(loc="lower right")


def _draw_weights(axes: Any, explanation: Explanation) -> Any:
    used, findings = explanation.used, explanation.findings
    image = axes.imshow(explanation.weights[used].T, cmap="Blues", vmin=0, aspect="auto")
    labels = [name + (" !" if explanation.unstable[c] else "") for c, name in enumerate(findings)]
    axes.set_yticks(np.arange(len(findings)), labels, **_PLAIN)
    axes.set_xticks(np.arange(len(used)), _used_names(explanation), rotation=60, ha="right", **_PLAIN)
    axes.set_title("Weights (! choice not stable)")
    return image


def _draw_correlation(axes: Any, explanation: Explanation) -> Any:
    used, names = explanation.used, _used_names(explanation)
    places = np.arange(len(used))
    image = axes.imshow(explanation.correlation[np.ix_(used, used)], cmap="viridis", vmax=1)
    axes.set_yticks(places, names, **_PLAIN)
    axes.set_xticks(places, names, rotation=60, ha="right", **_PLAIN)
    axes.set_title("Spearman correlation of scores")
    return image


def _draw_growth(axes: Any, explanation: Explanation) -> None:
    growth = explanation.growth
    value, low, high = growth.curve.T
    if np.isfinite(value).any():  # few trials give no curve
        axes.plot(growth.ahead, value, color="C0", label="power law")
        axes.fill_between(growth.ahead, low, high, color="C0", alpha=0.2, lw=0)
    value, low, high = growth.scores.T
    axes.vlines(growth.sizes, low, high, color="0.25", lw=1.2)
    axes.plot(growth.sizes, value, "o", color="C1", label="measured, random subsets")
    axes.axvline(len(explanation.names), color="0.5", ls=":", label="now")
    axes.set_xscale("log")
    ticks = np.unique([*growth.sizes, *growth.ahead[-2:]])
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.set_xlabel("trials")
    axes.set_ylabel("mAP, cross-fitted")
    axes.set_title("What the next trial is worth")
    axes.legend(loc="lower right")


def _used_names(explanation: Explanation) -> list[str]:
    return [explanation.names[m] for m in explanation.used]
