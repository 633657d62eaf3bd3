"""Random numbers of a batch's images, by a seed: the same on one worker and on several that share the batch.

Each worker draws for all workers' images and takes its own rows. They are drawn on the CPU, so that they do not depend
on the device, and by a seed of their own, so that nothing of a generator's state need be kept for a resume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cxrlt_ray.objectives.terms.gather import Share


class Draws:
    """Draws for the images of one batch. seed: whole numbers from 0. share: the worker's rows among those of all."""

    def __init__(self, seed: Sequence[int], share: Share, device: torch.device) -> None:
        state = int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0])
        self.generator = torch.Generator().manual_seed(state >> 1)
        self.share, self.device = share, device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Float [B, *shape], uniform in [low, high)."""
        values = torch.rand(self.share.total, *shape, generator=self.generator)
        return self._own(low + (high - low) * values)

    def chance(self, probability: float) -> torch.Tensor:
        """Bool [B], each true with the probability."""
        return self.uniform() < probability

    def rank(self) -> torch.Tensor:
        """Int64 [B]: the images' places in a random order of all workers' images."""
        return self._own(torch.randperm(self.share.total, generator=self.generator))

    def _own(self, values: torch.Tensor) -> torch.Tensor:
        first = self.share.first
        return values[first : first + self.share.sizes[self.share.rank]].to(self.device)
