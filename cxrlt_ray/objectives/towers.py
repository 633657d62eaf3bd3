"""The two sides of a contrast: images through a classifier's backbone, texts through a text encoder, to one width."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cxrlt_ray.models import Classifier, Similarity
from cxrlt_ray.models.features import width_of
from cxrlt_ray.models.text_heads import of_length
from cxrlt_ray.text.encoder_spec import FROZEN, TextSpec
from cxrlt_ray.text.encoders import POOLS, Tokens, build_text_encoder


class ImageTower(nn.Module):
    """A classifier's features, their mean over positions, and a projection: one linear layer, or two with a ReLU.

    The classifier's head and fusion take no part: they are not trained, and go on into the next stage as they are; but
    head `similarity` gives the linear layer that the projection begins as, and takes the trained one (pretraining.py).
    """

    def __init__(self, model: Classifier, width: int, hidden: bool = False) -> None:
        super().__init__()
        self.model, self.width = model, width
        features = width_of(model.backbone)
        layers = [nn.Linear(features, features), nn.ReLU()] if hidden else []
        self.project: nn.Module = nn.Sequential(*layers, nn.Linear(features, width))
        if not hidden and isinstance(model.head, Similarity):
            self.project = _begun_as(model.head.embed)
        for part in (model.head, model.fusion):
            if part is not None:
                part.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, width] of images uint8 [B, H, W]."""
        return self.project(self.model.features(images).mean(dim=1))

    def patches(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The projection of the mean [B, width], and of every patch [B, P, width]."""
        patches = self.model.patches(images)
        return self.project(patches.mean(dim=1)), self.project(patches)


class TextTower(nn.Module):
    """A text encoder and one linear layer, for a text's vector and for each of its tokens'.

    The weights of a frozen encoder are left out of the state dict: they are read with it, and never change.
    head: where it is given, the linear layer begins as its own, and vectors have the length that it gives them.
    """

    def __init__(self, spec: TextSpec, width: int, head: Similarity | None = None) -> None:
        super().__init__()
        self.encoder = build_text_encoder(spec)
        self.project = nn.Linear(self.encoder.width, width) if head is None else _begun_as(head.ask)
        self.of_length = head is not None
        self.frozen = spec.tuning == FROZEN
        if self.frozen:
            self.register_state_dict_post_hook(_without_encoder)
            self.register_load_state_dict_post_hook(_encoder_not_missing)

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, int64 [B, L]."""
        tokens = self.encoder.tokenize(texts)
        return tokens.ids, tokens.mask

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, width] of tokens [B, L], or of the encoder's vectors float [B, E]."""
        return self._projected(ids if ids.is_floating_point() else self._pooled(*self._hidden(ids, mask)))

    def words(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The texts [B, width], and every token of them [B, L, width]."""
        hidden, kept = self._hidden(ids, mask)
        return self._projected(self._pooled(hidden, kept)), self._projected(hidden)

    def _projected(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.project(of_length(vectors) if self.of_length else vectors)

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder.tokens(Tokens(ids, mask))

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return POOLS[self.encoder.pooling](hidden, mask)


def _begun_as(layer: nn.Linear) -> nn.Linear:
    """A layer that begins as a head's, which is not trained itself, and is trained."""
    return copy.deepcopy(layer).requires_grad_(True)


def _without_encoder(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}encoder.")]:
        del state[name]


def _encoder_not_missing(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if "encoder." not in name]
