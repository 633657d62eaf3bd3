"""What labels imply: a rib fracture is a fracture; a report without a cardiopulmonary finding is normal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cxrlt_ray.labelling.rules import NEGATIVE, POSITIVE, UNCERTAIN, FindingRule, Rules

NORMAL = "Normal"
STRENGTH = {NEGATIVE: 0, UNCERTAIN: 1, POSITIVE: 2}
# CheXpert's hierarchy (Irvin et al. 2019, figure 1) among our findings, child -> parent
HIERARCHY = {
    "Cardiomegaly": "Enlarged Cardiomediastinum",
    "Edema": "Lung Opacity",
    "Consolidation": "Lung Opacity",
    "Pneumonia": "Consolidation",
    "Lung Lesion": "Lung Opacity",
    "Atelectasis": "Lung Opacity",
}


def stronger(a: int | None, b: int | None) -> int | None:
    """Positive over uncertain over negative over not mentioned.

    >>> stronger(0, -1), stronger(1, -1), stronger(None, 0)
    (-1, 1, 0)
    """
    if a is None or b is None:
        return b if a is None else a
    return a if STRENGTH[a] >= STRENGTH[b] else b


def closed(labels: Mapping[str, int], rules: Rules) -> dict[str, tuple[int, str]]:
    """The label of every finding that is mentioned or implied, and which finding implies it ("" where mentioned).

    A finding that is there or uncertain makes what it implies the same; one that is denied implies nothing.
    """
    result = {name: (value, "") for name, value in labels.items()}
    implied = {rule.finding: _implied(rule, rules.hierarchy) for rule in rules.every}
    waiting = [name for name, value in labels.items() if value != NEGATIVE]
    while waiting:
        cause = waiting.pop()
        for name in implied.get(cause, ()):
            before = result[name][0] if name in result else None
            if stronger(before, result[cause][0]) != before:
                result[name] = result[cause][0], cause
                waiting.append(name)
    return result


def _implied(rule: FindingRule, hierarchy: bool) -> tuple[str, ...]:
    parent = HIERARCHY.get(rule.finding) if hierarchy else None
    return (*rule.implies, parent) if parent else rule.implies


def is_normal(labels: Mapping[str, int], others: Iterable[str], rules: Rules) -> bool:
    """Whether nothing that is there or uncertain blocks Normal. others: groups of abnormalities that are no finding."""
    groups = {
        rule.group for rule in rules.every if labels.get(rule.finding, NEGATIVE) != NEGATIVE and rule.finding != NORMAL
    }
    return not rules.blockers & (groups | set(others))
