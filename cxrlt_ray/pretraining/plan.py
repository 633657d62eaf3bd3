"""What a pretraining will take: images, steps, disk and time, before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cxrlt_ray.data.batching import steps
from cxrlt_ray.pretraining.course import with_steps
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.rates import Rates
from cxrlt_ray.storage import Store

# what an image costs, in images of plain training: two crops of each; MoCo's slow encoder has no backward pass; DINOv2
# has two crops for a teacher too, and 8 local ones of a fifth of the pixels; MAE sees a quarter of the patches, and has
# a decoder
WORK = {"simclr": 2.0, "barlow": 2.0, "moco": 1.7, "mae": 0.5, "dinov2": 4.2}


@dataclass(frozen=True)
class StagePlan:
    """One stage: seconds as estimated, and how the rate is known."""

    config: TrialConfig
    steps: int
    seconds: float
    source: str
    numbers: int


def plan_stages(
    config: TrialConfig, images: int, workers: int, device: str, cores: int, storage: Store
) -> Iterator[StagePlan]:
    """The stages of a pretraining on `images` images. device: a GPU's name or cpu-N; each worker has one."""
    from cxrlt_ray import models

    rates = Rates(storage)
    config = with_steps(config, images, config.batch_size * workers, workers)
    for stage in config.staged():
        count = len(steps(images, stage.batch_size * workers, workers))
        total = -(-count // stage.accumulation) * stage.epochs
        total = min(total, stage.steps or total)
        rate = rates.rate_of(stage.spec(), 1, device, cores)
        each = WORK.get(stage.objective, 2.0) * stage.batch_size * stage.accumulation / rate.rate
        yield StagePlan(stage, total, total * each, rate.source, models.size(stage.spec(), 1)[1])
