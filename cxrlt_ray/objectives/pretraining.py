"""Networks of contrastive pretraining: called with a batch, each returns its terms, float [T].

Features are made in the trial's precision, terms in float32. With several workers a term is the worker's part of the
mean over all workers' rows (terms/gather.py). `encode` gives what is compared, for the score on validation images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from cxrlt_ray.models import Classifier, Similarity
from cxrlt_ray.models.precision import in_full_precision
from cxrlt_ray.objectives.terms.contrast import LogScale, info_nce, sigmoid_loss
from cxrlt_ray.objectives.terms.local import FORMS, local_alignment
from cxrlt_ray.objectives.terms.views import KeyQueue, barlow_twins, follow, moco, nt_xent
from cxrlt_ray.objectives.towers import ImageTower, TextTower

Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries and keys [B, D], numbers of the keys int64 [B]


class ContrastiveNetwork(nn.Module):
    """A network with a classifier in it, whose terms compare two sides of pairs."""

    image: ImageTower

    def encode(self, *inputs: torch.Tensor) -> Encoded:
        """Both sides of a batch's pairs, and which keys are the same."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each step of the optimizer."""

    def classifier(self) -> Classifier:
        """The classifier of the image tower."""
        return self.image.model


class AgainstTexts(ContrastiveNetwork):
    """A contrast of images and texts. scale, bias: of its logits; bias: where it has one."""

    text: TextTower
    scale: LogScale
    bias: nn.Parameter | None

    def classifier(self) -> Classifier:
        """The classifier of the image tower; a head `similarity` has the space of the contrast now."""
        head, project = self.image.model.head, self.image.project
        if isinstance(head, Similarity):
            assert isinstance(project, nn.Linear)
            head.take(project, self.text.project, self.scale(), self.bias)
        return self.image.model


class ImageText(AgainstTexts):
    """Images against texts, by InfoNCE or by the sigmoid loss. Terms [1]. Inputs: pixels, ids, mask, numbers."""

    def __init__(self, image: ImageTower, text: TextTower, sigmoid: bool = False) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.scale = LogScale(10.0 if sigmoid else 1 / 0.07)
        self.bias = nn.Parameter(torch.tensor(-10.0)) if sigmoid else None

    def encode(self, *inputs: torch.Tensor) -> Encoded:
        """Images, texts, and the numbers of the texts."""
        pixels, ids, mask, number = inputs
        return self.image(pixels), self.text(ids, mask), number

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The contrast."""
        images, texts, number = self.encode(*inputs)
        with in_full_precision(images.device):
            if self.bias is None:
                return info_nce(images, texts, self.scale(), number).reshape(1)
            return sigmoid_loss(images, texts, self.scale(), self.bias, number).reshape(1)

    def after_step(self) -> None:
        """Limit the scale."""
        self.scale.limit()


class Pairs(ContrastiveNetwork):
    """Two images of a study, encoded together. Inputs: pixels twice, studies."""

    def __init__(self, image: ImageTower) -> None:
        super().__init__()
        self.image = image

    def encode(self, *inputs: torch.Tensor) -> Encoded:
        """The first images, the others, and their studies."""
        first, second, study = inputs
        both = self.image(torch.cat([first, second]))  # together: one batch norm for both
        return both[: len(first)], both[len(first) :], study


class Views(Pairs):
    """Two images of a study against those of other studies, by NT-Xent. Terms [1]."""

    def __init__(self, image: ImageTower, temperature: float) -> None:
        super().__init__(image)
        self.temperature = temperature

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The contrast."""
        one, other, study = self.encode(*inputs)
        with in_full_precision(one.device):
            return nt_xent(one, other, self.temperature, study).reshape(1)


class Twins(Pairs):
    """Two images of a study by Barlow Twins. Terms [1]."""

    def __init__(self, image: ImageTower, redundancy: float) -> None:
        super().__init__(image)
        self.redundancy = redundancy

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """How far the correlation of both is from the identity."""
        first, second, _ = self.encode(*inputs)
        with in_full_precision(first.device):
            return barlow_twins(first, second, self.redundancy).reshape(1)


