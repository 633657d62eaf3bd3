"""Whether a run may learn pseudo-labels: of training images, by a teacher that saw nobody who judges the student."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.data.fingerprints import release_of, subject_keys
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.soft_targets import SoftTargets
from cxrlt_ray.data.teacher import Teacher
from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.search.space import Space
from cxrlt_ray.training.job import folds_of, rows_of_cohorts, transductive_rows

OPTION = "--soft-targets"


def check_teacher(
    soft: SoftTargets,
    manifest: Manifest,
    data: str,
    findings: tuple[str, ...],
    folds: int,
    seed: int,
    space: Space,
) -> list[str]:
    """What to tell of pseudo-labels beside a run's manifest; nothing of soft targets without a teacher.

    data: the main cohort's directory, within whose release subjects are known in other cohorts of the teacher's, too.
    Raises UsageError for pseudo-labels of images that judge the student, a teacher that trained on subjects by whom it
    is judged or whose weights their labels chose, and images that the space does not train on.
    """
    if (teacher := soft.teacher) is None:
        return []
    _check_images(soft, manifest)
    _check_subjects(teacher, manifest, release_of(manifest.source, data), findings, folds, seed)
    notes = [f"Pseudo-labels: {_count(soft, manifest, findings, space)}"]
    if soft.transductive:
        count = int(transductive_rows(manifest, soft).sum())
        notes.append(f"TRANSDUCTIVE: {count:,} test images train by pseudo-labels; scores on them are no forecast.")
    return notes


def _check_images(soft: SoftTargets, manifest: Manifest) -> None:
    """Raise UsageError where images of the run have pseudo-labels and are not for training."""
    table = manifest.table
    given = table["image_id"].isin(soft.table.index).to_numpy()
    wrong = given & (table["split"] != "train").to_numpy() & ~transductive_rows(manifest, soft)
    if wrong.any():
        counts = table.loc[wrong, "split"].value_counts()
        which = " and ".join(f"{count:,} {split}" for split, count in counts.items())
        raise UsageError(
            f"{OPTION} has pseudo-labels of {which} images of this run, by which the student is judged: split the data "
            "as the teacher's run did (--seed, --folds, --holdout), or make the pseudo-labels anew."
        )


def _check_subjects(
    teacher: Teacher, manifest: Manifest, release: str, findings: tuple[str, ...], folds: int, seed: int
) -> None:
    """Raise UsageError where the teacher saw subjects by whom the student is judged, in any fold."""
    table = manifest.table
    main = (manifest.cohorts == MAIN).to_numpy()
    subjects = table["subject_id"].astype(str).to_numpy()
    apart = main & (table["split"] != "train").to_numpy()
    parts: list[tuple[int | None, np.ndarray]] = [(None, apart)]
    if folds > 1:
        fold_of = folds_of(manifest, findings, folds, seed)
        parts += [(fold, fold_of == fold) for fold in range(folds)]
    for fold, rows in parts:
        judged = np.unique(subjects[rows])
        own = fold if fold is not None and fold < teacher.folds else None
        where = f"of fold {fold}" if fold is not None else "of validation, holdout or test"
        saw = teacher.saw(judged, own) | teacher.saw(subject_keys(release, judged), own)
        if count := int(saw.sum()):
            raise UsageError(
                f"{OPTION}: the teacher trained on {count:,} of the {len(judged):,} subjects {where}, by whom the "
                f"student would be judged. {_mend(teacher, folds)}"
            )
        if count := int(teacher.chose_by(judged).sum()):
            raise UsageError(
                f"{OPTION}: the labels of {count:,} of the {len(judged):,} subjects {where} chose the teacher's "
                "weights, and the student would be judged by them: make the pseudo-labels by `pseudo --weights mean`."
            )


def _mend(teacher: Teacher, folds: int) -> str:
    """How to divide the data as the teacher's run did."""
    if teacher.folds != (folds if folds > 1 else 0):
        return f"Its run has --folds {teacher.folds}: give the student the same, on the same data with the same --seed."
    return "Train the student on the data of the teacher's run, with its --seed, --folds and --holdout."


def _count(soft: SoftTargets, manifest: Manifest, findings: tuple[str, ...], space: Space) -> str:
    """How many cells without a label the space's stages will learn. Raises UsageError for none."""
    stages = [stage for config in space.kinds() for stage in config.staged()]
    needs = {stage.objective: find_objective(stage.objective).needs for stage in stages}
    learning = {s.cohorts for s in stages if needs[s.objective].pseudo_labels or needs[s.objective].soft_targets}
    rows = (manifest.table["split"] == "train").to_numpy() | transductive_rows(manifest, soft)
    targets = manifest.targets(findings)
    targets[transductive_rows(manifest, soft)] = -1
    empty = (targets < 0) & ~np.isnan(soft.at(manifest.table["image_id"].to_numpy(), findings)) & rows[:, None]
    trained = np.any([rows_of_cohorts(manifest, cohorts) for cohorts in learning], axis=0)
    cells = int(empty[trained].sum())
    if not cells:
        names = ", ".join(sorted(set(manifest.cohorts[empty.any(axis=1)]))) or "no cohort"
        raise UsageError(
            f"{OPTION}: nothing of it would be learnt. Its pseudo-labels for cells without a label are of {names}; "
            f"search space {space.name} learns those of cohorts {', '.join(sorted(learning))} (`cohorts:` of a stage)."
        )
    images = int(empty[trained].any(axis=1).sum())
    return f"{cells:,} cells without a label in {images:,} images, by {soft.provenance}"
