"""`python -m cxrlt_ray.cohort DIR`: what a data directory holds, and why a sweep would refuse it."""

from __future__ import annotations

import shlex
from typing import Annotated

from cxrlt_ray import cli
from cxrlt_ray.data.cohort import examine
from cxrlt_ray.data.joining import parse_cohorts, sweep_options
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.errors import UsageError
from cxrlt_ray.reporting.cohort import print_counts, print_files


def main(
    data: Annotated[str, cli.argument("the data's directory or URI")],
    format: Annotated[str | None, cli.option("the data's format; found by looking without it")] = None,
    task: Annotated[str, cli.option("task1, task2, task3, auto (every finding of the data) or a YAML file")] = "auto",
    uncertain: Annotated[str, cli.option("CheXpert's -1: null, zero or one")] = "null",
    cohorts: Annotated[list[str] | None, cli.option("NAME=DIR: another cohort to train on", "--cohort")] = None,
    files: Annotated[bool, cli.option("compare the table with the image files that are there")] = True,
    min_count: Annotated[int, cli.option("a summary to pass on: no count below this, nor a way to find one")] = 1,
) -> None:
    """Summarise a data directory: counts, missing files, leaks, and all for which a sweep would refuse it.

    python -m cxrlt_ray.cohort /data/mimic

    python -m cxrlt_ray.cohort /data/chexpert --uncertain one --no-files

    python -m cxrlt_ray.cohort /data/mimic --task task1 --cohort nih=/data/nih vindr=/data/vindr
    """
    if min_count < 1:
        raise UsageError(f"--min-count must be at least 1, not {min_count}.")
    others = parse_cohorts(cohorts or ())
    cohort, problems = examine(data, format=format, task=task, uncertain=uncertain, others=others)
    console = cli.console()
    if min_count > 1:  # notes, files and problems refer to single images
        print_counts(cohort.manifest, console, min_count)
        if problems:
            console.print("A sweep would refuse this data: leave --min-count out to see why.")
        raise SystemExit(bool(problems))
    for note in cohort.notes:
        console.print(note, markup=False, soft_wrap=True)
    print_counts(cohort.manifest, console)
    if files:
        problems += print_files(cohort.manifest, cohort.roots, cohort.origins, console)
    if problems:
        lines = [f"\nA sweep would refuse this data for {counted(len(problems), 'reason')}:", *problems]
        console.print("\n- ".join(lines), markup=False, soft_wrap=True)
        raise SystemExit(1)
    following = f"python -m cxrlt_ray.sweep {task} --data {shlex.quote(data)}{sweep_options(others)}"
    console.print(f"Usable. Next: {following}", markup=False, soft_wrap=True)


main.many = ("--cohort",)  # type: ignore[attr-defined]


if __name__ == "__main__":
    cli.run("cohort")
