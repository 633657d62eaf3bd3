"""Prompts: a finding's description -> the texts by which a model is asked for it.

    name         its usual name
    names        each of its names and synonyms
    description  its name, appearance and place, as MedKLIP asks (Wu et al. 2023)
    question     a question with the description, as team G asks
    keywords     its keywords in three random orders, as team C asks
    phrases      "NAME seen" for each name and synonym, as team I asks

A style gives one text or several; where it gives several, their scores or embeddings are averaged. To add one: a
function like `name` under `@register_style("...")`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from cxrlt_ray.errors import UsageError
from cxrlt_ray.text.descriptions import Description

Style = Callable[[Description, random.Random], tuple[str, ...]]
STYLES: dict[str, Style] = {}
ORDERS = 3  # of keywords


def register_style(name: str) -> Callable[[Style], Style]:
    """Make a style known by `name` to search spaces, to `describe --show` and to the tests that all styles must pass.

    A style is given a description and a random generator that depends on seed and finding alone.
    """

    def register(style: Style) -> Style:
        STYLES[name] = style
        return style

    return register


def prompts(description: Description, style: str, seed: int = 0) -> tuple[str, ...]:
    """The texts that ask for a finding in a style, each once; the same for the same seed.

    Raises UsageError for an unknown style.
    """
    if style not in STYLES:
        raise UsageError(f"no style of prompts '{style}': there are {', '.join(STYLES)}.")
    return tuple(dict.fromkeys(STYLES[style](description, random.Random(f"{seed} {description.finding}"))))


def denial(description: Description) -> tuple[str, ...]:
    """The texts that say that a finding is absent: its own `denied`, or "no NAME seen" for each name and synonym."""
    return description.denied or tuple(f"no {wording} seen" for wording in description.wordings)


@register_style("name")
def name(description: Description, generator: random.Random) -> tuple[str, ...]:
    """The usual name."""
    return description.names[:1]


@register_style("names")
def names(description: Description, generator: random.Random) -> tuple[str, ...]:
    """Names and synonyms."""
    return description.wordings


@register_style("description")
def described(description: Description, generator: random.Random) -> tuple[str, ...]:
    """Name, appearance and place in one text."""
    place = f" It is located at: {', '.join(description.place)}." if description.place else ""
    return (f"{description.names[0]}: {description.appearance}{place}",)


@register_style("question")
def question(description: Description, generator: random.Random) -> tuple[str, ...]:
    """A yes or no question, then appearance and keywords as key features."""
    usual = description.names[0]
    features = ", ".join(description.keywords)
    return (
        f"Is {usual} seen in the image? Description of {usual}: {description.appearance} Key features: {features}.",
    )


@register_style("keywords")
def keywords(description: Description, generator: random.Random) -> tuple[str, ...]:
    """The keywords, joined in ORDERS random orders that differ."""
    orders: dict[str, None] = {}
    while len(orders) < ORDERS:  # three keywords or more have six orders or more
        orders[", ".join(generator.sample(description.keywords, len(description.keywords)))] = None
    return tuple(orders)


@register_style("phrases")
def phrases(description: Description, generator: random.Random) -> tuple[str, ...]:
    """Names and synonyms, each with "seen" after it."""
    return tuple(f"{wording} seen" for wording in description.wordings)
