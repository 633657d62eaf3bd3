"""A data directory in a known format -> the manifest, split by subject, or one clear sentence why not.

`python -m cxrlt_ray.cohort DIR` tells a person what is there and lists everything for which a sweep
would refuse it, where the sweep stops at the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.manifest import META, SPLITS, VIEWS, Manifest
from cxrlt_ray.readers import Request, choose_reader
from cxrlt_ray.readers.columns import counted
from cxrlt_ray.readers.files import compare_with_disk
from cxrlt_ray.splits import holdout
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

UNCERTAIN = ("null", "zero", "one")
VALIDATION = 0.15


@dataclass(frozen=True)
class Cohort:
    """A manifest and what to tell of how it came about."""

    manifest: Manifest
    notes: tuple[str, ...]


def read_cohort(
    data: str,
    *,
    format: str | None = None,
    task: str = "task1",
    uncertain: str = "null",
    seed: int = 0,
    validation: float = VALIDATION,
    labelled: bool = True,
    training: bool = True,
) -> Cohort:
    """Read the directory or URI `data`.

    format: a reader's name; found by looking without it. task: its findings are read. uncertain: what
    CheXpert's -1 becomes. validation: share of the training subjects that becomes split `val` where the
    data has none, drawn with `seed`; 0: none is carved. labelled: False if labels and a training split may be missing.
    training: False if the training split may be missing, to evaluate only.
    Raises CxrltError with the first of the reasons to refuse it, UsageError for arguments that do not fit.
    """
    cohort, problems = examine(
        data,
        format=format,
        task=task,
        uncertain=uncertain,
        seed=seed,
        validation=validation,
        labelled=labelled,
        training=training,
    )
    if problems:
        more = f" ({len(problems) - 1} more: python -m cxrlt_ray.cohort {data})" if len(problems) > 1 else ""
        raise CxrltError(problems[0] + more)
    return cohort


def examine(
    data: str,
    *,
    format: str | None = None,
    task: str = "task1",
    uncertain: str = "null",
    seed: int = 0,
    validation: float = VALIDATION,
    labelled: bool = True,
    training: bool = True,
) -> tuple[Cohort, list[str]]:
    """As `read_cohort`, with all reasons to refuse the data as sentences, as far as the rest can still be read."""
    from cxrlt_ray.tasks import load_task

    if uncertain not in UNCERTAIN:
        raise UsageError(f"--uncertain is one of {', '.join(UNCERTAIN)}, not '{uncertain}'.")
    store = Store(data).absolute()
    if not store.exists(""):
        raise UsageError(f"no directory {data}.")
    wanted = None if task == "auto" else load_task(task).findings
    reader, why = choose_reader(store, format, labelled)
    raw = reader.read(Request(store, task, wanted, uncertain, labelled))
    if raw.table.empty:
        raise CxrltError(f"{data}, read as {reader.name}, has no images.")
    if labelled:
        _check_findings(raw.findings, wanted, task, reader.name)
    problems = list(dict.fromkeys(raw.problems))
    table = _without_duplicates(_complete(raw.table, raw.findings), problems)
    notes = [f"Data: format {reader.name} ({why}), {len(table):,} images, paths from {raw.root}.", *raw.notes]
    if labelled:
        _check_leaks(table, problems)
        if training:
            table = _with_all_splits(table, raw.findings, validation, seed, notes, problems)
    table = table.sort_values(["subject_id", "study_id", "image_id"], kind="stable", ignore_index=True)
    manifest = Manifest(table[[*META, *raw.findings]], raw.findings, reader.name, raw.root)
    return Cohort(manifest, tuple(notes)), problems


def _check_findings(there: tuple[str, ...], wanted: tuple[str, ...] | None, task: str, reader: str) -> None:
    if not there:
        raise CxrltError(
            f"the data (read as {reader}) has no finding column"
            + (f" of {task}" if wanted is not None else " that holds only 1, 0 or empty")
            + ": one column per finding is needed."
        )
    lacking = [name for name in wanted or () if name not in there]
    if lacking:
        raise UsageError(
            f"the data (read as {reader}) has no column for {len(lacking)} of the {len(wanted or ())} findings of "
            f"{task}: {', '.join(lacking[:5])}{' ...' if len(lacking) > 5 else ''}. Task auto takes every finding "
            "there is."
        )


def _complete(table: pd.DataFrame, findings: tuple[str, ...]) -> pd.DataFrame:
    """`table` with every column of META in its type, the rows' origin, and the findings."""
    columns = {}
    for name in META:
        kind = "float32" if name == "age" else "str"
        columns[name] = table[name].astype(kind) if name in table else pd.Series(np.nan, table.index, kind)
    return pd.DataFrame({**columns, **{name: table[name] for name in ("file", "row", *findings)}})


