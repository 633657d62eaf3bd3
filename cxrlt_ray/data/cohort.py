"""A data directory in a known format -> the manifest, split by subject, or one clear sentence why not.

Other cohorts may be joined to it, for training only: their findings are mapped to CXR-LT's (mapping.py), their
ids begin with their name, and what they do not label is null.

`python -m cxrlt_ray.cohort DIR` tells a person what is there and lists everything for which a sweep
would refuse it, where the sweep stops at the first.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import COHORT, MAIN, META, Manifest
from cxrlt_ray.data.readers import Raw, Request, all_readers, choose_reader
from cxrlt_ray.data.readers.columns import UNCERTAIN_MEANS, and_more, counted
from cxrlt_ray.data.readers.files import common_root, plain
from cxrlt_ray.data.splits import holdout
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import PHANTOM_MARKER, UNFIT, leading_out, told, unfit
from cxrlt_ray.storage import Store

VALIDATION = 0.15
PHANTOM = "phantom:"  # before a directory: the phantom there poses as the cohort
IDS = ("image_id", "study_id", "subject_id")


@dataclass(frozen=True)
class Cohort:
    """A manifest, what to tell of how it came about, and below which directory the images of each cohort lie.

    origins: of each of the manifest's images the `file` and the `row` (from 1) that name it.
    """

    manifest: Manifest
    notes: tuple[str, ...]
    roots: Mapping[str, str] = field(default_factory=dict)
    origins: pd.DataFrame = field(default_factory=pd.DataFrame)


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
    others: Mapping[str, str] | None = None,
) -> Cohort:
    """Read the directory or URI `data`.

    format: a reader's name; found by looking without it. task: its findings are read. uncertain: what
    CheXpert's -1 becomes. validation: share of the training subjects that becomes split `val` where the
    data has none, drawn with `seed`; 0: none is carved. labelled: False if labels and a training split may be missing.
    training: False if the training split may be missing, to evaluate only. others: a mapping of cohorts/ ->
    that cohort's directory or URI, or phantom:DIR: it is joined for training, whatever its own splits.
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
        others=others,
    )
    if problems:
        more = f" ({len(problems) - 1} more: python -m cxrlt_ray.cohort {data}{sweep_options(others)})"
        more = more if len(problems) > 1 else ""
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
    others: Mapping[str, str] | None = None,
) -> tuple[Cohort, list[str]]:
    """As `read_cohort`, with all reasons to refuse the data as sentences, as far as the rest can still be read."""
    from cxrlt_ray.data.tasks import load_task

    if uncertain not in UNCERTAIN_MEANS:
        raise UsageError(f"--uncertain is one of {', '.join(UNCERTAIN_MEANS)}, not '{uncertain}'.")
    if others and not (labelled and training):
        raise UsageError("other cohorts only train: they are joined to data that is read for training.")
    store = _directory(data)
    wanted = None if task == "auto" else load_task(task).findings
    reader, why = choose_reader(store, format, labelled)
    raw = reader.read(Request(store, task, wanted, uncertain, labelled))
    if raw.table.empty:
        raise CxrltError(f"{data}, read as {reader.name}, has no images.")
    if labelled:
        _check_findings(raw.findings, wanted, task, reader.name)
    table, problems = _rows(raw)
    notes = [f"Data: format {reader.name} ({why}), {len(table):,} images, paths from {raw.root}.", *raw.notes]
    if labelled:
        _check_leaks(table, problems)
        if training:
            table = _with_all_splits(table, raw.findings, validation, seed, notes, problems)
    table = _ordered(table.assign(**{COHORT: MAIN}))
    manifest = Manifest(table[[*META, *raw.findings]], raw.findings, reader.name, raw.root)
    cohort = Cohort(manifest, tuple(notes), {MAIN: raw.root}, table[["file", "row"]])
    return (_joined(cohort, others, uncertain, problems) if others else cohort), problems