class MomentumViews(ContrastiveNetwork):
    """MoCo: a slow encoder's keys in a queue. Terms [1]. Inputs as of `Views`.

    Slow encoder and queue are in the state dict, so that a trial that is cut goes on with them.
    """

    def __init__(self, image: ImageTower, width: int, size: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.image, self.slow = image, copy.deepcopy(image).requires_grad_(False)
        self.queue, self.temperature, self.momentum = KeyQueue(size, width), temperature, momentum

    def encode(self, *inputs: torch.Tensor) -> Encoded:
        """The first images, the others by the slow encoder, and their studies."""
        first, second, study = inputs
        with torch.no_grad():
            keys = self.slow(second)
        return self.image(first), keys, study

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The contrast; in training the keys join the queue afterwards."""
        query, key, study = self.encode(*inputs)
        with in_full_precision(query.device):
            term = moco(query, key, self.queue, self.temperature, study)
            if self.training:
                self.queue.push(key, study)
        return term.reshape(1)

    def after_step(self) -> None:
        """The slow encoder follows."""
        follow(self.slow, self.image, self.momentum)


class MultiView(AgainstTexts):
    """MaMA: L_VT of the first image, and from a step on L_VT of the second, L_VV between both, and SLA of the first.

    Terms [4] in this order. Inputs: pixels twice, studies, ids, mask, numbers. Until `start` steps are done the second
    image is not looked at; the parameters that wait have gradients of 0, which DistributedDataParallel waits for.
    keys: how many a slow encoder keeps for L_VV by MoCo; 0: L_VV is NT-Xent within the batch.
    """

    steps: torch.Tensor

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        start: int,
        temperature: float,
        form: str,
        keys: int = 0,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        assert form in FORMS
        self.image, self.text, self.start, self.temperature, self.form = image, text, start, temperature, form
        self.scale, self.of_words, self.of_patches, self.bias = LogScale(), LogScale(), LogScale(), None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.slow = copy.deepcopy(image).requires_grad_(False) if keys else None
        self.queue, self.momentum = KeyQueue(keys, image.width) if keys else None, momentum

    def encode(self, *inputs: torch.Tensor) -> Encoded:
        """The first images, texts, and the numbers of the texts."""
        first, _, _, ids, mask, number = inputs
        return self.image.patches(first)[0], self.text(ids, mask), number

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The terms."""
        first, second, study, ids, mask, number = inputs
        if int(self.steps) < self.start:
            images, texts, _ = self.encode(*inputs)
            with in_full_precision(images.device):
                term = info_nce(images, texts, self.scale(), number)
                waiting = _nothing([*self.of_words.parameters(), *self.of_patches.parameters()])
                return torch.stack([term, waiting, waiting, waiting])
        both, patches = self.image.patches(torch.cat([first, second]))
        one, other = both[: len(first)], both[len(first) :]
        texts, words = self.text.words(ids, mask)
        keys = self._keys(second)
        with in_full_precision(one.device):
            scale, scales = self.scale(), (self.of_words(), self.of_patches())
            return torch.stack(
                [
                    info_nce(one, texts, scale, number),
                    info_nce(other, texts, scale, number),
                    nt_xent(one, other, self.temperature, study) if keys is None else self._moco(one, keys, study),
                    local_alignment(patches[: len(first)], words, mask, scales, number, self.form),
                ]
            )

    def _keys(self, second: torch.Tensor) -> torch.Tensor | None:
        if self.slow is None:
            return None
        with torch.no_grad():
            keys: torch.Tensor = self.slow.patches(second)[0]
            return keys

    def _moco(self, query: torch.Tensor, keys: torch.Tensor, study: torch.Tensor) -> torch.Tensor:
        """The queries against the queue, which the keys join afterwards."""
        assert self.queue is not None
        term = moco(query, keys, self.queue, self.temperature, study)
        if self.training:
            self.queue.push(keys, study)
        return term

    def after_step(self) -> None:
        """Count the step, limit the scales; the slow encoder follows."""
        self.steps += 1
        for scale in (self.scale, self.of_words, self.of_patches):
            scale.limit()
        if self.slow is not None:
            follow(self.slow, self.image, self.momentum)


def _nothing(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """0, with a gradient of 0 for every parameter."""
    return torch.stack([0.0 * parameter.sum() for parameter in parameters]).sum()
