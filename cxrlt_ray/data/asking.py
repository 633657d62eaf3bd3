"""Findings that a model answers for by text alone, and the seen findings by which such models are chosen.

No label of an asked finding may choose anything. What chooses epochs, trials, prompts and weights instead are folds of
seen findings: the model of a fold is trained without the labels of that fold's findings and asked for them by text,
as it will be for the asked ones. On tracks mined and outside it learns them as it learns the asked ones: from labels
that reports give (mined_labels.py), or that other cohorts have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.data.column_names import folded
from cxrlt_ray.errors import UsageError

CHOSEN_ON = ("train", "val")  # splits in which no label of an asked finding may be, but mined ones
CORPUS = "corpus.parquet"  # the texts of a run
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
        return max((*self.fold, 0)) + 1

    @property
    def trained(self) -> tuple[str, ...]:
        """What a model has outputs for: the seen findings, then the asked ones."""
        return (*self.seen, *self.asked)

    @property
    def predicted(self) -> tuple[str, ...]:
        """What a trial predicts: the seen findings that are in a fold, then the asked ones."""
        return (*(name for name, fold in self._seen() if fold != ALWAYS), *self.asked)

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
        yield from self.of_fold(fold)

    def of_fold(self, fold: int) -> tuple[str, ...]:
        """The seen findings of a fold, or those that are in none: ALWAYS."""
        return tuple(name for name, own in self._seen() if own == fold)

    def _seen(self) -> Iterator[tuple[str, int]]:
        yield from zip(self.seen, self.fold, strict=True)

    def judged(self, fold: int) -> frozenset[str]:
        """The findings by which the model of `fold` is judged: its own seen ones."""
        return frozenset(self.asked if self.by_mined else self.of_fold(fold))

    def corpus_of(self, fold: int) -> str:
        """The file with the texts that the model of `fold` reads: on track scrubbed without what is hidden from it."""
        return f"corpus-{fold}.parquet" if self.track == SCRUBBED and fold < self.folds else CORPUS


def names_in(text: str) -> tuple[str, ...]:
    """The findings in the text of `--ask`, separated by commas. Raises UsageError for none, and for one named twice.

    >>> names_in("Bulla, Pleural Mass")
    ('Bulla', 'Pleural Mass')
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("--ask takes names of findings, separated by commas: it was given none.")
    forms = [folded(name) for name in names]
    if twice := [name for name, form in zip(names, forms, strict=True) if forms.count(form) > 1]:
        raise UsageError(f"--ask names {' and '.join(twice)}, which is one finding: findings are named each once.")
    return names


def own_names(findings: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Those of `names` that are among `findings` -> these findings, compared without case and signs."""
    known = {folded(finding): finding for finding in findings}
    return {name: known[folded(name)] for name in names if folded(name) in known}
