"""Findings, and sentences of reports that are true or false of an image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

import numpy as np

from cxrlt_ray.objectives.multilabel import MultiLabel
from cxrlt_ray.objectives.registry import COUNT, NOT_NEGATIVE, Needs, Setting, register_objective
from cxrlt_ray.objectives.zero_shot import ZeroShot

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier
    from cxrlt_ray.objectives.registry import Targets
    from cxrlt_ray.objectives.text_networks import Asking

    A = TypeVar("A", bound=Asking)

READS = Needs(single=True, whole=True, statements=True, rows=True, eager=True)
PHRASES, ALIKE = Setting(4, *COUNT), Setting(1.5, *NOT_NEGATIVE)  # sentences an image; standard deviations


@register_objective("stated")
class Stated(MultiLabel):
    """The multi-label loss over findings + stated_weight times the cross-entropy over sentences of reports.

    Of each image's report stated_phrases sentences are drawn that affirm something; every sentence of a worker's batch
    is asked of each of its images, as a finding of that text would be. It is true of the images of its report and false
    where a label contradicts it. One that affirms no finding that an image has a label of, such as those that are asked
    for by text alone, is false of it if its report says nothing like it: no sentence with a cosine that is stated_alike
    standard deviations above that of any two. Else it has no loss (stated_phrases.py). Embeddings are of the head's own
    text encoder, computed once and kept beside the shards. Without reports it is `multilabel`. A flipped image does not
    fit a sentence that says left: take `flip: 0`.
    """

    needs = replace(READS, heads=("bilinear", "film", "pair", "query_decoder", "query_text", "similarity"))
    learns_part = False
    settings: ClassVar = {
        "stated_phrases": PHRASES,
        "stated_alike": ALIKE,
        "stated_weight": Setting(1.0, *NOT_NEGATIVE),
    }

    def network(self, model: Classifier) -> torch.nn.Module:
        """The classifier, with the sentences."""
        from cxrlt_ray.objectives.text_networks import StatedLogits

        classifier = cast("Classifier", super().network(model))
        return asking(StatedLogits, self, classifier, self.setting("stated_phrases"), self.setting("stated_alike"))

    def classifier(self, network: torch.nn.Module) -> Classifier:
        """The classifier alone."""
        return cast("Asking", network).model

    def loss(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Of outputs [B, C + K, 2] of StatedLogits and labels [B, C]."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        from cxrlt_ray.objectives.terms.gather import joint_mean

        ((_, labels),) = targets
        count = labels.shape[1]
        loss = super().loss(outputs[:, :count, 0], targets)
        logits, stated = outputs[:, count:].unbind(2)
        apart = binary_cross_entropy_with_logits(logits, (stated == 1).float(), reduction="none")
        return loss + self.setting("stated_weight") * joint_mean(apart.flatten(), (stated >= 0).flatten())


@register_objective("zero_shot_stated")
class ZeroShotStated(Stated, ZeroShot):
    """`stated` of the seen findings, judged as `zero_shot` is."""


def asking(network: type[A], objective: MultiLabel, model: Classifier, count: float, alike: float) -> A:
    """A network of `model` that is asked for sentences of the reports that the objective has evidence of."""
    from cxrlt_ray.objectives.stated_phrases import StatedPhrases
    from cxrlt_ray.text.embeddings import open_embeddings
    from cxrlt_ray.text.encoder_spec import TextSpec

    spec, evidence = objective.spec, objective.evidence
    assert spec.text is not None  # TrialConfig has seen to it
    phrases = StatedPhrases.of(evidence, objective.targets)
    kept = open_embeddings(phrases.texts, TextSpec(encoder=spec.text), evidence.storage, by_ray=False)

    def embeddings(numbers: np.ndarray) -> np.ndarray:
        return kept.at([phrases.texts[number] for number in numbers.tolist()])

    return network(model, phrases, embeddings, objective.targets, int(count), alike, spec.seed)
