"""Which findings a generated image is to show, drawn from the training rows: arrays in, arrays out.

A set is one finding, or several that an image has together. `alone`: an image shows the set and nothing else. `real`:
it shows what a training image with the set shows, so that findings keep their company and their frequencies in it. In
either case each image descends from one training image that has the set, its source; sources take turns, so that all
are used before one is used again.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.data.tasks import TAIL, rarity
from cxrlt_ray.errors import UsageError

ALONE, REAL = "alone", "real"
COMPANIES = (ALONE, REAL)
JOIN = "+"  # between the findings of a set
SHOWN = 3  # names in a message
RAREST = 5  # findings that are drawn where none is tail


@dataclass(frozen=True)
class Conditions:
    """What N images are to show.

    of: str [N], the set that each is drawn for. vectors: int8 [N, C], 1, 0 or -1 (left open). source: int64 [N], rows
    of the training images. seed: int64 [N], of each image's noise.
    """

    of: np.ndarray
    vectors: np.ndarray
    source: np.ndarray
    seed: np.ndarray

    def __len__(self) -> int:
        return len(self.of)


def encoded(vectors: np.ndarray) -> np.ndarray:
    """Conditions int8 [B, C] as a network takes them, float32: 1 present, -1 absent, 0 unknown.

    The row of zeros, of which nothing is known, is the null condition of classifier-free guidance.
    """
    return np.where(vectors < 0, 0, 2 * vectors.astype(np.int8) - 1).astype(np.float32)


def prompt(vector: np.ndarray, findings: Sequence[str]) -> str:
    """The findings that a condition int8 [C] has, in words, as CXR-LT's team A names them; "" is the null condition.

    >>> prompt(np.array([1, 0, 1]), ["Round(ed) Atelectasis", "Mass", "Pneumothorax"])
    'Round(ed) Atelectasis, Pneumothorax'
    """
    present = [name for name, value in zip(findings, vector, strict=True) if value == 1]
    return ", ".join(present) or "no finding"


def tail_sets(targets: np.ndarray, findings: Sequence[str]) -> tuple[str, ...]:
    """The tail findings of training targets int8 [N, C] that have a positive, in order; the RAREST where none is tail.

    Raises UsageError where no finding has a positive.
    """
    kinds, positives = rarity(targets), (targets == 1).sum(axis=0)
    known = [c for c in np.argsort(positives, kind="stable") if positives[c] > 0]
    if not known:
        raise UsageError("none of the findings that were learnt has a positive image: there is nothing to draw.")
    chosen = [c for c in known if kinds[c] == TAIL] or known[:RAREST]
    return tuple(findings[c] for c in sorted(chosen))


def members(text: str, findings: Sequence[str]) -> list[int]:
    """The columns of a set, 'Mass' or 'Mass+Nodule'. Raises UsageError for a finding that was not learnt."""
    names = [text] if text in findings else [name.strip() for name in text.split(JOIN)]
    for name in names:
        if name not in findings:
            near = ", ".join(difflib.get_close_matches(name, findings, SHOWN, 0.3)) or ", ".join(findings[:SHOWN])
            raise UsageError(
                f"--findings {text}: the generator has not learnt '{name}'; of its {len(findings)} findings the "
                f"nearest are {near}."
            )
    return sorted({list(findings).index(name) for name in names})


def draw_conditions(
    sets: Sequence[str], targets: np.ndarray, findings: Sequence[str], each: int, company: str, seed: int
) -> Conditions:
    """`each` images a set, of training targets int8 [N, C]. The draw of a set does not depend on the others.

    Raises UsageError for a finding that was not learnt, a set that no training image has, and an unknown `company`.
    """
    if company not in COMPANIES:
        raise UsageError(f"--company is {' or '.join(COMPANIES)}, not '{company}'.")
    sets = tuple(dict.fromkeys(sets))
    parts = [_draw_set(text, targets, findings, each, company, seed) for text in sets]
    return Conditions(*(np.concatenate([getattr(part, name) for part in parts]) for name in Conditions.__annotations__))


def _draw_set(
    text: str, targets: np.ndarray, findings: Sequence[str], each: int, company: str, seed: int
) -> Conditions:
    columns = members(text, findings)
    positive = np.flatnonzero((targets[:, columns] == 1).all(axis=1))
    if not len(positive):
        raise UsageError(f"--findings {text}: no training image has it, so that none can be drawn from it.")
    own = [seed, *text.encode()]  # so that a set that is added changes no other's images
    random = np.random.default_rng(own)
    turns = [random.permutation(positive) for _ in range(-(-each // len(positive)))]
    source = np.concatenate(turns)[:each].astype(np.int64)
    vectors = targets[source].copy()
    if company == ALONE:
        vectors = np.zeros_like(vectors)
        vectors[:, columns] = 1
    seeds = np.random.default_rng([*own, 1]).integers(0, 2**62, each)
    return Conditions(np.full(each, text, object), vectors, source, seeds)
