"""A trial's validation images scored: plain after every epoch, under test-time augmentation at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.image_transform import AugmentedView
from cxrlt_ray.data.shards import nearest
from cxrlt_ray.errors import Diverged
from cxrlt_ray.runs.predictions import augmented_name
from cxrlt_ray.runs.records import Augmented
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training.context import TrialContext
from cxrlt_ray.training.features import FrozenFeatures, frozen_features
from cxrlt_ray.training.inference import (
    BATCH,
    Member,
    PixelBatch,
    augmented_batches,
    augmented_views,
    check_any,
    infer,
    plain_batches,
)
from cxrlt_ray.training.job import Images, Job
from cxrlt_ray.training.workers import Worker, agree, joined, worker_of

if TYPE_CHECKING:
    import torch


def predict_images(
    job: Job, config: TrialConfig, model: torch.nn.Module, images: Images, features: FrozenFeatures | None = None
) -> np.ndarray:
    """Probabilities float32 [N, C] of the predicted findings for `images`, in their order; nan in quarantine.

    features: of the model's frozen backbone. Workers share the images, and all have all scores. Raises Diverged for
    predictions that are not finite, CxrltError where no image could be decoded.
    """
    worker, fused = worker_of(job), config.fusion != "none"
    view = augmented_views(config.resolution, config.crop)[0]
    member = Member([model.eval()], (view,), config.precision, job.outputs)
    stream = plain_batches(
        nearest(job.shards, config.edge),
        images,
        view,
        config.batch_size * (1 if fused else 2) * worker.world,
        worker.device,
        job.ingest,
        fused,
        worker.rank,
        worker.world,
        features.stored(images.image_id, view) if features else None,
    )
    return check_any(joined(_own_share(member, stream, (len(images), len(job.findings)), worker), worker))


def _own_share(member: Member, stream: Iterator[PixelBatch], shape: tuple[int, int], worker: Worker) -> np.ndarray:
    """Probabilities float32 [N, C] of this worker's images, nan for the others'.

    Raises Diverged on all workers where it is raised on one: the others would wait for its scores for ever.
    """
    diverged: Diverged | None = None
    scores = np.full((shape[0], 1, shape[1]), np.nan, np.float32)
    try:
        scores = infer([member], stream, shape, worker.device)
    except Diverged as error:
        diverged = error
    if not agree(diverged is None, worker):
        raise diverged or Diverged("diverged: the model's predictions are not finite on another worker; lower lr")
    return scores[:, 0]


def score_augmented(trial: TrialContext) -> None:
    """Score the validation images under test-time augmentation too: its score, and its price in time.

    Where features are stored, images of another kind cost as many forward passes as there are views: that is the price.
    """
    from cxrlt_ray import models

    job, worker, stage = trial.job, trial.worker, trial.config.staged()[-1]
    views = augmented_views(stage.resolution, stage.crop, trial.config.tta)
    shards = nearest(job.shards, stage.edge)
    scored: list[tuple[Images, np.ndarray]] = []
    seconds = {1: 0.0, len(views): 0.0}
    agree(True, worker)  # the first worker has written the checkpoints
    for fold, (images, _) in enumerate(trial.scored):
        with (job.run / "trials" / trial.record.name).fetched(f"fold-{fold}") as folder:
            model = models.load(folder)[0].to(worker.device).eval()
        features = frozen_features(job, stage, model, shards)
        scores = np.empty((0, 0), np.float32)
        for count in [len(views)] if features else seconds:
            started = time.monotonic()
            member = Member([model], views[:count], stage.precision, job.outputs)
            stream = _views(job, stage, images, member.views, features, worker)
            scores = _own_share(member, stream, (len(images), len(job.findings)), worker)
            seconds[count] += time.monotonic() - started
        scored.append((images, check_any(joined(scores, worker))))
    score = trial.keep_predictions(scored, augmented_name("val", True))
    price = round(seconds[len(views)] / seconds[1], 2) if seconds[1] else float(len(views))
    trial.record.tta = Augmented(augmentations=len(views), score=score, price=price)


def _views(
    job: Job,
    stage: TrialConfig,
    images: Images,
    views: Sequence[AugmentedView],
    features: FrozenFeatures | None,
    worker: Worker,
) -> Iterator[PixelBatch]:
    """A worker's images under several views, or the stored features of all of them."""
    shards = nearest(job.shards, stage.edge)
    stored = {view: features.stored(images.image_id, view) for view in views} if features else {}
    if not stored or None in stored.values():
        yield from augmented_batches(
            shards, images, views, worker.device, job.ingest.threads, rank=worker.rank, world=worker.world
        )
        return
    streams = [
        plain_batches(
            shards, images, view, BATCH, worker.device, job.ingest, True, worker.rank, worker.world, stored[view]
        )
        for view in views
    ]
    for batches in zip(*streams, strict=True):
        yield replace(batches[0], pixels={view: pixels for batch in batches for view, pixels in batch.pixels.items()})
