"""Sentences of reports as phrases that are true or false of training images, for objectives that look for phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.labelling.rules import NEGATIVE, POSITIVE
from cxrlt_ray.objectives.registry import Evidence
from cxrlt_ray.text.descriptions import own_labels

if TYPE_CHECKING:
    from cxrlt_ray.text.corpus import Said

AFFIRMED, DENIED = 1, 2
MEANING = {POSITIVE: AFFIRMED, NEGATIVE: DENIED}


@dataclass(frozen=True, eq=False)
class StatedPhrases:
    """S distinct sentences that affirm a finding, and which of them the reports of N training images hold.

    texts: [S], their meta fields masked. affirmed, denied: findings of each, bool [S, C]. phrase: int64 [M]; those of
    image n are phrase[first[n]:first[n + 1]]. first: int64 [N + 1].
    """

    texts: tuple[str, ...]
    affirmed: np.ndarray
    denied: np.ndarray
    first: np.ndarray
    phrase: np.ndarray

    @classmethod
    def of(cls, evidence: Evidence, targets: np.ndarray) -> StatedPhrases:
        """Of the reports in `evidence`, on images with labels int8 [N, C]; none without reports.

        A finding without any label, such as one that is hidden from the model, makes no sentence a phrase.
        """
        numbers: dict[str, int] = {}
        stated: list[np.ndarray] = []
        own: dict[int, list[int]] = {-1: []}
        report = np.full(len(targets), -1)
        if evidence.corpus is not None and evidence.report is not None:
            report, column = evidence.report, _columns(evidence, targets)
            for study in np.unique(report[report >= 0]).tolist():
                sentences = _sentences(evidence.corpus.statements(study), column, targets.shape[1])
                for text, row in sentences.items():
                    if numbers.setdefault(text, len(numbers)) == len(stated):
                        stated.append(row)
                own[study] = [numbers[text] for text in sentences]
        lists = [own[study] for study in report.tolist()]
        values = np.stack(stated) if stated else np.zeros((0, targets.shape[1]), np.int8)
        phrase = np.array([number for own_numbers in lists for number in own_numbers], np.int64)
        return cls(tuple(numbers), values == AFFIRMED, values == DENIED, np.cumsum([0, *map(len, lists)]), phrase)

    def drawn(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Distinct phrases int64 [K], in order, of images `rows` [B]: of each as many as `uniform` [B, P] has draws.

        uniform: in [0, 1). Draws of an image may fall on the same phrase; an image without any has none.
        """
        count = (self.first[rows + 1] - self.first[rows])[:, None]
        places = self.first[rows][:, None] + np.floor(uniform * count).astype(np.int64)
        return np.unique(self.phrase[places[np.broadcast_to(count > 0, places.shape)]])

    def labels(self, rows: np.ndarray, targets: np.ndarray, phrases: np.ndarray) -> np.ndarray:
        """int8 [B, K]: 1 where phrase k is true of image b, 0 where it is false, -1 where that is not known.

        targets: labels int8 [B, C] of images `rows`. True: its own report says so. False: it affirms a finding that the
        image does not have, or denies one that it has, by its labels. Where its own report contradicts its labels, and
        where another report's sentence may fit it as well, it is not known.
        """
        own = np.stack([np.isin(phrases, self.phrase[self.first[row] : self.first[row + 1]]) for row in rows])
        absent, present = ((targets == value).astype(np.float32) for value in (0, 1))
        false = absent @ self.affirmed[phrases].T + present @ self.denied[phrases].T > 0
        return np.where(own & ~false, 1, np.where(false & ~own, 0, -1)).astype(np.int8)


def _columns(evidence: Evidence, targets: np.ndarray) -> dict[str, int]:
    """The column of each finding that reports state and images have labels of, by its name in reports."""
    assert evidence.corpus is not None
    labelled = {name: c for c, name in enumerate(evidence.findings) if (targets[:, c] >= 0).any()}
    known = own_labels(evidence.findings, evidence.corpus.about.findings, evidence.descriptions)
    return {name: labelled[finding] for name, finding in known.items() if finding in labelled}


def _sentences(statements: Sequence[Said], column: Mapping[str, int], findings: int) -> dict[str, np.ndarray]:
    """The sentences of a report that affirm a finding: of each, int8 [C] of AFFIRMED, DENIED or 0."""
    rows: dict[str, np.ndarray] = {}
    for said in statements:
        if said.finding in column and said.value in MEANING:
            row = rows.setdefault(said.text, np.zeros(findings, np.int8))
            row[column[said.finding]] = MEANING[said.value]
    return {text: row for text, row in rows.items() if (row == AFFIRMED).any()}
