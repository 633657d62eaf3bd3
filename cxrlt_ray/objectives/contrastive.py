"""Contrastive pretraining: no predictions, but a backbone for the stages that follow.

    clip      images against their study's text, by InfoNCE (Radford et al. 2021)
    siglip    the same by the sigmoid loss (Zhai et al. 2023)
    simclr    two views of a study against other studies (Chen et al. 2020)
    moco      the same against a queue of keys (He et al. 2020)
    barlow    two views of a study, whose features are to agree and not to repeat each other (Zbontar et al. 2021)
    mama      team C: clip on two views, simclr between them, and words against patches (Du et al. 2024)

The loss is of all workers' batches together. They are judged on validation images by the mean reciprocal rank of the
right one among 64 (retrieval.py). A flipped image does not fit a report that says left: take `flip: 0` with texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.objectives.registry import ABOVE_ZERO, COUNT, NOT_NEGATIVE, Needs, Objective, Setting, register_objective

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier
    from cxrlt_ray.objectives.pretraining import ContrastiveNetwork
    from cxrlt_ray.objectives.registry import Inputs, Targets
    from cxrlt_ray.objectives.towers import TextTower
    from cxrlt_ray.storage import Store
    from cxrlt_ray.text.embedding_store import TextEmbeddings

OF_TEXTS = Metric("val_mrr", "max", "val MRR of texts")
OF_VIEWS = Metric("val_view_mrr", "max", "val MRR of views")
STEP = ("a whole number from 0", lambda value: value >= 0 and value == int(value))
MOMENTUM = ("0 or more and below 1", lambda value: 0 <= value < 1)
FLAG = ("0 or 1", lambda value: value in (0, 1))


class Contrastive(Objective):
    """What all of them share. weights: of the network's terms, 1 without."""

    predicts = False
    _texts: TextTower | None = None
    _vectors: TextEmbeddings | None = None

    @property
    def weights(self) -> Sequence[float]:
        """The factor of each term that the network gives."""
        return (1.0,)

    def classifier(self, network: torch.nn.Module) -> Classifier:
        """The classifier of the image tower."""
        return cast("ContrastiveNetwork", network).classifier()

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """As the text encoder of `network` does it; where vectors are stored, float [B, E], and a mask [B, 1]."""
        import torch

        assert self._texts is not None
        if self._vectors is None:
            return self._texts.tokenize(texts)
        return torch.from_numpy(self._vectors.at(texts)), torch.ones(len(texts), 1, dtype=torch.int64)

    def expect(self, texts: Callable[[], Sequence[str]], storage: Store) -> None:
        """Open the stored vectors of a frozen encoder, where its vectors are all that is needed."""
        from cxrlt_ray.text.embeddings import open_embeddings

        if self._texts is not None and self._texts.frozen and self.needs.vectors and self._vectors is None:
            encoder = self._texts.encoder
            self._vectors = open_embeddings(texts(), encoder.spec, storage, by_ray=False, encoder=encoder)

    def after_step(self, network: torch.nn.Module) -> None:
        """What the network does then: limits of scales, a slow encoder, a count of steps."""
        cast("ContrastiveNetwork", network).after_step()

    def loss(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """The weighted sum of the terms [T]."""
        return (outputs * outputs.new_tensor(self.weights)).sum()

    def score_network(self, network: torch.nn.Module, batches: Iterator[Inputs]) -> float:
        """The mean reciprocal rank of each validation image's text, or other view, among 64."""
        import torch

        from cxrlt_ray.objectives.retrieval import reciprocal_rank
        from cxrlt_ray.objectives.terms.contrast import NO_TEXT

        with torch.no_grad():
            encoded = [cast("ContrastiveNetwork", network).encode(*inputs) for inputs in batches]
        if not encoded:
            return float("nan")
        queries, keys, number = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        if self.needs.texts:
            queries, keys, number = (side[number != NO_TEXT] for side in (queries, keys, number))
        return reciprocal_rank(queries, keys, number)

    def check(self, model: Classifier) -> None:
        """Raises UsageError where a head `similarity` compares in a space of another width."""
        from cxrlt_ray.models import Similarity

        head = model.head
        if self.needs.texts and isinstance(head, Similarity) and (width := self._width()) != head.WIDTH:
            name = next(iter(self.settings))
            raise UsageError(f"head similarity compares {head.WIDTH} numbers: {name} must be as many, not {width}.")

    def _width(self) -> int:
        """Of the space of the contrast: the first setting."""
        return int(self.setting(next(iter(self.settings))))

    def _text_tower(self, model: Classifier) -> TextTower:
        from cxrlt_ray.models import Similarity
        from cxrlt_ray.objectives.towers import TextTower

        self.check(model)
        head = model.head if isinstance(model.head, Similarity) else None
        self._texts = TextTower(self.spec.text_spec(), self._width(), head)
        return self._texts


@register_objective("clip")
class Clip(Contrastive):
    """Images against texts by InfoNCE. clip_width: of the space both are projected to; C's and G's is 512."""

    needs = Needs(labels=False, texts=True, whole=True, vectors=True)
    metric = OF_TEXTS
    settings: ClassVar = {"clip_width": Setting(512, *COUNT)}
    sigmoid: ClassVar[bool] = False

    def network(self, model: Classifier) -> torch.nn.Module:
        """Both towers, and the scale."""
        from cxrlt_ray.objectives.pretraining import ImageText
        from cxrlt_ray.objectives.towers import ImageTower

        return ImageText(ImageTower(model, self._width()), self._text_tower(model), self.sigmoid)


@register_objective("siglip")
class Siglip(Clip):
    """Images against texts by the sigmoid loss. siglip_width: of the space both are projected to."""

    settings: ClassVar = {"siglip_width": Setting(512, *COUNT)}
    sigmoid = True


@register_objective("simclr")
class SimClr(Contrastive):
    """Views of a study by NT-Xent. simclr_temperature: C's .5. simclr_width: of the projection (two layers)."""

    needs = Needs(labels=False, pairs=True, whole=True)
    metric = OF_VIEWS
    settings: ClassVar = {"simclr_width": Setting(128, *COUNT), "simclr_temperature": Setting(0.5, *ABOVE_ZERO)}

    def network(self, model: Classifier) -> torch.nn.Module:
        """The image tower."""
        from cxrlt_ray.objectives.pretraining import Views
        from cxrlt_ray.objectives.towers import ImageTower

        tower = ImageTower(model, int(self.setting("simclr_width")), hidden=True)
        return Views(tower, self.setting("simclr_temperature"))


@register_objective("moco")
class MoCo(Contrastive):
    """Views of a study against a queue. moco_queue: keys it holds, C's 1,024. moco_momentum: of the slow encoder.

    The temperature of .2 and the projection of two layers are MoCo v2's (Chen et al. 2020).
    """

    needs = Needs(labels=False, pairs=True, whole=True)
    metric = OF_VIEWS
    settings: ClassVar = {
        "moco_width": Setting(128, *COUNT),
        "moco_temperature": Setting(0.2, *ABOVE_ZERO),
        "moco_queue": Setting(1024, *COUNT),
        "moco_momentum": Setting(0.999, *MOMENTUM),
    }

    def network(self, model: Classifier) -> torch.nn.Module:
        """The image tower, its slow copy, and the queue."""
        from cxrlt_ray.objectives.pretraining import MomentumViews
        from cxrlt_ray.objectives.towers import ImageTower

        width = int(self.setting("moco_width"))
        return MomentumViews(
            ImageTower(model, width, hidden=True),
            width,
            int(self.setting("moco_queue")),
            self.setting("moco_temperature"),
            self.setting("moco_momentum"),
        )


@register_objective("barlow")
class Barlow(Contrastive):
    """Views of a study by Barlow Twins. barlow_width: of the projector's layers. barlow_redundancy: its lambda."""

    needs = Needs(labels=False, pairs=True, whole=True)
    metric = OF_VIEWS
    settings: ClassVar = {"barlow_width": Setting(8192, *COUNT), "barlow_redundancy": Setting(0.0051, *NOT_NEGATIVE)}

    def network(self, model: Classifier) -> torch.nn.Module:
        """The image tower, with the paper's projector."""
        from cxrlt_ray.models.features import width_of
        from cxrlt_ray.objectives.lightly_parts import barlow_projector
        from cxrlt_ray.objectives.pretraining import Twins
        from cxrlt_ray.objectives.towers import ImageTower

        width = int(self.setting("barlow_width"))
        tower = ImageTower(model, width)
        tower.project = barlow_projector("barlow", width_of(model.backbone), width)
        return Twins(tower, self.setting("barlow_redundancy"))


@register_objective("mama")
class Mama(Contrastive):
    """L_VT + from step mama_start on (mama_second L_VT' + mama_views L_VV + mama_local L_SLA).

    mama_start: the code's 8,000 of 40,000 steps of the optimizer. mama_slides: 0 for the code's SLA, 1 for the slides'.
    L_VV is the code's NT-Xent (mama_temperature .5) of the images in the space of the texts, or with mama_queue keys
    (the slides' 1,024) MoCo. Needs a backbone that keeps its feature map (`pool: avg`).
    """

    needs = Needs(labels=False, pairs=True, texts=True, map=True, whole=True)
    metric = OF_TEXTS
    settings: ClassVar = {
        "mama_width": Setting(512, *COUNT),
        "mama_temperature": Setting(0.5, *ABOVE_ZERO),
        "mama_start": Setting(8000, *STEP),
        "mama_second": Setting(1.0, *NOT_NEGATIVE),
        "mama_views": Setting(1.0, *NOT_NEGATIVE),
        "mama_local": Setting(1.0, *NOT_NEGATIVE),
        "mama_slides": Setting(0, *FLAG),
        "mama_queue": Setting(0, *STEP),
        "mama_momentum": Setting(0.999, *MOMENTUM),
    }

    def before_training(self, network: torch.nn.Module, steps: int) -> None:
        """Say it where the stage ends before mama_start: then it is `clip`, whatever the other settings are."""
        if (start := int(self.setting("mama_start"))) >= steps:
            print(
                f"  objective mama: mama_start is {start:,}, but the stage has {steps:,} steps: images and reports "
                f"alone are contrasted, neither views nor words. C began after a fifth: `mama_start: {steps // 5}`",
                flush=True,
            )

    @property
    def weights(self) -> Sequence[float]:
        """Of the four terms."""
        return (1.0, *(self.setting(f"mama_{term}") for term in ("second", "views", "local")))

    def network(self, model: Classifier) -> torch.nn.Module:
        """Both towers, scales, and the count of steps."""
        from cxrlt_ray.objectives.pretraining import MultiView
        from cxrlt_ray.objectives.terms.local import FORMS
        from cxrlt_ray.objectives.towers import ImageTower

        form = FORMS[int(self.setting("mama_slides"))]
        start, temperature = int(self.setting("mama_start")), self.setting("mama_temperature")
        queue, momentum = int(self.setting("mama_queue")), self.setting("mama_momentum")
        towers = ImageTower(model, self._width()), self._text_tower(model)
        return MultiView(*towers, start, temperature, form, queue, momentum)
