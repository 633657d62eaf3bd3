"""What an objective may read of the training images beside their labels: reports' statements, boxes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cxrlt_ray.data.features import storage_of
from cxrlt_ray.data.image_boxes import ImageBoxes
from cxrlt_ray.objectives.registry import Evidence, Needs
from cxrlt_ray.storage import Store
from cxrlt_ray.text.descriptions import kept_descriptions
from cxrlt_ray.training.job import Images, Job, corpus_of, manifest_of, training_images


def evidence_of(job: Job, images: Images, needs: Needs, fold: int) -> Evidence:
    """The evidence on the training images of `fold`, as far as `needs` ask for it and the run has it."""
    corpus = corpus_of(job, fold) if needs.statements else None
    boxes = boxes_of(job.run).at(images.image_id, job.trained) if needs.boxes and job.boxes else None
    own = kept_descriptions(job.run) if needs.places or needs.rows else ()
    counted = counted_labels(job, images, fold)
    storage = storage_of(job.shards[0]) if needs.rows else None
    return Evidence(job.trained, corpus, images.report, boxes, counted, own, storage)


def counted_labels(job: Job, images: Images, fold: int) -> np.ndarray | None:
    """Labels int8 [M, C] of the real images among training images, or of the main cohort's where all are generated.

    None where none is generated: then all of them count.
    """
    if images.generated is None or not images.generated.any():
        return None
    return (images.real if len(images.real) else training_images(manifest_of(job.run), job, fold)).targets


@lru_cache(maxsize=1)
def boxes_of(run: Store) -> ImageBoxes:
    """The run's boxes, read once by a process; they never change."""
    return ImageBoxes.read(run)
