"""Sentences in ICU style, labelled by hand before the rules were read: how many of their values the rules give."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.labelling.labeller import label
from cxrlt_ray.labelling.rules import load_rules

FILE = Path(__file__).with_name("icu_sentences.csv")
FLOOR = {"before": 0.95, "after": 0.88}  # half -> share of values; measured .977 and .918


def sentences(half: str) -> list[dict[str, str]]:
    with FILE.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["half"] == half]


def wanted(row: dict[str, str]) -> dict[str, int | None]:
    """What a sentence's findings must be: a value, or None (blank)."""
    pairs = (pair.split("=") for pair in row["labels"].split(";") if pair)
    return {name: int(value) for name, value in pairs} | dict.fromkeys(filter(None, row["blank"].split(";")))


def faults(row: dict[str, str], said: dict[str, int]) -> list[str]:
    """The findings of a sentence that the rules do not give as they must be."""
    must, unscored = wanted(row), {*row["unscored"].split(";"), "Normal"}
    wrong = [name for name, value in must.items() if said.get(name) != value]
    return wrong + [name for name, value in said.items() if value and name not in must and name not in unscored]


def test_every_finding_has_six_sentences_and_every_kind_of_value():
    values = Counter()
    for row in sentences("before") + sentences("after"):
        values.update((name, value) for name, value in wanted(row).items())
    for name in ALL_FINDINGS:
        assert sum(values[name, value] for value in (1, 0, -1, None)) >= 6
        if name != "Normal":
            assert all(values[name, value] for value in (1, 0, -1, None))
    assert {name for name, _ in values} == set(ALL_FINDINGS)


@pytest.mark.parametrize("half", FLOOR)
def test_rules_give_what_a_person_read(half):
    rules, rows = load_rules(), sentences(half)
    wrong = sum(len(faults(row, {f: value for f, (value, _) in label(row["sentence"], rules).items()})) for row in rows)
    assert 1 - wrong / sum(len(wanted(row)) for row in rows) >= FLOOR[half]
