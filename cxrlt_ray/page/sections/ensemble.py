"""The ensemble: who weighs what, what each member brings, who repeats whom, what more trials and cost would bring."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.page import charts
from cxrlt_ray.page.costs import gflops_of
from cxrlt_ray.page.facts import Facts, origin, public
from cxrlt_ray.page.parts import Column, Figure, Part, Table, Texts
from cxrlt_ray.page.records import Interval, SectionFacts
from cxrlt_ray.page.sections.registry import register_section
from cxrlt_ray.runs.ensemble_record import MemberRecord
from cxrlt_ray.runs.predictions import augmented_name
from cxrlt_ray.runs.store import Trial

MOST = 24  # members whose correlation is shown, the heaviest
IMAGES = 2_000  # of which correlations are computed: 60 members on 39,293 images would take minutes


class Member(SectionFacts):
    """A member, the heaviest first.

    weight: its mean over findings. alone, marginal, without: macro AP, cross-fitted, as ensemble --explain computed
    them: by itself, its mean gain when members are added in random order, and what is lost without it. alike: its mean
    Spearman correlation with the others' scores.
    """

    trial: str
    backbone: str = ""
    resolution: int | None = None
    loss: str = ""
    weight: float
    score: float | None = None
    gflops: float | None = None
    alike: float | None = None
    alone: Interval = Interval()
    marginal: Interval = Interval()
    without: Interval = Interval()


class Weights(SectionFacts):
    """A finding's weights, in the order of the members."""

    finding: str
    weights: tuple[float, ...]


class Alike(SectionFacts):
    """A member's correlation with each of the members shown."""

    trial: str
    correlations: tuple[float | None, ...]


class Size(SectionFacts):
    """An ensemble of so many trials: what it scored, or what the law says it would."""

    trials: int
    kind: str
    score: Interval


class Priced(SectionFacts):
    """A trial on or off the frontier of validation score against cost."""

    trial: str
    gflops: float
    score: float
    frontier: bool
    member: bool


class EnsembleFacts(SectionFacts):
    """The ensemble shown, and the run's others. explained: whether ensemble --explain has been run."""

    about: str
    explained: bool
    summary: tuple[str, ...] = ()
    members: tuple[Member, ...]
    weights: tuple[Weights, ...]
    alike: tuple[Alike, ...] = ()
    growth: tuple[Size, ...] = ()
    priced: tuple[Priced, ...] = ()
    others: tuple[dict[str, str | float | None], ...] = ()


def gather(facts: Facts) -> EnsembleFacts | str:
    """The ensemble's facts; a sentence where there is none."""
    if facts.ensemble is None:
        return "No ensemble has been made yet."
    record, why = facts.ensemble.record, _explanation(facts)
    findings = record.findings
    heavy = sorted(record.members, key=lambda member: -sum(member.weights.values()))
    cost = gflops_of(facts)
    trials = {trial.name: trial for trial in facts.trials}
    augmented = {member.trial: member.tta for member in heavy}
    names, correlation = _correlations(facts, [trials[m.trial] for m in heavy[:MOST] if m.trial in trials], augmented)
    likeness = _mean_likeness(names, correlation)
    members = [
        _member(m, sum(m.weights.values()) / len(findings), trials.get(m.trial), cost, likeness, why) for m in heavy
    ]
    return EnsembleFacts(
        about=_about(facts),
        explained=bool(why),
        summary=tuple(public(line) for line in why.get("summary", ())),
        members=tuple(members),
        weights=tuple(Weights(finding=f, weights=tuple(round(m.weights[f], 4) for m in heavy)) for f in findings),
        alike=tuple(Alike(trial=n, correlations=tuple(row)) for n, row in zip(names, correlation, strict=True)),
        growth=_growth(why),
        priced=_priced(facts, cost, {m.trial for m in heavy}),
        others=tuple(_scores_of(facts)),
    )


LEANS = {"global": "all findings'", "mean": "the mean of all", "sound": "the mean of the sound trials"}


