"""The texts of a stage's images: drawn anew each epoch, as tokens on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.features import storage_of
from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.registry import Needs, Objective
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training.job import Images, Job, corpus_of, manifest_of

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.text.corpus import Corpus

    Tokenize = Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class TextDraws:
    """Draws a study's text, which depends on seed, epoch and study alone, so that all workers and resumes agree."""

    corpus: Corpus
    tokenize: Tokenize
    kind: str
    seed: int
    second: float

    def batch(self, reports: np.ndarray, epoch: int) -> tuple[torch.Tensor, ...]:
        """The two tensors of `tokenize`, and numbers of the texts, int64 [B], of reports int64 [B], -1 for none."""
        import torch

        texts = self.corpus.draw(reports, self.kind, self.seed, epoch, second=self.second)
        return (*self.tokenize(texts), torch.from_numpy(text_numbers(texts)))


def text_numbers(texts: Sequence[str]) -> np.ndarray:
    """A number of each text, int64 [B]: equal for equal texts in any process, 0 for an empty one."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    numbers = [(int.from_bytes(digest) >> 1) | 1 if text else 0 for text, digest in zip(texts, digests, strict=True)]
    return np.array(numbers, np.int64)


def text_draws(job: Job, config: TrialConfig, objective: Objective, fold: int, seed: int) -> TextDraws | None:
    """The texts of a fold's stage; None where its objective reads none. Called after `objective.network`."""
    if not objective.needs.texts:
        return None
    corpus = corpus_of(job, fold)
    assert corpus is not None  # with_reports has seen to it
    if objective.needs.vectors:
        texts = partial(corpus.drawable, manifest_of(job.run), config.text_draw, config.text_reworded > 0)
        objective.expect(texts, storage_of(job.shards[0]))
    return TextDraws(corpus, objective.tokenize, config.text_draw, seed, config.text_reworded)


def with_reports(images: Images, needs: Needs, objective: str) -> Images:
    """The images whose study has a report, where an objective reads texts. Raises UsageError where none has."""
    if not needs.texts:
        return images
    rows = np.flatnonzero(images.report >= 0) if images.report is not None else np.empty(0, np.int64)
    if not len(rows):
        raise UsageError(
            f"objective {objective} reads texts, but none of {len(images):,} images that it trains on or is judged by "
            "has a report: give the cohort's by `sweep --reports PATH`."
        )
    return images.at(rows)
