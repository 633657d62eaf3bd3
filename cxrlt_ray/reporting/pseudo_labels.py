"""What `pseudo` prints: the plan, the teacher, and how good its pseudo-labels are as far as labels tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrlt_ray import cli
from cxrlt_ray.data.shards import QUALITY
from cxrlt_ray.ensembling.pseudo_labels import VALIDATION, CohortReport, FindingLine, PseudoReport
from cxrlt_ray.ensembling.unlabelled import TEST, Unlabelled
from cxrlt_ray.runs.records import TrialRecord
from cxrlt_ray.search.pricing import prepare_seconds, shard_bytes

if TYPE_CHECKING:
    from rich.table import Table

BAR, LEAST = (0.8, 1.25), 50  # of the ratio, for findings with so many positives


def print_images(images: Unlabelled) -> None:
    """Print how many images and cells are to be filled, by cohort."""
    for name, rows in images.cohorts.items():
        cells = int((images.targets[rows] < 0).sum())
        what = "the run's test images" if name == TEST else f"cohort {name}"
        print(f"To label: {int(rows.sum()):,} images of {what}, {cells:,} cells without a label")


def print_plan(images: Unlabelled, trials: Sequence[TrialRecord], teachers: int, sizes: Sequence[int]) -> None:
    """Print what would be scored, the time and the disk that takes.

    A forward pass is taken to last as long as a step of training an image did where the trial was trained, which it
    does not exceed.
    """
    print_images(images)
    new, count = int((~images.prepared).sum()), len(images.targets)
    if new:
        disk = cli.size(new * sum(size**2 for size in sizes) * shard_bytes(QUALITY))
        print(f"To prepare: {new:,} images, {cli.duration(new * prepare_seconds(sizes))} of one core, {disk} of disk")
    speeds = [trial.images_per_second for trial in trials if trial.images_per_second]
    print(f"Forward passes: {count * len(trials) * teachers:,} ({len(trials)} members, {teachers} fold(s))")
    if len(speeds) == len(trials):
        seconds = count * teachers * sum(1 / speed for speed in speeds)
        print(f"Time: up to {cli.duration(seconds)} on one device such as the run was trained on")
    print("Plan only: nothing was started")


def print_report(report: PseudoReport) -> None:
    """Print a table of validation and of each cohort, and lines that sum them up."""
    console = cli.console()
    for cohort in report.cohorts:
        compared = any(line.cells for line in cohort.findings)
        if compared or any(line.filled for line in cohort.findings):
            console.print(_table(cohort, report.values))
        if compared and (line := _bar(cohort)):
            print(line)


def _table(cohort: CohortReport, values: str) -> Table:
    """Labels against the teacher's scores by finding, and what was filled in."""
    from rich.table import Table

    title = "Validation images" if cohort.name == VALIDATION else f"{cohort.name}: {cohort.images:,} images"
    if cohort.name == VALIDATION:
        title += ", by maps that did not see their subject"
    if cohort.seen:
        title += " (the teacher was trained on this cohort: the comparison flatters it)"
    table = Table(title=title, title_justify="left")
    for column in ("finding", "positives", "labelled", "ratio [95 %]", "AP", "Brier", "raw Brier", "precision"):
        table.add_column(column, justify="left" if column == "finding" else "right", no_wrap=column.startswith("ratio"))
    if cohort.name != VALIDATION:
        for column in ("cells filled", f"mean ({values})"):
            table.add_column(column, justify="right")
    for line in cohort.findings:
        cells = [line.finding, f"{line.positives:,}", _share(line.labelled), _ratio(line)]
        cells += [_share(value) for value in (line.ap, line.brier, line.brier_raw, line.precision)]
        if cohort.name != VALIDATION:
            cells += [f"{line.filled:,}", _share(line.mean)]
        table.add_row(*cells)
    return table


def _bar(cohort: CohortReport) -> str:
    """Of how many findings with enough positives the ratio's interval meets the bar; nothing where there are none."""
    enough = [line for line in cohort.findings if line.positives >= LEAST and line.low is not None]
    if not enough:
        return ""
    met = [line for line in enough if meets(line)]
    missed = [line.finding for line in enough if line not in met]
    name = "validation" if cohort.name == VALIDATION else cohort.name
    return (
        f"{name}: calibrated over true prevalence meets {BAR[0]:g} to {BAR[1]:g} for {len(met)} of {len(enough)} "
        f"findings with {LEAST} or more positives" + (f"; not for {', '.join(missed)}" if missed else "")
    )


def meets(line: FindingLine) -> bool:
    """Whether the interval of the ratio and the bar have a value in common."""
    return line.low is not None and line.low <= BAR[1] and (line.high is None or line.high >= BAR[0])


def _ratio(line: FindingLine) -> str:
    if line.ratio is None or line.low is None:
        return "-"
    high = "inf" if line.high is None else f"{line.high:.2f}"
    return f"{line.ratio:.2f} [{line.low:.2f}, {high}]"


def _share(value: float | None) -> str:
    return "-" if value is None else cli.short(value)
