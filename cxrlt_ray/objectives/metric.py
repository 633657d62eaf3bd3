"""What judges epochs and trials; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A score's name among a trial's reports to Ray Tune and Optuna, which way is better, and its title in tables."""

    name: str = "val_map"
    mode: Literal["max", "min"] = "max"
    title: str = "val mAP"

    def better(self, one: float | None, other: float | None, by: float = 0.0) -> bool:
        """Whether score `one` is better than `other` by more than the share `by` of it.

        One that is unknown (None, nan) never is, and any other is better than an unknown one.
        """
        if one is None or one != one:
            return False
        if other is None or other != other:
            return True
        least = by * abs(other)
        return one > other + least if self.mode == "max" else one < other - least


VAL_MAP = Metric()
