"""Images with cells that nobody labelled: a run's training images, those of other cohorts, test images if asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.joining import EVERY, join
from cxrlt_ray.data.manifest import MAIN, Cohort, Manifest
from cxrlt_ray.ensembling.pseudo_request import PseudoRequest
from cxrlt_ray.ensembling.teacher import EnsembleTeacher
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.search.run_data import few, phantom
from cxrlt_ray.storage import Store

TEST = "test"
SMOKE_IMAGES, STAND_IN = 200, "nih"  # of each cohort; the cohort in whose place a phantom stands


@dataclass(frozen=True)
class Unlabelled:
    """Images with cells without a label.

    manifest: their rows; targets: int8 [N, C] of the teacher's findings, -1 where a pseudo-label is wanted. prepared:
    bool [N], which of them are the run's own, whose shards or quarantine hold them.
    """

    manifest: Manifest
    targets: np.ndarray
    prepared: np.ndarray

    @property
    def cohorts(self) -> dict[str, np.ndarray]:
        """The rows of each cohort, bool [N], by its name; test images are called TEST."""
        names = self.manifest.cohorts.where(self.manifest.table["split"] != "test", TEST).to_numpy()
        return {str(name): names == name for name in dict.fromkeys(names)}

    def at(self, rows: np.ndarray) -> Unlabelled:
        """Those of `rows`, bool [N]."""
        return Unlabelled(self.manifest.where(rows), self.targets[rows], self.prepared[rows])


def unlabelled_images(teacher: EnsembleTeacher, request: PseudoRequest) -> Unlabelled:
    """The images with a cell to fill: the run's training images, those of other cohorts, and test images if asked for.

    Prints the readers' notes. Raises UsageError where there is none, CxrltError for a cohort that cannot be read.
    """
    run, joined = teacher.run, _joined(teacher, request)
    table, names = joined.table, joined.cohorts
    splits = ("train", "test") if request.on == TEST else ("train",)
    parts = [joined.where((names == name) & (table["split"] == split)) for name in names.unique() for split in splits]
    if request.smoke:
        parts = [few(part, SMOKE_IMAGES, request.seed) if len(part.table) else part for part in parts]
    manifest = replace(joined, table=pd.concat([part.table for part in parts], ignore_index=True))
    targets = manifest.targets(teacher.findings)
    targets[(manifest.table["split"] == "test").to_numpy()] = -1  # test labels are nobody's to learn
    # also those in the run's quarantine: alone they would be all bad, and prepared in vain
    prepared = manifest.table["image_id"].isin(teacher.manifest.table["image_id"]).to_numpy()
    images = Unlabelled(manifest, targets, prepared).at(np.any(targets < 0, axis=1))
    if not len(images.targets):
        raise UsageError(
            f"there is nothing to pseudo-label: every training image of run {run.name} has all labels. Give a cohort "
            "by --cohort NAME=DIR, whose cells without a label are filled; --cohort images=DIR where it has no labels."
        )
    return images


def _joined(teacher: EnsembleTeacher, request: PseudoRequest) -> Manifest:
    """The run's own images, and all of the other cohorts that are given: the run's where none are."""
    run, main = teacher.run, teacher.manifest.of_cohort(MAIN)
    others, storage = request.cohorts or run.record.cohorts, run.store.absolute().uri.rpartition("/")[0]
    if request.smoke and not others:
        folder = phantom(storage, request.seed + 1, SMOKE_IMAGES, f"In the place of {STAND_IN}: another phantom")
        others = {STAND_IN: f"phantom:{folder}"}
    if not others:
        return main
    problems: list[str] = []
    cohort = join(Cohort(main, (), {MAIN: main.root}), others, run.record.uncertain, problems, EVERY)
    if problems:
        raise CxrltError(problems[0])
    print(*cohort.notes, sep="\n")
    return cohort.manifest


def pseudo_store(out: str) -> Store:
    """The directory of pseudo-labels, this user's alone: ids are in it. Raises CxrltError where it is not writable."""
    from cxrlt_ray.privacy import private_dir

    store = Store(out).absolute()
    if store.local is not None:
        private_dir(store.local)
    store.check_writable()
    return store
