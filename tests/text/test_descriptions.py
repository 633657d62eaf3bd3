"""Descriptions: the package's own are complete, a user's come first, what is wrong is named."""

from __future__ import annotations

import re

import pytest
import yaml

from cxrlt_ray.data.column_names import folded
from cxrlt_ray.data.tasks import ALL_FINDINGS, TASK1_2026, TASK2_2026, TASK3
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.closure import HIERARCHY
from cxrlt_ray.labelling.rules import load_rules
from cxrlt_ray.text.descriptions import (
    MARKUP,
    Description,
    as_yaml,
    load_descriptions,
    other_places,
    place_names,
    read_descriptions,
    shipped,
)

PLEURAL_MASS = {
    "finding": "Pleural Mass",
    "names": ["pleural mass"],
    "appearance": "A rounded opacity with its base on the pleura.",
    "keywords": ["pleural-based opacity", "obtuse angle", "rounded opacity"],
}


def write(path, *descriptions):
    content = descriptions[0] if len(descriptions) == 1 else {"descriptions": list(descriptions)}
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_finding_of_the_challenges_has_a_description_and_each_is_described_once():
    findings = (*ALL_FINDINGS, *TASK1_2026, *TASK2_2026)
    descriptions = load_descriptions(findings)
    assert list(descriptions) == list(dict.fromkeys(findings))
    assert len({each.finding for each in descriptions.values()}) == len(shipped())
    assert all(each.reviewed for each in descriptions.values())


def test_another_spelling_or_another_label_of_a_finding_is_the_same_finding():
    same = load_descriptions(
        ["cardiomegaly", "Cardiomegaly", "pneumoperitoneo", "Pneumoperitoneum", "round(ed)atelectasis"]
    )
    assert same["cardiomegaly"] is same["Cardiomegaly"]
    assert same["pneumoperitoneo"] is same["Pneumoperitoneum"]
    assert same["round(ed)atelectasis"].finding == "Round(ed) Atelectasis"


@pytest.mark.parametrize("description", shipped(), ids=lambda each: each.finding)
def test_a_description_of_the_package_is_short_plain_and_has_a_place(description):
    sentences = re.findall(r"\.(?: |$)", description.appearance)
    assert 1 <= len(sentences) <= 3
    assert description.appearance.endswith(".")
    assert bool(description.place) == (description.finding != "Normal")
    assert len(other_places(description)) >= 7  # MedKLIP draws seven places where it is not
    texts = (*description.wordings, *description.keywords, *description.denied, description.appearance)
    assert not any(re.search(MARKUP, text) for text in texts)


def test_no_wording_is_that_of_two_findings_unless_one_is_a_kind_of_the_other():
    """A prompt that two findings share tells neither from the other."""
    owners: dict[str, list[Description]] = {}
    for description in shipped():
        for wording in description.wordings:
            owners.setdefault(folded(wording), []).append(description)
    shared = {wording: {each.finding for each in of} for wording, of in owners.items() if len(of) > 1}
    assert shared == {"centralvenouscatheter": {"Support Devices", "central venous catheter"}}


def test_parents_stand_in_one_place_only():
    """What CheXpert's hierarchy or label_rules/ say is not repeated."""
    implied = {rule.finding: set(rule.implies) for rule in load_rules().every}
    for description in shipped():
        others = implied.get(description.finding, set()) | {HIERARCHY.get(description.finding)}
        assert not others & set(description.parents)


def test_the_unseen_findings_have_wordings_without_their_names():
    for finding, description in load_descriptions(TASK3).items():
        stem = finding.lower()[:5]
        assert any(stem not in wording for wording in description.wordings)


def test_places_are_those_of_the_list_and_overlap_where_one_lies_in_the_other():
    assert len(place_names()) == len(set(place_names())) == 51
    of = load_descriptions(["Bulla", "Fracture", "Normal"])
    apical = set(other_places(of["Bulla"]))
    assert not apical & {"lungs", "right lung", "lung apices", "right upper lobe", "azygos fissure", "apical pleura"}
    assert {"heart", "ribs", "right lung base"} <= apical
    assert {"ribs", "chest wall"}.isdisjoint(other_places(of["Fracture"]))
    assert other_places(of["Normal"]) == place_names()


