"""A manifest as tables and lines for people: printed by `python -m cxrlt_ray.cohort`.

With a least count N nothing reveals how few people have a finding: a count below N, 0 included, stands as <N, every
other is rounded to a multiple of N, and totals are the sums of what is shown, so that no subtraction reveals more.
(True totals would, rounded or not: of three parts below 2 whose sum rounds to 4 each is 1.) Shares are those of rounded
counts; groups of rarity and remarks, which reveal exact counts, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import COHORT, MAIN, SPLITS, VIEWS, Manifest
from cxrlt_ray.data.readers.files import compare_with_disk
from cxrlt_ray.privacy import private_detail

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table


def print_counts(manifest: Manifest, console: Console, least: int = 1) -> None:
    """Print counts by split and by finding, other cohorts apart, and remarks.

    least: above 1, no count below it can be read or found by subtraction.
    """
    parts = _parts(manifest)
    console.print(_splits_table(manifest, parts, least), _findings_table(manifest, parts, least))
    if least > 1:
        console.print(
            f"Counts below {least}, 0 among them, stand as <{least}; others are rounded to multiples of {least}, and "
            "totals are the sums of what is shown."
        )
        return
    for line in _remarks(manifest, parts):
        console.print(line, markup=False, soft_wrap=True)


def rounded(count: int, least: int) -> int:
    """0 below `least`, else the nearest multiple of it."""
    return 0 if count < least else (count + least // 2) // least * least


def _cell(count: int, least: int) -> str:
    """A rounded count in a table."""
    return f"<{least}" if least > 1 and not count else f"{count:,}"


def print_files(manifest: Manifest, roots: Mapping[str, str], origins: pd.DataFrame, console: Console) -> list[str]:
    """Print how table and disk differ; returns the reasons to refuse the data, where too much is missing.

    roots: cohort -> the directory below which its images lie, itself `manifest.root` or below it. origins: the file and
    row that name each image.
    """
    from cxrlt_ray.data.shards import MAX_BAD

    reasons = []
    of_path = origins.set_axis(manifest.table["path"])
    of_path = of_path[~of_path.index.duplicated()]
    for cohort, root in roots.items():
        prefix = root[len(manifest.root) :].strip("/")
        paths = manifest.of_cohort(cohort).table["path"].str.removeprefix(f"{prefix}/" if prefix else "")
        disk = compare_with_disk(paths, root)
        suffix = "" if cohort == MAIN else f" of cohort {cohort}"
        first = [f"{prefix}/{path}" if prefix else path for path in disk.missing[:3]]
        rows = [f"{of_path.at[path, 'file']} row {of_path.at[path, 'row']}{private_detail(path)}" for path in first]
        ellipsis = " ..." if len(disk.missing) > 3 else ""
        named = f": {', '.join(rows)}{ellipsis}" if rows else ""
        console.print(f"{len(disk.missing):,} images{suffix} not on disk{named}", markup=False, soft_wrap=True)
        if cohort == MAIN:  # of another cohort, images without a label of the task are left out on purpose
            names = private_detail(", ".join(disk.unnamed[:3])) if disk.unnamed else ""
            line = f"{len(disk.unnamed):,} image files that no row names{names}"
            console.print(line, markup=False, soft_wrap=True)
        if len(disk.missing) > MAX_BAD * len(paths):
            reasons.append(
                f"{len(disk.missing):,} of {len(paths):,} images{suffix} are not below {root}, more than the allowed "
                f"share {MAX_BAD:g} (--max-bad): the first is that of {rows[0]}."
            )
    return reasons


def _parts(manifest: Manifest) -> dict[str, Manifest]:
    """The splits of the main data, then the other cohorts, which have one each."""
    main = manifest.of_cohort(MAIN)
    existing = set(main.table["split"].dropna())
    others = [name for name in manifest.cohorts.unique() if name != MAIN]
    splits = {split: main.of_split(split) for split in SPLITS if split in existing}
    return splits | {f"{COHORT} {name}": manifest.of_cohort(name) for name in others}


def _splits_table(manifest: Manifest, parts: dict[str, Manifest], least: int) -> Table:
    """Images, studies, subjects and views of each part."""
    from cxrlt_ray.output.tables import RecordTable

    kinds = ("images", "studies", "subjects", *VIEWS)
    table = RecordTable("splits", "split", *map(_right, kinds), padding=(0, 1, 0, 0))
    counts = {name: _sizes(part) for name, part in {**parts, "all": manifest}.items()}
    if least > 1:
        counts = {name: [rounded(count, least) for count in counts[name]] for name in parts}
        counts = {name: [sum(row[3:]), *row[1:]] for name, row in counts.items()}  # of the views that are shown
        counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    for name, row in counts.items():
        record = {"split": name, **dict(zip(kinds, row, strict=True))}
        table.add_record(record, name, *(_cell(count, least) for count in row))
    return table


def _sizes(part: Manifest) -> list[int]:
    """Images, studies, subjects, and images of each of VIEWS."""
    views = part.table["view"].value_counts()
    people = [part.table[column].nunique() for column in ("study_id", "subject_id")]
    return [len(part.table), *people, *(int(views.get(view, 0)) for view in VIEWS)]


def _findings_table(manifest: Manifest, parts: dict[str, Manifest], least: int) -> Table:
    """Positives of each finding in each part, '-' where it is nowhere labelled, and its share of the main train."""
    from rich.table import Column

    from cxrlt_ray.data.tasks import rarity
    from cxrlt_ray.output.tables import RecordTable

    targets = {name: part.targets() for name, part in parts.items()}
    train = targets.get("train", np.empty((0, len(manifest.findings)), np.int8))
    columns = [name.removeprefix(f"{COHORT} ") for name in parts]
    heads = map(_right, (*columns, "% train", "null"))
    table = RecordTable("findings", Column("finding", no_wrap=True), "group", *heads, padding=(0, 1, 0, 0))
    for column, (finding, group) in enumerate(zip(manifest.findings, rarity(train), strict=True)):
        labels = {name: values[:, column] for name, values in targets.items()}
        positives = {
            name: rounded(int((v == 1).sum()), least) if (v >= 0).any() else None for name, v in labels.items()
        }
        counts = ["-" if count is None else _cell(count, least) for count in positives.values()]
        known = train[:, column] >= 0
        if least > 1:
            group = "-"
        share = _share(int((train[:, column] == 1).sum()), int(known.sum()), least)
        null = sum(int((v < 0).sum()) for v in labels.values())
        nulls = _cell(rounded(null, least), least) if null else ""
        group = group if known.any() else "-"
        record = {"finding": finding, "group": group, "positives": positives, "null": rounded(null, least)}
        table.add_record(record, finding, group, *counts, share, nulls)
    return table


def _share(positives: int, known: int, least: int) -> str:
    """Percent of the labelled images, of rounded counts where `least` is above 1; "-" where there is none to show."""
    if positives < least > 1 or not known:
        return "-"
    return f"{100 * rounded(positives, least) / rounded(known, least):.2f}"


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
