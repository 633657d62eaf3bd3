"""Presence and place of findings (team H; MedKLIP: Wu et al. 2023, eq. 6 and 7), labelled or asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from cxrlt_ray.objectives.multilabel import MultiLabel
from cxrlt_ray.objectives.registry import NOT_NEGATIVE, Needs, Setting, register_objective
from cxrlt_ray.objectives.zero_shot import ZeroShot

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier
    from cxrlt_ray.objectives.places import Places
    from cxrlt_ray.objectives.registry import Targets
    from cxrlt_ray.objectives.text_networks import Located


@register_objective("location")
class Location(MultiLabel):
    """Presence by the registered loss, plus location_weight times a contrast of places for positive findings.

    With `loss: bce` presence is MedKLIP's cross-entropy of labelled cells: with two outputs the logit is their
    difference. A positive finding's decoded query, through one linear layer, is to have its largest dot product with
    the text "It is located at {place}" of its own place, among seven random others that overlap none of its places. The
    place is that of the sentence that affirms the finding, in a run with reports where that names one; else it is that
    of the finding's description. Findings without place have no contrast. A flipped image does not fit a place that
    says left: take `flip: 0`.
    """

    needs = Needs(heads=("query_decoder",), places=True, statements=True, single=True, whole=True)
    learns_part = False
    settings: ClassVar = {"location_weight": Setting(1.0, *NOT_NEGATIVE)}

    @cached_property
    def _places(self) -> Places:
        from cxrlt_ray.objectives.places import Places

        return Places(self.evidence, self.targets)

    def table(self) -> np.ndarray:
        """float32 [N, 2 C]: labels, then the number of each finding's set of places, -1 for none."""
        return np.concatenate([super().table(), self._places.numbers.astype(np.float32)], axis=1)

    def network(self, model: Classifier) -> torch.nn.Module:
        """The classifier, and the layer that brings its queries to the width of places' texts."""
        import torch

        from cxrlt_ray.objectives.places import place_text
        from cxrlt_ray.objectives.text_networks import Located
        from cxrlt_ray.text.descriptions import place_names
        from cxrlt_ray.text.embeddings import embedded

        texts = [place_text(place) for place in place_names()]
        embeddings = torch.from_numpy(embedded(texts, self.spec.text_spec(), None))
        return Located(cast("Classifier", super().network(model)), embeddings)

    def classifier(self, network: torch.nn.Module) -> Classifier:
        """The classifier without that layer."""
        return cast("Located", network).model

    def loss(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Of outputs [B, C, 1 + P] of Located, and rows of `table`."""
        import torch

        count = outputs.shape[1]
        presence = super().loss(outputs[..., 0], [(share, rows[:, :count]) for share, rows in targets])
        contrasts = [share * self.contrast(outputs[..., 1:], rows) for share, rows in targets]
        return presence + self.setting("location_weight") * torch.stack(contrasts).sum()

    def contrast(self, scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The contrast of places of dot products [B, C, P]; 0 where no positive has a place."""
        import torch

        from cxrlt_ray.objectives.places import UNKNOWN
        from cxrlt_ray.objectives.terms.location import place_contrast

        labels, numbers = rows.chunk(2, dim=1)
        numbers = torch.where(labels == 1, numbers, UNKNOWN).long()
        sets = torch.from_numpy(self._places.sets).to(scores.device)
        return place_contrast(scores, sets[numbers])


@register_objective("zero_shot_location")
class ZeroShotLocation(Location, ZeroShot):
    """`location` of the seen findings, judged as `zero_shot` is."""
