"""Options that make a phantom harder: all off by default; those for systems that read all on by `FOR_TEXT`.

A plain phantom is too easy for text: reports mention every finding, always by its name, and a finding never seen in
training is found by the company it keeps. Each option takes one of these helps away; none changes a sign's drawing.
The hidden bias does: one sign is fainter in one group of patients, of which no table tells.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from cxrlt_ray.data.age_bands import AGE_BANDS
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
    enriched: if not 0, each finding of task 3 is in this share of the training and validation studies or more, in [0,
    ENRICHED]: a small cohort can have as many of the rarest as the release, which has them in some hundred studies.
    boxes: write boxes.csv, where each sign was drawn.
    hidden_bias: the share by which the sign of hidden_finding is fainter in hidden_group, in [0, 1]; 0: not at all, and
    the other two do not count. hidden_finding: one that is painted (signs.PAINTS). hidden_group: F, M or an age band.
    """

    unmentioned: float = 0.0
    indirect: float = 0.0
    held_out: tuple[str, ...] = ()
    apart: int = 0
    true_counts: bool = False
    enriched: float = 0.0
    boxes: bool = False
    hidden_bias: float = 0.0
    hidden_finding: str = "Pleural Effusion"
    hidden_group: str = "F"

    def changed(self) -> dict[str, Any]:
        """The options that are not at their default, as phantom.json keeps them; of texts their number and a hash."""
        values = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}
        if self.hidden_bias:
            values |= {name: getattr(self, name) for name in HIDDEN}
        else:
            values = {name: value for name, value in values.items() if name not in HIDDEN}
        if self.held_out:
            digest = hashlib.sha256("\n".join(sorted(self.held_out)).encode()).hexdigest()
            values["held_out"] = f"{len(self.held_out)} texts, {digest[:12]}"
        return values


def checked(options: PhantomOptions) -> PhantomOptions:
    """`options`. Raises UsageError for a value out of range and for a text without a word."""
    for name in ("unmentioned", "indirect", "hidden_bias"):
        value = getattr(options, name)
        if not 0 <= value <= 1:
            raise UsageError(f"--{name.replace('_', '-')} {value:g} is out of range: give a share from 0 to 1.")
    if not 0 <= options.enriched <= ENRICHED:
        raise UsageError(f"--enriched {options.enriched:g} is out of range: give a share from 0 to {ENRICHED:g}.")
    if options.apart < 0:
        raise UsageError(f"--apart {options.apart} is negative: give a number of studies, or 0 for none.")
    if options.hidden_group not in GROUPS:
        raise UsageError(f"--hidden-group {options.hidden_group} is none of {', '.join(GROUPS)}.")
    if options.hidden_bias:
        _check_painted(options.hidden_finding)
    if empty := sum(not words(text) for text in options.held_out):
        raise UsageError(f"{empty} of the texts to hold out have no word in them: remove them.")
    return options


def _check_painted(finding: str) -> None:
    """Raise UsageError for a finding whose sign is not painted: a changed anatomy has no contrast of its own."""
    from cxrlt_ray.phantom.signs import CHANGES, PAINTS

    if finding not in PAINTS or finding in CHANGES:
        painted = ", ".join(sorted(name for name in PAINTS if name not in CHANGES))
        raise UsageError(f"--hidden-finding '{finding}' is none of the painted signs: {painted}.")


def combined(for_text: bool, held_out: Iterable[str] = (), **given: Any) -> PhantomOptions:
    """The preset if asked for, else the plain phantom, with the options given; `held_out` joins the preset's."""
    base = asdict(FOR_TEXT if for_text else PLAIN)
    base["held_out"] = tuple(dict.fromkeys([*base["held_out"], *held_out]))
    return checked(PhantomOptions(**base | {name: value for name, value in given.items() if value is not None}))


def words(text: str) -> str:
    """A text's words, lower case, with one blank around each: " s shaped spine "; "" where it has none."""
    plain = re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
    return f" {plain} " if plain else ""


ENRICHED = 0.2  # five findings, many of them alone: a larger share leaves no room for the others
HIDDEN = ("hidden_bias", "hidden_finding", "hidden_group")
SEXES = ("F", "M")
GROUPS = (*SEXES, *AGE_BANDS.values())
PLAIN = PhantomOptions()
FOR_TEXT = PhantomOptions(
    unmentioned=0.25,
    indirect=0.5,
    held_out=tuple(text for texts in RESERVED.values() for text in texts),
    apart=60,
    true_counts=True,
    boxes=True,
)
