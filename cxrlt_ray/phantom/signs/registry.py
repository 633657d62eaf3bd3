"""What a sign is, and the registries that the modules of signs fill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.phantom.anatomy import Anatomy, Scene
from cxrlt_ray.phantom.brush import Points


@dataclass(frozen=True)
class Sign:
    """A finding as it is in one study: strength in (0, 1], side 0 the patient's right, 1 left, a seed of its own."""

    finding: str
    strength: float
    side: int
    seed: tuple[int, ...]

    def rng(self) -> np.random.Generator:
        """The sign's random numbers, the same at every call."""
        return np.random.default_rng(self.seed)

    def grade(self, faint: float, plain: float) -> float:
        """A quantity that is `faint` at strength 0 and `plain` at 1."""
        return faint + (plain - faint) * self.strength


Change = Callable[[Anatomy, Sign], None]
Paint = Callable[[Scene, Sign], None]
Place = Callable[[Scene, Sign], list[Points]]
CHANGES: dict[str, Change] = {}
PAINTS: dict[str, Paint] = {}
PLACES: dict[str, Place] = {}  # of the findings that change the anatomy
# a general finding is not drawn beside a more precise one
GENERAL = {"Fracture": ("Rib Fracture", "Clavicle Fracture"), "Cardiomegaly": ("Cardiomyopathy",)}


def changes(finding: str, place: Place) -> Callable[[Change], Change]:
    """Register how a finding changes the anatomy.

    place: the outlines of what looks different in a painted scene, none where it cannot be seen in that view. What is
    painted (`paints`) need not say where: its strokes do.
    """

    def add(function: Change) -> Change:
        CHANGES[finding], PLACES[finding] = function, place
        return function

    return add


def paints(finding: str) -> Callable[[Paint], Paint]:
    """Register how a finding is painted."""

    def add(function: Paint) -> Paint:
        PAINTS[finding] = function
        return function

    return add


def drawn(signs: list[Sign]) -> list[Sign]:
    """The signs to draw: without those that another makes more precise."""
    present = {sign.finding for sign in signs}
    return [sign for sign in signs if not present.intersection(GENERAL.get(sign.finding, ()))]
