"""A submission's scores on the console and in a file, beside the paper's teams where the images are theirs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from cxrlt_ray import cli
from cxrlt_ray.data.tasks import GROUPS
from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.evaluation.published import Published
from cxrlt_ray.evaluation.scores import SUMMARY, UNSEEN, Scores
from cxrlt_ray.reporting import groups, sites
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.finite import finite

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


FEW = "*"  # beside a score


def render(scores: Scores, teams: Published | None = None, name: str = "ours") -> list[Table | str]:
    """The scores beside the teams', those of each finding, and each finding's AP beside the teams'."""
    parts: list[Table | str] = [_summary_table(scores, teams, name), _findings_table(scores)]
    if UNSEEN in scores.groups:
        parts.append(_lift_table(scores))
    if teams:
        parts.append(_teams_table(scores, teams, name))
        parts.append("Teams: Lin et al. 2025, arXiv:2506.07984; '- best': ours less the best of theirs.")
    if np.isnan(scores.per_finding["ap_low"][scores.per_finding["positives"] > 0]).any():
        parts.append(
            f"{FEW} too few positive subjects to give an interval. Those of the other findings: --out FILE.csv"
        )
    if scores.without_positives:
        parts.append(f"Without positives here, and so in no mean: {', '.join(scores.without_positives)}")
    return parts


def show(console: Console, scores: Scores, teams: Published | None, reason: str | None = None) -> None:
    """Print the scores, those by group and by site where there are some. reason: why there are no teams beside them."""
    for part in [*render(scores, teams), *([reason] if reason else [])]:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
    if scores.by_group:
        groups.show(console, scores.by_group)
    for site in scores.sites:
        sites.show(console, site)


def as_json(scores: Scores, teams: Published | None = None) -> dict[str, JsonValue]:
    """The scores as JSON can hold them; nan is null."""
    content: dict[str, JsonValue] = finite(
        {
            "images": scores.images,
            "subjects": scores.subjects,
            "scores": scores.scores,
            "intervals": {key: list(bounds) for key, bounds in scores.intervals.items()},
            "many_images": scores.many_images,
            "lift": None if scores.lift is None else [scores.lift.value, scores.lift.low, scores.lift.high],
            "without_positives": scores.without_positives,
            "findings": scores.frame().set_index("finding").to_dict("index"),
            "teams": teams.scores if teams else None,
        }
    )
    if scores.by_group:
        content["by_group"] = groups.as_json(scores.by_group)
    if scores.sites:
        content["sites"] = {site.name: sites.as_json(site) for site in scores.sites}
    return content


def write(scores: Scores, teams: Published | None, out: str) -> list[str]:
    """Leave the scores in `out`: all of them in a .json, of each finding in a .csv, with groups and sites beside it.

    Returns the files' names.
    """
    store, name = Store.holding(out)
    if not name.endswith(".csv"):
        store.write(name, json.dumps(as_json(scores, teams), indent=1, allow_nan=False).encode())
        return [name]
    store.write(name, scores.frame().to_csv(index=False).encode())
    names = [name]
    if scores.by_group:
        names.append(groups.write(scores.by_group, out))
    if scores.sites:
        names.append(sites.write(scores.sites, out))
    return names


def _summary_table(scores: Scores, teams: Published | None, name: str) -> Table:
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    title = f"{scores.images:,} images of {scores.subjects:,} subjects"
    heads = [title, name, "95 % interval", *(teams.teams if teams else ())]
    table = RecordTable("scores", *(Column(head, no_wrap=True) for head in heads), padding=(0, 1, 0, 0))
    counts = {group: scores.groups.count(group) for group in GROUPS}
    rows = {**SUMMARY, **{group: f"mAP of {counts[group]} {group} findings" for group in GROUPS if counts[group]}}
    for key, label in rows.items():
        low, high = scores.intervals.get(key, (np.nan, np.nan))
        unknown = cli.TOO_FEW if key in scores.intervals and not np.isnan(scores.scores[key]) else ""
        bounds = f"[{low:.3f}, {high:.3f}]" if np.isfinite(low) else unknown
        published = [_number(teams.scores.get(key, {}).get(team)) for team in teams.teams] if teams else []
        record = {"score": key, "value": scores.scores[key], "low": low, "high": high}
        record |= {"teams": teams.scores.get(key, {})} if teams else {}
        table.add_record(record, label, _number(scores.scores[key]), bounds, *published)
        if key == "map":
            many, chance = scores.many_images, scores.chance
            table.add_record({"score": "map_many_images", "value": many}, "  (on many images, about)", _number(many))
            table.add_record({"score": "map_chance", "value": chance}, "  (chance: prevalence)", _number(chance))
    return table


def _findings_table(scores: Scores) -> Table:
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    names = {"ap": "AP", "auroc": "AUROC", "f1": "F1", "fnr": "FNR", "ece": "ECE"}
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("pos.", "%", *names.values())]
    table = RecordTable("findings", Column("finding", no_wrap=True), "group", *numbers, padding=0)
    values, frame = scores.per_finding, scores.frame().to_dict("records")
    for c, (finding, group) in enumerate(zip(scores.findings, scores.groups, strict=True)):
        share = f"{100 * values['prevalence'][c]:.2f}" if values["labelled"][c] else "-"
        ap, *others = (_number(values[name][c]) for name in names)
        mark = FEW if ap != "-" and np.isnan(values["ap_low"][c]) else ""
        cells = [f"{int(values['positives'][c]):,}", share, ap + mark, *others]
        table.add_record(frame[c], finding, group or "-", *cells)
    return table


def _lift_table(scores: Scores) -> Table:
    """Of findings without training labels: how many times chance, which is their prevalence."""
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    title = Column("not labelled in training", no_wrap=True)
    heads = (Column(name, justify="right", no_wrap=True) for name in ("lift", "95 % interval", "AP", "chance", "AUROC"))
    table = RecordTable("lift", title, *heads, padding=(0, 1, 0, 0))
    values = scores.per_finding
    for c in (c for c, group in enumerate(scores.groups) if group == UNSEEN and values["positives"][c]):
        lift = Estimate(*(float(values["lift" + end][c]) for end in ("", "_low", "_high")))
        cells = (_number(values["ap"][c]), f"{values['prevalence'][c]:.4f}", _number(values["auroc"][c]))
        record = {"finding": scores.findings[c], "lift": lift, "chance": values["prevalence"][c]}
        table.add_record(record, scores.findings[c], *_lift_cells(lift), *cells)
    if scores.lift is not None:
        table.add_record({"mean": "geometric", "lift": scores.lift}, "geometric mean", *_lift_cells(scores.lift))
    return table


def _lift_cells(lift: Estimate) -> tuple[str, str]:
    return f"{lift.value:.2f}", f"[{lift.low:.2f}, {lift.high:.2f}]" if lift.known else cli.TOO_FEW


def _teams_table(scores: Scores, teams: Published, name: str) -> Table:
    from rich.table import Column

    from cxrlt_ray.output.tables import RecordTable

    table = RecordTable("teams", Column("AP", no_wrap=True), name, *teams.teams, "- best", padding=(0, 1, 0, 0))
    for c, finding in enumerate(scores.findings):
        published = [teams.ap[team][c] for team in teams.teams]
        own = scores.per_finding["ap"][c]
        record = {"finding": finding, "ap": own, "teams": dict(zip(teams.teams, published, strict=True))}
        table.add_record(record, finding, _number(own), *map(_number, published), f"{own - max(published):+.3f}")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"
