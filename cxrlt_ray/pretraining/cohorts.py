"""The cohorts of a pretraining: one manifest of the images to train on and of those that are kept to measure by.

Of a cohort with splits only the training part is used, as a sweep with the same seed would divide it, unless more is
asked for. A folder of images without a table is training as a whole, each image of a subject of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray import config
from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.data.fingerprints import release_of
from cxrlt_ray.data.joining import IDS, PHANTOM, directory
from cxrlt_ray.data.manifest import COHORT, MAIN, META, Manifest
from cxrlt_ray.data.mapping import FOLDER, load_mapping
from cxrlt_ray.data.readers import Request, choose_reader
from cxrlt_ray.data.readers.files import common_root, plain
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import GENERATED_MARKER, PHANTOM_MARKER
from cxrlt_ray.runs.pretrain_record import CohortUse

TRAIN, TRAIN_VAL, ALL_SPLITS = "train", "train+val", "all"
SPLITS: dict[str, tuple[str, ...]] = {
    TRAIN: ("train",),
    TRAIN_VAL: ("train", "val"),
    ALL_SPLITS: ("train", "val", "test", "development"),
}
MOST_MONITORED = 0.1  # share of the images
LEAST_SUBJECTS = 8  # to train on and to measure by
MEND = "Call it by its mapping: nih, chexpert, padchest ..."  # a cohort of no known format


@dataclass(frozen=True)
class PretrainData:
    """The images: split `val` those to measure by, `train` all others. releases: of each cohort, for its ids."""

    manifest: Manifest
    uses: tuple[CohortUse, ...]
    releases: Mapping[str, str]
    notes: tuple[str, ...]


def parse_cohorts(arguments: Sequence[str]) -> dict[str, str]:
    """['nih=/data/nih'] -> name -> directory. Raises UsageError for another form and a directory that is not there."""
    cohorts: dict[str, str] = {}
    for text in arguments:
        name, _, path = text.partition("=")
        if not (name and path) or "/" in name or name == MAIN:
            raise UsageError(
                f"--cohort is NAME=DIR, such as nih=/data/nih (a NAME without /, not {MAIN}); not '{text}'."
            )
        if name in cohorts:
            raise UsageError(f"--cohort names {name} twice: give each cohort once.")
        directory(path.removeprefix(PHANTOM))
        cohorts[name] = path.removeprefix(PHANTOM)
    if not cohorts:
        raise UsageError("--cohort NAME=DIR says which images are learnt from; several may be given.")
    return cohorts


def read_cohorts(cohorts: Mapping[str, str], splits: str, monitored: int, seed: int) -> PretrainData:
    """The images of `cohorts` (name -> directory), about `monitored` of them, of whole subjects, to measure by.

    splits: a key of SPLITS. Raises CxrltError, naming the cohort, where one cannot be read or has nothing to train on.
    """
    parts = [_read(name, path, splits, seed) for name, path in cohorts.items()]
    roots = [plain(manifest.root) for manifest, _, _ in parts]
    root, findings = common_root(roots), tuple(dict.fromkeys(f for part, _, _ in parts for f in part.findings))
    tables = []
    for (manifest, use, _), below in zip(parts, roots, strict=True):
        table, prefix = manifest.table.copy(), below[len(root) :].strip("/")
        table["path"] = f"{prefix}/" + table["path"] if prefix else table["path"]
        for column in IDS:
            table[column] = f"{use.name}/" + table[column]
        table[COHORT] = use.name
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    for finding in findings:
        table[finding] = table[finding].astype("Int8")
    table["split"] = pd.Series(np.where(_monitored(table["subject_id"], monitored, seed), "val", "train"), dtype="str")
    manifest = Manifest(table[[*META, *findings]], findings, "pretraining", root)
    counts = table[table["split"] == "val"][COHORT].value_counts()
    uses = tuple(use.model_copy(update={"monitored": int(counts.get(use.name, 0))}) for _, use, _ in parts)
    releases = {use.name: release_of(use.reader, use.data) for use in uses}
    return PretrainData(manifest, uses, releases, tuple(note for _, _, notes in parts for note in notes))


def _read(name: str, path: str, splits: str, seed: int) -> tuple[Manifest, CohortUse, list[str]]:
    """A cohort's images of `splits`, what is recorded of it, and notes."""
    store = directory(path)
    if store.exists(GENERATED_MARKER):
        raise UsageError(
            f"cohort {name} holds generated images: whose images their generator has learnt would not be known of the "
            "weights. Pretrain on real ones."
        )
    try:
        known = name in config.names(FOLDER) and not store.exists(PHANTOM_MARKER)
        reader, _ = choose_reader(store, load_mapping(name).reader if known else None, labelled=False, mend=MEND)
        bare = reader.name == "images"
        labelled = not bare and bool(reader.read(Request(store, labelled=False)).findings)
        manifest = read_cohort(path, format=reader.name, task="auto", seed=seed, labelled=labelled).manifest
    except CxrltError as error:
        raise type(error)(f"cohort {name}: {error}") from None
    if bare:
        manifest = dataclasses.replace(manifest, table=manifest.table.assign(split="train"))
    of_splits = manifest.table["split"].fillna("none").value_counts()
    used = manifest if splits == ALL_SPLITS else manifest.of_split(*SPLITS[splits])
    if used.table.empty:
        raise CxrltError(
            f"cohort {name} has no image of split {splits} ("
            + ", ".join(f"{count:,} of {split}" for split, count in of_splits.items())
            + "): say in a column `split` which train, or take --splits all, which every output is flagged with."
        )
    subjects = int(used.table["subject_id"].nunique())
    use = CohortUse(
        name=name,
        data=store.uri,
        reader=reader.name,
        images=len(used.table),
        subjects=subjects,
        labelled=labelled,
        splits={str(k): int(v) for k, v in used.table["split"].fillna("none").value_counts().items()},
    )
    left = len(manifest.table) - len(used.table)
    notes = [f"Cohort {name}: {len(used.table):,} images of {subjects:,} subjects, read as {reader.name}"]
    if left:
        notes[0] += f"; {left:,} of other splits are left out (--splits)"
    return used, use, notes


def _monitored(subjects: pd.Series, wanted: int, seed: int) -> np.ndarray:
    """Which images are kept to measure by, bool [N]: whole subjects, at random, up to MOST_MONITORED of all images.

    Raises CxrltError for too few subjects to have both.
    """
    sizes = subjects.value_counts().sort_index()
    if len(sizes) < LEAST_SUBJECTS:
        raise CxrltError(
            f"there are images of {len(sizes)} subjects: pretraining needs {LEAST_SUBJECTS}, some of them to "
            "measure by."
        )
    if not wanted:
        return np.zeros(len(subjects), bool)
    order = np.random.default_rng([seed, len(sizes)]).permutation(len(sizes))
    count = np.cumsum(sizes.to_numpy()[order])
    enough = max(2, int(np.searchsorted(count, min(wanted, MOST_MONITORED * len(subjects)))) + 1)
    return subjects.isin(sizes.index[order[:enough]]).to_numpy()
