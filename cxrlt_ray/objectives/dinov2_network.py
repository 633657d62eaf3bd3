"""The network of DINOv2: a student on crops and masked patches, and a teacher that follows it.

Called with images, it cuts the crops, runs teacher and student, and returns its terms, float [3]: cross_view,
masked_patches and koleo (terms/distillation.py). Crops and masks are a function of the seed, the number of the batch
and an image's place in it. All that a resume needs is in the state dict: teacher, centres, counts of steps and batches.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import Classifier
from cxrlt_ray.models.patch_tokens import patch_edge, patch_tokens, summary
from cxrlt_ray.models.precision import in_full_precision
from cxrlt_ray.objectives.crops import Look, random_crops
from cxrlt_ray.objectives.draws import Draws
from cxrlt_ray.objectives.lightly_parts import dino_head, prototypes_of
from cxrlt_ray.objectives.terms.distillation import (
    centred,
    cross_view,
    entropies,
    koleo,
    masked_patches,
    moved_centre,
    sinkhorn_knopp,
)
from cxrlt_ray.objectives.terms.gather import Share, share_of
from cxrlt_ray.objectives.terms.masking import block_masks
from cxrlt_ray.objectives.terms.views import follow

NONE, CENTRE, SINKHORN = 0, 1, 2  # how the teacher's distribution is balanced
GLOBAL = 2  # crops that the teacher sees
LOCAL_SHARE = 98 / 224  # of a local crop's edge in a global one's, to the nearest patch
IMAGE, PATCHES = "image", "patches"  # the heads
JUDGED = 1  # in the seed of draws for validation, whose batches have numbers of their own


@dataclass(frozen=True)
class Distillation:
    """What makes the network, as the objective's settings name it; schedules are over shares of the stage's steps."""

    prototypes: int
    hidden: int
    bottleneck: int
    separate_head: bool
    global_crops: tuple[Look, Look]
    local_crop: Look
    local_crops: int
    balance: int
    student_temperature: float
    first_temperature: float
    temperature: float
    temperature_warmup: float
    momentum: float
    freeze: float
    patches: bool
    mask_probability: float
    mask_ratios: tuple[float, float]
    seed: int

    def temperature_at(self, share: float) -> float:
        """The teacher's, which rises by a line."""
        risen = min(1.0, share / self.temperature_warmup) if self.temperature_warmup else 1.0
        return self.first_temperature + (self.temperature - self.first_temperature) * risen

    def momentum_at(self, share: float) -> float:
        """Of the teacher, from `momentum` to 1 by a cosine (section 5 of BYOL's supplement; DINO's)."""
        return 1 - (1 - self.momentum) * (math.cos(math.pi * min(1.0, share)) + 1) / 2


