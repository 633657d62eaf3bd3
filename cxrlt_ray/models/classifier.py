"""The classifier: a backbone, perhaps a fusion of a study's views, and a head, joined."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isqrt

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models.backbones import find_recipe, make_backbone
from cxrlt_ray.models.features import (
    POOLS,
    pooled,
    to_tokens,
    unpool,
    width_of,
    with_class_token,
)
from cxrlt_ray.models.fusion import FUSIONS, by_study
from cxrlt_ray.models.heads import HEADS
from cxrlt_ray.models.label_embeddings import embeddings_of
from cxrlt_ray.models.recipe import BackboneRecipe
from cxrlt_ray.models.spec import NO_FUSION, OWN_POOL, ModelSpec

EARLY_POOLS = ("avg", "max")  # those without parameters
FILL = 16  # on a GPU, batches of studies have a multiple of so many images


class Classifier(nn.Module):
    """Images uint8 [n, H, W] or float [n, H, W] in 0..1 -> logits float [n, C].

    findings: their names, or their number; a head that reads label embeddings finds them by name, and for a number of
    findings they are zeros, to be loaded. context: a context manager in which the backbone is made. embeddings: label
    embeddings [C, E] instead of those that the spec names. recipe: how the backbone is built, if not as its name says.
    Raises UsageError for parts that do not fit together.
    """

    mean: torch.Tensor
    std: torch.Tensor
    shift: torch.Tensor
    priors: torch.Tensor | None

    def __init__(
        self,
        spec: ModelSpec,
        findings: int | Sequence[str],
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
        embeddings: torch.Tensor | None = None,
        recipe: BackboneRecipe | None = None,
    ) -> None:
        super().__init__()
        check(spec)
        count = findings if isinstance(findings, int) else len(findings)
        head, fusion = HEADS[spec.head], FUSIONS.get(spec.fusion)
        if head.needs_embeddings and embeddings is None:
            embeddings = embeddings_of(spec, findings)
        self.name, self.recipe = spec.backbone, recipe or find_recipe(spec.backbone)
        with context():
            self.backbone, mean, std = make_backbone(spec, self.recipe)
        self.keeps_map = head.needs_map or spec.pool != OWN_POOL or bool(fusion and fusion.needs_map)
        if self.keeps_map:
            unpool(self.backbone, spec.backbone)
        self.keeps_class = head.needs_class
        features = width_of(self.backbone)
        # the head's own pool is given the one token that this leaves, and does not change it
        self.early_pool = POOLS[spec.pool]() if spec.pool in EARLY_POOLS and fusion is None else None
        self.has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.backbone.modules())
        self.fusion = fusion(features, count, spec) if fusion else None
        self.head = head(self.fusion.width if self.fusion else features, count, spec, embeddings)
        for name, values in (("mean", mean), ("std", std)):  # as many as channels
            by_channel = values if len(values) == spec.in_chans else (sum(values) / len(values),) * spec.in_chans
            self.register_buffer(name, torch.tensor(by_channel).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.zeros(count))
        self.register_buffer("priors", None)

    def forward(
        self, images: torch.Tensor, study: torch.Tensor | None = None, view: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [n, C] of gray images [n, H, W]; in evaluation less `shift` [C] (logit adjustment).

        images: or what `features` gave of them, float16 [n, N, D]: no image is of that type, and nothing else is.
        With a fusion every image has its study's logits. study: int64 [n], equal for images of a study, which stand
        next to each other; without it each image is a study. view: int64 [n], indices into manifest.VIEWS; without
        it all are UNKNOWN. Of a study of more than fusion.MAX_VIEWS (16) images, each 16 in their order, and the
        remainder, are read as a study of their own: images have the logits of their part.
        """
        tokens = images.float() if images.dtype == torch.float16 else self.features(images)
        return self.logits(tokens, len(images), study, view)

    def logits(
        self, tokens: torch.Tensor, count: int, study: torch.Tensor | None = None, view: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`forward` of what `features` gave of `count` images."""
        if self.fusion is None:
            logits = self.head(tokens)
        else:
            logits = by_study(self.fusion, self.head, self.fusion.per_image(tokens)[:count], study, view)
        return logits if self.training else self._judged(logits)

    def _judged(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits - self.shift
        return logits if self.priors is None else torch.where(self.priors.isnan(), logits, self.priors)

    def say_priors(self, priors: torch.Tensor) -> None:
        """In evaluation, say these logits [C] of every image; nan: what the head says."""
        self.priors = priors.to(self.shift)

    def with_maps(self, images: torch.Tensor, phrases: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """`forward`, and the attention [n, C, side, side] in 0..1 that each finding pays to the places of an image.

        phrases: embeddings [K, E] of other texts, whose plain logits and maps follow the findings' in training.

        Raises UsageError for a head without attention maps, and with a fusion, whose tokens are no image's.
        """
        if self.fusion is not None or not self.head.gives_maps:
            able = ", ".join(name for name, head in HEADS.items() if head.gives_maps)
            raise UsageError(f"attention maps are given by head {able} without a fusion, not by this model.")
        tokens = images.float() if images.dtype == torch.float16 else self.features(images)
        logits, maps = self.head.with_maps(tokens, phrases)
        side = isqrt(maps.shape[2])
        return logits if self.training or phrases is not None else self._judged(logits), maps.unflatten(2, (side, side))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """All that head and fusion are given of images [n, H, W]: float [n, N, D], or more rows where batches are
        filled. Where the head only pools, and that by no parameter, N is 1.
        """
        pixels = self.normalised(images)
        if self.fusion is not None and self._fills_batches(pixels):
            pixels = filled(pixels)
        return self.read(self.backbone.forward_features(pixels))

    def read(self, features: torch.Tensor) -> torch.Tensor:
        """`features` of what the backbone's `forward_features` gave."""
        if not self.keeps_map:
            return pooled(self.backbone, features)
        read = with_class_token if self.keeps_class else to_tokens
        tokens = read(self.backbone, features, self.name)
        return tokens if self.early_pool is None else self.early_pool(tokens).unsqueeze(1)

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """The feature map of images [n, H, W] by position, before any pooling: float [n, N, D].

        Raises UsageError for a model that keeps no map.
        """
        if not self.keeps_map:
            raise UsageError(
                f"backbone '{self.name}' is pooled by its own head: take `pool: avg`, which keeps its map."
            )
        return to_tokens(self.backbone, self.backbone.forward_features(self.normalised(images)), self.name)

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Images [n, H, W] as the backbone takes them: float [n, channels, H, W]."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return (pixels.unsqueeze(1) - self.mean) / self.std  # one gray channel broadcast to the backbone's

    def fingerprint(self) -> str:
        """A hash of all that `features` depends on besides the images: weights, architecture, normalisation, pooling.

        Of weights that differ in one bit it differs.
        """
        pool = (
            "own" if not self.keeps_map else self._kept() if self.early_pool is None else type(self.early_pool).__name__
        )
        digest = hashlib.sha256(repr((self.name, self.recipe, pool)).encode())
        for name, tensor in [*self.backbone.state_dict().items(), ("mean", self.mean), ("std", self.std)]:
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def _kept(self) -> str:
        return "map and class" if self.keeps_class else "map"

    def _fills_batches(self, pixels: torch.Tensor) -> bool:
        """Whether added images leave all other images' features as they are, and spare a GPU a new batch size."""
        return pixels.is_cuda and not (self.backbone.training and self.has_batch_norm)


def filled(pixels: torch.Tensor) -> torch.Tensor:
    """Images [n, ...] with the last one repeated up to a multiple of FILL; of fewer than that, to a power of two.

    cuDNN takes seconds to plan each new batch size of some convolutions, and studies make many
    (benchmarks/RESULTS.md, GPU).
    """
    missing = -len(pixels) % FILL if len(pixels) > FILL else (1 << (len(pixels) - 1).bit_length()) - len(pixels)
    return torch.cat([pixels, pixels[-1:].expand(missing, *pixels.shape[1:])]) if missing else pixels


def check(spec: ModelSpec) -> None:
    """Raises UsageError where head, pool, fusion and label embeddings do not fit together."""
    for kind, name, names in (
        ("head", spec.head, HEADS),
        ("fusion", spec.fusion, (NO_FUSION, *FUSIONS)),
        ("pool", spec.pool, (OWN_POOL, *POOLS)),
    ):
        if name not in names:
            raise UsageError(f"there is no {kind} '{name}'; there are {', '.join(names)}.")
    head = HEADS[spec.head]
    if head.needs_map and spec.pool != OWN_POOL:
        raise UsageError(f"head '{spec.head}' does its own pooling: leave `pool` at {OWN_POOL}, not '{spec.pool}'.")
    given = [name for name in ("queries", "text") if getattr(spec, name)]
    if head.needs_embeddings and len(given) != 1:
        had = "not both" if given else "it has neither"
        raise UsageError(
            f"head '{spec.head}' needs label embeddings of a text encoder, `text: NAME`, or of a file, "
            f"`queries: PATH`: {had}."
        )
    if head.needs_class and spec.fusion != NO_FUSION:
        raise UsageError(f"head '{spec.head}' reads an image's class token: leave `fusion` at {NO_FUSION}.")
    if given and not head.needs_embeddings:
        able = ", ".join(name for name, other in HEADS.items() if other.needs_embeddings)
        raise UsageError(f"head '{spec.head}' reads no label embeddings: leave out `{given[0]}`, or take {able}.")
    own = {*head.SETTINGS, *(["prompts"] if spec.text else [])}
    for name in ("prompts", *(name for other in HEADS.values() for name in other.SETTINGS)):
        if name not in own and getattr(spec, name) != getattr(ModelSpec, name):
            raise UsageError(f"`{name}: {getattr(spec, name)}` means nothing to this model (head '{spec.head}').")
