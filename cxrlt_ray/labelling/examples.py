"""The examples of rule files, run: which label comes out otherwise, and which rules contradict themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cxrlt_ray.labelling.labeller import Labeller
from cxrlt_ray.labelling.rules import FindingRule, Rules

WORDS = {1: "positive", 0: "negative", -1: "uncertain", None: "not mentioned"}


def clashes(rules: Rules) -> list[str]:
    """A sentence for every example that is labelled otherwise, and for every contradiction in a rule file."""
    labeller = Labeller(replace(rules, names=tuple(rule.finding for rule in rules.every)))
    return [clash for rule in rules.every for clash in (*_contradictions(rule), *_failures(rule, labeller))]


def count_examples(rules: Rules) -> int:
    """Of all findings."""
    return sum(len(rule.examples) for rule in rules.every)


def _contradictions(rule: FindingRule) -> Iterator[str]:
    for one, other in (("phrases", "excluded"), ("phrases", "normal")):
        for phrase in sorted(set(getattr(rule, one)) & set(getattr(rule, other))):
            yield f"{rule.finding}: '{phrase}' stands in {one} and in {other}: remove one."
    for key in ("phrases", "excluded", "normal"):
        values = getattr(rule, key)
        for phrase in sorted({value for value in values if values.count(value) > 1}):
            yield f"{rule.finding}: '{phrase}' stands twice in {key}: remove one."
    labels = {example.text: example.label for example in rule.examples}
    for example in rule.examples:
        if labels[example.text] != example.label:
            yield f"{rule.finding}: example '{example.text}' has two labels: remove one."


def _failures(rule: FindingRule, labeller: Labeller) -> Iterator[str]:
    for example in rule.examples:
        reading = labeller.read(example.text)
        label = reading.labels.get(rule.finding)
        if label == example.label:
            continue
        why = [
            f"'{span.phrase}'" + (f" after '{span.trigger}'" if span.trigger else "")
            for span in reading.spans
            if span.finding == rule.finding
        ]
        yield (
            f"{rule.finding}: '{example.text}' is {WORDS[example.label]} by the example, {WORDS[label]} by the rules "
            f"({', '.join(why) or 'no phrase matches'})."
        )
