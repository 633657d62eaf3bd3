"""The labeller: context, sections that prevail, closure, Normal, places of evidence."""

from __future__ import annotations

import pytest

from cxrlt_ray.labelling.labeller import Labeller, label
from cxrlt_ray.labelling.labels import ALL, FOREIGN, LAST, NOTHING
from cxrlt_ray.labelling.rules import load_rules


@pytest.fixture(scope="module")
def rules():
    return load_rules()


@pytest.mark.parametrize(
    ("text", "finding", "value"),
    [
        ("No pneumothorax, pleural effusion or focal consolidation.", "Consolidation", 0),
        ("No pneumothorax, small right pleural effusion.", "Pleural Effusion", 1),
        ("Without pneumothorax, small effusion, mild pulmonary edema.", "Edema", 1),
        ("No pneumothorax, stable cardiomegaly, and no effusion.", "Cardiomegaly", 1),
        ("No pneumothorax, stable cardiomegaly, and no effusion.", "Pleural Effusion", 0),
        ("No pneumothorax, small effusion or edema.", "Pleural Effusion", 0),
        ("No pneumothorax, small left effusion, no edema or consolidation.", "Pleural Effusion", 1),
        ("No pneumothorax, small left effusion, no edema or consolidation.", "Edema", 0),
        ("No significant, persistent pneumothorax.", "Pneumothorax", 0),
        ("There is no large, moderate pleural effusion.", "Pleural Effusion", 0),
        ("No pneumothorax, effusion, or mild edema.", "Edema", 0),
        ("No focal consolidation, large effusion.", "Pleural Effusion", 0),
        ("Heart size is normal.", "Cardiomegaly", 0),
        ("The heart is not enlarged.", "Cardiomegaly", 0),
        ("No effusion but a small pneumothorax.", "Pneumothorax", 1),
        ("No effusion. There is a pneumothorax.", "Pneumothorax", 1),
        ("No change in the left effusion.", "Pleural Effusion", 1),
        ("No new effusion.", "Pleural Effusion", None),
        ("Stable, unchanged effusion.", "Pleural Effusion", 1),
        ("Old healed rib fractures.", "Rib Fracture", 1),
        ("Evaluate for pneumonia.", "Pneumonia", None),
        ("If pneumonia is suspected, CT is advised.", "Pneumonia", None),
        ("Rule out pneumothorax.", "Pneumothorax", None),
        ("History of pneumonia.", "Pneumonia", None),
        ("Atelectasis versus pneumonia.", "Atelectasis", -1),
        ("Atelectasis versus pneumonia.", "Pneumonia", -1),
        ("Atelectasis, less likely pneumonia.", "Pneumonia", -1),
        ("Atelectasis, less likely pneumonia.", "Atelectasis", 1),
        ("An effusion cannot be excluded.", "Pleural Effusion", -1),
        ("The effusion has resolved.", "Pleural Effusion", 0),
        ("Pneumothorax, effusion and edema are not seen.", "Pneumothorax", 0),
        ("Cardiomegaly, effusion is not seen.", "Cardiomegaly", 1),
        ("No opacity suspicious for pneumonia.", "Pneumonia", 0),
        ("The chest tube has been removed.", "Support Devices", 0),
        ("There is a possible nodule. A nodule is seen on the right.", "Nodule", 1),
        ("No effusion. A small effusion may be present.", "Pleural Effusion", -1),
        ("No fracture of the wrist; ventral hernia repair.", "Hernia", None),
        ("Pericardial effusion.", "Pleural Effusion", None),
        # a verb that denies what stands before it says nothing of the next statement
        ("The right pneumothorax has resolved, the left pneumothorax persists.", "Pneumothorax", 1),
        ("The ET tube has been removed and a tracheostomy tube is in place.", "Support Devices", 1),
        ("The tube was removed, right PICC line in the SVC.", "Support Devices", 1),
        ("Edema is not seen, mild cardiomegaly persists.", "Cardiomegaly", 1),
        ("Edema is not seen, mild cardiomegaly persists.", "Edema", 0),
        ("Edema is no longer seen, nor is an effusion.", "Pleural Effusion", 0),
        ("Resolved edema and effusion.", "Pleural Effusion", 0),
        ("There is not a pneumothorax, effusion or edema.", "Edema", 0),
        ("The effusion has not resolved.", "Pleural Effusion", 1),
        ("The effusion is not completely resolved.", "Pleural Effusion", 1),
        ("No resolution of the effusion.", "Pleural Effusion", 1),
        ("The effusion has completely resolved.", "Pleural Effusion", 0),
        # a study of before that is compared with is no study of before that is told of
        ("As compared to the previous radiograph, pleural effusions are larger.", "Pleural Effusion", 1),
        ("In comparison with the prior study, edema has increased.", "Edema", 1),
        ("Since the prior exam, edema has worsened.", "Edema", 1),
        ("Compared to prior, the effusion has resolved.", "Pleural Effusion", 0),
        ("Prior CT showed effusion.", "Pleural Effusion", None),
        ("Prior pneumonia.", "Pneumonia", None),
        ("Heart size is within normal limits.", "Cardiomegaly", 0),
        ("The heart and mediastinum are within normal limits.", "Cardiomegaly", 0),
        ("The heart is not within normal limits.", "Cardiomegaly", None),
        ("Can't exclude pneumonia.", "Pneumonia", -1),
        ("Pneumonia must be considered.", "Pneumonia", -1),
        ("Suspect pneumonia.", "Pneumonia", -1),
        ("A pneumothorax cannot be identified.", "Pneumothorax", 0),
    ],
)
def test_context(rules, text, finding, value):
    assert label(text, rules).get(finding, (None,))[0] == value


