"""In one screen: what was asked, the answer with its intervals, what to know, and the next command."""

from __future__ import annotations

from typing import Any

from cxrlt_ray import cli
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.evaluation.published import Published, not_comparable, published
from cxrlt_ray.page.charts import Mark, intervals
from cxrlt_ray.page.facts import Facts
from cxrlt_ray.page.notices import Notice, notices_of
from cxrlt_ray.page.parts import Column, Commands, Figure, Notices, Part, Table, Texts, Tile, Tiles
from cxrlt_ray.page.records import Interval, SectionFacts
from cxrlt_ray.page.reproduction import Command, next_commands
from cxrlt_ray.page.sections.registry import register_section
from cxrlt_ray.runs.records import FINISHED
from cxrlt_ray.runs.store import best_first

SETS = {  # the score to believe first
    "holdout": "Held out",
    "test": "Test",
    "cross_fitted": "Validation, cross-fitted",
    "optimistic": "Validation, optimistic",
}
TILES = {
    "holdout": "mAP, held out",
    "test": "mAP, test",
    "cross_fitted": "mAP, cross-fitted",
    "optimistic": "mAP, optimistic",
}
MEANING = {
    "cross_fitted": "validation, weights chosen without the subjects scored",
    "optimistic": "validation, weights chosen on these very images",
    "holdout": "subjects that no choice has seen",
    "test": "images that no choice has seen",
}


class ImageSet(SectionFacts):
    """A set of scored images: its name, a title, what it tells, its size, and what chance would score."""

    name: str
    title: str
    meaning: str
    images: int | None = None
    chance: float | None = None


class SystemRow(SectionFacts):
    """A system's macro mAP on each of the image sets, in their order."""

    system: str
    scores: tuple[Interval, ...]


class Gain(SectionFacts):
    """The ensemble's macro mAP less another system's on the same images, paired."""

    over: str
    images: str
    gain: Interval
    verdict: str


class Team(SectionFacts):
    """What a team of the paper scored, and the ensemble's test score less that."""

    team: str
    map: float
    difference: float


class Summary(SectionFacts):
    """The first screen. answer: the index in `sets` of the score to believe; of a run without an ensemble None."""

    asked: str
    state: str
    metric: str
    sets: tuple[ImageSet, ...] = ()
    systems: tuple[SystemRow, ...] = ()
    gains: tuple[Gain, ...] = ()
    best: Interval | None = None
    best_trial: str = ""
    teams: tuple[Team, ...] = ()
    teams_note: str = ""
    notices: tuple[Notice, ...] = ()
    next: tuple[Command, ...] = ()


def gather(facts: Facts) -> Summary:
    """The first screen's facts."""
    record, ensemble = facts.run.record, facts.ensemble
    best = next(iter(best_first(list(facts.trials))), None)
    metric = best.record.metric.title if best else "val mAP"
    scored = {} if ensemble is None else _scores(ensemble.record.scores)
    teams, note = _teams(facts, scored)
    return Summary(
        asked=_asked(facts),
        state=_state(facts),
        metric=metric,
        best=Interval(value=best.score) if best and best.score == best.score else None,
        best_trial=best.name if best and best.score == best.score else "",
        teams=teams,
        teams_note=note,
        notices=notices_of(facts),
        next=next_commands(facts.run, facts.ensemble, record.trials - len(facts.trials)),
        **scored,
    )


def _asked(facts: Facts) -> str:
    record = facts.run.record
    parts = [f"Task {record.task.name}: {counted(len(facts.findings), 'finding')}"]
    space = record.space.rpartition("/")[2].removesuffix(".yaml")
    parts.append(counted(record.trials, "trial") + (f" of space {space}" if space else ""))
    if record.epochs:
        parts.append(counted(record.epochs, "epoch"))
    if record.models > 1:
        parts.append(f"{record.models} folds")
    if record.smoke:
        parts.append("a smoke run")
    drawn = ". The images are drawn (the phantom), of no patients" if facts.phantom else ""
    return ", ".join(parts) + drawn + "."


def _state(facts: Facts) -> str:
    counts = [f"{count:,} {state}" for state, count in facts.states.most_common()]
    if facts.unreadable:
        counts.append(f"{len(facts.unreadable):,} unreadable")
    begun = len(facts.trials) + len(facts.unreadable)
    more = max(facts.run.record.trials - begun, 0)
    text = f"Trials: {', '.join(counts) or 'none yet'}" + (f", {more:,} not begun" if more else "") + "."
    return text + _lengths(facts)


def _lengths(facts: Facts) -> str:
    """How long the finished trials were trained, which with a time budget is not what was asked."""
    done = sorted({len(trial.record.epochs_of()) for trial in facts.trials if trial.state == FINISHED} - {0})
    if not done:
        return ""
    length = counted(done[-1], "epoch")
    return f" Finished ones have {length if len(done) == 1 else f'{done[0]:,} to {length}'}."


