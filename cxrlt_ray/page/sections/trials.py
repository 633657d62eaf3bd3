"""The trials: leaderboard, curves by epoch, how the search went, which parameters matter, all settings at once."""

from __future__ import annotations

from pydantic import Field

from cxrlt_ray import cli
from cxrlt_ray.page import charts
from cxrlt_ray.page.costs import gflops_of, seconds_of
from cxrlt_ray.page.facts import Facts, origin, public
from cxrlt_ray.page.parts import Column, Figure, Part, Table, Texts
from cxrlt_ray.page.records import SectionFacts
from cxrlt_ray.page.search_history import importances, settings
from cxrlt_ray.page.sections.registry import register_section
from cxrlt_ray.runs.records import Value
from cxrlt_ray.runs.store import Trial, best_first
from cxrlt_ray.search.trial_states import learning_curve

NAMED = 5  # trials whose curves are named
EPOCHS = 12  # columns of the curves' table; of longer trials epochs are left out evenly
AXES = 9  # parameters drawn side by side
UNREADABLE = "unreadable"


class TrialRow(SectionFacts):
    """A trial. score: by the run's metric; gflops: to score an image; note: a failure's reason or what is damaged."""

    trial: str
    state: str
    score: float | None = None
    epochs: int = 0
    seconds: float | None = None
    gflops: float | None = None
    images_per_second: float | None = None
    backbone: str = ""
    resolution: int | None = None
    loss: str = ""
    note: str = ""
    params: dict[str, float | int | str | None] = Field(default_factory=dict)


class Curve(SectionFacts):
    """A trial's best score so far after each epoch: epochs counted from 1, and the score at each."""

    trial: str
    epochs: tuple[int, ...]
    scores: tuple[float, ...]
    shown: tuple[float | None, ...] = ()  # at Trials.shown_epochs


class Tried(SectionFacts):
    """A scored trial in the order in which the search tried them, from 1, and the best score until then."""

    number: int
    trial: str
    score: float
    best: float


class Importance(SectionFacts):
    """A parameter's share in what makes the score."""

    parameter: str
    importance: float


class Trials(SectionFacts):
    """The trials, best first."""

    metric: str
    rows: tuple[TrialRow, ...]
    curves: tuple[Curve, ...] = ()
    shown_epochs: tuple[int, ...] = ()
    history: tuple[Tried, ...] = ()
    importances: tuple[Importance, ...] = ()
    importances_note: str = ""
    searched: tuple[str, ...] = ()


def gather(facts: Facts) -> Trials | str:
    """The trials' facts."""
    if not facts.trials and not facts.unreadable:
        return "No trial has begun yet."
    ordered, cost = best_first(list(facts.trials)), gflops_of(facts)
    rows = [_row(facts, trial, cost.get(trial.name)) for trial in ordered]
    rows += [TrialRow(trial=name, state=UNREADABLE, note=why) for name, why in facts.unreadable.items()]
    curves = {trial.name: [(e, s) for e, s in learning_curve(trial) if s == s] for trial in ordered}
    longest = max((curve[-1][0] for curve in curves.values() if curve), default=0)
    shown = tuple(sorted({round(1 + k * (longest - 1) / max(EPOCHS - 1, 1)) for k in range(EPOCHS)})) if longest else ()
    values, note = importances(facts.run, facts.trials)
    searched = list(dict.fromkeys(name for trial in ordered for name in settings(trial)))
    varied = [name for name in searched if len({str(settings(trial).get(name)) for trial in ordered}) > 1]
    return Trials(
        metric=ordered[0].record.metric.title if ordered else "score",
        rows=tuple(rows),
        curves=tuple(_curve(name, curve, shown) for name, curve in curves.items() if curve),
        shown_epochs=shown,
        history=_history(facts.trials),
        importances=tuple(Importance(parameter=name, importance=value) for name, value in values.items()),
        importances_note=_about_importance(note, values),
        searched=tuple(varied),
    )


def _row(facts: Facts, trial: Trial, cost: float | None) -> TrialRow:
    record, config = trial.record, trial.record.config
    notes = [record.reason or "", facts.missing(trial), "checkpoints dropped" if record.dropped else ""]
    if record.retries and not record.reason:
        notes.append(f"begun anew {len(record.retries)} times" if len(record.retries) > 1 else "begun anew once")
    return TrialRow(
        trial=trial.name,
        state=trial.state,
        score=trial.score if trial.score == trial.score else None,
        epochs=len(record.epochs),
        seconds=seconds_of(trial),
        gflops=cost,
        images_per_second=record.images_per_second,
        backbone=origin(config.backbone) if config else "",
        resolution=config.resolution if config else None,
        loss=config.loss if config else "",
        note=cli.shortened(public("; ".join(note for note in notes if note))),
        params={name: _shown(value) for name, value in settings(trial).items()},
    )


