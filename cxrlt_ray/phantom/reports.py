"""The phantom's radiology reports: sentences in MIMIC's manner that agree with what a cohort says is mentioned.

    FINDINGS: one or two sentences a finding, grouped by organ, denials gathered ("No effusion or pneumothorax.")
    IMPRESSION: what matters, numbered where there is more than one

Affirmed, hedged and denied findings never share a sentence, so that a reader of single sentences can be
judged by them. Findings not mentioned are not named. A report is a pure function of the seed, the study and the
wording asked for (`Wording`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.errors import UsageError
from cxrlt_ray.phantom.labels import NEGATED, POSITIVE, UNCERTAIN
from cxrlt_ray.phantom.options import PhantomOptions, words
from cxrlt_ray.phantom.wordings import INDIRECT, PHRASES, RESERVED

_STREAM = 21

ORGANS = (
    ("Support Devices",),
    ("Cardiomegaly", "Cardiomyopathy", "Enlarged Cardiomediastinum", "Tortuous Aorta", "Calcification of the Aorta",
     "Pulmonary Hypertension", "Hilum", "Adenopathy", "Pneumomediastinum", "Hernia"),
    ("Edema", "Consolidation", "Pneumonia", "Infiltration", "Lung Opacity", "Atelectasis", "Lobar Atelectasis",
     "Round(ed) Atelectasis", "Infarction", "Pulmonary Embolism", "Fibrosis", "Emphysema", "Bulla", "Tuberculosis",
     "Granuloma", "Nodule", "Mass", "Lung Lesion", "Azygos Lobe"),
    ("Pleural Effusion", "Pneumothorax", "Hydropneumothorax", "Pleural Thickening", "Pleural Other", "Fissure",
     "Pneumoperitoneum", "Subcutaneous Emphysema"),
    ("Fracture", "Rib Fracture", "Clavicle Fracture", "Kyphosis", "Scoliosis", "Osteopenia"),
)  # fmt: skip
# worded so that they fit one finding or several
_AFFIRM = (
    "Findings include {it}.", "{It}.", "Note is made of {it}.", "The film shows {it}.", "Again seen: {it}.",
    "There is evidence of {it}.",
)  # fmt: skip
_HEDGE = (
    "Possible {it}.", "{It} cannot be excluded.", "Findings may represent {it}.", "It is difficult to exclude {it}.",
    "There is questionable {it}.", "Equivocal appearance for {it}.",
)  # fmt: skip
_DENY = (
    "No {it}.", "There is no evidence of {it}.", "No sign of {it}.", "No {it} identified.",
    "The study is without {it}.",
)  # fmt: skip
_NORMAL = (
    "The lungs are clear. Heart size and mediastinal contours are within normal limits.",
    "Cardiac and mediastinal silhouettes are normal. The lungs are well expanded and clear.",
    "The cardiomediastinal contours are unremarkable and the lungs are clear.",
)
_NORMAL_IMPRESSION = ("Normal chest radiograph.", "No acute cardiopulmonary process.", "Unremarkable chest radiograph.")
_OTHER_IMPRESSION = ("No significant change.", "Clinical correlation is recommended.", "As above.")
_TECHNIQUE = ("FINAL REPORT", "EXAMINATION: Chest radiograph.", "EXAMINATION: CHEST (PORTABLE AP)")
_REASONS = (
    "shortness of breath",
    "cough",
    "chest pain",
    "fever",
    "follow-up",
    "after trauma",
    "preoperative evaluation",
)
_FORMS = {
    "an affirmed finding": _AFFIRM,
    "a doubted finding": _HEDGE,
    "a denied finding": _DENY,
    "a normal chest": _NORMAL,
    "the impression of a normal chest": _NORMAL_IMPRESSION,
    "an impression": _OTHER_IMPRESSION,
    "the technique": _TECHNIQUE,
    "an indication": _REASONS,
}
# worth an impression
_WEIGHTY = 4


@dataclass(frozen=True)
class Wording:
    """How a report words its findings.

    indirect: share of mentions without the finding's name. held_out: texts that no sentence of it contains, as
    `options.words` writes them.
    """

    indirect: float = 0.0
    held_out: tuple[str, ...] = ()

    def allows(self, text: str) -> bool:
        """Whether no held-out text stands in `text`."""
        plain = words(text) if self.held_out else ""
        return not any(kept_out in plain for kept_out in self.held_out)


@functools.cache
def _phrases(wording: Wording, finding: str, indirect: bool) -> tuple[str, ...]:
    """The phrases to choose from for a finding: by its name or without it, of the other kind where none is left."""
    kinds = (PHRASES[finding], (*INDIRECT.get(finding, ()), *RESERVED.get(finding, ())))
    for phrases in (kinds[indirect], kinds[not indirect]):
        kept = [p for p in phrases if all(wording.allows(p.format(side=side)) for side in ("right", "left"))]
        if kept:
            return tuple(kept)
    raise UsageError(f"The texts to hold out leave no wording for {finding} in training reports: hold out fewer.")


BY_NAME = Wording()


def wording_of(options: PhantomOptions, training: bool) -> Wording:
    """The wording of training reports, from which texts are held out, or of the others.

    Raises UsageError where the texts leave a finding without a wording, or hold out what every sentence is made of.
    """
    if not training or not options.held_out:
        return Wording(options.indirect)
    wording = Wording(options.indirect, tuple(sorted({words(text) for text in options.held_out})))
    for finding in ALL_FINDINGS:
        _phrases(wording, finding, False)
    for what, forms in _FORMS.items():
        if not any(wording.allows(form) for form in forms):
            raise UsageError(f"The texts to hold out leave no sentence for {what} in training reports: hold out fewer.")
    return wording


def write_report(
    mention: Sequence[int],
    strength: Sequence[float],
    side: Sequence[int],
    study_id: int,
    seed: int,
    wording: Wording = BY_NAME,
) -> str:
    """A study's report. mention, strength, side: one value a finding, in ALL_FINDINGS' order, as of the cohort."""
    rng = np.random.default_rng([seed, _STREAM, study_id])
    says = dict(zip(ALL_FINDINGS, mention, strict=True))
    named = {name: _named(name, strength[k], side[k], says[name], rng, wording) for k, name in enumerate(ALL_FINDINGS)}
    findings = [_choose(_NORMAL, rng, wording)] if says["Normal"] == POSITIVE else []
    for organ in ORGANS:
        findings += [
            _sentence(_AFFIRM if says[name] == POSITIVE else _HEDGE, named[name], rng, wording)
            for name in organ
            if says[name] in (POSITIVE, UNCERTAIN)
        ]
        findings += _denials([named[name] for name in organ if says[name] == NEGATED], rng, wording)
    impression = _impression(says, named, rng, wording)
    head = f"{_choose(_TECHNIQUE, rng, wording)}\n\nINDICATION: {_choose(_REASONS, rng, wording).capitalize()}."
    return f"{head}\n\nFINDINGS: {' '.join(findings) or 'No change.'}\n\nIMPRESSION: {impression}\n"


def _named(name: str, strength: float, side: int, says: int, rng: np.random.Generator, wording: Wording) -> str:
    """One way to name a finding; where it is not denied with its degree."""
    indirect = wording.indirect > 0 and rng.random() < wording.indirect
    phrase = _choose(_phrases(wording, name, indirect), rng, BY_NAME).format(side="left" if side else "right")
    if says == NEGATED:
        return phrase.removeprefix("a ").removeprefix("an ")
    degree = ("subtle", "mild", "faint") if strength < 0.5 else ("marked", "obvious", "pronounced")
    if 0.5 <= strength < 0.8 or rng.random() < 0.5:
        return phrase
    graded = _graded(phrase, _choose(degree, rng, BY_NAME))
    return graded if wording.allows(graded) else phrase


def _graded(phrase: str, degree: str) -> str:
    """A phrase with its degree, behind an article."""
    for article in ("a ", "an "):
        if phrase.startswith(article):
            return f"{'an' if degree[0] in 'aeiou' else 'a'} {degree} {phrase.removeprefix(article)}"
    return f"{degree} {phrase}"


def _denials(named: list[str], rng: np.random.Generator, wording: Wording) -> list[str]:
    """Sentences that deny what is `named`, up to three in one."""
    sentences = []
    while named:
        part, named = named[: (count := int(rng.integers(1, 4)))], named[count:]
        joined = part[0] if len(part) == 1 else f"{', '.join(part[:-1])} or {part[-1]}"
        sentences.append(_sentence(_DENY, joined, rng, wording))
    return sentences


def _impression(says: dict[str, int], named: dict[str, str], rng: np.random.Generator, wording: Wording) -> str:
    if says["Normal"] == POSITIVE:
        return _choose(_NORMAL_IMPRESSION, rng, wording)
    order = [name for organ in ORGANS[1:] for name in organ]
    lines = [f"{_capital(named[name])}." for name in order if says[name] == POSITIVE]
    lines += [_sentence(_HEDGE, named[name], rng, wording) for name in order if says[name] == UNCERTAIN]
    lines = lines[:_WEIGHTY] or [_choose(_OTHER_IMPRESSION, rng, wording)]
    return lines[0] if len(lines) == 1 else " ".join(f"{k}. {line}" for k, line in enumerate(lines, 1))


def _sentence(forms: Sequence[str], it: str, rng: np.random.Generator, wording: Wording) -> str:
    return _choose([form.format(it=it, It=_capital(it)) for form in forms], rng, wording)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _choose(options: Sequence[str], rng: np.random.Generator, wording: Wording) -> str:
    """One of the texts that `wording` allows. Raises UsageError where there is none."""
    if wording.held_out:
        options = [option for option in options if wording.allows(option)]
    if not options:
        raise UsageError("The texts to hold out leave no way to say a sentence of a training report: hold out fewer.")
    return options[int(rng.integers(len(options)))]
