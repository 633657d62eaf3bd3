"""The network of a masked autoencoder (He et al. 2022): an encoder of the patches that are seen, a decoder of all.

Called with images, it returns its one term, float [1]. What is masked is a function of the seed, the number of the
batch and an image's place in it; the number is in the state dict.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from cxrlt_ray.models import Classifier
from cxrlt_ray.models.patch_tokens import patch_edge, patch_tokens
from cxrlt_ray.models.precision import in_full_precision
from cxrlt_ray.objectives.crops import Look, random_crops
from cxrlt_ray.objectives.draws import Draws
from cxrlt_ray.objectives.lightly_parts import mae_decoder
from cxrlt_ray.objectives.terms.gather import Share, joint_mean, share_of
from cxrlt_ray.objectives.terms.masking import kept_patches, masked_errors, patch_pixels

JUDGED = 1  # in the seed of draws for validation


class MaskedAutoencoder(nn.Module):
    """A classifier's backbone as encoder, and a decoder of gray pixels. The classifier's own head takes no part.

    ratio: share of patches that are masked. area: least share of an image that a crop holds; 1: images are whole.
    """

    batch: torch.Tensor

    def __init__(self, model: Classifier, ratio: float, area: float, width: int, depth: int, seed: int) -> None:
        super().__init__()
        self.model, self.ratio, self.area, self.seed = model, ratio, area, seed
        for part in (model.head, model.fusion, getattr(model.backbone, "attn_pool", None)):
            if part is not None:
                part.requires_grad_(False)
        vit = model.backbone
        self.patches, self.prefix = int(vit.patch_embed.num_patches), int(vit.num_prefix_tokens)
        self.embed = nn.Linear(int(vit.embed_dim), width)
        self.decoder = mae_decoder("mae", self.patches, self.prefix, width, depth)
        self.predict = nn.Linear(width, patch_edge(vit) ** 2)
        self.register_buffer("batch", torch.zeros((), dtype=torch.int64))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The mean error over all workers' images, of images uint8 [B, H, W]: [1]."""
        draws = Draws([self.seed, 0, int(self.batch)], share_of(pixels), pixels.device)
        images = self._images(pixels, draws)
        kept, masked = kept_patches(self.patches, draws, self.ratio)
        predicted = self.reconstruct(images, kept)
        with in_full_precision(pixels.device):
            errors = masked_errors(predicted, patch_pixels(images, patch_edge(self.model.backbone)), masked)
            term = joint_mean(errors)
        if self.training:
            self.batch += 1
        return term.reshape(1)

    def errors(self, pixels: torch.Tensor, number: int) -> torch.Tensor:
        """Each validation image's error [B], whole, with the same masks each time for batch `number`."""
        draws = Draws([self.seed, JUDGED, number], Share(0, (len(pixels),)), pixels.device)
        images = pixels.float() / 255
        kept, masked = kept_patches(self.patches, draws, self.ratio)
        targets = patch_pixels(images, patch_edge(self.model.backbone))
        return masked_errors(self.reconstruct(images, kept), targets, masked)

    def reconstruct(self, images: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The pixels of every patch [B, N, edge * edge] from those that are kept, int64 [B, M]."""
        tokens = self.embed(patch_tokens(self.model.backbone, self.model.normalised(images), kept=kept))
        seen = tokens[:, self.prefix :]
        mask_token = cast("torch.Tensor", self.decoder.mask_token).to(seen.dtype)
        everything = mask_token.expand(len(images), self.patches, -1)
        everything = everything.scatter(1, kept.unsqueeze(-1).expand(-1, -1, seen.shape[-1]), seen)
        decoded = self.decoder(torch.cat([tokens[:, : self.prefix], everything], dim=1))
        return self.predict(decoded[:, self.prefix :])

    def _images(self, pixels: torch.Tensor, draws: Draws) -> torch.Tensor:
        images = pixels.float() / 255
        if self.area == 1:
            return images
        with in_full_precision(pixels.device):
            return random_crops(images, Look(images.shape[-1], (self.area, 1.0), flip=0.0, jitter=0.0), draws)
