"""A text encoder that learns which texts are of one concept: KAD's text stage (Zhang et al. 2023, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from cxrlt_ray.models.precision import in_full_precision
from cxrlt_ray.objectives.terms.contrast import LogScale
from cxrlt_ray.objectives.terms.entities import entity_contrast
from cxrlt_ray.text.encoders import TextEncoder


class EntityNetwork(nn.Module):
    """A text encoder and the learned scale of its cosines: CLIP's, which KAD takes."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder, self.scale = encoder, LogScale()

    def forward(self, left: Sequence[str], right: Sequence[str], concept: torch.Tensor) -> torch.Tensor:
        """The contrast of B pairs of texts of concepts int64 [B]; pairs of one concept are positives of each other."""
        first, second = (self.encoder(self.encoder.tokenize(texts)) for texts in (left, right))
        with in_full_precision(first.device):
            return entity_contrast(first, second, concept.to(first.device), self.scale())