def _without_duplicates(table: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    again = table["image_id"].duplicated()
    if not again.any():
        return table
    second = table[again].iloc[0]
    first = table[table["image_id"] == second["image_id"]].iloc[0]
    problems.append(
        f"image '{second['image_id']}' stands twice, in {first['file']} row {first['row']} and in "
        f"{second['file']} row {second['row']}"
        + (f" ({counted(again.sum() - 1, 'more repetition')})" if again.sum() > 1 else "")
        + ": each image may have one row."
    )
    return table[~again]


def _check_leaks(table: pd.DataFrame, problems: list[str]) -> None:
    pairs = table[["subject_id", "split"]].dropna().drop_duplicates()
    leaking = pairs.loc[pairs["subject_id"].duplicated(), "subject_id"].unique()
    if not len(leaking):
        return
    subject = sorted(leaking)[0]
    counts = table.loc[table["subject_id"] == subject, "split"].value_counts().sort_index()
    problems.append(
        f"subject '{subject}' stands in {len(counts)} splits, "
        + " and ".join(f"{name} ({counted(count, 'image')})" for name, count in counts.items())
        + (f", as do {counted(len(leaking) - 1, 'more subject')}" if len(leaking) > 1 else "")
        + ": put all images of a subject into one split."
    )


def _with_all_splits(
    table: pd.DataFrame,
    findings: tuple[str, ...],
    share: float,
    seed: int,
    notes: list[str],
    problems: list[str],
) -> pd.DataFrame:
    """`table` with splits test (where there is none at all) and val (where it has no labels) carved from train."""
    if table["split"].isna().all():
        table = _carve(table.assign(split="train"), findings, "test", share or VALIDATION, seed, notes, problems)
    if not (table["split"] == "train").any():
        problems.append("the data has no images of split train.")
    elif share and not (table["split"] == "val").any():
        table = _carve(table, findings, "val", share, seed, notes, problems)
    if not (table["split"] == "test").any():
        notes.append("There is no test split: trials can be trained and chosen, but nothing is scored at the end.")
    return table


def _carve(
    table: pd.DataFrame,
    findings: tuple[str, ...],
    split: str,
    share: float,
    seed: int,
    notes: list[str],
    problems: list[str],
) -> pd.DataFrame:
    """`table` with `share` of train's subjects moved to `split`."""
    rows = np.flatnonzero((table["split"] == "train").to_numpy())
    part = table.iloc[rows]
    targets = np.column_stack([part[name].fillna(-1).to_numpy(np.int8) for name in findings])
    kept = holdout(targets, part["subject_id"].to_numpy(), share, seed)
    if kept.all() or not kept.any():
        problems.append(
            f"split {split} cannot be carved from train: {part['subject_id'].nunique()} subject is too few."
        )
        return table
    splits = table["split"].to_numpy(object)
    splits[rows[kept]] = split
    notes.append(
        f"Split {split} is carved from train, by subject and stratified by finding: {kept.sum():,} of {len(rows):,} "
        f"images (seed {seed})."
    )
    return table.assign(split=pd.Series(splits, table.index, "str"))


def main(
    data: Annotated[str, cli.argument("the data's directory or URI")],
    format: Annotated[str | None, cli.option("the data's format; found by looking without it")] = None,
    task: Annotated[str, cli.option("task1, task2, task3, auto (every finding of the data) or a YAML file")] = "auto",
    uncertain: Annotated[str, cli.option("CheXpert's -1: null, zero or one")] = "null",
    files: Annotated[bool, cli.option("compare the table with the image files that are there")] = True,
) -> None:
    """Summarise a data directory: counts, missing files, leaks, and all for which a sweep would refuse it.

    python -m cxrlt_ray.cohort /data/mimic

    python -m cxrlt_ray.cohort /data/chexpert --uncertain one --no-files
    """
    cohort, problems = examine(data, format=format, task=task, uncertain=uncertain)
    console = cli.console()
    for note in cohort.notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(_splits_table(cohort.manifest), _findings_table(cohort.manifest))
    for line in _remarks(cohort.manifest):
        console.print(line, markup=False, soft_wrap=True)
    if files:
        problems += _tell_files(cohort.manifest, console)
    if problems:
        told = [f"\nA sweep would refuse this data for {counted(len(problems), 'reason')}:", *problems]
        console.print("\n- ".join(told), markup=False, soft_wrap=True)
        raise SystemExit(1)
    console.print(f"Usable. Next: python -m cxrlt_ray.sweep {task} --data {data}", markup=False, soft_wrap=True)


def _splits_table(manifest: Manifest) -> Table:
    """Images, studies, subjects and views of each split."""
    from rich import box
    from rich.table import Table

    shown = Table(
        "split", *map(_right, ("images", "studies", "subjects", *VIEWS)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for split in [*_splits(manifest), "all"]:
        part = manifest.table if split == "all" else manifest.table[manifest.table["split"] == split]
        views = part["view"].value_counts()
        counts = [len(part), part["study_id"].nunique(), part["subject_id"].nunique()]
        counts += [int(views.get(view, 0)) for view in VIEWS]
        shown.add_row(split, *(f"{count:,}" for count in counts))
    return shown


def _findings_table(manifest: Manifest) -> Table:
    """Positives of each finding in each split, '-' where it is nowhere labelled, and its share of train."""
    from rich import box
    from rich.table import Table

    from cxrlt_ray.tasks import rarity

    splits = _splits(manifest)
    targets = {split: manifest.of_split(split).targets() for split in splits}
    train = targets.get("train", np.empty((0, len(manifest.findings)), np.int8))
    shown = Table(
        "finding", "group", *map(_right, (*splits, "% train", "null")), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column, (finding, group) in enumerate(zip(manifest.findings, rarity(train), strict=True)):
        here = {split: values[:, column] for split, values in targets.items()}
        counts = [f"{(v == 1).sum():,}" if (v >= 0).any() else "-" for v in here.values()]
        known = train[:, column] >= 0
        share = f"{100 * (train[known, column] == 1).mean():.2f}" if known.any() else "-"
        null = sum(int((v < 0).sum()) for v in here.values())
        shown.add_row(finding, group if known.any() else "-", *counts, share, f"{null:,}" if null else "")
    return shown


def _remarks(manifest: Manifest) -> list[str]:
    """Images a study, which of META is known, and findings without positives in a split."""
    table = manifest.table
    sizes = table.groupby("study_id").size().value_counts().sort_index()
    lines = ["Studies by number of images: " + ", ".join(f"{size}: {count:,}" for size, count in sizes.items())]
    known = table[["sex", "age", "race", "report"]].notna().mean()
    lines.append("Known of the images: " + ", ".join(f"{name} {share:.1%}" for name, share in known.items()))
    for split in _splits(manifest):
        targets = manifest.of_split(split).targets()
        none = (targets >= 0).any(axis=0) & ~(targets == 1).any(axis=0)
        if none.any():
            lines.append(f"Without positives in {split}: {', '.join(np.array(manifest.findings)[none])}")
    return lines


def _tell_files(manifest: Manifest, console: Console) -> list[str]:
    """Print how table and disk differ; returns the reason to refuse the data, if too much is missing."""
    from cxrlt_ray.prepare import MAX_BAD

    disk, images = compare_with_disk(manifest.table["path"], manifest.root), len(manifest.table)
    for count, what in ((disk.missing, "images not on disk"), (disk.unnamed, "image files that no row names")):
        names = f": {', '.join(count[:3])}{' ...' if len(count) > 3 else ''}" if count else ""
        console.print(f"{len(count):,} {what}{names}", markup=False, soft_wrap=True)
    if len(disk.missing) <= MAX_BAD * images:
        return []
    return [
        f"{len(disk.missing):,} of {images:,} images are not below {manifest.root}, more than the allowed share "
        f"{MAX_BAD:g} (--max-bad): the first is {disk.missing[0]}."
    ]


def _splits(manifest: Manifest) -> list[str]:
    there = set(manifest.table["split"].dropna())
    return [split for split in SPLITS if split in there]


def _right(name: str) -> Column:
    from rich.table import Column

    return Column(name, justify="right")


if __name__ == "__main__":
    cli.run("cohort")
