"""What a sweep trains on: the data it was given or a phantom, the other cohorts its space names, a part held out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cxrlt_ray.data.manifest import MAIN
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.store import DEFAULT_STORAGE

PHANTOM_IMAGES, PHANTOM_SIZE = 1600, 128


def cohort_of(
    data: str,
    format: str | None,
    task: str,
    uncertain: str,
    seed: int,
    folds: int,
    holdout: float,
    views: str,
    others: dict[str, str],
) -> tuple[Any, Any]:
    """The manifest as this run splits it, and the task; says what the reader had to tell."""
    from cxrlt_ray.data.cohort import VALIDATION, read_cohort
    from cxrlt_ray.data.manifest import FRONTAL
    from cxrlt_ray.data.tasks import load_task

    # with folds every training image is validated on once: nothing need be carved
    carved = 0.0 if folds else VALIDATION
    cohort = read_cohort(
        data, format=format, task=task, uncertain=uncertain, seed=seed, validation=carved, others=others
    )
    for note in cohort.notes:
        print(note)
    wanted = load_task(task, cohort.manifest.findings)
    _check_task(wanted, cohort.manifest, ("train",) if folds else ("train", "val"))
    if views == "frontal" and not cohort.manifest.of_cohort(MAIN).of_split("train").table["view"].isin(FRONTAL).any():
        raise CxrltError("--views frontal leaves no training image: the data names no PA or AP view.")
    people = cohort.manifest.of_cohort(MAIN).of_split("train").table["subject_id"].nunique()
    if folds > people:
        raise CxrltError(f"--folds {folds}: there are {people} subjects to divide into folds; give fewer folds.")
    return _with_holdout(cohort.manifest, wanted.findings, holdout, seed, folds), wanted


def phantom(storage: str, seed: int, images: int, what: str = "No --data: the built-in phantom cohort") -> str:
    """Draw a phantom cohort of so many images, unless it is there; its directory."""
    from cxrlt_ray.phantom import write_phantom

    folder = f"{storage if '://' not in storage else DEFAULT_STORAGE}/phantom-{images}x{PHANTOM_SIZE}-{seed}"
    print(f"{what} of {images:,} drawn chest X-rays, in {folder}")
    write_phantom(folder, images=images, size=PHANTOM_SIZE, seed=seed)
    return folder


def others_of(space: Any, given: dict[str, str], storage: str | None, seed: int, images: int) -> dict[str, str]:
    """The other cohorts that the space's stages train on; in smoke (`storage` given) phantoms stand in for them."""
    from cxrlt_ray.runs.trial_config import ALL, OUTSIDE

    named = sorted(space.cohorts())
    wanted = [name for each in named if each not in (MAIN, OUTSIDE, ALL) for name in each.split("+")]
    lacking = [name for name in dict.fromkeys(wanted) if name not in given and name != MAIN]
    if not given and not lacking and (OUTSIDE in named or (ALL in named and storage is not None)):
        lacking = ["nih"]
    if lacking and storage is None:
        raise UsageError(
            f"search space {space.name} trains on {', '.join(lacking)} too: say where that is by "
            f"{' '.join(f'--cohort {name}=DIRECTORY' for name in lacking)}, or copy the space and leave these stages "
            "out."
        )
    if ALL in named and not given and not lacking:
        print(f"Search space {space.name} trains on all cohorts; there is the main one only (--cohort NAME=DIRECTORY).")
    stand_ins = {
        name: f"phantom:{phantom(str(storage), seed + 1 + k, images, f'In the place of {name}: another phantom')}"
        for k, name in enumerate(lacking)
    }
    return {**given, **stand_ins}


def few(manifest: Any, images: int, seed: int) -> Any:
    """About so many images of a manifest, as whole subjects, each split in its share."""
    table = manifest.table
    if len(table) <= images:
        return manifest
    subjects = table.groupby("subject_id", sort=True).agg(size=("image_id", "size"), split=("split", "first"))
    subjects = subjects.sample(frac=1, random_state=seed)
    so_far = subjects.groupby("split", dropna=False)["size"].cumsum()
    share = subjects["split"].map(table["split"].value_counts()) * images / len(table)
    kept = subjects.index[(so_far <= share.clip(lower=30)).to_numpy()]
    return manifest.where(table["subject_id"].isin(kept))


def _with_holdout(manifest: Any, findings: tuple[str, ...], share: float, seed: int, folds: int) -> Any:
    """The manifest with `share` of the subjects that would validate (with folds: of train) moved to split 'holdout'."""
    if not share:
        return manifest
    from cxrlt_ray.data.splits import holdout

    table = manifest.table.copy()
    main = table["cohort"] == MAIN
    rows = np.flatnonzero((main & (table["split"] == ("train" if folds else "val"))).to_numpy())
    kept = holdout(manifest.targets(findings)[rows], table["subject_id"].to_numpy()[rows], share, seed)
    table.loc[rows[kept], "split"] = "holdout"
    return dataclasses.replace(manifest, table=table)


def _check_task(task: Any, manifest: Any, splits: tuple[str, ...]) -> None:
    """Refuse a task whose findings the data does not label; name findings without positives."""
    lacking = [finding for finding in task.findings if finding not in manifest.findings]
    if lacking or not task.findings:
        raise UsageError(
            f"the data has no column for {', '.join(lacking) or 'any finding'} of {task.name}; "
            f"it has {', '.join(manifest.findings) or 'none'}. Choose --task auto's findings with `sweep auto`."
        )
    for split in splits:
        part = manifest.of_cohort(MAIN).of_split(split)
        if not len(part.table):
            raise CxrltError(f"the data has no {split} images: `python -m cxrlt_ray.cohort` shows what it holds.")
        none = np.flatnonzero((part.targets(task.findings) == 1).sum(0) == 0)
        if len(none) == len(task.findings):
            raise CxrltError(f"no finding of {task.name} has a positive among the {split} images.")
        if len(none):
            print(f"Without positives in {split}: {', '.join(task.findings[c] for c in none)}")