def _about(facts: Facts) -> str:
    assert facts.ensemble is not None
    record = facts.ensemble.record
    chosen = record.chosen.selector if record.chosen else record.selector
    guard = record.chosen.guard if record.chosen else record.guard
    text = f"{record.name}: {len(record.members)} members, chosen by {chosen}, joined as {record.space}"
    if isinstance(guard, float) and guard > 0:
        text += (
            f"; a finding's own weights count against {LEANS[record.lean]} with a guard of {guard:g} positive subjects"
        )
    if record.blend and isinstance(guard, float) and record.track is None:  # where findings have weights of their own
        text += f"; the weights of {' and '.join(record.blend)} count as much"
    if record.joined_by != "none":
        text += f"; a study's images are joined by {record.joined_by}"
    return text + "."


def _explanation(facts: Facts) -> dict[str, Any]:
    """The content of explain.json; {} where there is none, or where it is not of these members."""
    assert facts.ensemble is not None
    try:
        if not facts.ensemble.store.exists("explain.json"):
            return {}
        content = facts.ensemble.store.read_json("explain.json")
        members = {member.trial for member in facts.ensemble.record.members}
        return content if set(content["members"]) == members else {}
    except (CxrltError, KeyError, TypeError) as error:
        facts.faults.append(f"The ensemble's explanation cannot be read: {public(error)}")
        return {}


def _member(
    member: MemberRecord,
    weight: float,
    trial: Trial | None,
    cost: dict[str, float],
    likeness: dict[str, float],
    why: dict[str, Any],
) -> Member:
    name, config = member.trial, trial.record.config if trial else None
    tta = trial.record.tta if trial and member.tta else None
    gflops = None if name not in cost else cost[name] * (tta.augmentations if tta else 1)
    figures = why.get("members", {}).get(name, {})
    brings = {
        kind: Interval.model_validate(figures[kind]) for kind in ("alone", "marginal", "without") if kind in figures
    }
    return Member(
        trial=name,
        backbone=origin(config.backbone) if config else "",
        resolution=config.resolution if config else None,
        loss=config.loss if config else "",
        weight=weight,
        score=trial.record.score if trial else None,
        gflops=gflops,
        alike=likeness.get(name),
        **brings,
    )


def _correlations(
    facts: Facts, trials: list[Trial], augmented: dict[str, bool]
) -> tuple[list[str], list[list[float | None]]]:
    """Spearman's correlation [M, M] of the trials' scores of up to IMAGES validation images, the mean over findings."""
    from cxrlt_ray.selection.explain import correlations

    names, scores, ids = [], [], None
    for trial in trials:
        try:
            stored = trial.stored_predictions(augmented_name("val", augmented.get(trial.name, False)))
        except CxrltError as error:
            facts.faults.append(public(error))
            continue
        if ids is None:
            ids = stored.image_id
            kept = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), IMAGES)).astype(int))
        if len(stored.image_id) == len(ids) and (stored.image_id == ids).all():
            names.append(trial.name)
            scores.append(stored.probabilities[kept])
    if len(names) < 2:
        return [], []
    values = correlations(np.stack(scores))
    return names, [[round(float(v), 4) if np.isfinite(v) else None for v in row] for row in values]


def _mean_likeness(names: list[str], correlation: list[list[float | None]]) -> dict[str, float]:
    likeness = {}
    for m, name in enumerate(names):
        others = [value for k, value in enumerate(correlation[m]) if k != m and value is not None]
        if others:
            likeness[name] = round(float(np.mean(others)), 4)
    return likeness


def _growth(why: dict[str, Any]) -> tuple[Size, ...]:
    sizes = []
    for key, kind in (("measured", "measured"), ("law", "extrapolated")):
        for row in why.get("growth", {}).get(key, ()):
            score = Interval.model_validate({end: row[end] for end in ("value", "low", "high")})
            if score.value is not None:
                sizes.append(Size(trials=row["trials"], kind=kind, score=score))
    return tuple(sizes)