class SelfDistillation(nn.Module):
    """Student and teacher, each a classifier with heads; the classifiers' own heads take no part.

    steps: of the optimizer in the stage, set before it begins (0: schedules stay where they begin).
    """

    image_centre: torch.Tensor
    patch_centre: torch.Tensor
    step: torch.Tensor
    batch: torch.Tensor
    measured: torch.Tensor

    def __init__(self, model: Classifier, about: Distillation) -> None:
        super().__init__()
        self.about, self.steps = about, 0
        self.student = model
        for part in (model.head, model.fusion, getattr(model.backbone, "attn_pool", None)):
            if part is not None:
                part.requires_grad_(False)
        width = int(model.backbone.embed_dim)
        names = [IMAGE, *([PATCHES] if about.separate_head and about.patches else [])]
        shape = (width, about.hidden, about.bottleneck, about.prototypes)
        self.heads = nn.ModuleDict({name: dino_head("dinov2", *shape) for name in names})
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=about.patches)
        # one beginning for both: a teacher with heads of its own has nothing to teach until it has followed for long
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.teacher_heads = copy.deepcopy(self.heads).requires_grad_(False)
        for name in ("image_centre", "patch_centre"):
            self.register_buffer(name, torch.zeros(about.prototypes))
        for name in ("step", "batch"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("measured", torch.full((2,), torch.nan))
        for look in (*about.global_crops, about.local_crop):
            if look.size % patch_edge(model.backbone):
                raise UsageError(
                    f"objective dinov2: crops of {look.size} px are not filled by backbone '{model.name}', whose "
                    f"patches have {patch_edge(model.backbone)} px: take a multiple for dinov2_local_px."
                )

    def train(self, mode: bool = True) -> SelfDistillation:
        """The student's mode; the teacher has no drop path and no dropout."""
        super().train(mode)
        self.teacher.eval()
        self.teacher_heads.eval()
        return self

    @property
    def share(self) -> float:
        """The share of the stage's steps that is done."""
        return int(self.step) / self.steps if self.steps else 0.0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The terms [3] of images uint8 [B, H, W]."""
        about, count = self.about, len(pixels)
        draws = Draws([about.seed, 0, int(self.batch)], share_of(pixels), pixels.device)
        large, small = self._crops(pixels, draws)
        side = large.shape[-1] // patch_edge(self.student.backbone)
        masks = [self._masks(side, draws) for _ in range(GLOBAL)]
        masked = torch.cat(masks)
        image = masked.nonzero()[:, 0]
        of_images, of_patches = self._teach(large, masked)
        tokens = patch_tokens(self.student.backbone, self.student.normalised(large), masked, self.mask_token)
        features = summary(self.student.backbone, tokens)
        views = [features, *([self._summaries(small)] if about.local_crops else [])]
        of_views = self.heads[IMAGE](torch.cat(views)).unflatten(0, (-1, count))
        # without the term no patch is masked, and the head is called for nothing
        of_masked = self._patch_head(self.heads)(tokens[:, self.student.backbone.num_prefix_tokens :][masked])
        with in_full_precision(pixels.device):
            cool = about.student_temperature
            terms = [
                cross_view(of_views, of_images.unflatten(0, (GLOBAL, count)), cool),
                masked_patches(of_masked, of_patches, image, GLOBAL * count, cool),
                koleo(features[:count]) + koleo(features[count:]),
            ]
        if self.training:
            self.batch += 1
        return torch.stack(terms)

    def encode(self, pixels: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's features [B, D] of two global crops of validation images: always the same of batch `number`."""
        draws = Draws([self.about.seed, JUDGED, number], Share(0, (len(pixels),)), pixels.device)
        large, _ = self._crops(pixels, draws, local=False)
        tokens = patch_tokens(self.teacher.backbone, self.teacher.normalised(large))
        first, second = summary(self.teacher.backbone, tokens).float().split(len(pixels))
        return first, second

    def before_step(self) -> None:
        """Leave the prototypes as they are in the first steps: their gradients are dropped."""
        if self.share < self.about.freeze:
            for head in self.heads.values():
                for parameter in prototypes_of(head):
                    parameter.grad = None

    def after_step(self) -> None:
        """The teacher follows."""
        momentum = self.about.momentum_at(self.share)
        follow(self.teacher.backbone, self.student.backbone, momentum)
        follow(self.teacher_heads, self.heads, momentum)
        self.step += 1

    def _crops(self, pixels: torch.Tensor, draws: Draws, local: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """The global crops [2 B, S, S], crop by crop, and the local ones [L B, s, s]."""
        about = self.about
        with in_full_precision(pixels.device):
            images = pixels.float() / 255
            large = torch.cat([random_crops(images, look, draws) for look in about.global_crops])
            looks = [about.local_crop] * (about.local_crops if local else 0)
            small = [random_crops(images, look, draws) for look in looks]
        return large, torch.cat(small) if small else large[:0]

    def _masks(self, side: int, draws: Draws) -> torch.Tensor:
        probability = self.about.mask_probability if self.about.patches else 0.0
        return block_masks(side, draws, probability, self.about.mask_ratios)

    def _summaries(self, crops: torch.Tensor) -> torch.Tensor:
        backbone = self.student.backbone
        return summary(backbone, patch_tokens(backbone, self.student.normalised(crops)))

    def _patch_head(self, heads: nn.ModuleDict) -> nn.Module:
        return heads[PATCHES] if PATCHES in heads else heads[IMAGE]

    @torch.no_grad()
    def _teach(self, large: torch.Tensor, masked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's distributions of global crops [2 B, K] and of their masked patches [M, K]; it sees all."""
        backbone = self.teacher.backbone
        tokens = patch_tokens(backbone, self.teacher.normalised(large))
        images = self.teacher_heads[IMAGE](summary(backbone, tokens))
        patches = self._patch_head(self.teacher_heads)(tokens[:, backbone.num_prefix_tokens :][masked])
        with in_full_precision(large.device):
            of_images = self._balanced(images, self.image_centre)
            of_patches = self._balanced(patches, self.patch_centre)
            if self.training:
                self.measured.copy_(torch.stack(entropies(of_images)))
        return of_images, of_patches

    def _balanced(self, logits: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """Distributions [R, K] of logits; in training a centre then moves."""
        temperature = self.about.temperature_at(self.share)
        if self.about.balance == SINKHORN:
            return sinkhorn_knopp(logits, temperature)
        probabilities = centred(logits, centre, temperature)
        if self.about.balance == CENTRE and self.training:
            centre.copy_(moved_centre(centre, logits))
        return probabilities
