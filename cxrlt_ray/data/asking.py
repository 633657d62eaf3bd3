"""Findings that a model answers for by text alone, and the seen findings by which such models are chosen.

No label of an asked finding may choose anything. What chooses epochs, trials, prompts and weights instead are folds of
seen findings: the model of a fold is trained without the labels of that fold's findings and asked for them by text,
as it will be for the asked ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ALWAYS = -1  # the fold of a seen finding whose labels every model is trained on
SCRUBBED, REPORTS, MINED, OUTSIDE_LABELS = "scrubbed", "reports", "mined", "outside"
TRACKS = {
    SCRUBBED: "no text of the asked findings was seen in training",
    REPORTS: "texts of the asked findings were seen in training, their labels were not",
    MINED: "labels of the asked findings were mined from reports and trained on",
    OUTSIDE_LABELS: "labels that other cohorts have of the asked findings were trained on",
}
LABELLED = (MINED, OUTSIDE_LABELS)  # tracks on which labels of the asked findings train


@dataclass(frozen=True)
class Asking:
    """What a run asks for.

    asked: findings that are asked for by text. seen: findings with labels in training. fold: [len(seen)] of each seen
    finding, from 0, or ALWAYS. track: one of TRACKS, what training has seen of the asked findings. by_mined: chosen by
    labels of the asked findings that were mined from reports, not by folds.
    """

    asked: tuple[str, ...]
    seen: tuple[str, ...]
    fold: tuple[int, ...]
    track: str = SCRUBBED
    by_mined: bool = False

    @property
    def folds(self) -> int:
        """K: how many models a trial trains."""
        return max(*self.fold, 0) + 1

    @property
    def trained(self) -> tuple[str, ...]:
        """What a model has outputs for: the seen findings, then the asked ones."""
        return (*self.seen, *self.asked)

    @property
    def predicted(self) -> tuple[str, ...]:
        """What a trial predicts: the seen findings that are in a fold, then the asked ones."""
        return (*(name for name, fold in zip(self.seen, self.fold, strict=True) if fold != ALWAYS), *self.asked)

    @property
    def fold_of_predicted(self) -> np.ndarray:
        """The fold of each predicted finding, int64 [P]; ALWAYS of asked ones, which every model is asked for."""
        return np.array([*(fold for fold in self.fold if fold != ALWAYS), *(ALWAYS for _ in self.asked)], np.int64)

    def hidden(self, fold: int) -> frozenset[str]:
        """The findings whose labels the model of `fold` is trained without; of K and above, one trained on all seen."""
        return frozenset(self._hidden(fold))

    def _hidden(self, fold: int) -> Iterator[str]:
        if self.track not in LABELLED:
            yield from self.asked
        yield from (name for name, own in zip(self.seen, self.fold, strict=True) if own == fold)

    def judged(self, fold: int) -> frozenset[str]:
        """The findings by which the model of `fold` is judged: its own seen ones."""
        if self.by_mined:
            return frozenset(self.asked)
        return frozenset(name for name, own in zip(self.seen, self.fold, strict=True) if own == fold)

    def corpus_of(self, fold: int) -> str:
        """The file with the texts that the model of `fold` reads: on track scrubbed without what is hidden from it."""
        return f"corpus-{fold}.parquet" if self.track == SCRUBBED and fold < self.folds else "corpus.parquet"
