"""Measures a network while it is trained, on images that it is not trained on; what it is trained to stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.shards import nearest
from cxrlt_ray.data.stream import batches
from cxrlt_ray.objectives.registry import Objective
from cxrlt_ray.pretraining.measures import effective_rank, knn_map
from cxrlt_ray.runs.pretrain_record import Point
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training import device as device_
from cxrlt_ray.training.heartbeat import beat
from cxrlt_ray.training.job import Job

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier

BATCH = 64  # images of a forward pass


@dataclass(frozen=True)
class Monitored:
    """The images to measure by: ids and subjects [N], labels int8 [N, C], 1, 0 or -1."""

    image_id: np.ndarray
    subjects: np.ndarray
    targets: np.ndarray


@contextmanager
def undisturbed(network: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """The network in evaluation; afterwards its modules' modes and torch's random numbers are as they were."""
    import torch

    modes = [(module, module.training) for module in network.modules()]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            network.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def features_of(
    model: Classifier, job: Job, config: TrialConfig, images: Monitored, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The backbone's pooled features float32 [n, D], and the rows [n] of `images` that they are of.

    Images in quarantine are left out.
    """
    import torch

    shards, amp = nearest(job.shards, config.resolution), device_.autocast(config.precision, device)
    parts, rows = [], []
    for batch in batches(shards, images.image_id, config.resolution, BATCH, crop=config.crop, ingest=job.ingest):
        beat()
        with amp():
            features = model.features(torch.from_numpy(batch.images).to(device))[: len(batch.rows)]
        parts.append(features.float().mean(dim=1).cpu().numpy())
        rows.append(batch.rows)
    order = np.concatenate(rows)
    return np.concatenate(parts)[np.argsort(order, kind="stable")], np.sort(order)


def measure(
    network: torch.nn.Module,
    objective: Objective,
    job: Job,
    config: TrialConfig,
    images: Monitored,
    device: torch.device,
    at: tuple[int, int],
    loss: float,
) -> Point:
    """A measurement of the network after `at`: (stage, steps)."""
    with undisturbed(network, device):
        features, rows = features_of(objective.classifier(network), job, config, images, device)
        statistics = dict(objective.statistics(network))
    known = knn_map(features, images.targets[rows], images.subjects[rows])
    return Point(
        stage=at[0],
        step=at[1],
        loss=loss,
        effective_rank=effective_rank(features),
        knn=None if known is None else known[0],
        chance=None if known is None else known[1],
        statistics=statistics,
    )
