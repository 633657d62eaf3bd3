"""The phantom's radiology reports: sentences in MIMIC's manner that agree with what a cohort says is mentioned.

    FINDINGS: one or two sentences a finding, grouped by organ, denials gathered ("No effusion or pneumothorax.")
    IMPRESSION: what matters, numbered where there is more than one

Affirmed, hedged and denied findings never share a sentence, so that a reader of single sentences can be
judged by them. Findings not mentioned are not named. A report is a pure function of the seed and the study.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.phantom.labels import NEGATED, POSITIVE, UNCERTAIN

_STREAM = 21

# each finding in a radiologist's words; {side} is "right" or "left"
PHRASES: dict[str, tuple[str, ...]] = {
    "Adenopathy": ("{side} hilar lymphadenopathy", "mediastinal adenopathy", "enlarged {side} hilar lymph nodes"),
    "Atelectasis": ("{side} basilar atelectasis", "plate-like atelectasis at the {side} base", "bibasilar atelectasis"),
    "Azygos Lobe": ("an azygos lobe", "an azygos fissure"),
    "Bulla": ("a {side} apical bulla", "bullous change in the {side} upper lobe"),
    "Calcification of the Aorta": (
        "calcification of the aorta",
        "aortic knob calcification",
        "a calcified aortic arch",
    ),
    "Cardiomegaly": ("cardiomegaly", "enlargement of the cardiac silhouette", "enlargement of the heart"),
    "Cardiomyopathy": ("a globular heart as in cardiomyopathy", "cardiomyopathy"),
    "Clavicle Fracture": ("a {side} clavicle fracture", "a displaced fracture of the {side} clavicle"),
    "Consolidation": ("{side} lung consolidation", "focal consolidation", "lobar consolidation on the {side}"),
    "Edema": ("pulmonary edema", "interstitial edema", "pulmonary vascular congestion with edema"),
    "Emphysema": ("emphysema", "hyperinflation consistent with emphysema", "emphysematous change"),
    "Enlarged Cardiomediastinum": ("widening of the mediastinum", "an enlarged cardiomediastinal silhouette"),
    "Fibrosis": ("pulmonary fibrosis", "fibrotic change at both bases", "reticular fibrosis"),
    "Fissure": ("thickening of the minor fissure", "fluid in the fissure", "a prominent fissure"),
    "Fracture": ("a fracture", "an acute osseous fracture", "a {side} humeral fracture"),
    "Granuloma": ("a calcified granuloma", "calcified granulomas in the {side} lung"),
    "Hernia": ("a hiatal hernia", "a hernia behind the heart"),
    "Hilum": ("prominence of the hila", "hilar enlargement", "full hilar contours"),
    "Hydropneumothorax": ("a {side} hydropneumothorax", "a hydropneumothorax with an air-fluid level"),
    "Infarction": ("a pulmonary infarction", "a wedge-shaped {side} infarct"),
    "Infiltration": ("patchy infiltrates", "a {side} lung infiltrate", "scattered infiltrates on the {side}"),
    "Kyphosis": ("kyphosis", "kyphosis of the thoracic spine", "exaggerated thoracic kyphosis"),
    "Lobar Atelectasis": ("{side} upper lobe collapse", "lobar atelectasis on the {side}"),
    "Lung Lesion": ("a {side} lung lesion", "a spiculated lesion in the {side} lung"),
    "Lung Opacity": ("a hazy {side} lung opacity", "opacification of the {side} lung", "ill-defined opacity"),
    "Mass": ("a {side} lung mass", "a large mass in the {side} lung"),
    "Nodule": ("a pulmonary nodule", "a nodule in the {side} lung", "a rounded {side} nodule"),
    "Normal": ("a normal chest", "an unremarkable chest"),
    "Osteopenia": ("diffuse osteopenia", "osteopenia", "demineralized bones with osteopenia"),
    "Pleural Effusion": ("a {side} pleural effusion", "pleural effusion", "blunting from {side} effusion"),
    "Pleural Other": ("calcified pleural plaques", "pleural plaque"),
    "Pleural Thickening": ("{side} pleural thickening", "thickening of the {side} pleura"),
    "Pneumomediastinum": ("pneumomediastinum", "mediastinal air as in pneumomediastinum"),
    "Pneumonia": ("{side} lung pneumonia", "pneumonia", "{side} basilar pneumonia"),
    "Pneumoperitoneum": ("pneumoperitoneum", "free intraperitoneal air under the diaphragm"),
    "Pneumothorax": ("a {side} pneumothorax", "a {side} apical pneumothorax", "pneumothorax"),
    "Pulmonary Embolism": ("a pulmonary embolism", "oligemia suggesting pulmonary embolism"),
    "Pulmonary Hypertension": ("pulmonary hypertension", "enlarged pulmonary arteries of pulmonary hypertension"),
    "Rib Fracture": ("{side} rib fractures", "fractures of several {side} ribs", "a displaced {side} rib fracture"),
    "Round(ed) Atelectasis": ("rounded atelectasis on the {side}", "{side} lower lobe rounded atelectasis"),
    "Scoliosis": ("scoliosis", "scoliosis of the thoracic spine", "a thoracic scoliosis"),
    "Subcutaneous Emphysema": ("subcutaneous emphysema", "{side} chest wall subcutaneous air"),
    "Support Devices": ("support devices in standard position", "indwelling lines and tubes", "monitoring devices"),
    "Tortuous Aorta": ("a tortuous aorta", "tortuosity of the thoracic aorta"),
    "Tuberculosis": ("a cavity of tuberculosis", "{side} upper lobe tuberculosis", "tuberculosis"),
}
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
# worth an impression
_WEIGHTY = 4


def write_report(
    mention: Sequence[int], strength: Sequence[float], side: Sequence[int], study_id: int, seed: int
) -> str:
    """A study's report. mention, strength, side: one value a finding, in ALL_FINDINGS' order, as of the cohort."""
    rng = np.random.default_rng([seed, _STREAM, study_id])
    says = dict(zip(ALL_FINDINGS, mention, strict=True))
    words = {name: _words(name, strength[k], side[k], says[name], rng) for k, name in enumerate(ALL_FINDINGS)}
    findings = [_choose(_NORMAL, rng)] if says["Normal"] == POSITIVE else []
    for organ in ORGANS:
        findings += [
            _sentence(_AFFIRM if says[name] == POSITIVE else _HEDGE, words[name], rng)
            for name in organ
            if says[name] in (POSITIVE, UNCERTAIN)
        ]
        findings += _denials([words[name] for name in organ if says[name] == NEGATED], rng)
    impression = _impression(says, words, rng)
    head = f"{_choose(_TECHNIQUE, rng)}\n\nINDICATION: {_choose(_REASONS, rng).capitalize()}."
    return f"{head}\n\nFINDINGS: {' '.join(findings) or 'No change.'}\n\nIMPRESSION: {impression}\n"


def _words(name: str, strength: float, side: int, says: int, rng: np.random.Generator) -> str:
    """One way to name a finding; where it is not denied with its degree."""
    phrase = _choose(PHRASES[name], rng).format(side="left" if side else "right")
    if says == NEGATED:
        return phrase.removeprefix("a ").removeprefix("an ")
    degree = ("subtle", "mild", "faint") if strength < 0.5 else ("marked", "obvious", "pronounced")
    if 0.5 <= strength < 0.8 or rng.random() < 0.5:
        return phrase
    for article in ("a ", "an "):
        if phrase.startswith(article):
            word = _choose(degree, rng)
            return f"{'an' if word[0] in 'aeiou' else 'a'} {word} {phrase.removeprefix(article)}"
    return f"{_choose(degree, rng)} {phrase}"


def _denials(words: list[str], rng: np.random.Generator) -> list[str]:
    """Sentences that deny `words`, up to three in one."""
    sentences = []
    while words:
        part, words = words[: (count := int(rng.integers(1, 4)))], words[count:]
        joined = part[0] if len(part) == 1 else f"{', '.join(part[:-1])} or {part[-1]}"
        sentences.append(_sentence(_DENY, joined, rng))
    return sentences


def _impression(says: dict[str, int], words: dict[str, str], rng: np.random.Generator) -> str:
    if says["Normal"] == POSITIVE:
        return _choose(_NORMAL_IMPRESSION, rng)
    order = [name for organ in ORGANS[1:] for name in organ]
    lines = [f"{_capital(words[name])}." for name in order if says[name] == POSITIVE]
    lines += [_sentence(_HEDGE, words[name], rng) for name in order if says[name] == UNCERTAIN]
    lines = lines[:_WEIGHTY] or [_choose(_OTHER_IMPRESSION, rng)]
    return lines[0] if len(lines) == 1 else " ".join(f"{k}. {line}" for k, line in enumerate(lines, 1))


def _sentence(forms: Sequence[str], it: str, rng: np.random.Generator) -> str:
    return _choose(forms, rng).format(it=it, It=_capital(it))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _choose(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
