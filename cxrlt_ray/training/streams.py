"""A stage's images: drawn for an epoch as the sampler says, streamed, mixed, with the objective's targets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data import sampling
from cxrlt_ray.data.augment import mixed
from cxrlt_ray.data.features import StoredFeatures
from cxrlt_ray.data.image_transform import AugmentedView, ImageCopy, Look
from cxrlt_ray.data.shards import Shards, nearest
from cxrlt_ray.data.stream import Batch, batches
from cxrlt_ray.data.tasks import TAIL, rarity
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training.device import ahead
from cxrlt_ray.training.features import FrozenFeatures
from cxrlt_ray.training.heartbeat import beat
from cxrlt_ray.training.job import Images, Job
from cxrlt_ray.training.workers import Worker, worker_of

if TYPE_CHECKING:
    import torch

    Inputs = tuple[torch.Tensor, ...]  # what a network is called with
    Targets = list[tuple[float, torch.Tensor]]

MIX_STREAM, MIX_RANDOM = 7, 3  # keep the partner's draws and the mixing's random numbers apart from the images'


@dataclass(frozen=True)
class EpochImages:
    """The images of an epoch in the order of their draw, and the rows of the training images that they are."""

    images: Images
    rows: np.ndarray


def drawn(config: TrialConfig, training: Images, epoch: int, fold: int, sampler: str = "") -> EpochImages:
    """The images of an epoch as the sampler draws them; whole studies where views are fused."""
    seed = config.seed + 1000 * fold
    sampler = sampler or config.sampler
    if config.fusion == "none":
        counts = sampling.expected(sampler, training.targets, config.epochs)
        rows = sampling.draws(counts, epoch, config.epochs, seed)
        return EpochImages(training.at(rows), rows)
    order = np.argsort(training.study, kind="stable")
    first = np.flatnonzero(np.diff(training.study[order], prepend=-1))
    counts = sampling.expected(sampler, training.targets[order[first]], config.epochs)
    studies = sampling.draws(counts, epoch, config.epochs, seed)
    sizes = np.diff(first, append=len(order))[studies]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = order[np.repeat(first[studies], sizes) + within]
    images = training.at(rows)
    # a study drawn twice is two: each is seen by itself
    codes = np.repeat(np.arange(len(studies)), sizes)
    return EpochImages(Images(images.image_id, images.targets, codes, images.view, images.soft), rows)


@dataclass(frozen=True)
class Streams:
    """What an epoch's batches are made from.

    table: the objective's targets float32 [N, K], a row a training image. crops: copies of each image, augmented
    independently. features: of a frozen backbone, which batches have in the images' place where they are stored.
    """

    job: Job
    config: TrialConfig
    training: Images
    table: np.ndarray
    fold: int
    worker: Worker
    crops: int = 1
    features: FrozenFeatures | None = None

    def stored(self, epoch: int) -> StoredFeatures | None:
        """The features of the epoch's images, computed and stored if they are not; None where they cannot be."""
        config, copies = self.config, self.config.frozen_copies
        if self.features is None or copies is None:
            return None
        look: Look = AugmentedView(config.resolution, config.crop)
        if copies:
            look = ImageCopy(config.resolution, config.crop, config.flip, config.augment, epoch % copies)
        return self.features.stored(self.training.image_id, look)

    @property
    def shards(self) -> Shards:
        """The prepared images of the stage's resolution."""
        return nearest(self.job.shards, self.config.resolution)

    def epoch(self, shown: EpochImages, epoch: int) -> Iterator[tuple[Inputs, Targets]]:
        """The epoch's batches on the device: the network's inputs, and targets [B, K] with the share each has in them.

        Inputs: pixels [B, H, W]; with fused views also codes of study and view [B]; with several crops one tensor each.
        """
        seed = self.config.seed + 1000 * self.fold
        if self.crops > 1:
            yield from self._crops(shown, epoch, seed)
        elif self.config.fusion != "none":
            yield from self._studies(shown, epoch, seed)
        elif self.config.mix != "none":
            yield from self._mixed(shown, epoch, seed)
        else:
            for batch, pixels in self._stream(shown.images, epoch, seed):
                yield (pixels,), [(1.0, self._targets(shown, batch))]

    def _crops(self, shown: EpochImages, epoch: int, seed: int) -> Iterator[tuple[Inputs, Targets]]:
        copies = [self._stream(shown.images, epoch, seed, copy) for copy in range(self.crops)]
        for views in zip(*copies, strict=True):
            yield tuple(pixels for _, pixels in views), [(1.0, self._targets(shown, views[0][0]))]

    def _studies(self, shown: EpochImages, epoch: int, seed: int) -> Iterator[tuple[Inputs, Targets]]:
        import torch

        for batch, pixels in self._stream(shown.images, epoch, seed):
            codes = (
                torch.from_numpy(values[batch.rows]).to(self.worker.device)
                for values in (shown.images.study, shown.images.view)
            )
            yield (pixels, *codes), [(1.0, self._targets(shown, batch))]

    def _mixed(self, shown: EpochImages, epoch: int, seed: int) -> Iterator[tuple[Inputs, Targets]]:
        config = self.config
        own = self._stream(shown.images, epoch, seed)
        partners: Iterator[tuple[torch.Tensor, torch.Tensor] | None] = itertools.repeat(None)
        if config.mix == "balanced_mixup":
            other = drawn(config, self.training, epoch, self.fold, "class_aware")
            stream = self._stream(other.images, epoch, seed + MIX_STREAM)
            partners = ((pixels, self._targets(other, batch)) for batch, pixels in stream)
        for number, ((batch, pixels), partner) in enumerate(zip(own, partners, strict=False)):
            random = np.random.default_rng([seed, epoch, number, MIX_RANDOM])
            targets = self._targets(shown, batch)
            images, pairs = mixed(config.mix, pixels, targets, config.mix_alpha, random, partner)
            yield (images,), pairs

    def _stream(self, images: Images, epoch: int, seed: int, copy: int = 0) -> Iterator[tuple[Batch, torch.Tensor]]:
        config, worker = self.config, self.worker
        harder = config.tail_augment > config.augment
        tail = np.array(rarity(self.training.targets)) == TAIL if harder else np.empty(0, bool)
        return ahead(
            batches(
                self.shards,
                images.image_id,
                config.resolution,
                config.batch_size * self.job.workers,
                seed=seed,
                epoch=epoch,
                augment=config.augment,
                flip=config.flip,
                crop=config.crop,
                rank=worker.rank,
                world=worker.world,
                copy=copy,
                study=images.study if config.fusion != "none" else None,
                strong=(images.targets[:, tail] == 1).any(axis=1) if harder else None,
                strength=config.tail_augment if harder else 0.0,
                copies=config.frozen_copies,
                features=self.stored(epoch),
                ingest=self.job.ingest,
            ),
            worker.device,
        )

    def _targets(self, shown: EpochImages, batch: Batch) -> torch.Tensor:
        import torch

        rows = self.table[shown.rows[batch.rows]]
        return torch.from_numpy(rows).to(self.worker.device, non_blocking=True)


def validation_batches(job: Job, config: TrialConfig, images: Images, crops: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Validation images as an objective without predictions is judged by: augmented as in training, always alike.

    Each worker has all of them, so that all come to the same score.
    """
    alone = Worker(0, 1, worker_of(job).device)
    streams = Streams(job, config, images, np.empty((len(images), 0), np.float32), 0, alone, crops)
    shown = drawn(config.model_copy(update={"sampler": "natural", "epochs": 1}), images, 0, 0)
    for inputs, _ in streams.epoch(shown, 0):
        beat()
        yield inputs
