"""Patches and words: the local alignment of an image and a report (SLA, team C, MaMA: Du et al. 2024).

S = patches . words of an image and a report. Two scores of how well they fit:

    code     c_T = mean over words of the maximum over patches, c_V = mean over patches of the maximum over words
    slides   a word attends over the patches, a patch over the words, and what they attend to is compared with them:
             c_T = mean over words of sum_p softmax_p(S / t) S, c_V = mean over patches of sum_w softmax_w(S / t) S

The slides' becomes the code's as t falls to 0. Each score has a symmetric cross-entropy over the batch with a scale of
its own, and the loss is the mean of the two. Padding is no word: C's code lets it win the maximum over words.

Patches stay on their worker. It scores its own images against all workers' reports, whose words are gathered, and the
scores [N, N] are gathered in their turn, for the reports' direction. S of one image and one report is never kept: the
reports are taken in chunks, and each chunk is computed again in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from cxrlt_ray.objectives.terms.contrast import NO_TEXT, cross_entropies, distinct
from cxrlt_ray.objectives.terms.gather import gathered, joint_mean, padded_alike, share_of

CHUNK = 1 << 24  # values of S at a time: 64 MiB
FORMS = ("code", "slides")


def local_scores(
    patches: torch.Tensor, words: torch.Tensor, mask: torch.Tensor, form: str = "code", temperature: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """(c_T, c_V), each [B, M]: every image against every report. In [-1, 1].

    patches: [B, P, D]; words: [M, W, D]; both normalised here. mask: bool or int [M, W], 0 for padding; a report
    without any word has scores of 0. temperature: t of the slides' form.
    """
    if form not in FORMS:
        raise ValueError(f"form is {' or '.join(FORMS)}, not {form!r}")
    patches, words = F.normalize(patches.float(), dim=-1), F.normalize(words.float(), dim=-1)
    mask = mask.bool()
    count = max(1, CHUNK // (patches.shape[0] * patches.shape[1] * words.shape[1]))
    parts = [
        checkpoint(_scores, patches, some, kept, form, temperature, use_reentrant=False)
        for some, kept in zip(words.split(count), mask.split(count), strict=True)
    ]
    return torch.cat([c for c, _ in parts], dim=1), torch.cat([c for _, c in parts], dim=1)


def _scores(
    patches: torch.Tensor, words: torch.Tensor, mask: torch.Tensor, form: str, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`local_scores` of a chunk of reports."""
    similar = torch.einsum("bpd,mwd->bmpw", patches, words)
    hidden = ~mask[:, None, :]  # [M, 1, W]
    empty = ~mask.any(dim=1)
    if form == "code":
        by_word = similar.amax(dim=2)
        by_patch = similar.masked_fill(hidden, -torch.inf).amax(dim=3)
    else:
        by_word = ((similar / temperature).softmax(dim=2) * similar).sum(dim=2)
        attention = (similar / temperature).masked_fill(hidden, -torch.inf).masked_fill(empty[:, None, None], 0.0)
        by_patch = (attention.softmax(dim=3) * similar).sum(dim=3)
    of_text = (by_word * mask).sum(dim=2) / mask.sum(dim=1).clamp(min=1)
    return of_text, by_patch.masked_fill(empty[:, None], 0.0).mean(dim=2)


def local_alignment(
    patches: torch.Tensor,
    words: torch.Tensor,
    mask: torch.Tensor,
    scales: tuple[torch.Tensor | float, torch.Tensor | float],
    text: torch.Tensor | None = None,
    form: str = "code",
    temperature: float = 0.1,
) -> torch.Tensor:
    """SLA of pairs: the mean over c_T and c_V of the mean of both directions' cross-entropies.

    patches: [B, P, D]; words: [B, W, D] with mask [B, W]; pair i is row i of both. scales: the factors of c_T and c_V.
    text: int64 [B], as in `contrast.info_nce`; without it all texts differ. A batch of one pair has loss 0.
    """
    share = share_of(patches)
    words, mask = padded_alike(words), padded_alike(mask.to(torch.int64))
    paired = mask.any(dim=1) if text is None else mask.any(dim=1) & (text != NO_TEXT)
    if text is None:
        text = torch.arange(len(patches), device=patches.device) + share.first + 1
    allowed = distinct(text, share) & gathered(paired, share).unsqueeze(0)
    own = share.own(patches.device)
    allowed[torch.arange(len(patches), device=patches.device), own] = True
    losses = []
    both = local_scores(patches, gathered(words, share), gathered(mask, share), form, temperature)
    for scores, scale in zip(both, scales, strict=True):
        columns = gathered(scores, share)[:, own].T  # every image against this worker's reports: [B, N]
        for logits in (scale * scores, scale * columns):
            losses.append(joint_mean(cross_entropies(logits, share, allowed), paired))
    return torch.stack(losses).mean()
