"""Where findings of training images are, for the contrast of places: by what reports state, else by descriptions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.rules import POSITIVE
from cxrlt_ray.objectives.registry import Evidence
from cxrlt_ray.objectives.terms.location import ELSEWHERE, HERE
from cxrlt_ray.text.descriptions import Description, look_up, other_places, own_labels, place_names

UNKNOWN = -1  # in a set: neither here nor elsewhere; as a set's number: no place is known


def place_text(place: str) -> str:
    """What the contrast compares a query with (MedKLIP: Wu et al. 2023)."""
    return f"It is located at {place}"


class Places:
    """The sets of places that cells of training images have, each set once.

    sets: int8 [S + 1, P] of HERE, ELSEWHERE or UNKNOWN, which is a place that overlaps one that is here; the last row
    is all UNKNOWN, so that -1 is the number of none. numbers: int32 [N, C], of each image and finding; a positive
    label is left for the loss to see to.
    """

    def __init__(self, evidence: Evidence, targets: np.ndarray) -> None:
        self._rows: dict[tuple[str, ...], int] = {}
        self._sets: list[np.ndarray] = []
        described = look_up(evidence.findings, evidence.descriptions).values()
        descriptions = [d if d and d.reviewed else None for d in described]
        if not any(description and description.place for description in descriptions):
            raise UsageError(
                f"objective location: no description of {', '.join(evidence.findings[:5])} names a place: give "
                "your own, with `place`, by --descriptions."
            )
        plain = [self._number(d.place, d) if d and d.place else UNKNOWN for d in descriptions]
        self.numbers = np.tile(np.array(plain, np.int32), (len(targets), 1))
        if evidence.corpus is not None and evidence.report is not None:
            self._stated(evidence, targets, descriptions)

    @property
    def sets(self) -> np.ndarray:
        """As above."""
        return np.stack([*self._sets, np.full(len(place_names()), UNKNOWN, np.int8)])

    def _stated(self, evidence: Evidence, targets: np.ndarray, descriptions: list[Description | None]) -> None:
        """Put what reports state in the place of descriptions: places in sentences that affirm a positive finding."""
        assert evidence.corpus is not None
        assert evidence.report is not None
        told = own_labels(evidence.findings, evidence.corpus.about.findings, evidence.descriptions)
        columns = {name: c for c, name in enumerate(evidence.findings) if descriptions[c]}
        column = {name: columns[finding] for name, finding in told.items() if finding in columns}
        reported = np.flatnonzero((evidence.report >= 0) & (targets == 1).any(axis=1))
        order = reported[np.argsort(evidence.report[reported], kind="stable")]
        studies, first = np.unique(evidence.report[order], return_index=True)
        for study, rows in zip(studies.tolist(), np.split(order, first[1:]), strict=True):
            named: dict[int, list[str]] = {}
            for said in evidence.corpus.statements(study):
                if said.value == POSITIVE and said.finding in column and (places := places_in(said.text)):
                    named.setdefault(column[said.finding], []).extend(places)
            for c, places in named.items():
                description = descriptions[c]
                assert description is not None
                self.numbers[rows, c] = self._number(tuple(dict.fromkeys(places)), description)

    def _number(self, here: Sequence[str], description: Description) -> int:
        """The number of the set of a finding that is at `here`."""
        key = tuple(sorted(here))
        if key not in self._rows:
            elsewhere = set(other_places(description.model_copy(update={"place": key})))
            row = [HERE if name in key else ELSEWHERE if name in elsewhere else UNKNOWN for name in place_names()]
            self._rows[key] = len(self._sets)
            self._sets.append(np.array(row, np.int8))
        return self._rows[key]


def places_in(sentence: str) -> list[str]:
    """The places of the chest that a sentence names, the longest name where several begin at one word."""
    pattern, by_form = _pattern(place_names())
    return list(dict.fromkeys(by_form[match.lower()] for match in pattern.findall(sentence)))


@lru_cache(maxsize=2)
def _pattern(names: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """What finds names of places, and the names by what it finds in small letters."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
    return pattern, {name.lower(): name for name in names}
