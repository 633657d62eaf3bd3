"""Sentences of reports as phrases that are true or false of training images, for objectives that look for phrases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.labelling.labeller import Labeller
from cxrlt_ray.labelling.rules import NEGATIVE, POSITIVE, UNCERTAIN
from cxrlt_ray.objectives.registry import Evidence
from cxrlt_ray.text.corpus_table import SECOND
from cxrlt_ray.text.descriptions import own_labels

if TYPE_CHECKING:
    from cxrlt_ray.text.corpus import Corpus

    Embeddings = Callable[[np.ndarray], np.ndarray]  # of texts, by number [K]: [K, E]

AFFIRMED, DENIED = 1, 2
MEANING = {POSITIVE: AFFIRMED, NEGATIVE: DENIED}
SAMPLED = 1000  # sentences of which all pairs are compared


@dataclass(frozen=True, eq=False)
class Lists:
    """A list of numbers of each of N rows: those of row n are values[first[n]:first[n + 1]]. first: int64 [N + 1]."""

    first: np.ndarray
    values: np.ndarray

    @classmethod
    def of_rows(cls, lists: Sequence[Sequence[int]]) -> Lists:
        """Of lists, one a row."""
        return cls(np.cumsum([0, *map(len, lists)]), np.array([k for row in lists for k in row], np.int64))

    def of(self, row: int) -> np.ndarray:
        """The list of a row."""
        return self.values[self.first[row] : self.first[row + 1]]


@dataclass(frozen=True, eq=False)
class StatedPhrases:
    """S distinct sentences of the reports of N training images: phrases, and what reports doubt.

    texts: [S], their meta fields masked. affirmed, denied: findings with labels of each, bool [S, C]. own: of each
    image the phrases that its report states. said: those, and the sentences that its report is unsure of, which are no
    phrases. reported: whose report is there, bool [N].
    """

    texts: tuple[str, ...]
    affirmed: np.ndarray
    denied: np.ndarray
    own: Lists
    said: Lists
    reported: np.ndarray

    @classmethod
    def of(cls, evidence: Evidence, targets: np.ndarray) -> StatedPhrases:
        """Of the reports in `evidence`, on images with labels int8 [N, C]; none without reports.

        A phrase affirms a finding, with labels or without; or the rules know none in it, and nothing in it denies,
        doubts, or says that things are as they should be. Reports in other languages are as good as none.
        """
        numbers: dict[str, int] = {}
        stated: list[np.ndarray] = []
        own: dict[int, list[int]] = {-1: []}
        said: dict[int, list[int]] = {-1: []}
        report = np.full(len(targets), -1)
        if evidence.corpus is not None and evidence.report is not None:
            column = _columns(evidence, targets)
            readable = (evidence.report >= 0) & ~np.append(evidence.corpus.foreign, False)[evidence.report]
            report = np.where(readable, evidence.report, -1)
            qualifiers = cache(Labeller(evidence.corpus.about.rule_set.load()).qualifiers)
            for study in np.unique(report[readable]).tolist():
                phrases, doubted = _sentences(evidence.corpus, study, qualifiers)
                for text, values in {**doubted, **phrases}.items():
                    if numbers.setdefault(text, len(numbers)) == len(stated):
                        stated.append(_meanings(values, column, targets.shape[1]))
                own[study] = [numbers[text] for text in phrases]
                said[study] = [*own[study], *(numbers[text] for text in doubted)]
        meanings = np.stack(stated) if stated else np.zeros((0, targets.shape[1]), np.int8)
        of_images, all_said = (Lists.of_rows([by_study[k] for k in report.tolist()]) for by_study in (own, said))
        return cls(tuple(numbers), meanings == AFFIRMED, meanings == DENIED, of_images, all_said, report >= 0)

    def drawn(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Distinct phrases int64 [K], in order, of images `rows` [B]: of each as many as `uniform` [B, P] has draws.

        uniform: in [0, 1). Draws of an image may fall on the same phrase; an image without any has none.
        """
        first = self.own.first
        count = (first[rows + 1] - first[rows])[:, None]
        places = first[rows][:, None] + np.floor(uniform * count).astype(np.int64)
        return np.unique(self.own.values[places[np.broadcast_to(count > 0, places.shape)]])

    def labels(self, rows: np.ndarray, targets: np.ndarray, phrases: np.ndarray, alike: np.ndarray) -> np.ndarray:
        """int8 [B, K]: 1 where phrase k is true of image b, 0 where it is false, -1 where that is not known.

        targets: labels int8 [B, C] of images `rows`. alike: of `alike`. True: its own report says so. False: it affirms
        a finding that the image does not have, or denies one that it has, by its labels; or it affirms none that the
        image has a label of, and the image's report says nothing like it. Where its own report contradicts its labels,
        and where another report's sentence may fit it as well, it is not known.
        """
        own = np.stack([np.isin(phrases, self.own.of(row)) for row in rows])
        absent, present, labelled = (one.astype(np.float32) for one in (targets == 0, targets == 1, targets >= 0))
        false = absent @ self.affirmed[phrases].T + present @ self.denied[phrases].T > 0
        unlabelled = labelled @ self.affirmed[phrases].T == 0
        false |= unlabelled & self.reported[rows][:, None] & ~alike & ~own
        return np.where(own & ~false, 1, np.where(false & ~own, 0, -1)).astype(np.int8)

    def alike(self, rows: np.ndarray, phrases: np.ndarray, embeddings: Embeddings, least: float) -> np.ndarray:
        """Whether the reports of images `rows` state or doubt something like each phrase, bool [B, K].

        Like it: a sentence whose embedding has a cosine of `least` or more with the phrase's.
        """
        lists = [self.said.of(row) for row in rows]
        every = np.unique(np.concatenate([*lists, phrases[:0]]))
        near = cosines(embeddings(phrases), embeddings(every)) >= least
        return np.stack([near[:, np.isin(every, said)].any(axis=1) for said in lists])

    def least_alike(self, embeddings: Embeddings, deviations: float, seed: int) -> float:
        """The cosine from which on two sentences are alike: so many standard deviations above the mean of any two.

        Both are of a sample of SAMPLED sentences: what a cosine says depends on the encoder. 1 for fewer than two.
        """
        sample = np.random.default_rng(seed).permutation(len(self.texts))[:SAMPLED]
        if len(sample) < 2:
            return 1.0
        rows = embeddings(np.sort(sample))
        pairs = cosines(rows, rows)[np.triu_indices(len(sample), 1)]
        return float(pairs.mean() + deviations * pairs.std())


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of each row of one [K, E] with each of the other [M, E], float32 [K, M]; 0 with a row of zeros."""
    units = []
    for rows in (one, other):
        rows = rows.astype(np.float32)
        units.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
    return units[0] @ units[1].T


def _columns(evidence: Evidence, targets: np.ndarray) -> dict[str, int]:
    """The column of each finding that reports state and images have labels of, by its name in reports."""
    assert evidence.corpus is not None
    labelled = {name: c for c, name in enumerate(evidence.findings) if (targets[:, c] >= 0).any()}
    known = own_labels(evidence.findings, evidence.corpus.about.findings, evidence.descriptions)
    return {name: labelled[finding] for name, finding in known.items() if finding in labelled}


def _sentences(
    corpus: Corpus, study: int, qualifiers: Callable[[str], frozenset[str]]
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """The sentences of a report in both wordings that are phrases, and those that doubt, with what they say."""
    phrases, doubted = {}, {}
    for text, values in (*corpus.sentences(study), *corpus.sentences(study, SECOND)):
        if POSITIVE in values.values() or not (values or qualifiers(text)):
            phrases[text] = values
        elif UNCERTAIN in values.values() or "uncertain" in qualifiers(text):
            doubted[text] = values
    return phrases, doubted


def _meanings(values: Mapping[str, int], column: Mapping[str, int], findings: int) -> np.ndarray:
    """int8 [C] of AFFIRMED, DENIED or 0."""
    row = np.zeros(findings, np.int8)
    for finding, value in values.items():
        if finding in column:
            row[column[finding]] = MEANING.get(value, 0)
    return row
