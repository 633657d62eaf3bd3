"""A manifest as tables and lines for people: what `python -m cxrlt_ray.cohort` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.manifest import COHORT, MAIN, SPLITS, VIEWS, Manifest
from cxrlt_ray.readers.files import compare_with_disk

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table


def tell_counts(manifest: Manifest, console: Console) -> None:
    """Print what there is: by split and by finding, other cohorts apart, and what stands out."""
    parts = _parts(manifest)
    console.print(_splits_table(manifest, parts), _findings_table(manifest, parts))
    for line in _remarks(manifest, parts):
        console.print(line, markup=False, soft_wrap=True)


def tell_files(manifest: Manifest, roots: Mapping[str, str], console: Console) -> list[str]:
    """Print how table and disk differ; returns the reasons to refuse the data, where too much is missing.

    roots: cohort -> the directory below which its images lie, itself `manifest.root` or below it.
    """
    from cxrlt_ray.prepare import MAX_BAD

    reasons = []
    for cohort, root in roots.items():
        prefix = root[len(manifest.root) :].strip("/")
        paths = manifest.of_cohort(cohort).table["path"].str.removeprefix(f"{prefix}/" if prefix else "")
        disk = compare_with_disk(paths, root)
        of = "" if cohort == MAIN else f" of cohort {cohort}"
        counts = [(disk.missing, f"images{of} not on disk")]
        if cohort == MAIN:  # of another cohort, images without a label of the task are left out on purpose
            counts.append((disk.unnamed, "image files that no row names"))
        for count, what in counts:
            names = f": {', '.join(count[:3])}{' ...' if len(count) > 3 else ''}" if count else ""
            console.print(f"{len(count):,} {what}{names}", markup=False, soft_wrap=True)
        if len(disk.missing) > MAX_BAD * len(paths):
            reasons.append(
                f"{len(disk.missing):,} of {len(paths):,} images{of} are not below {root}, more than the allowed share "
                f"{MAX_BAD:g} (--max-bad): the first is {disk.missing[0]}."
            )
    return reasons


def _parts(manifest: Manifest) -> dict[str, Manifest]:
    """The splits of the main data, then the other cohorts, which have one each."""
    main = manifest.of_cohort(MAIN)
    there = set(main.table["split"].dropna())
    others = [name for name in manifest.cohorts.unique() if name != MAIN]
    splits = {split: main.of_split(split) for split in SPLITS if split in there}
    return splits | {f"{COHORT} {name}": manifest.of_cohort(name) for name in others}


def _splits_table(manifest: Manifest, parts: dict[str, Manifest]) -> Table:
    """Images, studies, subjects and views of each part."""
    from rich import box
    from rich.table import Table

    shown = Table(
        "split", *map(_right, ("images", "studies", "subjects", *VIEWS)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name, part in {**parts, "all": manifest}.items():
        views = part.table["view"].value_counts()
        counts = [len(part.table), part.table["study_id"].nunique(), part.table["subject_id"].nunique()]
        counts += [int(views.get(view, 0)) for view in VIEWS]
        shown.add_row(name, *(f"{count:,}" for count in counts))
    return shown


def _findings_table(manifest: Manifest, parts: dict[str, Manifest]) -> Table:
    """Positives of each finding in each part, '-' where it is nowhere labelled, and its share of the main train."""
    from rich import box
    from rich.table import Column, Table

    from cxrlt_ray.tasks import rarity

    targets = {name: part.targets() for name, part in parts.items()}
    train = targets.get("train", np.empty((0, len(manifest.findings)), np.int8))
    columns = [name.removeprefix(f"{COHORT} ") for name in parts]
    heads = map(_right, (*columns, "% train", "null"))
    shown = Table(Column("finding", no_wrap=True), "group", *heads, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, (finding, group) in enumerate(zip(manifest.findings, rarity(train), strict=True)):
        here = {name: values[:, column] for name, values in targets.items()}
        counts = [f"{(v == 1).sum():,}" if (v >= 0).any() else "-" for v in here.values()]
        known = train[:, column] >= 0
        share = f"{100 * (train[known, column] == 1).mean():.2f}" if known.any() else "-"
        null = sum(int((v < 0).sum()) for v in here.values())
        shown.add_row(finding, group if known.any() else "-", *counts, share, f"{null:,}" if null else "")
    return shown


def _remarks(manifest: Manifest, parts: dict[str, Manifest]) -> list[str]:
    """Images a study, which of META is known, and findings without positives in a part."""
    table = manifest.table
    sizes = table.groupby("study_id").size().value_counts().sort_index()
    lines = ["Studies by number of images: " + ", ".join(f"{size}: {count:,}" for size, count in sizes.items())]
    known = table[["sex", "age", "race", "report"]].notna().mean()
    lines.append("Known of the images: " + ", ".join(f"{name} {share:.1%}" for name, share in known.items()))
    for name, part in parts.items():
        targets = part.targets()
        none = (targets >= 0).any(axis=0) & ~(targets == 1).any(axis=0)
        if none.any():
            lines.append(f"Without positives in {name}: {', '.join(np.array(manifest.findings)[none])}")
    return lines


def _right(name: str) -> Column:
    from rich.table import Column

    return Column(name, justify="right")