@pytest.mark.parametrize("heading", ["{body}\n\nADDENDUM: {addendum}", "ADDENDUM: {addendum}\n\n{body}"])
def test_an_addendum_prevails_above_and_below_the_body(rules, heading):
    body = "FINDINGS: Small pneumothorax. Cardiomegaly."
    labels = label(heading.format(body=body, addendum="There is no pneumothorax."), rules)
    assert (labels["Pneumothorax"][0], labels["Cardiomegaly"][0]) == (0, 1)


def test_a_wet_read_counts_for_what_the_report_does_not_mention(rules):
    labels = label("WET READ: Pneumothorax. Rib fractures.\n\nIMPRESSION: No pneumothorax.", rules)
    assert (labels["Pneumothorax"][0], labels["Rib Fracture"][0]) == (0, 1)


@pytest.mark.parametrize(
    ("text", "implied"),
    [
        ("Displaced rib fracture.", {"Fracture": 1}),
        ("Possible clavicle fracture.", {"Fracture": -1}),
        ("Right upper lobe collapse.", {"Atelectasis": 1}),
        ("Rounded atelectasis.", {"Atelectasis": 1}),
        ("Left hydropneumothorax.", {"Pneumothorax": 1, "Pleural Effusion": 1}),
    ],
)
def test_closure(rules, text, implied):
    labels = label(text, rules)
    assert {name: labels[name][0] for name in implied} == implied
    assert all(labels[name][1] for name in implied), "what is implied has its evidence"


def test_the_hierarchy_of_chexpert_holds_only_where_asked_for(rules):
    assert "Lung Opacity" not in label("Pulmonary edema.", rules)
    assert label("Pulmonary edema.", load_rules(hierarchy=True))["Lung Opacity"][0] == 1


def test_normal_is_blocked_by_what_is_there_or_uncertain_and_by_bones_and_devices_only_where_asked_for(rules):
    strict = load_rules(blockers=("cardiopulmonary", "bones", "devices"))
    for text, by_default, strictly in (
        ("The lungs are clear.", 1, 1),
        ("Possible effusion.", 0, 0),
        ("Clear lungs. Old rib fracture.", 1, 0),
        ("Clear lungs. PICC tip in the SVC.", 1, 0),
        ("Hyperinflated lungs.", 0, 0),
    ):
        assert label(text, rules)["Normal"][0] == by_default, text
        assert label(text, strict)["Normal"][0] == strictly, text


def test_findings_that_are_not_asked_for_still_imply_and_block():
    rules = load_rules(findings=["Fracture", "Normal"])
    assert set(label("Rib fracture and edema.", rules)) == {"Fracture", "Normal"}
    assert label("Rib fracture and edema.", rules)["Normal"][0] == 0


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_evidence_stands_where_it_says_in_the_original_text(rules, newline):
    text = newline.join(
        ["\ufeffINDICATION: ___", "", "FINDINGS: Heart is", "enlarged. XXXX pleural", "effusion.\0", ""]
    )
    spans = {name: spans for name, (_, spans) in label(text, rules).items()}
    assert text[slice(*spans["Cardiomegaly"][0][4:6])].split() == ["Heart", "is", "enlarged"]
    assert text[slice(*spans["Pleural Effusion"][0][4:6])] == "effusion"
    assert spans["Pleural Effusion"][0].section == "FINDINGS"


@pytest.mark.parametrize("text", ["", "\0\0", "  ", "___", "XXXX", "."])
def test_a_report_without_words_has_no_label(rules, text):
    reading = Labeller(rules).read(text)
    assert (reading.labels, reading.source) == ({}, NOTHING if not any(map(str.isalpha, text)) else ALL)


def test_one_word_and_no_headings(rules):
    assert Labeller(rules).read("Cardiomegaly").source == LAST
    assert label("Cardiomegaly", rules)["Cardiomegaly"][0] == 1
    assert Labeller(rules).read("Large effusion.\n\nDictated on Monday.").source == ALL


@pytest.mark.parametrize(
    "text",
    [
        "Sin derrame pleural. Silueta cardiaca de tamaño normal. No se observa neumotorax ni consolidacion.",
        "Kein Pleuraerguss, kein Pneumothorax. Das Herz ist nicht vergrößert und die Lunge ist frei.",
        "Pas d'épanchement pleural. La silhouette cardiaque est de taille normale et les poumons sont clairs.",
        "Плеврального выпота нет. Сердце не увеличено. Пневмоторакса нет.",
        "胸腔積液なし。心拡大なし。肺野は清明です。",
    ],
)
def test_another_language_is_left_blank(rules, text):
    reading = Labeller(rules).read(text)
    assert (reading.labels, reading.source) == ({}, FOREIGN)


def test_a_report_of_a_megabyte_is_read(rules):
    text = "No effusion or opacity suspicious for pneumonia, heart is not enlarged"
    assert label(f"FINDINGS: {f'{text}. ' * 14_000}", rules)["Pneumonia"][0] == 0
    assert "Pneumonia" in label(f"FINDINGS: {f'{text} ' * 14_000}", rules), "without a point"


def test_the_cache_changes_nothing(rules):
    texts = ["FINDINGS: No effusion. Cardiomegaly.", "IMPRESSION: No effusion.\nCardiomegaly."] * 3
    cached, plain = Labeller(rules), Labeller(rules, cached=0)
    assert [cached.read(text) for text in texts] == [plain.read(text) for text in texts]
    assert len(cached._cache) == 2
