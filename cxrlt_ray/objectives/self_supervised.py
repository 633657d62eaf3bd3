"""Pretraining on images alone, for vision transformers: no predictions, but a backbone for the stages that follow.

    dinov2    self-distillation of crops and masked patches (Oquab et al. 2023)
    mae       masked autoencoder (He et al. 2022)

A CNN has no patches to mask: it is pretrained by simclr, moco or barlow (contrastive.py). The stream's own augmentation
comes before the crops of these: take `flip: 0` and `augment: 0`. Settings, sources and traps:
docs/pretraining_objectives.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, cast

from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.contrastive import COUNT, FLAG, MOMENTUM, OF_VIEWS, STEP
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.objectives.registry import ABOVE_ZERO, NOT_NEGATIVE, Needs, Objective, Setting, register_objective

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier
    from cxrlt_ray.objectives.dinov2_network import Distillation, SelfDistillation
    from cxrlt_ray.objectives.mae_network import MaskedAutoencoder
    from cxrlt_ray.objectives.registry import Inputs, Targets

OF_ERRORS = Metric("val_mae_error", "min", "val error of masked patches")
SHARE = ("from 0 to 1", lambda value: 0 <= value <= 1)
AREA = ("above 0 and at most 1", lambda value: 0 < value <= 1)
RATIO = ("above 0 and below 1", lambda value: 0 < value < 1)
CHOICE = ("0 (none), 1 (centre) or 2 (Sinkhorn-Knopp)", lambda value: value in (0, 1, 2))
OF_HEADS = ("a multiple of 32", lambda value: value >= 32 and value % 32 == 0)


class OfPatches(Objective):
    """What both share."""

    needs = Needs(labels=False, whole=True, eager=True)
    predicts = False

    def check(self, model: Classifier) -> None:
        """Raises UsageError for a backbone that is no timm VisionTransformer."""
        from cxrlt_ray.models.patch_tokens import is_plain_transformer

        if not is_plain_transformer(model.backbone):
            raise UsageError(
                f"objective {self.spec.objective} masks the patches of a timm vision transformer (vit_...), which "
                f"backbone '{model.name}' is not: take barlow, moco or simclr, or such a backbone."
            )

    def loss(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """The sum of the terms."""
        return outputs.sum()


@register_objective("mae")
class Mae(OfPatches):
    """Masked autoencoder. mae_ratio: of patches that are masked. mae_area: least share of an image that a crop holds.

    mae_width, mae_depth: of the decoder, as in the paper. Judged by the error of validation images, whole.
    """

    metric = OF_ERRORS
    settings: ClassVar = {
        "mae_ratio": Setting(0.75, *RATIO),
        "mae_area": Setting(0.2, *AREA),
        "mae_width": Setting(512, *OF_HEADS),
        "mae_depth": Setting(8, *COUNT),
    }
    carries: ClassVar = ("embed.", "decoder.", "predict.")

    def network(self, model: Classifier) -> torch.nn.Module:
        """Encoder and decoder."""
        from cxrlt_ray.objectives.mae_network import MaskedAutoencoder

        self.check(model)
        width, depth = (int(self.setting(f"mae_{name}")) for name in ("width", "depth"))
        return MaskedAutoencoder(
            model, self.setting("mae_ratio"), self.setting("mae_area"), width, depth, self.spec.seed
        )

    def classifier(self, network: torch.nn.Module) -> Classifier:
        """That of the encoder."""
        return cast("MaskedAutoencoder", network).model

    def score_network(self, network: torch.nn.Module, batches: Iterator[Inputs]) -> float:
        """The mean error of masked patches."""
        import torch

        autoencoder = cast("MaskedAutoencoder", network)
        with torch.no_grad():
            errors = [autoencoder.errors(pixels, number) for number, (pixels, *_) in enumerate(batches)]
        return float(torch.cat(errors).mean()) if errors else float("nan")


@register_objective("dinov2")
class DinoV2(OfPatches):
    """DINOv2: cross_view + dinov2_patches masked_patches + dinov2_koleo koleo. The classifier is the teacher's.

    Defaults are those of DINOv2's code (ssl_default_config.yaml). Judged as simclr is: by how well the teacher's
    features of one crop of a validation image find the other.
    """

    metric = OF_VIEWS
    settings: ClassVar = {
        # the heads
        "dinov2_prototypes": Setting(65536, *COUNT),
        "dinov2_hidden": Setting(2048, *COUNT),
        "dinov2_bottleneck": Setting(256, *COUNT),
        "dinov2_separate_head": Setting(0, *FLAG),  # for patches
        # the terms
        "dinov2_patches": Setting(1.0, *NOT_NEGATIVE),
        "dinov2_koleo": Setting(0.1, *NOT_NEGATIVE),
        # the teacher
        "dinov2_balance": Setting(1, *CHOICE),
        "dinov2_student_temperature": Setting(0.1, *ABOVE_ZERO),
        "dinov2_first_temperature": Setting(0.04, *ABOVE_ZERO),
        "dinov2_temperature": Setting(0.07, *ABOVE_ZERO),
        "dinov2_temperature_warmup": Setting(0.3, *SHARE),  # of the stage's steps
        "dinov2_momentum": Setting(0.992, *MOMENTUM),  # at first; 1 at the end
        "dinov2_freeze": Setting(0.01, *SHARE),  # of the steps, in which prototypes stay
        # masks
        "dinov2_mask_probability": Setting(0.5, *SHARE),
        "dinov2_mask_least": Setting(0.1, *SHARE),
        "dinov2_mask_most": Setting(0.5, *RATIO),
        # crops
        "dinov2_local_crops": Setting(8, *STEP),
        "dinov2_local_px": Setting(0, *STEP),  # 0: 98 / 224 of the resolution
        "dinov2_area": Setting(0.32, *AREA),  # of a global crop at least, of a local one at most
        "dinov2_local_area": Setting(0.05, *AREA),  # of a local crop at least
        "dinov2_flip": Setting(0.5, *SHARE),
        "dinov2_jitter": Setting(0.4, *SHARE),
        "dinov2_blur": Setting(1.0, *SHARE),  # factor of DINOv2's probabilities: 1, .1 and .5 for local crops
        "dinov2_solarise": Setting(0.2, *SHARE),  # of second global crops
    }
    carries: ClassVar = ("heads.", "teacher_heads.", "mask_token", "image_centre", "patch_centre")

    def network(self, model: Classifier) -> torch.nn.Module:
        """Student and teacher."""
        from cxrlt_ray.objectives.dinov2_network import SelfDistillation

        self.check(model)
        return SelfDistillation(model, self._distillation(model))

    def classifier(self, network: torch.nn.Module) -> Classifier:
        """The teacher's: an average of the student's weights, and better than it throughout (DINO, figure 6)."""
        return cast("SelfDistillation", network).teacher

    def before_training(self, network: torch.nn.Module, steps: int) -> None:
        """Schedules are over this many steps."""
        cast("SelfDistillation", network).steps = steps

    def before_step(self, network: torch.nn.Module) -> None:
        """Prototypes stay at first."""
        cast("SelfDistillation", network).before_step()

    def after_step(self, network: torch.nn.Module) -> None:
        """The teacher follows."""
        cast("SelfDistillation", network).after_step()

    def loss(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """The weighted sum of the terms [3]."""
        weights = (1.0, self.setting("dinov2_patches"), self.setting("dinov2_koleo"))
        return (outputs * outputs.new_tensor(weights)).sum()

    def statistics(self, network: torch.nn.Module) -> Mapping[str, float]:
        """Of the last batch: the teacher's entropies as shares of ln K, temperature and momentum; {} before it.

        teacher_entropy: of its distributions. teacher_marginal_entropy: of their mean. teacher_information: the
        difference, which is 0 once all images are alike to the teacher: a collapse, to a flat distribution (entropy 1)
        or to one prototype (entropy 0).
        """
        distillation = cast("SelfDistillation", network)
        entropy, marginal = distillation.measured.tolist()
        if math.isnan(entropy):
            return {}
        share, about = distillation.share, distillation.about
        return {
            "teacher_entropy": entropy,
            "teacher_marginal_entropy": marginal,
            "teacher_information": marginal - entropy,
            "teacher_temperature": about.temperature_at(share),
            "teacher_momentum": about.momentum_at(share),
        }

    def score_network(self, network: torch.nn.Module, batches: Iterator[Inputs]) -> float:
        """The mean reciprocal rank of an image's other crop among 64."""
        import torch

        from cxrlt_ray.objectives.retrieval import reciprocal_rank

        distillation = cast("SelfDistillation", network)
        with torch.no_grad():
            pairs = [distillation.encode(pixels, number) for number, (pixels, *_) in enumerate(batches)]
        if not pairs:
            return float("nan")
        first, second = (torch.cat(crops) for crops in zip(*pairs, strict=True))
        return reciprocal_rank(first, second, torch.arange(len(first), device=first.device))

    def _distillation(self, model: Classifier) -> Distillation:
        from cxrlt_ray.models.patch_tokens import patch_edge
        from cxrlt_ray.objectives.crops import Look
        from cxrlt_ray.objectives.dinov2_network import LOCAL_SHARE, Distillation

        value = {name.removeprefix("dinov2_"): self.setting(name) for name in self.settings}
        for least, most in (("mask_least", "mask_most"), ("local_area", "area")):
            if value[least] > value[most]:
                raise UsageError(
                    f"objective dinov2: dinov2_{least} is {value[least]:g}, above dinov2_{most}, {value[most]:g}."
                )
        edge, patch = int(model.backbone.patch_embed.img_size[0]), patch_edge(model.backbone)
        local = int(value["local_px"]) or max(1, round(LOCAL_SHARE * edge / patch)) * patch
        flip, jitter, blur, area = (value[name] for name in ("flip", "jitter", "blur", "area"))
        return Distillation(
            prototypes=int(value["prototypes"]),
            hidden=int(value["hidden"]),
            bottleneck=int(value["bottleneck"]),
            separate_head=bool(value["separate_head"]),
            global_crops=(
                Look(edge, (area, 1.0), flip, jitter, blur),
                Look(edge, (area, 1.0), flip, jitter, 0.1 * blur, value["solarise"]),
            ),
            local_crop=Look(local, (value["local_area"], area), flip, jitter, 0.5 * blur),
            local_crops=int(value["local_crops"]),
            balance=int(value["balance"]),
            student_temperature=value["student_temperature"],
            first_temperature=value["first_temperature"],
            temperature=value["temperature"],
            temperature_warmup=value["temperature_warmup"],
            momentum=value["momentum"],
            freeze=value["freeze"],
            patches=value["patches"] > 0,
            mask_probability=value["mask_probability"],
            mask_ratios=(value["mask_least"], value["mask_most"]),
            seed=self.spec.seed,
        )
