"""A folder of generated images, looked at: by a teacher, and beside the training images by frozen features.

Ray has been started. Generated images are prepared as others are, at the sizes that teacher and detector take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.prepare import prepare
from cxrlt_ray.data.shards import SUMMARY, Shards
from cxrlt_ray.errors import UsageError
from cxrlt_ray.generation.cohort_folder import Generated
from cxrlt_ray.generation.copies import FIT_IMAGES, Neighbours, Whitening, evenly, fit_detector
from cxrlt_ray.generation.frozen_features import VIEWS, WHOLE, describer, features_of, whitened
from cxrlt_ray.generation.sampling import read_generator
from cxrlt_ray.generation.teacher import RealScores, Teacher, check_teacher, real_scores, scores_of
from cxrlt_ray.storage import Store

Say = Callable[[str], None]


@dataclass(frozen=True)
class TeacherView:
    """What a teacher makes of N images: scores float [N, C], and of real ones. saw: images whose source it had seen."""

    scores: np.ndarray
    real: RealScores
    saw: int


@dataclass(frozen=True)
class CopyView:
    """How near N images are to training images. distance: below it they are near-copies. real: of real images."""

    neighbours: Neighbours
    distance: float
    real: np.ndarray


def manifest_of(generated: Generated) -> Manifest:
    """The images in the form that `prepare` takes, in the order of their table."""
    from cxrlt_ray.data.cohort import read_cohort

    manifest = read_cohort(generated.store.uri, format="table", labelled=False).manifest
    order = manifest.table.set_index("image_id").loc[generated.table["image_id"]].reset_index()
    return Manifest(order[manifest.table.columns], manifest.findings, manifest.source, manifest.root)


def prepared(manifest: Manifest, storage: str, sizes: list[int], quality: int, say: Say) -> tuple[Shards, ...]:
    """The images' shards; any number of them may be unreadable."""
    return prepare(manifest, storage, sizes, 1.0, quality, say)


def readable(manifest: Manifest, shards: Shards) -> np.ndarray:
    """Which images could be prepared, bool [N]."""
    return manifest.table["image_id"].isin(shards.index().index).to_numpy()


def by_teacher(
    teacher: Teacher, generated: Generated, manifest: Manifest, storage: str, allowed: bool, say: Say
) -> TeacherView:
    """The images as a teacher scores them that has not seen the subjects they descend from; raises as check_teacher.

    Raises UsageError where the folder does not say which subjects these are.
    """
    if generated.source is None:
        raise UsageError(
            f"{generated.store.uri} does not say which subjects its images descend from (draws.parquet is not there): "
            "filter the folder that `generate sample` made."
        )
    release = generated.record.learnt.release
    models = check_teacher(teacher, generated.source, allowed, release)
    saw = int((~teacher.unseen(generated.source, release)).all(axis=1).sum())
    record = teacher.run.record
    shards = prepared(manifest, storage, record.sizes_of_shards, record.quality, say)
    key = hashlib.sha256(repr([shards, teacher.members]).encode()).hexdigest()[:8]
    work = Store(storage).absolute() / f"generate-{key}"
    scores = scores_of(teacher, work, shards, manifest.table)
    work.remove()
    return TeacherView(teacher.combined(scores, models), real_scores(teacher), saw)


def beside_training(
    generated: Generated, manifest: Manifest, shards: Shards, backbone: str, false_alarms: float, say: Say
) -> CopyView:
    """How near the images are to what their generator has learnt. Raises UsageError where that is gone.

    shards: of the generated images. An image that could not be prepared is as far as can be.
    """
    learnt = generated.record.learnt
    training = Shards(Store(learnt.shards), learnt.size)
    if not training.store.exists(SUMMARY):
        raise UsageError(
            f"the images that the generator learnt are gone ({learnt.shards}): `generate train` made them."
        )
    rows = read_generator(generated.record.generator).rows
    describe = describer(backbone)
    (sample,) = features_of(training, rows.image_id[evenly(len(rows), FIT_IMAGES)], describe)
    describe = whitened(describe, Whitening.of(sample))  # at once: all images' own features would fill the memory
    say(f"Comparing with {len(rows):,} training images")
    *views, mirrored = features_of(training, rows.image_id, describe, VIEWS, mirrored=True, say=say)
    detector = fit_detector(views, mirrored, rows.subject, false_alarms)
    there = np.flatnonzero(readable(manifest, shards))
    distance, nearest = np.full(len(manifest.table), np.inf), np.zeros(len(manifest.table), np.int64)
    if len(there):
        ids = manifest.table["image_id"].to_numpy()[there]
        own = detector.nearest(*features_of(shards, ids, describe, (WHOLE,), mirrored=True))
        distance[there], nearest[there] = own.distance, own.row
    return CopyView(Neighbours(distance, nearest), detector.distance, detector.real)
