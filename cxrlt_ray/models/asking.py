"""A trained model, asked for findings that it was not trained on, by their texts' embeddings alone (zero-shot).

`asked` gives a model of its own for them; `Both` answers for the findings trained on and for others in one pass.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models.classifier import Classifier
from cxrlt_ray.models.fusion import FUSIONS
from cxrlt_ray.models.heads import HEADS
from cxrlt_ray.models.spec import NO_FUSION
from cxrlt_ray.models.text_heads import QueryDecoder

M = TypeVar("M", bound=nn.Module)


def asked(model: Classifier, embeddings: torch.Tensor) -> Classifier:
    """`model` for C' other findings, known by label embeddings float [C', E] from its own encoder and prompts.

    It shares all weights with `model`, which stays as it is; its `shift` is zero, since an unseen finding has no prior
    to adjust by. Raises UsageError where head or fusion know findings otherwise than by text, and for another E.
    """
    head_name = next(name for name, head in HEADS.items() if type(model.head) is head)
    fusion_name = next((name for name, fusion in FUSIONS.items() if type(model.fusion) is fusion), NO_FUSION)
    if fault := why_not(head_name, fusion_name):
        raise UsageError(fault)
    own = model.head.embeddings
    assert isinstance(own, torch.Tensor)
    if embeddings.ndim != 2 or embeddings.shape[1] != own.shape[1]:
        raise UsageError(
            f"label embeddings of shape {tuple(embeddings.shape)} do not fit this model, whose texts have "
            f"{own.shape[1]} numbers each: take those of the text encoder it was trained with."
        )
    new = embeddings.to(own)
    twin, head = _shallow(model), _shallow(model.head)
    if isinstance(head, QueryDecoder) and head.self_attention:  # queries keep the company that they were trained in
        head.company = head.company or len(own)
        new = torch.cat([own[: head.company], new])
    head.embeddings = new
    twin.head, twin.priors = head, None
    twin.shift = torch.zeros(len(embeddings), dtype=model.shift.dtype, device=model.shift.device)
    return twin


def why_not(head: str, fusion: str) -> str:
    """Why a model with this head and fusion cannot be asked for other findings, in a sentence; "" where it can."""
    if not HEADS[head].needs_embeddings:
        able = ", ".join(name for name, other in HEADS.items() if other.needs_embeddings)
        return f"head '{head}' knows its findings by their place, not by text: only head {able} can be asked."
    if fusion in FUSIONS and FUSIONS[fusion].per_finding:
        return f"fusion '{fusion}' has weights of each finding it was trained on: only a model without it can be asked."
    return ""


class Both(nn.Module):
    """`model`, and what it is asked for: logits [n, C + C'], its own C first, of one pass through the backbone."""

    def __init__(self, model: Classifier, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.model, self.asked = model, asked(model, embeddings)

    def forward(
        self, images: torch.Tensor, study: torch.Tensor | None = None, view: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As Classifier.forward, without stored features."""
        tokens = self.model.features(images)
        return torch.cat([part.logits(tokens, len(images), study, view) for part in (self.model, self.asked)], dim=1)


def _shallow(module: M) -> M:
    """A module with the same parameters, buffers and parts, any of which can be replaced in one of the two."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin
