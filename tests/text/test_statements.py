"""A report's texts: what is masked, what is read, what a sentence states."""

from __future__ import annotations

import pytest

from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.labeller import Labeller
from cxrlt_ray.labelling.rules import load_rules
from cxrlt_ray.text.meta_fields import load_meta_fields, meta_spans
from cxrlt_ray.text.statements import study_texts

LABELLER = Labeller(load_rules())
FIELDS = load_meta_fields()
MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with scoliosis.

 COMPARISON:  ___ and 01/02/2010.

 FINDINGS:

 The heart is enlarged. No pneumothorax or effusion. Discussed with Dr. Jane Smith at 3:45 p.m. on March 3, 2011.
 Possible pneumonia. A 1.2 cm nodule, 5-6 mm deep.

 IMPRESSION:

 Left rib fractures.
 Electronically signed by J. Doe, MD
"""


def texts_of(text: str):
    return study_texts(text, LABELLER, FIELDS)


def test_meta_fields_are_masked_and_measures_are_not():
    masked = texts_of(MIMIC).masked()
    for gone in ("FINAL", "EXAMINATION", "PA AND LAT", "___", "COMPARISON", "2010", "Smith", "3:45", "March", "Doe"):
        assert gone not in masked
    for kept in ("year old woman with scoliosis", "1.2 cm nodule, 5-6 mm deep", "The heart is enlarged.", "IMPRESSION"):
        assert kept in masked


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("___-___-___", "blank"), ("XXXX", "blank"), ("2012-10-03", "date"), ("10/3/12", "date"),
        ("October 3rd, 2012", "date"), ("3 October 2012", "date"), ("14:30", "time"), ("2 pm", "time"),
        ("Dr. A. Smith-Jones", "person"), ("Dr ___", "person"), ("Accession number: A-1234", "number"),
        ("dictated by someone", "signature"),
    ],
)  # fmt: skip
def test_each_meta_field_is_known(said, field):
    text = f"Seen {said}"
    (span,) = meta_spans(text, FIELDS)
    assert (text[span.begin : span.end], FIELDS[span.field].name) == (said, field)


@pytest.mark.parametrize(
    "text", ["T3-4 level", "1/2 of the lung", "at 1.5 x 2.5 cm", "a 3 mm nodule", "the march of it"]
)
def test_measures_and_words_are_no_meta_fields(text):
    assert not meta_spans(text, FIELDS)


def test_sentences_are_those_that_say_what_the_image_shows():
    texts = texts_of(MIMIC)
    said = [texts.masked(place.begin, place.end) for place in texts.sentences]
    assert "The heart is enlarged." in said
    assert not any("scoliosis" in sentence or "woman" in sentence for sentence in said)
    assert {texts.sections[place.section].name for place in texts.sentences} == {"FINDINGS", "IMPRESSION"}


def test_statements_are_affirmed_denied_or_unsure_and_implied():
    texts = texts_of(MIMIC)
    said = {
        (texts.masked(*_place(texts, statement)).split()[0], statement.finding): statement.value
        for statement in texts.statements
    }
    assert said["The", "Cardiomegaly"] == 1
    assert said["No", "Pneumothorax"] == 0
    assert said["No", "Pleural Effusion"] == 0
    assert said["Possible", "Pneumonia"] == -1
    assert said["Left", "Rib Fracture"] == said["Left", "Fracture"] == 1
    assert not any(finding == "Scoliosis" for _, finding in said)


def _place(texts, statement) -> tuple[int, int]:
    place = texts.sentences[statement.sentence]
    return place.begin, place.end


@pytest.mark.parametrize(
    "text",
    [
        "Sin derrame pleural ni consolidacion. La silueta cardiaca es de tamano normal.",
        "心影增大。右侧胸腔积液。双肺纹理增多，未见明确气胸征象。",
        "Легкие чистые. Сердце не увеличено. Выпота нет, пневмоторакса нет, костных изменений нет.",
    ],
)
def test_another_language_has_texts_and_states_nothing(text):
    texts = texts_of(text)
    assert texts.foreign
    assert texts.masked() == text
    assert texts.sentences
    assert not texts.statements


def test_long_and_empty_reports():
    long = texts_of("FINDINGS: " + "The heart is enlarged. " * 5000)
    assert len(long.sentences) == len(long.statements) / len({s.finding for s in long.statements}) == 5000
    for text in ("", "  \n\n ", "___", "FINAL REPORT\n"):
        empty = texts_of(text)
        assert not empty.sentences
        assert not empty.statements
        assert not empty.masked()


def test_a_file_of_meta_fields_is_checked(tmp_path):
    path = tmp_path / "fields.yaml"
    path.write_text("fields:\n  - {name: id, patterns: ['([']}\n")
    with pytest.raises(UsageError, match=r"fields\.yaml.*no regular expression"):
        load_meta_fields(path)
    path.write_text("fields:\n  - {name: id, patterns: ['x*']}\n")
    with pytest.raises(UsageError, match="matches nothing at all"):
        load_meta_fields(path)
    path.write_text("fields:\n  - {name: room, patterns: ['Room [0-9]+'], mask: '[ROOM]'}\n")
    texts = study_texts("FINDINGS: Seen in Room 12. Dr. Smith.", LABELLER, load_meta_fields(path))
    assert texts.masked() == "FINDINGS: Seen in [ROOM]. Dr. Smith."
