"""Which parts of a report are read, and where its sentences end."""

from __future__ import annotations

import pytest

from cxrlt_ray.labelling.labels import LAST, NOTHING, SECTIONS
from cxrlt_ray.labelling.sections import sections
from cxrlt_ray.labelling.sentences import LONGEST, sentences

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old man with pneumonia.

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  Radiograph with edema of ___.

 FINDINGS:

 LUNGS: Clear.
 PLEURA: Small effusion.

 IMPRESSION:

 1. Cardiomegaly.
"""


def read(text: str) -> list[tuple[str, int, str]]:
    return [(part.name, part.rank, " ".join(text[part.begin : part.end].split())) for part in sections(text)[0]]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_findings_and_impression_are_read_with_their_organs_and_the_rest_is_not(newline):
    assert read(MIMIC.replace("\n", newline)) == [
        ("FINDINGS", 1, "LUNGS: Clear. PLEURA: Small effusion."),
        ("IMPRESSION", 1, "1. Cardiomegaly."),
    ]


def test_findings_behind_the_comparison_without_a_heading_are_read():
    text = "HISTORY: pneumonia.\n\nCOMPARISON: ___.\n\nThe lungs are clear.\nHeart is large.\n\nIMPRESSION: As above."
    assert [words for _, _, words in read(text)] == ["The lungs are clear. Heart is large.", "As above."]


@pytest.mark.parametrize(
    "heading",
    ["FINDINGS", "Findings", "IMPRESSION", "CONCLUSION", "FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION",
     "CHEST", "PORTABLE CHEST RADIOGRAPH", "OPINION"],
)  # fmt: skip
def test_headings_that_are_read(heading):
    assert read(f"INDICATION: edema.\n\n{heading}: No effusion.")[-1][2].endswith("No effusion.")


@pytest.mark.parametrize(
    "heading",
    ["INDICATION", "History", "CLINICAL HISTORY", "REASON FOR EXAM", "COMPARISON", "TECHNIQUE", "RECOMMENDATION",
     "NOTIFICATION", "EXAMINATION"],
)  # fmt: skip
def test_headings_that_are_not_read(heading):
    assert read(f"FINDINGS: Clear.\n\n{heading}: Effusion.") == [("FINDINGS", 1, "Clear.")]


def test_an_addendum_comes_before_the_body_and_a_wet_read_after_it():
    text = "WET READ: No effusion.\n\nFINDINGS: Clear.\n\nADDENDUM: Small effusion."
    assert sorted((rank, name) for name, rank, _ in read(text)) == [(0, "ADDENDUM"), (1, "FINDINGS"), (2, "WET READ")]


def test_without_headings_the_last_paragraph_is_read():
    text = "Chest on Monday.\n\nSmall effusion."
    assert sections(text)[1] == LAST
    assert read(text) == [("", 1, "Small effusion.")]


@pytest.mark.parametrize("text", ["", "  \n\n ", "___", "INDICATION: cough."])
def test_nothing_to_read(text):
    assert sections(text) == ([], NOTHING)


@pytest.mark.parametrize(
    "text",
    [
        "INDICATION\nRule out edema.\nFINDINGS\nSmall effusion.\nIMPRESSION\nNo change.\n",
        "INDICATION\nRule out edema.\n\nFINDINGS\nSmall effusion.\n\nIMPRESSION\nNo change.\n",
        "INDICATION\r\nRule out edema.\r\nFINDINGS\r\nSmall effusion.\r\nIMPRESSION\r\nNo change.\r\n",
        "# Indication\nRule out edema.\n\n# Findings\n\nSmall effusion.\n\n# Impression\nNo change.\n",
        "**Indication**: Rule out edema.\n\n**Findings**: Small effusion.\n\n**Impression**: No change.\n",
        "1) INDICATION: Rule out edema.\n\n2) FINDINGS: Small effusion.\n\n3) IMPRESSION: No change.\n",
    ],
)
def test_headings_without_a_colon_marked_or_numbered(text):
    parts = read(text)
    assert [name.upper() for name, _, _ in parts] == ["FINDINGS", "IMPRESSION"]
    assert [words.removesuffix(" 3)") for _, _, words in parts] == ["Small effusion.", "No change."]


@pytest.mark.parametrize("sentence", ["Findings consistent with pneumonia.", "FINDINGS SUGGEST MILD EDEMA"])
def test_a_sentence_that_begins_with_findings_is_read(sentence):
    text = f"IMPRESSION:\n\n{sentence}\n\nDiscussed by phone."
    assert read(text) == [("IMPRESSION", 1, f"{sentence} Discussed by phone.")]


def test_a_line_of_a_text_in_capitals_that_wraps_is_no_heading():
    text = "IMPRESSION:\nEFFUSION LARGER THAN ON THE PRIOR\nSTUDY\nAND EDEMA."
    assert read(text) == [("IMPRESSION", 1, "EFFUSION LARGER THAN ON THE PRIOR STUDY AND EDEMA.")]


def test_a_heading_within_a_line():
    text = "FINDINGS: Clear. IMPRESSION: Normal chest."
    assert read(text) == [("FINDINGS", 1, "Clear."), ("IMPRESSION", 1, "Normal chest.")]
    assert sections(text)[1] == SECTIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A line that\nwraps. Another.", ["A line that\nwraps.", "Another."]),
        ("1. First item\n2. Second item", ["First item", "Second item"]),
        ("1. Cardiomegaly. 2. Effusion.", ["Cardiomegaly.", "Effusion."]),
        ("- one thing\n- another", ["one thing", "another"]),
        ("Dr. A saw 3.5 cm vs. 2 cm.", ["Dr. A saw 3.5 cm vs. 2 cm."]),
        ("Clear; heart normal.Aorta large", ["Clear;", "heart normal.", "Aorta large"]),
        ("One\n\nTwo", ["One", "Two"]),
        ("___ . 12.", []),
    ],
)
def test_sentences(text, expected):
    assert [text[begin:end].lstrip("-12. ") for begin, end in sentences(text)] == expected


def test_text_without_a_point_is_cut_so_that_no_sentence_grows_without_bound():
    text = "no effusion " * 1000
    lengths = [len(text[begin:end].split()) for begin, end in sentences(text)]
    assert sum(lengths) == 2000
    assert max(lengths) <= LONGEST
