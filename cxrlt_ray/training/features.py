"""Features of a stage's frozen backbone: computed and stored in one pass, shared by all trials, read in every epoch.

A frozen backbone gives the same features of an image in every epoch and in every trial with its weights. They are
stored by shard, as images are first needed (data/features.py says where), by the trial's own device; the images come
by threads or by Ray Data, as in training. One trial computes, others wait for it. Where they do not fit the disk or
`--features-gb`, are no finite half-precision numbers, or cannot be written, each epoch computes them again from the
same images: a trial comes to the same within half precision, only later.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TextIO

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.data.features import (
    FeatureKey,
    FeatureStorage,
    StoredFeatures,
    features_folder,
    read_part,
    storage_of,
    write_part,
)
from cxrlt_ray.data.image_transform import AugmentedView, ImageCopy, Look
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.stream import batches, stream_views
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.claim import Taken, claim
from cxrlt_ray.training import device as device_
from cxrlt_ray.training.heartbeat import beat
from cxrlt_ray.training.job import Job
from cxrlt_ray.training.workers import Worker, agree, worker_of

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier

BATCH = 64  # images of a forward pass
PAUSE = 1.0  # seconds between two looks at a store that another process writes


@dataclass
class FrozenFeatures:
    """The features of `model`'s frozen backbone for one stage, on all of a trial's workers."""

    job: Job
    config: TrialConfig
    model: Classifier
    shards: Shards
    worker: Worker
    opened: dict[Look, StoredFeatures] = field(default_factory=dict)
    refused: set[tuple[Look, tuple[str, ...]]] = field(default_factory=set)  # looks at shards that are not stored

    @cached_property
    def storage(self) -> FeatureStorage:
        """Where features are kept."""
        return FeatureStorage(features_folder(storage_of(self.shards)), self.job.features)

    @cached_property
    def weights(self) -> str:
        """The fingerprint of what gives the features; computed once: frozen weights stay."""
        return self.model.fingerprint()

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(N, D) of an image's features."""
        import torch

        image = torch.zeros(1, self.config.resolution, self.config.resolution, dtype=torch.uint8)
        _, count, width = self._features(image.to(self.worker.device)).shape
        return int(count), int(width)

    def stored(self, image_id: np.ndarray, look: Look) -> StoredFeatures | None:
        """The stored features of what `look` makes of these images; those that are missing are computed first.

        None where they are to be computed batch by batch, on all workers alike.
        """
        index = self.shards.index()
        positions = np.sort(index.index.get_indexer(image_id))
        files = tuple(index["file"].iloc[positions[positions >= 0]].unique())  # in the index's order
        before = self.opened.get(look)
        if before is not None and set(files) <= set(before.parts):
            return before
        if not files or (look, files) in self.refused:
            return None
        precision = device_.precision(self.config.precision, self.worker.device)
        key = FeatureKey(self.shards.name(), self.weights, self.config.backbone, precision, look)
        features = self._open(key, files)
        if features is None:
            self.refused.add((look, files))
            return None
        self.opened[look] = replace(features, parts={**(before.parts if before else {}), **features.parts})
        return self.opened[look]

    def _open(self, key: FeatureKey, files: Sequence[str]) -> StoredFeatures | None:
        """The features in the shards `files`; those that no process has stored are computed and stored."""
        parts = self._read(key, files)
        missing = [file for file in files if file not in parts]
        size = sum(len(self.shards.images_in(file)) for file in missing) * 2 * math.prod(self.shape)
        use, fault = self._enter(key, size)
        if not agree(use is not None, self.worker):
            self._tell_not_stored(fault)
            return None
        if not agree(not missing, self.worker):
            with self._claimed(self.storage.store(key)):
                parts |= self._read(key, missing, again=True)  # another process may have stored them meanwhile
                missing = [file for file in files if file not in parts]
                agree(True, self.worker)  # all have seen the same before the first one writes
                fault = self._store(key, missing[self.worker.rank :: self.worker.world])
                stored = agree(not fault, self.worker)
            if not stored:
                self._tell_not_stored(fault or "another worker cannot store features")
                return None
            parts |= self._read(key, missing)
        if not agree(set(parts) == set(files), self.worker):
            self._tell_not_stored(f"features in {self.storage.folder} are removed while they are read")
            return None
        assert use is not None
        return StoredFeatures(parts, use)

    def _enter(self, key: FeatureKey, size: int) -> tuple[TextIO | None, str]:
        """The store of `key` in use, with room for `size` bytes more; or why there is none."""
        try:
            use = self.storage.enter(key, size if self.worker.first else 0)
        except (CxrltError, OSError) as error:
            return None, str(error).rstrip(".")
        bound = f"{cli.size(self.storage.bound)} (--features-gb) and the free disk"
        return use, f"{cli.size(size)} more do not fit {bound} of {self.storage.folder}"

    def _read(self, key: FeatureKey, files: Sequence[str], again: bool = False) -> dict[str, np.ndarray]:
        """What is stored of the shards `files`; what is damaged counts as missing, which a line says at first."""
        parts = {}
        for file in files:
            beat()
            try:
                part = read_part(self.storage.store(key), key, self.shards, file, self.shape)
            except CxrltError as error:
                if not again:
                    print(f"  {error}: it is computed again", flush=True)
                continue
            if part is not None:
                parts[file] = part
        return parts

    def _claimed(self, store: Store) -> ExitStack:
        """The claim on a store, once no other process has it. Workers come out of this together."""
        waiting = False
        while True:
            stack, mine = ExitStack(), True
            if self.worker.first:
                try:
                    stack.enter_context(claim(store))
                except Taken as other:
                    mine = False
                    if not waiting:
                        print(
                            f"  {other} computes the features of {self.config.backbone}: waiting for them", flush=True
                        )
            if agree(mine, self.worker):
                return stack
            waiting = True
            beat()
            time.sleep(PAUSE)

    def _store(self, key: FeatureKey, files: list[str]) -> str:
        """Compute the features in the shards `files` and write them; why that was given up, or nothing."""
        import torch

        if not files:
            return ""
        images = [len(self.shards.images_in(file)) for file in files]
        ids = np.concatenate([self.shards.images_in(file) for file in files])
        part, done = np.empty((0, *self.shape), np.float16), 0
        turn = iter(zip(files, images, strict=True))
        for pixels in self._pixels(key.look, ids):
            beat()
            half = self._features(pixels.to(self.worker.device)).to(torch.float16).cpu().numpy()
            if not np.isfinite(half).all():
                return "they are too large for half precision"
            part = np.concatenate([part, half])
            while done < len(files) and len(part) >= images[done]:
                file, count = next(turn)
                try:
                    write_part(self.storage.store(key), key, self.shards, file, part[:count])
                except CxrltError as error:
                    return str(error).rstrip(".")
                part, done = part[count:], done + 1
        return ""

    def _pixels(self, look: Look, ids: np.ndarray) -> Iterator[torch.Tensor]:
        """What `look` makes of the images, uint8 [B, H, W] in their order, which is that of the index."""
        import torch

        ingest = self.job.ingest
        if isinstance(look, AugmentedView) and look.position == (0.5, 0.5) and not look.mirrored:
            stream = batches(self.shards, ids, look.resolution, BATCH, crop=look.crop, ingest=ingest)
            yield from (torch.from_numpy(batch.images) for batch in stream)
        elif isinstance(look, ImageCopy):
            stream = batches(
                self.shards,
                ids,
                look.resolution,
                BATCH,
                epoch=look.number,
                augment=look.augment,
                flip=look.flip,
                crop=look.crop,
                copies=look.number + 1,
                ingest=ingest,
            )
            yield from (torch.from_numpy(batch.images) for batch in stream)
        else:
            parts = [slice(k, k + BATCH) for k in range(0, len(ids), BATCH)]
            views = stream_views(self.shards, ids, [replace(look, mirrored=False)], parts, ingest.threads)
            for (images,) in views:
                pixels = torch.from_numpy(images)
                yield pixels.flip(-1) if look.mirrored else pixels

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """The backbone's features of images [n, H, W], as the stage's forward pass computes them: float [n, N, D]."""
        import torch

        self.model.backbone.eval()  # as in all of a stage in which it is frozen
        with torch.inference_mode(), device_.autocast(self.config.precision, self.worker.device)():
            return self.model.features(images)[: len(images)]

    def _tell_not_stored(self, why: str) -> None:
        """Say that features are not stored."""
        if self.worker.first:
            print(f"  {why}: features of {self.config.backbone} are computed anew in every epoch", flush=True)


def frozen_features(
    job: Job, config: TrialConfig, model: Classifier, shards: Shards, network: torch.nn.Module | None = None
) -> FrozenFeatures | None:
    """The features of a stage's backbone, if it is frozen and features may be stored.

    network: what the objective trains, if not the model: it may do more with the backbone than to call the model, and
    is given images.
    """
    worker = worker_of(job)
    # with shards in an object store a worker does not see what those of other machines write
    alone = worker.world == 1 or shards.store.local is not None
    if not (config.frozen_backbone and job.features and alone and network in (None, model)):
        return None
    return FrozenFeatures(job, config, model, shards, worker)
