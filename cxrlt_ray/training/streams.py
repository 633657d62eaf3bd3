"""A stage's images: drawn for an epoch as the sampler says, streamed, mixed, with the objective's targets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data import sampling
from cxrlt_ray.data.augment import mixed
from cxrlt_ray.data.features import StoredFeatures
from cxrlt_ray.data.image_transform import AugmentedView, ImageCopy, Look
from cxrlt_ray.data.shards import Shards, nearest
from cxrlt_ray.data.stream import Batch, batches
from cxrlt_ray.data.tasks import TAIL, rarity
from cxrlt_ray.objectives.registry import Needs, Objective
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training.device import ahead
from cxrlt_ray.training.features import FrozenFeatures
from cxrlt_ray.training.heartbeat import beat
from cxrlt_ray.training.job import Images, Job
from cxrlt_ray.training.texts import TextDraws, text_draws, with_reports
from cxrlt_ray.training.workers import Worker, worker_of

if TYPE_CHECKING:
    import torch

    Inputs = tuple[torch.Tensor, ...]  # what a network is called with
    Targets = list[tuple[float, torch.Tensor]]

# keep the partner's draws, and the random numbers of mixing and of pairs, apart from the images'
MIX_STREAM, MIX_RANDOM, PAIR_RANDOM = 7, 3, 5


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
    return EpochImages(replace(images, study=codes), rows)


@dataclass(frozen=True)
class Streams:
    """What an epoch's batches are made from.

    table: the objective's targets float32 [N, K], a row a training image. needs: what else a batch holds. texts: of
    the images, where the objective reads any. features: of a frozen backbone, which batches have in the images' place
    where they are stored. unchanged: ids of images that are shown as they are (Objective.unchanged).
    """

    job: Job
    config: TrialConfig
    training: Images
    table: np.ndarray
    fold: int
    worker: Worker
    needs: Needs = field(default_factory=Needs)
    texts: TextDraws | None = None
    features: FrozenFeatures | None = None
    unchanged: np.ndarray | None = None

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
        """The prepared images of the edge that the stage's are cropped from."""
        return nearest(self.job.shards, self.config.edge)

    def epoch(self, shown: EpochImages, epoch: int) -> Iterator[tuple[Inputs, Targets]]:
        """The epoch's batches on the device: the network's inputs, and targets [B, K] with the share each has in them.

        Inputs: pixels [B, H, W]; with fused views also codes of study and view [B]; with several crops one tensor each;
        with pairs, texts and rows as registry.Needs says.
        """
        seed = self.config.seed + 1000 * self.fold
        if self.needs.pairs or self.needs.texts:
            yield from self._with_company(shown, epoch, seed)
        elif self.needs.crops > 1:
            yield from self._crops(shown, epoch, seed)
        elif self.config.fusion != "none":
            yield from self._studies(shown, epoch, seed)
        elif self.config.mix != "none":
            yield from self._mixed(shown, epoch, seed)
        else:
            for batch, pixels in self._stream(shown.images, epoch, seed):
                yield (pixels, *self._rows(shown, batch)), [(1.0, self._targets(shown, batch))]

    def _rows(self, shown: EpochImages, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The images' places among the training images, int64 [B], where the network is called with them."""
        import torch

        return (torch.from_numpy(shown.rows[batch.rows]).long(),) if self.needs.rows else ()

    def _crops(self, shown: EpochImages, epoch: int, seed: int) -> Iterator[tuple[Inputs, Targets]]:
        copies = [self._stream(shown.images, epoch, seed, copy) for copy in range(self.needs.crops)]
        for views in zip(*copies, strict=True):
            yield tuple(pixels for _, pixels in views), [(1.0, self._targets(shown, views[0][0]))]

    def _with_company(self, shown: EpochImages, epoch: int, seed: int) -> Iterator[tuple[Inputs, Targets]]:
        """Batches with another image of each study, or with its text, or with both."""
        import torch

        images, device = shown.images, self.worker.device
        others: Iterator[tuple[Batch, torch.Tensor] | None] = itertools.repeat(None)
        if self.needs.pairs:
            random = np.random.default_rng([seed, epoch, PAIR_RANDOM])
            partners = sampling.study_partners(self.training.study, shown.rows, random)
            others = self._stream(images, epoch, seed, 1, self.training.image_id[partners])
        for (batch, pixels), other in zip(self._stream(images, epoch, seed), others, strict=self.needs.pairs):
            inputs = [pixels]
            if other is not None:
                inputs += [other[1], torch.from_numpy(images.study[batch.rows]).to(device)]
            if self.texts is not None:
                assert images.report is not None
                inputs += [tensor.to(device) for tensor in self.texts.batch(images.report[batch.rows], epoch)]
            yield tuple(inputs), [(1.0, self._targets(shown, batch))]

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

    def _stream(
        self, images: Images, epoch: int, seed: int, copy: int = 0, instead: np.ndarray | None = None
    ) -> Iterator[tuple[Batch, torch.Tensor]]:
        config, worker = self.config, self.worker
        harder = config.tail_augment > config.augment
        counted = self.training.real if len(self.training.real) else self.training
        tail = np.array(rarity(counted.targets)) == TAIL if harder else np.empty(0, bool)
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
                instead=instead,
                unchanged=None if self.unchanged is None else np.isin(images.image_id, self.unchanged),
                ingest=self.job.ingest,
            ),
            worker.device,
        )

    def _targets(self, shown: EpochImages, batch: Batch) -> torch.Tensor:
        import torch

        rows = self.table[shown.rows[batch.rows]]
        return torch.from_numpy(rows).to(self.worker.device, non_blocking=True)


def validation_batches(
    job: Job, config: TrialConfig, images: Images, objective: Objective, fold: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Validation images as an objective without predictions is judged by: augmented as in training, always alike.

    Each worker has all of them, so that all come to the same score. Raises UsageError where the objective reads texts
    and none of them has a report.
    """
    alone = Worker(0, 1, worker_of(job).device)
    images = with_reports(images, objective.needs, config.objective)
    own = config.model_copy(update={"text_reworded": 0.0})  # trials are compared by reports as they are
    texts = text_draws(job, own, objective, fold, config.seed)
    table = np.empty((len(images), 0), np.float32)
    streams = Streams(job, config, images, table, 0, alone, objective.needs, texts)
    shown = drawn(config.model_copy(update={"sampler": "natural", "epochs": 1}), images, 0, 0)
    for inputs, _ in streams.epoch(shown, 0):
        beat()
        yield inputs