def test_a_users_descriptions_come_first_and_the_packages_fill_up(tmp_path):
    mine = {**PLEURAL_MASS, "finding": "bulla", "names": ["air cyst"]}
    path = write(tmp_path / "mine.yaml", PLEURAL_MASS, mine)
    descriptions = load_descriptions(["Pleural Mass", "Bulla", "Scoliosis"], path)
    assert [each.names[0] for each in descriptions.values()] == ["pleural mass", "air cyst", "scoliosis"]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.yaml", PLEURAL_MASS)
    write(folder / "b.yaml", mine)
    assert load_descriptions(["Pleural Mass", "Bulla", "Scoliosis"], folder) == descriptions


def test_what_is_written_reads_back_the_same(tmp_path):
    (tmp_path / "all.yaml").write_text(as_yaml(*shipped()))
    assert read_descriptions(tmp_path / "all.yaml") == shipped()
    (tmp_path / "one.yaml").write_text(as_yaml(shipped()[0]))
    assert read_descriptions(tmp_path / "one.yaml") == shipped()[:1]


def test_a_draft_is_refused_until_a_person_has_read_it(tmp_path):
    path = write(tmp_path / "drafts.yaml", {**PLEURAL_MASS, "finding": "Bulla", "reviewed": False}, PLEURAL_MASS)
    assert set(load_descriptions(["Pleural Mass"], path)) == {"Pleural Mass"}
    with pytest.raises(UsageError, match=r"'Bulla' is a draft.*set reviewed: true"):
        load_descriptions(["Bulla"], path)


def test_a_finding_without_description_is_named_with_its_nearest_and_what_to_do():
    with pytest.raises(UsageError, match=r"'Scoliosys' has no description.*nearest: Scoliosis.*YAML file.*describe"):
        load_descriptions(["Bulla", "Scoliosys"])


@pytest.mark.parametrize(
    "name",
    [
        "=Bulla",
        "+Bulla",
        "-Bulla",
        " =Bulla",
        "Bulla\n",
        "@Bulla",
        "Bul\tla",
        "<b>Bulla</b>",
        "[red]Bulla",
        "",
        "B" * 101,
    ],
)
def test_a_name_that_would_run_in_a_spreadsheet_or_is_markup_is_refused(name):
    with pytest.raises(UsageError, match=r"^finding "):
        load_descriptions([name])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": []}, "key 'names'"),
        ({"names": ["=cmd()"]}, "key 'names.0': given '=cmd.*begins with"),
        ({"names": ["mass [SEP] edema"]}, "key 'names.0'.*brackets"),
        ({"names": ["a", "A"]}, "hold 'A' twice"),
        ({"appearance": "x" * 1001}, "key 'appearance'.*at most 1,000"),
        ({"appearance": "..."}, "key 'appearance'.*no letter"),
        ({"place": ["left hilun"]}, "key 'place.0': given 'left hilun'.*nearest: left hilum"),
        ({"keywords": ["one", "two"]}, "key 'keywords'"),
        ({"keywords": list("abcdefg")}, "key 'keywords'"),
        ({"parents": ["Lung Lesoin"]}, "key 'parents': given 'Lung Lesoin'.*nearest: Lung Lesion"),
        ({"look": "round"}, "unknown key 'look'"),
        ({"names": "mass"}, "key 'names'"),
        ({"reviewed": "maybe"}, "key 'reviewed'"),
    ],
)
def test_a_wrong_file_is_named_with_key_value_and_what_is_allowed(tmp_path, change, said):
    path = write(tmp_path / "mine.yaml", {**PLEURAL_MASS, **change})
    with pytest.raises(UsageError, match=said) as caught:
        load_descriptions(["Pleural Mass"], path)
    if "parents" not in change:
        assert str(path) in str(caught.value)


def test_files_that_are_missing_empty_or_say_a_finding_twice_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load_descriptions(["Bulla"], tmp_path / "no.yaml")
    with pytest.raises(UsageError, match=r"without \.yaml files"):
        load_descriptions(["Bulla"], tmp_path)
    write(tmp_path / "a.yaml", PLEURAL_MASS)
    write(tmp_path / "b.yaml", {**PLEURAL_MASS, "finding": "pleural mass"})
    with pytest.raises(UsageError, match=r"b\.yaml: 'pleural mass' is described in .*a\.yaml too"):
        load_descriptions(["Bulla"], tmp_path)
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(UsageError, match="must hold a mapping"):
        read_descriptions(tmp_path / "list.yaml")