def _priced(facts: Facts, cost: dict[str, float], members: set[str]) -> tuple[Priced, ...]:
    """The scored trials with their cost, the cheapest first; on the frontier: none is cheaper and as good."""
    known = [trial for trial in facts.trials if trial.name in cost and trial.score == trial.score]
    rows: list[Priced] = []
    best: float | None = None
    for trial in sorted(known, key=lambda trial: (cost[trial.name], -trial.score)):
        ahead = trial.record.metric.better(trial.score, best)
        best = trial.score if ahead else best
        rows.append(
            Priced(
                trial=trial.name,
                gflops=cost[trial.name],
                score=trial.score,
                frontier=ahead,
                member=trial.name in members,
            )
        )
    return tuple(rows)


def _scores_of(facts: Facts) -> list[dict[str, str | float | None]]:
    """Cross-fitted and test mAP of all the run's ensembles, where there are several."""
    rows: list[dict[str, str | float | None]] = []
    for name, stored in facts.ensembles.items():
        systems = stored.record.scores.get("systems")
        own = systems.get(stored.title) if isinstance(systems, dict) else None
        row: dict[str, str | float | None] = {"ensemble": name, "members": len(stored.record.members)}
        for where in ("cross_fitted", "test"):
            of = own.get(where) if isinstance(own, dict) else None
            value = of.get("map") if isinstance(of, dict) else None
            row[where] = float(value) if isinstance(value, int | float) else None
        rows.append(row)
    return rows if len(rows) > 1 else []


@register_section("ensemble", "Ensemble", order=40, facts=EnsembleFacts, gather=gather)
def ensemble(facts: EnsembleFacts) -> list[Part]:
    """Weights, contributions, likeness, growth, cost, and the run's other ensembles."""
    parts: list[Part] = [Texts(["about", *(f"summary/{k}" for k in range(len(facts.summary)))]), _members(facts)]
    if any(member.marginal.value is not None for member in facts.members):
        parts.append(_contributions(facts))
    parts.append(_weights(facts))
    if facts.alike:
        parts.append(_alike(facts))
    if any(size.kind == "extrapolated" for size in facts.growth):
        parts.append(_growth_figure(facts))
    if len(facts.priced) > 1:
        parts.append(_frontier(facts))
    if facts.others:
        columns = [Column("ensemble", "ensemble"), Column("members", "members", "count")]
        columns += [Column("cross-fitted mAP", "cross_fitted", "score"), Column("test mAP", "test", "score")]
        parts.append(Table("The run's ensembles", "others", columns))
    return parts


def _members(facts: EnsembleFacts) -> Table:
    columns = [
        Column("member", "trial"),
        Column("weight", "weight", "percent", "the mean over findings"),
        Column("val mAP", "score", "score", "of the trial by itself, optimistic"),
    ]
    if facts.explained:
        columns += [
            Column("alone", "alone", "score_interval", "macro AP, cross-fitted"),
            Column(
                "marginal", "marginal", "gain_interval", "mean gain when members are added in random order (Shapley)"
            ),
            Column("lost without it", "without", "gain_interval", "the others keep their proportions"),
        ]
    columns += [
        Column("correlation", "alike", "score", "mean Spearman correlation with the other members' scores"),
        Column("GFLOPs", "gflops", "number", "to score one image"),
        Column("backbone", "backbone"),
        Column("px", "resolution", "count"),
        Column("loss", "loss"),
    ]
    note = (
        "" if facts.explained else "What each member brings is computed by ensemble --explain (see the next commands)."
    )
    return Table("Members", "members", columns, note=note)


def _contributions(facts: EnsembleFacts) -> Figure:
    rows = []
    for member in facts.members:
        pairs = ((0, member.marginal, "marginal"), (1, member.without, "lost without it"))
        rows.append(
            (member.trial, [charts.Mark(v.value, v.low, v.high, k, n) for k, v, n in pairs if v.value is not None])
        )
    words = "; ".join(f"{m.trial} {m.marginal.value:+.3f}" for m in facts.members if m.marginal.value is not None)
    names = ["marginal (Shapley)", "lost without it"]
    drawing = charts.intervals("What each member brings", words, rows, names, "macro AP, cross-fitted", zero=True)
    return Figure("What each member brings", [drawing], "Members to the left of zero cost the ensemble something.")