def _shown(value: Value) -> float | int | str | None:
    """A setting as a page may show it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return origin(value) if isinstance(value, str) else value


def _curve(name: str, curve: list[tuple[int, float]], shown: tuple[int, ...]) -> Curve:
    at = dict(curve)
    epochs, scores = zip(*curve, strict=True)
    return Curve(trial=name, epochs=epochs, scores=scores, shown=tuple(at.get(epoch) for epoch in shown))


def _history(trials: tuple[Trial, ...]) -> tuple[Tried, ...]:
    tried: list[Tried] = []
    for trial in trials:
        if trial.score == trial.score:
            better = not tried or trial.record.metric.better(trial.score, tried[-1].best)
            best = trial.score if better else tried[-1].best
            tried.append(
                Tried(number=int(trial.name.lstrip("T") or 0) + 1, trial=trial.name, score=trial.score, best=best)
            )
    return tuple(tried)


def _about_importance(note: str, values: dict[str, float]) -> str:
    if not values:
        return note
    return (
        f"{note} of the finished trials: how much of the score's variance each parameter explains. Of few trials it is "
        "a hint; settings that not every trial has are left out."
    )


@register_section("trials", "Trials", order=20, facts=Trials, gather=gather)
def trials(facts: Trials) -> list[Part]:
    """Leaderboard first, then how the trials came about."""
    parts: list[Part] = [_leaderboard(facts)]
    if facts.curves:
        parts.append(_curves(facts))
    if len(facts.history) > 1:
        parts.append(_history_figure(facts))
    if facts.importances:
        rows = [(row.parameter, row.importance) for row in facts.importances]
        words = ", ".join(f"{name} {value:.2f}" for name, value in rows)
        drawing = charts.bars("Parameter importance", words, rows, "share of the variance explained")
        columns = [Column("parameter", "parameter"), Column("importance", "importance", "number")]
        table = Table("Parameter importance", "importances", columns, folded=True)
        parts.append(Figure("Which parameters matter", [drawing], facts.importances_note, table))
    elif facts.importances_note:
        parts.append(Texts(["importances_note"]))
    if len(facts.searched) > 1 and len(facts.history) > 1:
        parts.append(_parallel(facts))
    return parts


def _leaderboard(facts: Trials) -> Table:
    columns = [
        Column("trial", "trial"),
        Column("state", "state"),
        Column(facts.metric, "score", "score"),
        Column("time", "seconds", "seconds", "from the first step to the last, on whatever it ran"),
        Column("GFLOPs", "gflops", "number", "to score one image, all folds together"),
        Column("epochs", "epochs", "count"),
        Column("backbone", "backbone"),
        Column("px", "resolution", "count"),
        Column("loss", "loss"),
        Column("images/s", "images_per_second", "number"),
        Column("note", "note"),
    ]
    if not any(row.gflops is not None for row in facts.rows):
        columns = [column for column in columns if column.path != "gflops"]
    return Table("Leaderboard", "rows", columns, filtered=True, facet="state")


def _curves(facts: Trials) -> Figure:
    drawn = [
        charts.Line(curve.trial, list(zip(curve.epochs, curve.scores, strict=True)), k, strong=k < NAMED)
        for k, curve in enumerate(facts.curves)
    ]
    words = f"{len(drawn)} trials; the best, {facts.curves[0].trial}, ends at {facts.curves[0].scores[-1]:.3f}"
    drawing = charts.lines("Best score so far by epoch", words, drawn, "epochs", facts.metric)
    columns = [Column("trial", "trial")]
    columns += [Column(f"epoch {epoch}", f"shown/{k}", "score") for k, epoch in enumerate(facts.shown_epochs)]
    note = f"The {NAMED} best trials are named; each line is a trial's best score so far."
    return Figure(
        "Curves by epoch", [drawing], note, Table("Best score so far by epoch", "curves", columns, folded=True)
    )


def _history_figure(facts: Trials) -> Figure:
    dots = charts.Line("a trial's score", [(t.number, t.score) for t in facts.history], 0, strong=True, dots=True)
    best = charts.Line("best so far", [(t.number, t.best) for t in facts.history], 1, strong=True)
    words = f"{len(facts.history)} scored trials; the best is {facts.history[-1].best:.3f}"
    drawing = charts.lines("Score by trial, in the order tried", words, [best, dots], "trial", facts.metric)
    columns = [Column("number", "number", "count"), Column("trial", "trial"), Column("score", "score", "score")]
    table = Table("In the order tried", "history", [*columns, Column("best so far", "best", "score")], folded=True)
    return Figure("How the search went", [drawing], "", table)


def _parallel(facts: Trials) -> Figure:
    rows = [row for row in facts.rows if row.score is not None]
    weight = {row.parameter: row.importance for row in facts.importances}
    names = sorted(facts.searched, key=lambda name: -weight.get(name, 0.0))[:AXES]
    axes: list[tuple[str, list[float | str | None]]] = [
        (name, [row.params.get(name) for row in rows]) for name in names
    ]
    scores = [row.score or 0.0 for row in rows]
    drawing = charts.parallel(
        "Settings and score of each trial",
        f"A line a trial through {', '.join(names)} to its score; darker lines are better trials",
        [*axes, (facts.metric, list(scores))],
        [row.trial for row in rows],
        scores,
    )
    columns = [Column("trial", "trial"), Column(facts.metric, "score", "score")]
    columns += [Column(name, f"params/{_escaped(name)}", "number") for name in facts.searched]
    note = "The darker a line, the better the trial. A gap is a parameter that the trial does not have."
    return Figure("All settings at once", [drawing], note, Table("Settings", "rows", columns, folded=True))


def _escaped(name: str) -> str:
    """A key as a part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