def parse_cohorts(given: Sequence[str]) -> dict[str, str]:
    """['nih=/data/nih', 'vindr=phantom:/data/phantom'] -> mapping -> directory, as `others` of `read_cohort`.

    Raises UsageError for another form, a mapping that there is not or that is wrong, and a missing directory.
    """
    from cxrlt_ray.data.mapping import load_mapping

    others: dict[str, str] = {}
    for text in given:
        name, _, where = text.partition("=")
        if not (name and where):
            raise UsageError(f"--cohort is NAME=DIR, such as nih=/data/nih; not '{text}'.")
        if name in others:
            raise UsageError(f"--cohort names {name} twice: give each cohort once.")
        load_mapping(name)
        _directory(where.removeprefix(PHANTOM))
        others[name] = where
    return others


def _directory(data: str) -> Store:
    store = Store(data).absolute()
    if not store.exists(""):
        raise UsageError(f"no directory {data}.")
    return store


def sweep_options(others: Mapping[str, str] | None) -> str:
    """`others` as they are given on a command line."""
    return "".join(f" --cohort {shlex.quote(f'{name}={where}')}" for name, where in (others or {}).items())


def _rows(raw: Raw) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a reader in full, each image once, and what is wrong with them."""
    problems = list(dict.fromkeys(raw.problems))
    table = _complete(raw.table, raw.findings)
    _check_names(table, raw, problems)
    return _without_duplicates(table, problems), problems


def _check_names(table: pd.DataFrame, raw: Raw, problems: list[str]) -> None:
    """Note paths that leave the data, and names that would do harm in a table that is passed on."""
    checks = {
        f"a path leads out of {raw.root}: paths are relative to it and below it": ("path", leading_out(table["path"])),
        "an image's id begins with = + - or @, or has control characters: a spreadsheet would take it for a formula": (
            "image_id",
            table["image_id"].str.contains(UNFIT, regex=True),
        ),
    }
    for sentence, (column, wrong) in checks.items():
        if wrong.any():
            problems.append(f"{_origin(table[wrong].iloc[0], column)}{and_more(wrong.sum() - 1)}: {sentence}.")
    if wrong := [name for name in raw.findings if unfit(name)]:
        problems.append(
            f"finding {wrong[0]!r}{and_more(len(wrong) - 1, 'more finding')}: a name that begins with = + - or @, or "
            "has control characters, would be taken for a formula by a spreadsheet: rename the column."
        )


def _origin(row: pd.Series, column: str) -> str:
    """'labels.csv row 3', and the cell where that may be shown."""
    return f"{row['file']} row {row['row']}{told(row[column])}"


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["subject_id", "study_id", "image_id"], kind="stable", ignore_index=True)


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
        f"an image stands twice, in {_origin(first, 'image_id')} and in {second['file']} row {second['row']}"
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
    rows = table[table["subject_id"] == subject].dropna(subset="split").sort_values("split", kind="stable")
    problems.append(
        f"a subject{told(subject)} stands in {rows['split'].nunique()} splits, "
        + " and ".join(
            f"{name} ({counted(len(part), 'image')}, {_origin(part.iloc[0], 'image_id')})"
            for name, part in rows.groupby("split", sort=True)
        )
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


def _joined(main: Cohort, others: Mapping[str, str], uncertain: str, problems: list[str]) -> Cohort:
    """`main` and, after its rows, those of the other cohorts by name; paths are below what all roots share."""
    cohorts = [main]
    for key, where in others.items():
        other = _other(key, where, main.manifest, uncertain, problems)
        if any(other.roots.keys() & cohort.roots.keys() for cohort in cohorts):
            raise UsageError(f"two cohorts are called {next(iter(other.roots))}: give one of the mappings a `name:`.")
        cohorts.append(other)
    cohorts[1:] = sorted(cohorts[1:], key=lambda cohort: next(iter(cohort.roots)))
    roots = {name: plain(root) for cohort in cohorts for name, root in cohort.roots.items()}
    root = common_root(list(roots.values()))
    tables = []
    for cohort, below in zip(cohorts, roots.values(), strict=True):
        prefix = below[len(root) :].strip("/")
        path = cohort.manifest.table["path"]
        tables.append(cohort.manifest.table.assign(path=f"{prefix}/" + path if prefix else path))
    manifest = replace(main.manifest, table=pd.concat(tables, ignore_index=True), root=root)
    origins = pd.concat([cohort.origins for cohort in cohorts], ignore_index=True)
    return Cohort(manifest, tuple(note for cohort in cohorts for note in cohort.notes), roots, origins)


def _other(key: str, where: str, main: Manifest, uncertain: str, problems: list[str]) -> Cohort:
    """The images of another cohort that label a finding of `main`: all of split train, ids after the cohort's name."""
    from cxrlt_ray.data.mapping import load_mapping, map_findings, posing

    mapping = load_mapping(key)
    name, wanted = mapping.name, [finding for finding in main.findings if finding in mapping.reached]
    if not wanted:
        raise UsageError(
            f"cohort {name} labels none of the {len(main.findings)} findings of the task, such as {main.findings[0]}: "
            "leave it out, or map its findings to those."
        )
    if where.startswith(PHANTOM):
        raw = _phantom(where.removeprefix(PHANTOM), tuple(wanted))
        table, wrong = _rows(raw)
        labels = posing(Manifest(table, raw.findings, name, raw.root), key, main.findings).table[list(main.findings)]
    else:
        sources = tuple(source for source, targets in mapping.findings.items() if set(targets) & set(wanted))
        raw = all_readers()[mapping.reader].read(Request(_directory(where), "auto", sources, uncertain))
        table, wrong = _rows(raw)
        labels = map_findings(table, mapping, main.findings)
    table = pd.concat([table[[*META, "file", "row"]], labels], axis=1)
    if main.table[list(IDS)].apply(lambda ids: ids.str.startswith(f"{name}/").any()).any():
        wrong.append(f"the main data has ids that begin with {name}/, as this cohort's do: give its mapping a `name:`.")
    problems += [f"cohort {name}: {problem}" for problem in wrong]
    notes = [f"Cohort {name}: {note}" for note in raw.notes]
    table = _to_train_with(table, name, main, wanted, where, notes)
    origins, table = table[["file", "row"]], table.drop(columns=["file", "row"])
    why = [f"{each} ({mapping.not_labelled[each]})" for each in main.findings if each in mapping.not_labelled]
    notes += [f"Cohort {name} does not label {'; '.join(why)}."] if why else []
    manifest = Manifest(table, main.findings, mapping.reader, raw.root)
    return Cohort(manifest, tuple(notes), {name: raw.root}, origins)


