"""Sections by name: what each gathers from a run, and what it shows of that.

    class Sizes(SectionFacts):
        images: int

    def gather(facts: Facts) -> Sizes | str:
        return Sizes(images=len(facts.manifest.table)) if facts.manifest else "The manifest cannot be read."

    @register_section("sizes", "Sizes", order=55, facts=Sizes, gather=gather)
    def sizes(facts: Sizes) -> list[Part]:
        return [Tiles([Tile("images", "images", "count")])]

`gather` gives a sentence instead where the run lacks what the section is about. It may raise CxrltError: the page then
says so in the section's place.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cxrlt_ray.page.facts import Facts
from cxrlt_ray.page.parts import Part
from cxrlt_ray.page.records import SectionFacts

Gathered = TypeVar("Gathered", bound=SectionFacts)
WITHOUT = {"registry"}  # modules of this folder that are no sections


@dataclass(frozen=True)
class Section(Generic[Gathered]):
    """A section: its place in the page (`order`, low first), its facts' type, how they are gathered and shown."""

    name: str
    title: str
    order: int
    facts: type[Gathered]
    gather: Callable[[Facts], Gathered | str]
    show: Callable[[Gathered], list[Part]]


_SECTIONS: dict[str, Section[SectionFacts]] = {}


def register_section(
    name: str, title: str, *, order: int, facts: type[Gathered], gather: Callable[[Facts], Gathered | str]
) -> Callable[[Callable[[Gathered], list[Part]]], Callable[[Gathered], list[Part]]]:
    """Register the decorated function as what section `name` shows of its facts."""

    def register(show: Callable[[Gathered], list[Part]]) -> Callable[[Gathered], list[Part]]:
        if name in _SECTIONS:
            raise ValueError(f"there are two sections '{name}'")
        _SECTIONS[name] = Section(name, title, order, facts, gather, show)  # type: ignore[arg-type]
        return show

    return register


def sections() -> list[Section[SectionFacts]]:
    """All sections in the page's order."""
    package = importlib.import_module(__package__ or "cxrlt_ray.page.sections")
    for module in sorted({module.name for module in pkgutil.iter_modules(package.__path__)} - WITHOUT):
        importlib.import_module(f"{package.__name__}.{module}")
    return sorted(_SECTIONS.values(), key=lambda section: section.order)
