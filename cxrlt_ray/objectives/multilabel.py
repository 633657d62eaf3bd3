"""Findings as independent labels: logits [B, C], any registered loss, judged by validation mAP."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.tasks import TAIL, rarity
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.objectives.registry import Needs, Objective, register_objective

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import Classifier
    from cxrlt_ray.objectives.registry import Evidence, ObjectiveSpec, Targets


@register_objective("multilabel")
class MultiLabel(Objective):
    """The mean of a registered loss over labelled cells; labels may be smoothed, logits adjusted after training.

    With `learns: tail` it is trained on findings of less than 1 % of the training images alone, with `head` on the
    others (team C's two classifiers). Of those left out the model says their prior, the same for every image.
    """

    needs = Needs(labels=True)
    learns_part = True
    _left_out: np.ndarray | None = None

    def __init__(
        self,
        spec: ObjectiveSpec,
        targets: np.ndarray,
        soft: np.ndarray | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        super().__init__(spec, targets, soft, evidence)
        if spec.learns == "all" or not self.learns_part or not len(targets):
            return
        tail = np.array([kind == TAIL for kind in rarity(targets)])
        self._left_out = ~tail if spec.learns == "tail" else tail
        if self._left_out.all():
            raise UsageError(f"learns: {spec.learns}, but the training labels have no such finding: take learns: all.")
        positives, labelled = self.counts
        self._priors = np.log((positives + 0.5) / (labelled - positives + 0.5))
        self.targets = np.where(self._left_out, np.int8(-1), targets)
        self.soft = None if soft is None else np.where(self._left_out, np.float32(np.nan), soft)

    @cached_property
    def _losses(self) -> dict[torch.device, object]:
        """The registered loss with its weights, by device."""
        return {}

    @property
    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Positives and labelled images [C] in training; generated images do not count."""
        targets = self.targets if self.evidence.counted is None else self.evidence.counted
        return (targets == 1).sum(0), (targets >= 0).sum(0)

    def table(self) -> np.ndarray:
        """The labels: float32 [N, C], -1 where there is none."""
        return self.targets.astype(np.float32)

    def network(self, model: Classifier) -> torch.nn.Module:
        """The classifier itself, with its logit adjustment set from the training labels."""
        import torch

        model.shift.copy_(self.shift())
        if self._left_out is not None:
            model.say_priors(torch.from_numpy(np.where(self._left_out, self._priors, np.nan)))
        return model

    def shift(self) -> torch.Tensor:
        """Logit adjustment float32 [C], zeros where there is none."""
        import torch

        from cxrlt_ray.objectives import priors

        if not self.spec.logit_adjust:
            return torch.zeros(self.targets.shape[1])
        shift = priors.logit_shift(*self.counts, self.spec.logit_adjust)
        return torch.as_tensor(np.asarray(shift), dtype=torch.float32)

    def loss(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """The registered loss of logits [B, C] and labels [B, C]; the shares' sum where images are mixed."""
        import torch

        terms = [share * self.label_loss(outputs, labels) for share, labels in targets]
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]

    def label_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The registered loss of logits [B, C] and labels [B, C] in [0, 1] or -1, smoothed as asked."""
        import torch

        from cxrlt_ray.objectives import losses, priors

        spec = self.spec
        if logits.device not in self._losses:
            positives, labelled = self.counts
            weights = priors.class_weights(positives, labelled, spec.class_weight_exponent)
            arrays = (
                torch.as_tensor(np.asarray(values), dtype=torch.float32, device=logits.device)
                for values in (weights, positives, labelled)
            )
            self._losses[logits.device] = losses.bound(spec.loss, spec.loss_settings, *arrays)
        if spec.smooth_pos > 0 or spec.smooth_neg > 0:
            labels = losses.smoothed(labels, spec.smooth_pos, spec.smooth_neg)
        return self._losses[logits.device](logits, labels)  # type: ignore[operator]

    def score(self, targets: np.ndarray, probabilities: np.ndarray) -> float:
        """Macro mAP over findings with a positive (average precision as scikit-learn defines it)."""
        return metrics.macro(metrics.per_finding(targets, probabilities, ("ap",))["ap"])
