"""Classifiers with more outputs than logits, for objectives that ask where a finding is, or for sentences of reports.

All predict as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from cxrlt_ray.models import Classifier
from cxrlt_ray.models.asking import Both
from cxrlt_ray.models.text_heads import QueryDecoder, of_length
from cxrlt_ray.objectives.draws import Draws
from cxrlt_ray.objectives.stated_phrases import StatedPhrases
from cxrlt_ray.objectives.terms.gather import share_of

if TYPE_CHECKING:
    from cxrlt_ray.objectives.stated_phrases import Embeddings


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
        self.register_buffer("places", of_length(places.float()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, C, 1 + P] of images [B, H, W]: logits, then the dot products with places."""
        head = cast(QueryDecoder, self.model.head)
        decoded = head.decoded(self.model.features(images))
        scores = self.project(decoded) @ self.places.T
        return torch.cat([head.logits(decoded).unsqueeze(2).to(scores.dtype), scores], dim=2)


class Asking(nn.Module):
    """A classifier that is asked for findings and for sentences that reports of a batch's images state.

    phrases: whose embeddings [S, E] `embeddings` gives by number. targets: int8 [N, C], the training images' labels.
    count: sentences that are drawn of an image's report. alike: standard deviations, as of `least_alike`.
    """

    batch: torch.Tensor

    def __init__(
        self,
        model: Classifier,
        phrases: StatedPhrases,
        embeddings: Embeddings,
        targets: np.ndarray,
        count: int,
        alike: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.model, self.phrases, self.embeddings, self.targets = model, phrases, embeddings, targets
        self.count, self.seed = count, seed
        self.least = phrases.least_alike(embeddings, alike, seed)
        self.register_buffer("batch", torch.zeros((), dtype=torch.int64))

    def sentences(self, images: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [K, E] of sentences drawn for a batch, which are training images `rows`, int64 [B], and labels.

        Labels: int8 [B, C + K], -1 for all findings.
        """
        draws = Draws([self.seed, 0, int(self.batch)], share_of(images), images.device)
        if self.training:
            self.batch += 1
        at = rows.cpu().numpy()
        asked = self.phrases.drawn(at, draws.uniform(self.count).cpu().numpy())
        alike = self.phrases.alike(at, asked, self.embeddings, self.least)
        labels = self.phrases.labels(at, self.targets[at], asked, alike)
        unasked = np.full(self.targets[at].shape, -1, np.int8)
        texts = torch.from_numpy(self.embeddings(asked)).to(images.device)
        return texts, torch.from_numpy(np.concatenate([unasked, labels], axis=1)).to(images.device)


class StatedLogits(Asking):
    """With logits alone, of any head that knows a finding by its text."""

    def forward(self, images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """float32 [B, C + K, 2] of images [B, H, W] and their rows: logits and labels of C findings and K sentences."""
        texts, labels = self.sentences(images, rows)
        network = Both(self.model, texts) if len(texts) else self.model
        logits = network(images)
        return torch.stack([logits.float(), labels.float()], dim=2)


class GroundedPhrases(Asking):
    """With the head's attention maps."""

    def forward(self, images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """float32 [B, C + K, 2 + N] of images [B, H, W] and their rows.

        Of C findings and K sentences: logits, attention to N places, and labels.
        """
        texts, labels = self.sentences(images, rows)
        logits, maps = self.model.with_maps(images, texts)
        return torch.cat([part.float() for part in (logits.unsqueeze(2), maps.flatten(2), labels.unsqueeze(2))], dim=2)


class Grounded(nn.Module):
    """A classifier whose head gives attention maps."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [B, C, 1 + N] of images [B, H, W]: logits, then attention in 0..1 to N places, row by row."""
        logits, maps = self.model.with_maps(images)
        return torch.cat([logits.unsqueeze(2).float(), maps.flatten(2).float()], dim=2)
