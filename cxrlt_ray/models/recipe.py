"""How a backbone is built: what its name stands for, and what a saved model keeps so that no hub is asked again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BackboneRecipe:
    """How a backbone is built.

    by: the library, "timm" or "transformers". name: its name for the architecture. options: what it is built with.
    mean, std: pixel normalisation for pixels in 0..1; empty where it is what timm says of the architecture.
    """

    by: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether timm's name alone is enough to build it."""
        return self.by == "timm" and not self.options and not self.mean