def _weights(facts: EnsembleFacts) -> Figure:
    names = [member.trial for member in facts.members]
    values = [row.weights for row in facts.weights]
    rows = [row.finding for row in facts.weights]
    words = f"{len(names)} members by {len(rows)} findings; the largest weight is {max(map(max, values)):.2f}"
    drawing = charts.heatmap("Weights by finding and member", words, values, rows, names)
    columns = [Column("finding", "finding")]
    columns += [Column(name, f"weights/{k}", "score") for k, name in enumerate(names)]
    table = Table("Weights", "weights", columns, folded=True)
    return Figure("Who weighs what", [drawing], "Each finding's weights sum to 1.", table)


def _alike(facts: EnsembleFacts) -> Figure:
    names = [row.trial for row in facts.alike]
    values = [row.correlations for row in facts.alike]
    apart = [v for r, row in enumerate(values) for c, v in enumerate(row) if r != c and v is not None]
    low, high = min(apart, default=0.0), max(apart, default=1.0)
    words = f"{len(names)} members; correlations from {low:.2f} to {high:.2f}"
    if high == low:  # of two members: one number has no scale of its own
        low, high = 0.0, 1.0
    drawing = charts.heatmap("Correlation of members' scores", words, values, names, names, low, high)
    columns = [Column("member", "trial")]
    columns += [Column(name, f"correlations/{k}", "score") for k, name in enumerate(names)]
    note = "Spearman, the mean over findings, on validation. Members that are alike repeat each other."
    return Figure("Who repeats whom", [drawing], note, Table("Correlation", "alike", columns, folded=True))


def _growth_figure(facts: EnsembleFacts) -> Figure:
    measured = [size for size in facts.growth if size.kind == "measured"]
    law = [size for size in facts.growth if size.kind == "extrapolated"]
    band = [(s.trials, s.score.low, s.score.high) for s in law if s.score.low is not None and s.score.high is not None]
    drawn = [
        charts.Line("power law", [(s.trials, s.score.value or 0.0) for s in law], 0, strong=True, band=band),
        charts.Line("measured", [(s.trials, s.score.value or 0.0) for s in measured], 1, strong=True, dots=True),
    ]
    words = f"Measured up to {measured[-1].trials} trials, extrapolated to {law[-1].trials}"
    drawing = charts.lines("mAP by number of trials", words, drawn, "trials", "mAP, cross-fitted", log_x=True)
    columns = [Column("trials", "trials", "count"), Column("kind", "kind"), Column("mAP", "score", "score_interval")]
    table = Table("mAP by number of trials", "growth", columns, folded=True)
    note = "Ensembles of random subsets, and a power law through them: more trials like these are assumed."
    return Figure("What the next trial is worth", [drawing], note, table)


def _frontier(facts: EnsembleFacts) -> Figure:
    dots = [
        charts.Dot(row.trial, row.gflops, row.score, 0 if row.member else 2, labelled=row.frontier)
        for row in facts.priced
    ]
    front = [(row.gflops, row.score) for row in facts.priced if row.frontier]
    words = f"On the frontier: {', '.join(row.trial for row in facts.priced if row.frontier)}"
    series = [("in the ensemble", 0), ("not in it", 2)]
    titles = ("Score against cost", words, dots, "GFLOPs an image", "validation score")
    drawing = charts.scatter(*titles, log=(True, False), front=front, series=series)
    columns = [Column("trial", "trial"), Column("GFLOPs", "gflops", "number"), Column("score", "score", "score")]
    columns += [Column("on the frontier", "frontier"), Column("in the ensemble", "member")]
    note = "On the dashed line no other trial is both cheaper and better. Selector frontier chooses under a budget."
    return Figure("Score against cost", [drawing], note, Table("Score against cost", "priced", columns, folded=True))