def _phantom(folder: str, findings: tuple[str, ...]) -> Raw:
    """The phantom's own rows. Raises UsageError for another directory: real patients pose as nobody's."""
    store = _directory(folder)
    if not store.exists(PHANTOM_MARKER):
        raise UsageError(f"{folder} holds no phantom cohort to pose as another: python -m cxrlt_ray.phantom {folder}.")
    raw = all_readers()["cxrlt2024"].read(Request(store, "auto", findings))
    return replace(raw, notes=[])  # they are of splits that do not count here


def _to_train_with(
    table: pd.DataFrame, name: str, main: Manifest, wanted: list[str], where: str, notes: list[str]
) -> pd.DataFrame:
    """What of a cohort's images may train beside `main`, in the manifest's form; adds to `notes` what is left out."""
    shared = table["image_id"].isin(main.table["image_id"])
    known = table["subject_id"].isin(table.loc[shared, "subject_id"])
    if known.any():
        notes.append(
            f"Cohort {name}: {counted(known.sum(), 'image')} left out, of "
            f"{counted(table.loc[known, 'subject_id'].nunique(), 'subject')} of whom the main data has an image of the "
            "same id: they would be trained on and scored."
        )
    labelled = table[wanted].notna().any(axis=1)
    if not labelled[~known].all():
        bare = (~labelled & ~known).sum()
        notes.append(f"Cohort {name}: {counted(bare, 'image')} without a label of the task left out.")
    table = table[labelled & ~known]
    if table.empty:
        raise CxrltError(f"cohort {name} ({where}) has no image to train on. {' '.join(notes)}".rstrip())
    there = [finding for finding in wanted if table[finding].notna().any()]
    notes.append(
        f"Cohort {name}: {counted(len(table), 'image')} from {where}, ids begin with {name}/. They train, whatever "
        f"their own split, and are never scored. Labelled: {len(there)} of the task's {len(main.findings)} findings."
    )
    ids = {column: f"{name}/" + table[column] for column in IDS}
    return _ordered(table.assign(**ids, split="train", **{COHORT: name}))
