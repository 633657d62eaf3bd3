"""Options that make a phantom harder for systems that read: all off by default, all on by `FOR_TEXT`.

A plain phantom is too easy for text: reports mention every finding, always by its name, and a finding never seen in
training is found by the company it keeps. Each option takes one of these helps away; none changes a sign's drawing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from cxrlt_ray.errors import UsageError
from cxrlt_ray.phantom.wordings import RESERVED


@dataclass(frozen=True)
class PhantomOptions:
    """How a phantom differs from the plain one.

    unmentioned: share of true findings that their report leaves out (Normal apart), in [0, 1].
    indirect: share of mentions that are worded without the finding's name (wordings.INDIRECT), in [0, 1].
    held_out: texts that no report of a training study contains, compared by words. Reports of other splits may.
    apart: if not 0, each finding of task 3 is drawn in the test split independently of all others but Normal, in this
    many studies or more.
    true_counts: the findings of task 3 are as frequent as the challenge's results suggest (labels.TRUE_PREVALENCE).
    boxes: write boxes.csv, where each sign was drawn.
    """

    unmentioned: float = 0.0
    indirect: float = 0.0
    held_out: tuple[str, ...] = ()
    apart: int = 0
    true_counts: bool = False
    boxes: bool = False

    def changed(self) -> dict[str, Any]:
        """The options that are not at their default, as phantom.json keeps them; of texts their number and a hash."""
        values = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}
        if self.held_out:
            digest = hashlib.sha256("\n".join(sorted(self.held_out)).encode()).hexdigest()
            values["held_out"] = f"{len(self.held_out)} texts, {digest[:12]}"
        return values


def checked(options: PhantomOptions) -> PhantomOptions:
    """`options`. Raises UsageError for a value out of range and for a text without a word."""
    for name in ("unmentioned", "indirect"):
        value = getattr(options, name)
        if not 0 <= value <= 1:
            raise UsageError(f"--{name} {value:g} is out of range: give a share from 0 to 1.")
    if options.apart < 0:
        raise UsageError(f"--apart {options.apart} is negative: give a number of studies, or 0 for none.")
    if empty := sum(not words(text) for text in options.held_out):
        raise UsageError(f"{empty} of the texts to hold out have no word in them: remove them.")
    return options


def combined(for_text: bool, held_out: Iterable[str] = (), **given: Any) -> PhantomOptions:
    """The preset if asked for, else the plain phantom, with the options given; `held_out` joins the preset's."""
    base = asdict(FOR_TEXT if for_text else PLAIN)
    base["held_out"] = tuple(dict.fromkeys([*base["held_out"], *held_out]))
    return checked(PhantomOptions(**base | {name: value for name, value in given.items() if value is not None}))


def words(text: str) -> str:
    """A text's words, lower case, with one blank around each: " s shaped spine "; "" where it has none."""
    plain = re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
    return f" {plain} " if plain else ""


PLAIN = PhantomOptions()
FOR_TEXT = PhantomOptions(
    unmentioned=0.25,
    indirect=0.5,
    held_out=tuple(text for texts in RESERVED.values() for text in texts),
    apart=60,
    true_counts=True,
    boxes=True,
)
