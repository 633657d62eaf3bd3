"""A data directory in a known format -> the manifest, split by subject, or one clear sentence why not.

Other cohorts may be joined to it, for training only (joining.py). `python -m cxrlt_ray.cohort DIR` shows a person what
it holds and lists everything for which a sweep would refuse it, where the sweep stops at the first.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import numpy as np
import pandas as pd

from cxrlt_ray.data.given_labels import GivenLabels
from cxrlt_ray.data.joining import Unlabelled, directory, join, phantom_as, sweep_options
from cxrlt_ray.data.manifest import COHORT, MAIN, META, Cohort, Manifest
from cxrlt_ray.data.readers import Raw, Request, all_readers, choose_reader
from cxrlt_ray.data.readers.columns import UNCERTAIN_MEANS
from cxrlt_ray.data.rows import check_leaks, checked_rows, in_order, with_settled_paths
from cxrlt_ray.data.splits import holdout
from cxrlt_ray.data.tasks import ZERO_SHOT
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import GENERATED_MARKER, PHANTOM_MARKER

POSES = {"2026-task1": "cxrlt2026", "2026-task2": "cxrlt2026"}  # whose data a phantom, of 2024's form, stands in for
VALIDATION = 0.15  # share of the training subjects that becomes split val


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
    labels: GivenLabels | None = None,
    unlabelled: Unlabelled = frozenset(),
) -> Cohort:
    """Read the directory or URI `data`.

    format: a reader's name; found by looking without it. task: its findings are read. uncertain: what
    CheXpert's -1 becomes. validation: share of the training subjects that becomes split `val` where the
    data has none, drawn with `seed`; 0: none is carved. labelled: False if labels and a training split may be missing.
    training: False if the training split may be missing, to evaluate only. others: a mapping of cohorts/ ->
    that cohort's directory or URI, or phantom:DIR: it is joined for training, whatever its own splits. labels: of its
    studies, in the place of the data's own or beside them. unlabelled: other cohorts' images that stay without one.
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
        labels=labels,
        unlabelled=unlabelled,
    )
    if problems:
        more = f" ({len(problems) - 1} more: python -m cxrlt_ray.cohort {shlex.quote(data)}{sweep_options(others)})"
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
    labels: GivenLabels | None = None,
    unlabelled: Unlabelled = frozenset(),
) -> tuple[Cohort, list[str]]:
    """As `read_cohort`, with all reasons to refuse the data as sentences, as far as the rest can still be read."""
    from cxrlt_ray.data.tasks import findings_to_read

    if uncertain not in UNCERTAIN_MEANS:
        raise UsageError(f"--uncertain is one of {', '.join(UNCERTAIN_MEANS)}, not '{uncertain}'.")
    if others and not (labelled and training):
        raise UsageError("other cohorts only train: they are joined to data that is read for training.")
    store = directory(data)
    findings = findings_to_read(task)
    if format is None and findings and task in POSES and store.exists(PHANTOM_MARKER):
        reader, choice = all_readers()[POSES[task]], "a phantom"
        raw = phantom_as(reader.name, store, findings)
    else:
        reader, choice = choose_reader(store, format, labelled)
        raw = reader.read(Request(store, task, findings, uncertain, labelled))
    if raw.table.empty:
        raise CxrltError(f"{data}, read as {reader.name}, has no images.")
    if labels is not None:
        raw = labels.applied(raw, None if task in ZERO_SHOT else findings)
    if labelled:
        _check_findings(raw, findings, task, reader.name)
    raw = with_settled_paths(raw)
    table, problems = checked_rows(raw)
    notes = [f"Data: format {reader.name} ({choice}), {len(table):,} images, paths from {raw.root}.", *raw.notes]
    if labelled:
        if store.exists(GENERATED_MARKER):
            problems.append(
                f"{data} holds generated images, which only train, beside real ones: give it by `--cohort "
                f"synthetic={data}`, not as the data itself."
            )
        check_leaks(table, problems)
        if training:
            table = _with_all_splits(table, raw.findings, validation, seed, notes, problems)
    table = in_order(table.assign(**{COHORT: MAIN}))
    manifest = Manifest(table[[*META, *raw.findings]], raw.findings, reader.name, raw.root)
    cohort = Cohort(manifest, tuple(notes), {MAIN: raw.root}, table[["file", "row"]], raw.labellings)
    return (join(cohort, others, uncertain, problems, unlabelled) if others else cohort), problems


def _check_findings(raw: Raw, findings: tuple[str, ...] | None, task: str, reader: str) -> None:
    """Raise CxrltError or UsageError where findings are missing. findings: the task's; None: all of the data."""
    if not raw.findings:
        raise CxrltError(
            f"the data (read as {reader}) has no finding column"
            + (f" of {task}" if findings is not None else " that holds only 1, 0, -1 or empty")
            + ": one column per finding is needed."
            + "".join(f" {note}" for note in raw.notes[:3] if findings is None)
        )
    missing = [name for name in findings or () if name not in raw.findings]
    if missing and task not in ZERO_SHOT:  # whose models learn what seen findings there are
        raise UsageError(
            f"the data (read as {reader}) has no column for {len(missing)} of the {len(findings or ())} findings of "
            f"{task}: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Task auto takes every finding "
            "there is."
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
    chosen = holdout(targets, part["subject_id"].to_numpy(), share, seed)
    if chosen.all() or not chosen.any():
        problems.append(
            f"split {split} cannot be carved from train: {part['subject_id'].nunique()} subject is too few."
        )
        return table
    splits = table["split"].to_numpy(object)
    splits[rows[chosen]] = split
    notes.append(
        f"Split {split} is carved from train, by subject and stratified by finding: {chosen.sum():,} of {len(rows):,} "
        f"images (seed {seed})."
    )
    return table.assign(split=pd.Series(splits, table.index, "str"))
