"""Study-level models: the tokens of a study's images together -> one row of logits for all of them.

    transformer  a transformer over the joined tokens of all views (CheXFusion), then the head
    attention    the head on every view, views weighted by gated attention for each finding

What concerns one image only is computed for all images of a batch at once, in `per_image`; then studies with equally
many images are computed together. Nothing is padded, so a study's logits cannot depend on which studies share its
batch. To add one: a subclass of `Fusion` like `AttentionFusion`, under `@register_fusion("name")`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import isqrt
from typing import TypeVar

import torch
from torch import nn

from cxrlt_ray.data.manifest import VIEWS
from cxrlt_ray.models.attention import EncoderLayer, positions, width_for
from cxrlt_ray.models.spec import ModelSpec

MAX_VIEWS = 16  # images of a study that are read together; CXR-LT's largest study has 11


class Fusion(nn.Module):
    """The base of all fusions. needs_map: reads the feature map's tokens; per_finding: has weights of each finding;
    width: features of a token for the head.
    """

    needs_map = True
    per_finding = False
    width: int

    def __init__(self, features: int, findings: int, spec: ModelSpec) -> None:
        super().__init__()

    def per_image(self, tokens: torch.Tensor) -> torch.Tensor:
        """What `forward` takes of every image [n, N', D'], from its tokens [n, N, D]; by default the tokens."""
        return tokens


FUSIONS: dict[str, type[Fusion]] = {}
F = TypeVar("F", bound=type[Fusion])


def register_fusion(name: str) -> Callable[[F], F]:
    """Make a fusion known by `name` to search spaces and to the tests that all fusions must pass."""

    def register(fusion: F) -> F:
        FUSIONS[name] = fusion
        return fusion

    return register


@torch._disable_dynamo  # sizes differ from batch to batch; torch.compiler.disable imports half of torch at once
def by_study(
    fusion: nn.Module, head: nn.Module, tokens: torch.Tensor, study: torch.Tensor | None, view: torch.Tensor | None
) -> torch.Tensor:
    """Logits [n, C] of the n images' `fusion.per_image`: each has its study's. study, view: as in Classifier."""
    if view is None:
        view = torch.full((len(tokens),), VIEWS.index("UNKNOWN"), device=tokens.device)
    logits, order = [], []
    for studies in groups(study, len(tokens)):
        size = len(studies[0])
        rows = torch.tensor(studies, device=tokens.device).flatten()
        fused = fusion(
            tokens[rows].unflatten(0, (-1, size)), view.to(tokens.device)[rows].unflatten(0, (-1, size)), head
        )
        logits.append(fused.repeat_interleave(size, dim=0))
        order.append(rows)
    return torch.cat(logits)[torch.cat(order).argsort()]


def groups(study: torch.Tensor | None, count: int) -> list[list[list[int]]]:
    """The rows of each study, studies of equally many images together; studies past MAX_VIEWS images are cut.

    Raises ValueError where a study's images do not stand together.
    """
    if study is None:
        return [[[row] for row in range(count)]]
    codes = [0] * count if study.is_meta else study.tolist()  # meta: a cost estimate, its studies have no codes
    studies: list[list[int]] = []
    for row, code in enumerate(codes):
        if row and code == codes[row - 1] and len(studies[-1]) < MAX_VIEWS:
            studies[-1].append(row)
        else:
            studies.append([row])
    if len(set(codes)) != 1 + sum(a != b for a, b in pairwise(codes)):
        raise ValueError("images of a study must stand next to each other in a batch")
    return [[rows for rows in studies if len(rows) == size] for size in sorted({len(rows) for rows in studies})]


@register_fusion("transformer")
class TransformerFusion(Fusion):
    """CheXFusion (Kim 2023): the views' feature maps, halved, with position, view-type and segment embeddings, joined;
    a transformer encoder of two layers; then the head (the paper's is `ml_decoder`).

    Ours differs: no padding; a depthwise convolution halves the map, not a full one; view-type embeddings are added;
    these and the segment embeddings (which image of the study) start at zero, so that rare ones do no harm.
    On 768 features (ConvNeXt-S) 11.6 million parameters, besides the head's.
    """

    LAYERS = 2

    def __init__(self, features: int, findings: int, spec: ModelSpec) -> None:
        super().__init__(features, findings, spec)
        self.width = width_for(features)
        self.halve = nn.Conv2d(features, features, 3, stride=2, padding=1, groups=features)
        self.project = nn.Linear(features, self.width)
        self.view, self.segment = nn.Embedding(len(VIEWS), self.width), nn.Embedding(MAX_VIEWS, self.width)
        self.layers = nn.ModuleList(EncoderLayer(self.width, spec.drop_rate) for _ in range(self.LAYERS))
        for embedding in (self.view, self.segment):
            nn.init.zeros_(embedding.weight)

    def per_image(self, tokens: torch.Tensor) -> torch.Tensor:
        """The halved feature map with its position embeddings [n, ceil(side / 2)^2, width]."""
        count, length, features = tokens.shape
        side = isqrt(length)
        grid = tokens.reshape(count, side, side, features).permute(0, 3, 1, 2)
        x = self.project(self.halve(grid).flatten(2).transpose(1, 2))
        return x + positions(isqrt(x.shape[1]), self.width, x.device)

    def forward(self, tokens: torch.Tensor, view: torch.Tensor, head: nn.Module) -> torch.Tensor:
        """Logits [S, C] of `per_image`'s tokens [S, V, N, D] and views [S, V]."""
        x = tokens + self.view(view).unsqueeze(2) + self.segment.weight[: view.shape[1]].unsqueeze(1)
        x = x.flatten(1, 2)
        for layer in self.layers:
            x = layer(x)
        return head(x)


@register_fusion("attention")
class AttentionFusion(Fusion):
    """Gated attention over views (Ilse et al. 2018, eq. 9), with weights for every finding.

    a_vc = softmax_v(w_c . (tanh(V h_v + t_v) * sigmoid(U h_v))), h_v the view's pooled features, t_v its type's
    embedding (ours). A finding's logit is the mean of the views' by a_vc: with a linear head the same as that head
    on the attention-pooled features. The order of images does not matter. 0.2 million parameters on 768 features.
    """

    needs_map, per_finding = False, True
    HIDDEN = 128

    def __init__(self, features: int, findings: int, spec: ModelSpec) -> None:
        super().__init__(features, findings, spec)
        self.width = features
        self.look, self.gate = nn.Linear(features, self.HIDDEN), nn.Linear(features, self.HIDDEN)
        self.view = nn.Embedding(len(VIEWS), self.HIDDEN)
        self.weigh = nn.Linear(self.HIDDEN, findings, bias=False)
        nn.init.zeros_(self.view.weight)

    def forward(self, tokens: torch.Tensor, view: torch.Tensor, head: nn.Module) -> torch.Tensor:
        """Logits [S, C] of tokens [S, V, N, D] and views [S, V]."""
        logits = head(tokens.flatten(0, 1)).unflatten(0, view.shape)  # [S, V, C]
        pooled = tokens.mean(dim=2)
        gated = (self.look(pooled) + self.view(view)).tanh() * self.gate(pooled).sigmoid()
        weights = self.weigh(gated).float().softmax(dim=1)
        return (weights * logits).sum(dim=1)
