"""Phrases, where they are looked for, and boxes of them (team I), labelled or asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from cxrlt_ray.objectives.multilabel import MultiLabel
from cxrlt_ray.objectives.registry import NOT_NEGATIVE, Needs, Setting, register_objective
from cxrlt_ray.objectives.stated import ALIKE, PHRASES, READS, asking
from cxrlt_ray.objectives.zero_shot import ZeroShot

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier
    from cxrlt_ray.objectives.registry import Targets
    from cxrlt_ray.objectives.text_networks import Grounded


@register_objective("grounding")
class Grounding(MultiLabel):
    """Phrase loss + grounding_area times the area term + grounding_boxes times the boxes' term (terms/grounding.py).

    The phrases are the findings, by the texts that the head is given. The boxes' term is of positive findings with
    boxes, in a run with `--boxes`: the share of each of the map's places that they cover. What augmentation does to an
    image is not known of it afterwards, so that images with boxes are shown as they are: the central crop, neither
    flipped nor augmented; all others are augmented as the trial says.
    """

    needs = Needs(heads=("film",), own_loss=True, boxes=True, single=True, whole=True)
    learns_part = False
    settings: ClassVar = {"grounding_area": Setting(1.0, *NOT_NEGATIVE), "grounding_boxes": Setting(1.0, *NOT_NEGATIVE)}

    def table(self) -> np.ndarray:
        """float32 [N, C + 1]: labels, then the image's row."""
        rows = np.arange(len(self.targets), dtype=np.float32)[:, None]  # exact up to 16 million
        return np.concatenate([super().table(), rows], axis=1)

    def unchanged(self) -> np.ndarray | None:
        """Those with a box of a positive finding."""
        boxes = self.evidence.boxes
        if boxes is None:
            return None
        positive = self.targets[boxes.image, boxes.finding] == 1
        return np.isin(np.arange(len(self.targets)), boxes.image[positive])

    def network(self, model: Classifier) -> torch.nn.Module:
        """The classifier, with its maps."""
        from cxrlt_ray.objectives.text_networks import Grounded

        return Grounded(cast("Classifier", super().network(model)))

    def classifier(self, network: torch.nn.Module) -> Classifier:
        """The classifier alone."""
        return cast("Grounded", network).model

    def asked(self, outputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All phrases of a batch: outputs [B, K, 1 + N] and labels [B, K], of the network's and those of findings."""
        return outputs, labels

    def loss(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Of outputs of the network, for Grounded [B, C, 1 + N], and rows of `table`."""
        from cxrlt_ray.objectives.terms.grounding import area_loss, mask_loss, phrase_loss

        ((_, rows),) = targets
        outputs, labels = self.asked(outputs, rows[:, :-1])
        logits = outputs[..., 0]
        side = round((outputs.shape[2] - 1) ** 0.5)
        maps = outputs[..., 1:].unflatten(2, (side, side))
        loss = phrase_loss(logits, labels) + self.setting("grounding_area") * area_loss(maps, labels)
        if self.evidence.boxes is None:
            return loss
        masks, boxed = self.masks(rows, side)
        return loss + self.setting("grounding_boxes") * mask_loss(maps[:, : masks.shape[1]], masks, boxed)

    def masks(self, rows: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For rows [B, C + 1] of `table`: float [B, C, side, side], and which positive findings have boxes, [B, C]."""
        import torch

        from cxrlt_ray.objectives.terms.grounding import boxes_to_mask

        boxes = self.evidence.boxes
        assert boxes is not None
        labels, masks = rows[:, :-1].cpu(), torch.zeros(*rows[:, :-1].shape, side, side)
        boxed = torch.zeros(labels.shape, dtype=torch.bool)
        for k, image in enumerate(rows[:, -1].long().tolist()):
            of_image = boxes.of(image)
            findings, edges = boxes.finding[of_image], in_crop(boxes.edges[of_image], self.spec.crop)
            for c in np.unique(findings).tolist():
                seen = edges[findings == c]
                seen = seen[(seen[:, 2] > seen[:, 0]) & (seen[:, 3] > seen[:, 1])]  # not all cropped away
                if labels[k, c] == 1 and len(seen):
                    masks[k, c] = boxes_to_mask([tuple(box) for box in seen.tolist()], (side, side))
                    boxed[k, c] = True
        return masks.to(rows.device), boxed.to(rows.device)


@register_objective("zero_shot_grounding")
class ZeroShotGrounding(Grounding, ZeroShot):
    """`grounding` of the seen findings, judged as `zero_shot` is."""


@register_objective("stated_grounding")
class StatedGrounding(Grounding):
    """`grounding` of the findings and of sentences that the batch's own reports state (team I's facts).

    Sentences are drawn, and are true or false, as those of `stated` are, by grounding_phrases and grounding_alike.
    Without reports it is `grounding`. A flipped image does not fit a sentence that says left: take `flip: 0`.
    """

    needs = replace(READS, heads=Grounding.needs.heads, own_loss=True, boxes=True)
    settings: ClassVar = {**Grounding.settings, "grounding_phrases": PHRASES, "grounding_alike": ALIKE}

    def network(self, model: Classifier) -> torch.nn.Module:
        """The classifier, with its maps and the sentences."""
        from cxrlt_ray.objectives.text_networks import GroundedPhrases

        classifier = cast("Classifier", MultiLabel.network(self, model))
        phrases, alike = self.setting("grounding_phrases"), self.setting("grounding_alike")
        return asking(GroundedPhrases, self, classifier, phrases, alike)

    def asked(self, outputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of outputs [B, C + K, 2 + N] of GroundedPhrases, whose last number is a sentence's label."""
        import torch

        return outputs[..., :-1], torch.cat([labels, outputs[:, labels.shape[1] :, -1]], dim=1)


@register_objective("zero_shot_stated_grounding")
class ZeroShotStatedGrounding(StatedGrounding, ZeroShot):
    """`stated_grounding` of the seen findings, judged as `zero_shot` is."""


def in_crop(edges: np.ndarray, crop: float) -> np.ndarray:
    """Edges [M, 4] in shares of an image, as shares of its central crop, which keeps the share `crop` of its edges."""
    return np.clip((edges - (1 - crop) / 2) / crop, 0, 1)
