"""A text encoder that learns which texts are of one concept: KAD's text stage (Zhang et al. 2023, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from cxrlt_ray.objectives.terms.entities import entity_contrast
from cxrlt_ray.text.encoders import TextEncoder

FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0  # of cosines: CLIP's, which KAD takes


class EntityNetwork(nn.Module):
    """A text encoder and the learned scale of its cosines."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, left: Sequence[str], right: Sequence[str], concept: torch.Tensor) -> torch.Tensor:
        """The contrast of B pairs of texts of concepts int64 [B]; pairs of one concept are positives of each other."""
        first, second = (self.encoder(self.encoder.tokenize(texts)) for texts in (left, right))
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        return entity_contrast(first, second, concept.to(first.device), scale)
