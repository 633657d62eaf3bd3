"""Study-level models: the places of a study's images together -> one row of logits for all of them.

    transformer  a transformer over the joined places of all views (CheXFusion), then the head
    attention    the head on every view, views weighted by gated attention for each finding

What is done to each image by itself is done to all at once, `each`; then studies of equally many images are computed
together: nothing is padded, so a study's logits cannot depend on which studies share its batch. To add one: a module
like `Attention`, with `@register_fusion("name")`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cxrlt_ray.data.manifest import VIEWS
from cxrlt_ray.models.attention import Encoder, positions, width_for

if TYPE_CHECKING:
    from cxrlt_ray.models import ModelSpec

MAX_VIEWS = 16  # images of a study that are read together; CXR-LT's largest study has 11
FUSIONS: dict[str, Any] = {}


def register_fusion(name: str) -> Callable[[Any], Any]:
    """Make a fusion known by `name` to search spaces and to the tests that all fusions must pass."""

    def register(fusion: Any) -> Any:
        FUSIONS[name] = fusion
        return fusion

    return register


@torch.compiler.disable  # sizes differ from batch to batch
def by_study(
    fusion: nn.Module, head: nn.Module, places: torch.Tensor, study: torch.Tensor | None, view: torch.Tensor | None
) -> torch.Tensor:
    """Logits [n, C] of what `fusion.each` gave of n images: each has its study's. study, view: as in Classifier."""
    if view is None:
        view = torch.full((len(places),), VIEWS.index("UNKNOWN"), device=places.device)
    logits, order = [], []
    for rows in groups(study, len(places)):
        size = len(rows[0])
        at = torch.tensor(rows, device=places.device).flatten()
        each = fusion(places[at].unflatten(0, (-1, size)), view.to(places.device)[at].unflatten(0, (-1, size)), head)
        logits.append(each.repeat_interleave(size, dim=0))
        order.append(at)
    return torch.cat(logits)[torch.cat(order).argsort()]


def groups(study: torch.Tensor | None, count: int) -> list[list[list[int]]]:
    """The rows of each study, studies of equally many images together; studies past MAX_VIEWS images are cut.

    Raises ValueError where a study's images do not stand together.
    """
    if study is None:
        return [[[row] for row in range(count)]]
    codes = [0] * count if study.is_meta else study.tolist()  # meta: of a model's cost, nothing is known of its studies
    found: list[list[int]] = []
    for row, code in enumerate(codes):
        if row and code == codes[row - 1] and len(found[-1]) < MAX_VIEWS:
            found[-1].append(row)
        else:
            found.append([row])
    if len(set(codes)) != 1 + sum(a != b for a, b in pairwise(codes)):
        raise ValueError("images of a study must stand next to each other in a batch")
    return [[rows for rows in found if len(rows) == size] for size in sorted({len(rows) for rows in found})]


class Fusion(nn.Module):
    """What all fusions have. reads_map: needs the places apart; width: features of the places given to the head."""

    reads_map = True
    width: int

    def each(self, places: torch.Tensor) -> torch.Tensor:
        """What `forward` joins of every image [n, N', D'], of its places [n, N, D]; the same unless said otherwise."""
        return places


@register_fusion("transformer")
class Transformer(Fusion):
    """CheXFusion (Kim 2023): the views' maps, halved, with positional, view-type and segment embeddings, joined; a
    transformer encoder of two layers; then the head (the paper's is `ml_decoder`).

    Ours differs: no padding; a depthwise convolution halves the map, not a full one; view-type embeddings are added;
    these and the segments' (which image of the study) begin at zero, so that rare ones do no harm.
    On 768 features (ConvNeXt-S) 11.6 million parameters, besides the head's.
    """

    LAYERS = 2

    def __init__(self, features: int, findings: int, spec: ModelSpec) -> None:
        super().__init__()
        self.width = width_for(features)
        self.halve = nn.Conv2d(features, features, 3, stride=2, padding=1, groups=features)
        self.project = nn.Linear(features, self.width)
        self.view, self.segment = nn.Embedding(len(VIEWS), self.width), nn.Embedding(MAX_VIEWS, self.width)
        self.layers = nn.ModuleList(Encoder(self.width, spec.drop_rate) for _ in range(self.LAYERS))
        for embedding in (self.view, self.segment):
            nn.init.zeros_(embedding.weight)

    def each(self, places: torch.Tensor) -> torch.Tensor:
        """The map, halved, with its positions [n, ceil(side / 2)^2, width]."""
        count, found, features = places.shape
        side = isqrt(found)
        grid = places.reshape(count, side, side, features).permute(0, 3, 1, 2)
        x = self.project(self.halve(grid).flatten(2).transpose(1, 2))
        return x + positions(isqrt(x.shape[1]), self.width, x.device)

    def forward(self, places: torch.Tensor, view: torch.Tensor, head: nn.Module) -> torch.Tensor:
        """Logits [S, C] of what `each` gave [S, V, N, D] and views [S, V]."""
        x = places + self.view(view).unsqueeze(2) + self.segment.weight[: view.shape[1]].unsqueeze(1)
        x = x.flatten(1, 2)
        for layer in self.layers:
            x = layer(x)
        return head(x)


@register_fusion("attention")
class Attention(Fusion):
    """Gated attention over views (Ilse et al. 2018, eq. 9), weights of their own for every finding.

    a_vc = softmax_v(w_c . (tanh(V h_v + t_v) * sigmoid(U h_v))), h_v the view's pooled features, t_v its type's
    embedding (ours). A finding's logit is the mean of the views' by a_vc: with a linear head the same as that head
    on the attention-pooled features. The order of images is of no matter. 0.2 million parameters on 768 features.
    """

    reads_map = False
    HIDDEN = 128

    def __init__(self, features: int, findings: int, spec: ModelSpec) -> None:
        super().__init__()
        self.width = features
        self.look, self.gate = nn.Linear(features, self.HIDDEN), nn.Linear(features, self.HIDDEN)
        self.view = nn.Embedding(len(VIEWS), self.HIDDEN)
        self.weigh = nn.Linear(self.HIDDEN, findings, bias=False)
        nn.init.zeros_(self.view.weight)

    def forward(self, places: torch.Tensor, view: torch.Tensor, head: nn.Module) -> torch.Tensor:
        """Logits [S, C] of places [S, V, N, D] and views [S, V]."""
        logits = head(places.flatten(0, 1)).unflatten(0, view.shape)  # [S, V, C]
        seen = places.mean(dim=2)
        gated = (self.look(seen) + self.view(view)).tanh() * self.gate(seen).sigmoid()
        weights = self.weigh(gated).float().softmax(dim=1)
        return (weights * logits).sum(dim=1)
