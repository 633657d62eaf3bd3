"""Images and texts: the symmetric InfoNCE of CLIP and the sigmoid loss of SigLIP, over the pairs of all workers.

Radford et al. 2021 (CLIP, figure 3; scale from 1 / .07, at most 100, section 2.5) and Zhai et al. 2023 (SigLIP,
algorithm 1; scale from 10, bias from -10). A worker computes its own rows against all columns: [B, N] logits, never
[N, N] (open_clip's `local_loss` with `gather_with_grad`).

Texts of radiology repeat: "No acute cardiopulmonary process." is true of many images of a batch. Pairs with equal texts
are no negatives of each other, as told by the numbers of their texts. Pairs without text (NO_TEXT) are neither rows nor
columns. B's code takes a new scale at every call and features of any length; C's and G's negatives are those of a GPU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from cxrlt_ray.objectives.terms.gather import Share, gathered, joint_mean, share_of

NO_TEXT = 0  # among the numbers of texts
MOST = math.log(100.0)  # of the log scale


class LogScale(nn.Module):
    """The learned scale of logits, kept as its logarithm; at most 100 after `limit`.

    CLIP limits the parameter after a step. A limit inside the loss would have no gradient beyond it, and stay there.
    """

    def __init__(self, start: float = 1 / 0.07) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> torch.Tensor:
        """The scale, a scalar."""
        return self.log.exp()

    @torch.no_grad()
    def limit(self) -> None:
        """Bring the scale to at most 100: called after each step of the optimizer."""
        self.log.clamp_(max=MOST)


def info_nce(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor | float, text: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean of both directions' cross-entropies: an image's text among all texts, a text's image among all images.

    images, texts: [B, D], of any length; pair i is row i of both. scale: the factor of cosines. text: int64 [B], equal
    for equal texts, NO_TEXT for none; without it all texts differ.
    """
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    share = share_of(images)
    allowed, paired = _columns(text, share, images)
    of_images = cross_entropies(scale * images @ gathered(texts, share).T, share, allowed)
    of_texts = cross_entropies(scale * texts @ gathered(images, share).T, share, allowed)
    return (joint_mean(of_images, paired) + joint_mean(of_texts, paired)) / 2


def sigmoid_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor | float,
    bias: torch.Tensor | float,
    text: torch.Tensor | None = None,
) -> torch.Tensor:
    """SigLIP: -log sigmoid(z (scale cos + bias)), z = 1 for a pair and -1 for all others, summed over texts, mean over
    images. Arguments as of `info_nce`; bias: added to the logits.
    """
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    share = share_of(images)
    allowed, paired = _columns(text, share, images)
    logits = scale * images @ gathered(texts, share).T + bias
    own = logits.gather(1, share.own(images.device).unsqueeze(1)).squeeze(1)
    # -log sigmoid(-x) is softplus(x), and -log sigmoid(x) is softplus(x) - x
    return joint_mean((F.softplus(logits) * allowed).sum(dim=1) - own, paired)


def cross_entropies(logits: torch.Tensor, share: Share, allowed: torch.Tensor) -> torch.Tensor:
    """-log softmax of each row's own column among those that are allowed: [B], from logits [B, N] and bool [B, N]."""
    own = share.own(logits.device)
    positive = logits.gather(1, own.unsqueeze(1)).squeeze(1)
    return logits.masked_fill(~allowed, -torch.inf).logsumexp(dim=1) - positive


def distinct(number: torch.Tensor, share: Share) -> torch.Tensor:
    """Bool [B, N]: columns whose number differs from the row's, and the row's own. number: int64 [B]."""
    differs = number.unsqueeze(1) != gathered(number, share).unsqueeze(0)
    differs[torch.arange(len(number), device=number.device), share.own(number.device)] = True
    return differs


def _columns(text: torch.Tensor | None, share: Share, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which columns stand against each row, bool [B, N], and which rows are pairs, bool [B]."""
    if text is None:
        ones = torch.ones(len(rows), share.total, dtype=torch.bool, device=rows.device)
        return ones, ones[:, 0]
    paired = text != NO_TEXT
    allowed = distinct(text, share) & gathered(paired, share).unsqueeze(0)
    # a row without text has itself alone: its logarithms stay finite, and it counts for nothing
    allowed[torch.arange(len(rows), device=rows.device), share.own(rows.device)] = True
    return allowed, paired
