"""Tokens of a timm vision transformer for images of any size, with patches that are masked or left out.

timm's own forward pass takes one size of image unless a model is built for more, and has no masks. The weights are the
backbone's own; registers, SwiGLU and layer scale are whatever the model has.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer


def is_plain_transformer(backbone: Any) -> bool:
    """Whether `patch_tokens` is this backbone's forward pass: timm's VisionTransformer on non-overlapping patches.

    Not so for other transformers of timm (EVA, DeiT with its second token, Swin) and for hybrids.
    """
    return type(backbone) is VisionTransformer and type(backbone.patch_embed) is PatchEmbed


def patch_edge(vit: VisionTransformer) -> int:
    """The edge of a patch, in pixels."""
    return int(vit.patch_embed.patch_size[0])


def patch_tokens(
    vit: VisionTransformer,
    pixels: torch.Tensor,
    masked: torch.Tensor | None = None,
    mask_token: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """The last layer's tokens, normalised: [B, P + N, D], P prefix tokens (class, registers) before the patches.

    pixels: float [B, C, H, W], normalised, its edges multiples of the patch's; position embeddings are resampled where
    the grid is not the one that the model was built for. masked: bool [B, N], patches whose embedding is replaced by
    mask_token [1, 1, D]. kept: int64 [B, M], the patches that are seen at all, in this order: N is M then.
    """
    patches = vit.patch_embed.proj(pixels)
    grid = patches.shape[-2:]
    patches = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
    if masked is not None and mask_token is not None:
        patches = torch.where(masked.unsqueeze(-1), mask_token.to(patches.dtype), patches)
    parts = [token.expand(len(patches), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    prefix = torch.cat(parts, dim=1) if parts else patches[:, :0]
    of_prefix, of_patches = _positions(vit, (int(grid[0]), int(grid[1])))
    if of_prefix is not None:
        prefix = prefix + of_prefix
    if of_patches is not None:
        patches = patches + of_patches
    if kept is not None:
        patches = patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    tokens = vit.norm_pre(vit.pos_drop(torch.cat([prefix, patches], dim=1)))
    return vit.fc_norm(vit.norm(vit.blocks(tokens)))


def summary(vit: VisionTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """An image's vector [B, D] of its tokens [B, P + N, D]: the class token, or the patches' mean without one."""
    if vit.cls_token is not None:
        return tokens[:, 0]
    return tokens[:, vit.num_prefix_tokens :].mean(dim=1)


def _positions(vit: VisionTransformer, grid: tuple[int, int]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Position embeddings of the prefix tokens [1, P, D] and of a grid's patches [1, N, D], where there are any."""
    if vit.pos_embed is None:
        return None, None
    count = 0 if vit.no_embed_class else vit.num_prefix_tokens
    embedding = vit.pos_embed
    if grid != tuple(vit.patch_embed.grid_size):
        embedding = resample_abs_pos_embed(
            embedding, list(grid), list(vit.patch_embed.grid_size), num_prefix_tokens=count
        )
    return (embedding[:, :count] if count else None), embedding[:, count:]