def _scores(content: dict[str, Any]) -> dict[str, Any]:
    """sets, systems and gains of what ensembling.compare.as_json made."""
    systems = content.get("systems") or {}
    names = [name for name in SETS if any(name in scores for scores in systems.values())]
    names += [name for scores in systems.values() for name in scores if name not in names]
    names = list(dict.fromkeys(names))
    images, prevalence = content.get("images") or {}, content.get("prevalence") or {}

    def interval(of: dict[str, float | None] | None) -> Interval:
        return Interval() if of is None else Interval(value=of["map"], low=of["low"], high=of["high"])

    sets = [
        ImageSet(
            name=name,
            title=SETS.get(name, name),
            meaning=MEANING.get(name, ""),
            images=images.get(name),
            chance=prevalence.get(name),
        )
        for name in names
    ]
    rows = [SystemRow(system=title, scores=tuple(interval(of.get(n)) for n in names)) for title, of in systems.items()]
    gains = []
    for name in (name for name in names if name != "optimistic"):
        for over, value in (content.get("gains") or {}).get(name, {}).items():
            gain = interval(value)
            verdict = (
                "a real difference" if gain.excludes_zero else "within chance" if gain.low is not None else "unknown"
            )
            gains.append(Gain(over=over, images=SETS.get(name, name), gain=gain, verdict=verdict))
    return {"sets": tuple(sets), "systems": tuple(rows[::-1]), "gains": tuple(gains)}


def _teams(facts: Facts, scored: dict[str, Any]) -> tuple[tuple[Team, ...], str]:
    """The paper's teams, where the images are theirs; else why they are not shown."""
    teams: Published | None = published(facts.run.task)
    if teams is None:
        return (), ""
    names = [of.name for of in scored.get("sets", ())]
    if "test" not in names:
        return (), "The paper's teams stand here once the test images are scored."
    at = names.index("test")
    if (reason := not_comparable(facts.run.task, scored["sets"][at].images or 0, facts.phantom)) is not None:
        return (), reason
    own = scored["systems"][0].scores[at].value
    if own is None:
        return (), "The ensemble has no test score to set beside the paper's teams."
    values = teams.scores["map"]
    rows = tuple(Team(team=team, map=values[team], difference=own - values[team]) for team in teams.teams)
    return rows, "Teams: Lin et al. 2025, arXiv:2506.07984, on the same test images."


@register_section("summary", "In one screen", order=10, facts=Summary, gather=gather)
def summary(facts: Summary) -> list[Part]:
    """Tiles, the systems' scores, what to know, what comes next."""
    parts: list[Part] = [Texts(["asked", "state"])]
    if facts.sets:
        parts.append(_tiles(facts))
    elif facts.best is not None:
        note = "the best trial, chosen and scored on the same images"
        parts.append(Tiles([Tile(f"Best trial, {facts.metric}", "best", "score_interval", note, True)]))
    parts += [Notices("notices"), Commands("next", "The next command", most=1)]
    if facts.sets:
        parts.append(_systems(facts))
    if facts.gains:
        columns = [Column("less", "over"), Column("images", "images"), Column("mAP", "gain", "gain_interval")]
        parts.append(
            Table("The ensemble less the others, on the same images", "gains", [*columns, Column("verdict", "verdict")])
        )
    if facts.teams:
        columns = [Column("team", "team"), Column("test mAP", "map", "score")]
        columns.append(Column("ours less theirs", "difference", "gain"))
        parts.append(Table("Against the paper's teams", "teams", columns))
    if facts.teams_note:
        parts.append(Texts(["teams_note"]))
    return parts


def _tiles(facts: Summary) -> Tiles:
    """The ensemble's score on each set; the one to believe stands out: held out or test before cross-fitted."""
    known = [of.name for of in facts.sets if _score(facts, of.name).value is not None]
    tiles = []
    for k, of in enumerate(facts.sets):
        note = f"{of.meaning}" + (f"; {of.images:,} images" if of.images is not None else "")
        strong = bool(known) and of.name == known[0]
        tiles.append(
            Tile(TILES.get(of.name, f"{of.title} mAP"), f"systems/0/scores/{k}", "score_interval", note, strong)
        )
    for k, gain in enumerate(facts.gains):
        if gain.images == facts.sets[0].title and gain.over.startswith("best"):
            note = f"ensemble less {gain.over}, {gain.images.lower()}, paired: {gain.verdict}"
            tiles.append(Tile("Gain over the best trial", f"gains/{k}/gain", "gain_interval", note))
    return Tiles(tiles)


def _score(facts: Summary, name: str) -> Interval:
    return facts.systems[0].scores[[of.name for of in facts.sets].index(name)]


def _systems(facts: Summary) -> Figure:
    rows = [
        (
            of.title,
            [
                Mark(score.value, score.low, score.high, k, row.system)
                for k, row in enumerate(facts.systems)
                if (score := row.scores[s]).value is not None
            ],
        )
        for s, of in enumerate(facts.sets)
    ]
    words = "; ".join(f"{row.system}: {_in_words(facts, row)}" for row in facts.systems)
    drawing = intervals(
        "mAP of the ensemble, the best trial and the mean", words, rows, [r.system for r in facts.systems], "mAP"
    )
    columns = [Column("system", "system")]
    for k, of in enumerate(facts.sets):
        columns.append(Column(of.title, f"scores/{k}", "score_interval", of.meaning))
    table = Table("mAP by system", "systems", columns, folded=True)
    note = (
        "Dots: macro mAP; lines: 95 % intervals, resampled by subject. Optimistic scores flatter whatever was chosen "
        "on those images; the distance to cross-fitted says by how much."
    )
    return Figure("Against the best trial and the mean", [drawing], note, table)


def _in_words(facts: Summary, row: SystemRow) -> str:
    return ", ".join(
        f"{of.title} {cli.short(score.value)}"
        for of, score in zip(facts.sets, row.scores, strict=True)
        if score.value is not None
    )
