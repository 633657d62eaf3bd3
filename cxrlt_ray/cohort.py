"""`python -m cxrlt_ray.cohort DIR`: the content of a data directory, and the reasons why a sweep would refuse it."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

from cxrlt_ray import cli, output
from cxrlt_ray.data.cohort import examine
from cxrlt_ray.data.joining import parse_cohorts, sweep_options
from cxrlt_ray.data.manifest import Cohort
from cxrlt_ray.data.originals import unreadable
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.tasks import TASK_HELP
from cxrlt_ray.errors import UsageError
from cxrlt_ray.reporting.cohort import print_counts, print_files


def main(
    data: Annotated[str, cli.argument("the data's directory or URI")],
    format: Annotated[str | None, cli.option("the data's format; detected by default")] = None,
    task: Annotated[str, cli.option(TASK_HELP)] = "auto",
    uncertain: Annotated[str, cli.option("CheXpert's -1: null, zero or one")] = "null",
    cohorts: Annotated[list[str] | None, cli.option("NAME=DIR: another cohort to train on", "--cohort")] = None,
    files: Annotated[bool, cli.option("compare the table with the existing image files")] = True,
    images: Annotated[bool, cli.option("decode all images; list unreadable, black, blank, strips")] = False,
    duplicates: Annotated[bool, cli.option("decode all images; list near-duplicates across splits")] = False,
    sample: Annotated[int, cli.option("with --images: number of random images to check; 0: all")] = 0,
    min_count: Annotated[int, cli.option("for sharing: show no count below this, and none from which one follows")] = 1,
) -> None:
    """Summarise a data directory: counts, missing files, leaks, and every reason why a sweep would refuse it.

    python -m cxrlt_ray.cohort /data/mimic

    python -m cxrlt_ray.cohort /data/chexpert --uncertain one --no-files

    python -m cxrlt_ray.cohort /data/mimic --task task1 --cohort nih=/data/nih vindr=/data/vindr

    python -m cxrlt_ray.cohort /data/mimic --images --sample 2000
    """
    if min_count < 1:
        raise UsageError(f"--min-count must be at least 1, not {min_count}.")
    _check_options(images, duplicates, sample, min_count)
    others = parse_cohorts(cohorts or ())
    cohort, problems = examine(data, format=format, task=task, uncertain=uncertain, others=others)
    console = cli.console()
    if min_count > 1:  # notes, files and problems refer to single images
        print_counts(cohort.manifest, console, min_count)
        line = "A sweep would refuse this data: leave --min-count out to see why." if problems else ""
        output.result(line, exit_code=int(bool(problems)), usable=not problems)
        raise SystemExit(bool(problems))
    for note in cohort.notes:
        console.print(note, markup=False, soft_wrap=True)
    print_counts(cohort.manifest, console)
    if files:
        problems += print_files(cohort.manifest, cohort.roots, cohort.origins, console)
        problems += unreadable(cohort.manifest)
    if images or duplicates:
        problems += _print_images(cohort, images, duplicates, sample, console)
    if problems:
        lines = [f"\nA sweep would refuse this data for {counted(len(problems), 'reason')}:", *problems]
        output.result("\n- ".join(lines), exit_code=1, usable=False, reasons=problems)
        raise SystemExit(1)
    following = f"python -m cxrlt_ray.sweep {task} --data {shlex.quote(data)}{sweep_options(others)}"
    output.result(f"Usable. Next: {following}", usable=True)


def _check_options(images: bool, duplicates: bool, sample: int, min_count: int) -> None:
    if min_count > 1 and (images or duplicates):
        raise UsageError("--images and --duplicates name single images: leave --min-count out.")
    if sample < 0 or (sample and (duplicates or not images)):
        raise UsageError("--sample is a number of images for --images; --duplicates compares all of them.")


def _print_images(cohort: Cohort, images: bool, duplicates: bool, sample: int, console: Any) -> list[str]:
    """Print the problems found in the images themselves; returns the reasons to refuse the data."""
    from cxrlt_ray.data.inspection import inspect_images, pairs_across_splits
    from cxrlt_ray.reporting.images import print_duplicates, print_inspection

    inspected = inspect_images(cohort.manifest, sample)
    problems = print_inspection(cohort.manifest, inspected, cohort.origins, console) if images else []
    if duplicates:
        print_duplicates(cohort.manifest, pairs_across_splits(cohort.manifest, inspected), cohort.origins, console)
    return problems


main.many = ("--cohort",)  # type: ignore[attr-defined]


if __name__ == "__main__":
    cli.run("cohort")
