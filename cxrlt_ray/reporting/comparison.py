"""The comparison of an ensemble with the best member and the mean, on the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrlt_ray import cli, output
from cxrlt_ray.data.asking import MINED, OUTSIDE_LABELS, Asking
from cxrlt_ray.ensembling.compare import CROSS_FITTED, OPTIMISTIC, Comparison, SetScores, SystemScore
from cxrlt_ray.ensembling.costs import FrontierPoint
from cxrlt_ray.evaluation.estimate import Estimate

if TYPE_CHECKING:
    from rich.table import Table

NAMES = {OPTIMISTIC: "validation\noptimistic", CROSS_FITTED: "validation\ncross-fitted"}


def show(comparison: Comparison, name: str, swept: bool = True, asking: Asking | None = None) -> None:
    """Print a comparison whose last system is the ensemble `name`.

    swept: the members come of a sweep, which has seen the validation subjects. asking: they answer for findings by
    text, and cross-fitting is by folds of findings.
    """
    console = cli.console()
    console.print(_scores_table(comparison))
    if asking is None:  # the asked findings have no training labels that would make one rare
        console.print(_groups_table(comparison))
    for where, scores in _honest(comparison):
        for title, gain in scores.gains.items():
            verdict = ": a real difference" if gain.excludes_zero else ": within chance" if gain.known else ""
            line = (
                f"{name} ensemble less {title}, {_line(where)}: {cli.gained(gain.value, gain.low, gain.high)}{verdict}"
            )
            output.row("gains", {"set": where, "less": title, "map": gain}, line)
    print("[ , ] hold, in 95 of 100 such samples, the score to expect of so many images (subjects resampled).")
    print(_many_images(comparison, name))
    print("Optimistic: chosen and scored on the same images.")
    if asking is not None:
        print("\n".join(_about_asking(asking)))
    elif swept:
        print("Cross-fitted: chosen without the subjects scored. It undoes the selector's optimism only: epoch choice,")
        print("ASHA and the search have seen all validation subjects (sweep --holdout F keeps some from everything).")
    else:
        print(
            "Cross-fitted: chosen without the subjects scored, of members as they are: what their training has seen of"
        )
        print("these subjects is not undone.")


def scored(comparison: Comparison) -> dict[str, Estimate]:
    """The ensemble's macro mAP on each set of images."""
    title = comparison.systems[-1]
    return {where: scores.systems[title].map for where, scores in comparison.sets.items() if title in scores.systems}


def _about_asking(asking: Asking) -> tuple[str, str]:
    """What chose, and which labels of the asked findings were read."""
    chosen = "Cross-fitted: seen findings that were hidden from the model that answers, by weights chosen without them."
    if asking.folds == 1:
        chosen = "Cross-fitted says no more than optimistic here: one fold of findings chose and scores."
    if asking.by_mined:
        chosen = "Cross-fitted says no more than optimistic here: labels mined from validation reports chose and score."
    read = "No label of an asked finding was read: not in training, not in validation."
    if asking.track == OUTSIDE_LABELS:
        read = "Of asked findings, labels that other cohorts have were read in training, and none of the main cohort's."
    if asking.track == MINED:
        read = "Of asked findings, labels mined from reports were read in training, and no label that the data has."
    return chosen, read


def show_frontier(points: Sequence[FrontierPoint], unit: str) -> None:
    """Print the ensembles among which `frontier` chooses: what they cost, what they score where they were chosen."""
    from cxrlt_ray.output.tables import RecordTable

    table = RecordTable("frontier", f"cost an image, {unit}", "validation mAP, optimistic", "members")
    for point in points:
        record = {"cost": point.cost, "unit": unit, "score": point.score, "members": point.members}
        table.add_record(record, f"{point.cost:.4g}", _cell(point.score), ", ".join(point.members))
    cli.console().print(table)


def _many_images(comparison: Comparison, name: str) -> str:
    """By which sets of different size compare: what the ensemble would score on many images."""
    last = comparison.systems[-1]
    known = [(where, scores.systems[last]) for where, scores in _honest(comparison) if last in scores.systems]
    values = ", ".join(f"{cli.short(score.many_images)} ({_line(where)})" for where, score in known)
    return f"On many images the {name} ensemble would score about {values}:\nfew images lift AP, of rare findings most."


def _scores_table(comparison: Comparison) -> Table:
    from cxrlt_ray.output.tables import RecordTable

    table = RecordTable("scores", "mAP")
    sets = comparison.sets
    for where, scores in sets.items():
        table.add_column(f"{NAMES.get(where, where)}\n{scores.images:,} images", no_wrap=True)
    for title in comparison.systems:
        known = {where: scores.systems.get(title) for where, scores in sets.items()}
        maps = {where: None if score is None else score.map for where, score in known.items()}
        cells = ("not scored" if score is None else _cell(score) for score in maps.values())
        table.add_record({"system": title, "map": maps}, title, *cells)
    chance = {where: scores.prevalence for where, scores in sets.items()}
    table.add_record({"chance": chance}, "prevalence (chance)", *map(cli.short, chance.values()))
    return table


def _groups_table(comparison: Comparison) -> Table:
    from rich.text import Text

    from cxrlt_ray.output.tables import RecordTable

    heads = (f"{count} {group}" for group, count in comparison.groups.items())
    table = RecordTable("groups", "mAP of", *heads)
    for where, scores in _honest(comparison):
        table.add_row(Text(_line(where), style="bold"))
        for title in comparison.systems:
            score = scores.systems.get(title)
            record = {"set": where, "system": title, "map": None if score is None else score.groups}
            table.add_record(record, title, *_group_cells(score, comparison.groups))
    return table


def _group_cells(score: SystemScore | None, groups: dict[str, int]) -> list[str]:
    return ["not scored"] if score is None else [_cell(score.groups[group]) for group in groups]


def _honest(comparison: Comparison) -> list[tuple[str, SetScores]]:
    """The sets whose images the ensemble was not chosen on, by name."""
    return [(where, scores) for where, scores in comparison.sets.items() if where != OPTIMISTIC]


def _line(where: str) -> str:
    return NAMES.get(where, where).replace("\n", " ")


def _cell(estimate: Estimate) -> str:
    return cli.ranged(estimate.value, estimate.low, estimate.high)
