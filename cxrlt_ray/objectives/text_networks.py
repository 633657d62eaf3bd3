"""Classifiers with more outputs than logits, for objectives that ask where a finding is. Both predict as they are."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn.functional import normalize

from cxrlt_ray.models import Classifier
from cxrlt_ray.models.text_heads import QueryDecoder


class Located(nn.Module):
    """A classifier whose head decodes queries, each compared with texts of places through one linear layer.

    places: embeddings [P, E], brought to the norm sqrt(E), as a head's are: their direction counts.
    """

    places: torch.Tensor

    def __init__(self, model: Classifier, places: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        width = places.shape[1]
        self.project = nn.Linear(cast(QueryDecoder, model.head).width, width)
        self.register_buffer("places", normalize(places.float(), dim=1) * math.sqrt(width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, C, 1 + P] of images [B, H, W]: logits, then the dot products with places."""
        head = cast(QueryDecoder, self.model.head)
        decoded = head.decoded(self.model.features(images))
        scores = self.project(decoded) @ self.places.T
        return torch.cat([head.logits(decoded).unsqueeze(2).to(scores.dtype), scores], dim=2)


class Grounded(nn.Module):
    """A classifier whose head gives attention maps."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [B, C, 1 + N] of images [B, H, W]: logits, then attention in 0..1 to N places, row by row."""
        logits, maps = self.model.with_maps(images)
        return torch.cat([logits.unsqueeze(2).float(), maps.flatten(2).float()], dim=2)
