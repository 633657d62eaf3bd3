"""Rule files: what is refused, a user's own, and the examples of those shipped."""

from __future__ import annotations

import pytest

from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.examples import clashes
from cxrlt_ray.labelling.labeller import label
from cxrlt_ray.labelling.rules import load_rules, ruled_findings

OWN = """
finding: Adenopathy
definition: Enlarged nodes.
phrases: [knotty nodes]
examples:
  - {text: Knotty nodes., label: 1}
"""


def test_every_finding_has_rules_with_a_definition_and_six_examples_that_hold():
    rules = load_rules()
    assert rules.names == ALL_FINDINGS
    assert clashes(rules) == []
    for rule in rules.every:
        labels = [example.label for example in rule.examples]
        assert len(labels) >= 6
        assert rule.definition.endswith(".")
        assert {1, 0} <= set(labels)
        assert rule.finding == "Normal" or -1 in labels


def test_a_users_own_file_replaces_that_of_the_package(tmp_path):
    (tmp_path / "adenopathy.yaml").write_text(OWN)
    rules = load_rules(tmp_path)
    assert label("Knotty nodes. Cardiomegaly.", rules)["Adenopathy"][0] == 1
    assert "Adenopathy" not in label("Lymphadenopathy.", rules)
    assert len(rules.every) == len(ALL_FINDINGS)


def test_a_finding_of_ones_own_comes_after_the_45(tmp_path):
    (tmp_path / "goiter.yaml").write_text(OWN.replace("Adenopathy", "Goiter"))
    assert load_rules(tmp_path).names == (*ALL_FINDINGS, "Goiter")


def test_findings_of_other_challenges_are_read_where_they_are_asked_for():
    assert ruled_findings() == (*ALL_FINDINGS, "Goiter")
    assert "Goiter" not in label("Large substernal goiter.", load_rules())
    rules = load_rules(findings=["Goiter", "Normal"])
    assert clashes(rules) == []
    assert label("Large substernal goiter.", rules)["Goiter"][0] == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("phrases: [", "phrases: [["), "cannot be read as YAML"),
        (("phrases:", "phrase:"), "unknown key 'phrase'"),
        (("[knotty nodes]", "['(a']"), "'\\(a'.*not closed"),
        (("[knotty nodes]", "['a.*b']"), "is no word"),
        (("label: 1", "label: 2"), "label"),
        (("definition: Enlarged nodes.", "implies: [Nodes]"), "'definition' is missing"),
        (("phrases:", "implies: [Nodes]\nphrases:"), "'Nodes', which has no rules"),
        (("finding: Adenopathy", "finding: '=Adenopathy'"), "begins with ="),
    ],
)
def test_a_wrong_rule_file_is_refused_in_a_sentence_that_names_it(tmp_path, change, sentence):
    (tmp_path / "adenopathy.yaml").write_text(OWN.replace(*change))
    with pytest.raises(UsageError, match=sentence) as refusal:
        load_rules(tmp_path)
    assert "Adenopathy" in str(refusal.value) or "adenopathy.yaml" in str(refusal.value)


def test_an_unknown_finding_and_a_folder_that_is_none_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no rules for finding 'Adenopathie'"):
        load_rules(findings=["Adenopathie"])
    with pytest.raises(UsageError, match="is not a folder"):
        load_rules(tmp_path / "none")


def test_check_reports_wrong_examples_and_contradictions(tmp_path):
    text = OWN.replace("[knotty nodes]", "[knotty nodes, knotty nodes]").replace("label: 1", "label: 0")
    (tmp_path / "adenopathy.yaml").write_text(text + "excluded: [knotty nodes]\n")
    found = " ".join(clashes(load_rules(tmp_path)))
    assert "stands twice in phrases" in found
    assert "stands in phrases and in excluded" in found
    assert "'Knotty nodes.' is negative by the example, not mentioned by the rules" in found
