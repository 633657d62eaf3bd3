"""`python -m cxrlt_ray.split labels.csv --shares 70 10 20`: labelled studies as train, val and test, by subject.

With `--images` it makes a cohort of them: a labels.csv above the images, which `sweep --data` reads. Iterative
stratification by subject gives each split its share of every finding (data/splits.py).
"""

from __future__ import annotations

import os
import shlex
from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli, output
from cxrlt_ray.config import Config
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.matching import read_label_table
from cxrlt_ray.labelling.sheets import write_csv
from cxrlt_ray.labelling.splitting import PATH, SPLITS, Divided, divide, images_of, studies_of
from cxrlt_ray.reporting import split as report
from cxrlt_ray.storage import Store

__all__ = ["SplitRequest", "main", "run"]

TABLE = "labels.csv"  # of a cohort in the form that reader `table` knows


class SplitRequest(Config):
    """The options of `split`, with their defaults. Raises UsageError for a wrong one."""

    labels: Annotated[str, cli.argument("a table of labels with one row per study")]
    shares: Annotated[list[float] | None, cli.option("shares of train, val and test; default: 70 10 20")] = None
    images: Annotated[str | None, cli.option("the images' directory, to make a cohort of labels and images")] = None
    format: Annotated[str | None, cli.option("the format of --images; detected by default")] = None
    out: Annotated[str | None, cli.option("the .csv to write; for a cohort labels.csv above the images")] = None
    blank: Annotated[str, cli.option("an empty label: zero (absent), keep (not labelled)")] = "zero"
    findings: Annotated[list[str] | None, cli.option("findings to keep; default: all")] = None
    id_column: Annotated[str | None, cli.option("the labels' column of study ids; default: study_id")] = None
    seed: Annotated[int, cli.option("seed of the split")] = 0

    @model_validator(mode="after")
    def _check(self) -> SplitRequest:
        if len(self.parts) != len(SPLITS) or min(self.parts) <= 0:
            raise UsageError(f"--shares are three numbers above 0, of {', '.join(SPLITS)}: such as 70 10 20.")
        if self.blank not in ("zero", "keep"):
            raise UsageError(f"--blank takes zero or keep, not '{self.blank}'.")
        if self.out and not self.out.endswith(".csv"):
            raise UsageError(f"--out {self.out} must end in .csv.")
        if self.out and self.images and os.path.basename(self.out) != TABLE:
            raise UsageError(f"--out {self.out}: a cohort's table is called {TABLE}: give FOLDER/{TABLE}.")
        if self.format and not self.images:
            raise UsageError("--format is of --images: give both.")
        return self

    @property
    def parts(self) -> list[float]:
        """The shares of train, val and test, of any sum."""
        return [70, 10, 20] if self.shares is None else self.shares


def run(request: SplitRequest) -> Divided:
    """Divide labelled studies, or their images, print the result, and write the table.

        from cxrlt_ray import split
        split.run(split.SplitRequest(labels="labels.csv", images="/data/images"))

    Raises UsageError and CxrltError if the labels and images do not fit.
    """
    labels = read_label_table(request.labels, request.findings, request.id_column)
    for note in labels.notes:
        print(f"{request.labels}: {note}")
    findings = labels.findings
    images = None if request.images is None else _images(request)
    table, notes = (studies_of(labels), []) if images is None else images_of(labels, images)
    if request.blank == "zero":
        blanks = int(table[list(findings)].isna().sum().sum())
        table[list(findings)] = table[list(findings)].fillna(0)
        notes.append(f"Blank labels (not mentioned) written as 0: {blanks:,}; --blank keep leaves them unlabelled.")
    divided = divide(table, findings, request.parts, request.seed, notes)
    console = cli.console()
    for note in divided.notes:
        console.print(note, soft_wrap=True)
    console.print(report.sizes_table(divided))
    console.print(report.findings_table(divided))
    out, following = _leave(request, divided, images)
    output.result(f"Left in {out}. {following}", [out])
    return divided


def _images(request: SplitRequest) -> Manifest:
    from cxrlt_ray.data.cohort import read_cohort

    assert request.images is not None
    cohort = read_cohort(request.images, format=request.format, task="auto", labelled=False)
    for note in cohort.notes:
        print(note)
    return cohort.manifest


def _leave(request: SplitRequest, divided: Divided, images: Manifest | None) -> tuple[str, str]:
    """Write the table; returns its path and the next step. Raises UsageError if it cannot be written there."""
    if images is None:
        out = request.out or "split.csv"
        write_csv(divided.table, out)
        return out, "With --images DIR it becomes a cohort that a sweep reads."
    out = request.out or f"{images.root.rstrip('/')}/{TABLE}"
    folder = os.path.dirname(out) or "."
    if Store(folder).exists(TABLE):
        raise UsageError(
            f"{out} exists: it may be the cohort's own. Give --out FOLDER/{TABLE} of a folder above, or move it."
        )
    above = Store(folder).absolute().uri.rstrip("/")
    root = Store(images.root).absolute().uri.rstrip("/")
    if root != above and not root.startswith(f"{above}/"):
        raise UsageError(f"--out {out}: the images lie in {images.root}, and a table's paths are below its own folder.")
    prefix = root[len(above) :].strip("/")
    table = divided.table if not prefix else divided.table.assign(**{PATH: f"{prefix}/" + divided.table[PATH]})
    write_csv(table, out)
    return out, f"Next: python -m cxrlt_ray.sweep auto --data {shlex.quote(folder)} --format table"


main = cli.command(
    SplitRequest,
    run,
    """Divide labelled studies into train, val and test by subject, and make a cohort of them.

    python -m cxrlt_ray.split labels.csv --shares 70 10 20
    python -m cxrlt_ray.split labels.csv --images /data/images
    """,
    many=("--shares", "--findings"),
)


if __name__ == "__main__":
    cli.run("split")
