"""After scrubbing no phrase of the findings is left, and nothing else is gone."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.phrases import Matcher, words_of
from cxrlt_ray.labelling.rules import load_rules
from cxrlt_ray.labelling.sentences import sentences
from cxrlt_ray.phantom.labels import draw_cohort
from cxrlt_ray.phantom.reports import PHRASES, write_report
from cxrlt_ray.text.naming import as_phrase, own_phrases, read_phrases
from cxrlt_ray.text.scrub import Scrubber, scrub

FIVE = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")
RULES = load_rules()


def matcher_of(findings) -> Matcher:
    return Matcher([p for name in findings for p in (*RULES[name].phrases, *RULES[name].normal)])


def said_of(text: str) -> list[str]:
    """A text's sentences in one line each, without the headings before them."""
    return [re.sub("^([A-Z]+: )+", "", " ".join(text[begin:end].split())) for begin, end in sentences(text)]


@pytest.fixture(scope="module")
def phantom_reports() -> list[str]:
    cohort = draw_cohort(250, 5)
    drawn = zip(cohort.mention, cohort.strength, cohort.side, cohort.studies["study_id"], strict=True)
    return [write_report(mention, strength, side, int(study), 5) for mention, strength, side, study in drawn]


@pytest.mark.parametrize("findings", [FIVE, ("Fracture", "Rib Fracture"), ("Pleural Effusion",), ("Normal", "Edema")])
def test_no_phrase_is_left_in_the_phantoms_reports_and_sentences_without_one_stay(phantom_reports, findings):
    matcher, scrubber = matcher_of(findings), Scrubber(RULES, findings)
    removed = kept = unnamed = 0
    for text in phantom_reports:
        scrubbed = scrubber(text)
        removed += scrubbed.sentences
        assert not matcher.matches(words_of(scrubbed.text))
        left = " ".join(scrubbed.text.split())
        others = [said for said in said_of(text) if not scrubber.matches(said)]
        kept += sum(said in left for said in others)
        unnamed += len(others)
        if not scrubber.matches(text):
            assert scrubbed.text == text
            assert scrubbed.sentences == 0
    assert removed > 10
    assert kept > 0.99 * unnamed  # a phrase may stretch over a sentence's end


def test_no_phrase_is_left_in_real_reports(shared_data):
    gold = pd.read_csv(shared_data.parent / "labeling" / "openi_gold.csv.gz", dtype=str)
    dev = set(gold.loc[gold["part"] == "dev", "report_id"])
    reports = pd.read_csv(shared_data / "reports" / "openi_reports.csv.gz", dtype=str, keep_default_na=False)
    matcher, scrubber = matcher_of(FIVE), Scrubber(RULES, FIVE)
    whole = left = 0
    for row in reports[reports["report_id"].isin(dev)].itertuples():
        text = f"INDICATION: {row.indication}\n\nFINDINGS: {row.findings}\n\nIMPRESSION: {row.impression}"
        scrubbed = scrubber(text).text
        assert not matcher.matches(words_of(scrubbed))
        whole, left = whole + len(text), left + len(scrubbed)
    assert 0.95 < left / whole < 1


SCRUBBER, MATCHER = Scrubber(RULES, FIVE), matcher_of(FIVE)
WORDS = st.sampled_from(
    ["no", "the", "hila", "heart", "enlarged", "full", "spine", "curvature", "scoliosis", "bulla", "FINDINGS:", "\n\n",
     "SCOLIOSIS:", ".", "1.", ";", "IMPRESSION:", "normal", "\nBONES:", "and", ",", "cardiomyopathy", "é", "。"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=60))
def test_no_phrase_is_left_in_any_order_of_words(words):
    scrubbed = SCRUBBER(" ".join(words))
    assert not MATCHER.matches(words_of(scrubbed.text))
    assert not re.search("(?i)scoliosis|bulla|cardiomyopathy", scrubbed.text)


@pytest.mark.parametrize(
    "form", ["There is {}.", "No {}.", "Possible {}.", "INDICATION: {}, follow-up.", "HISTORY: {}"]
)
@pytest.mark.parametrize("finding", FIVE)
def test_affirmed_denied_and_unsure_go_in_every_section(form, finding):
    for phrase in PHRASES[finding]:
        said = form.format(phrase.format(side="left"))
        text = f"FINDINGS: The lungs are clear. {said}\n\nIMPRESSION: No acute process."
        left = " ".join(scrub(text, [finding], RULES).split())
        assert left == "FINDINGS: The lungs are clear. IMPRESSION: No acute process."


def test_a_heading_that_names_the_finding_goes_with_its_part():
    text = "FINDINGS: The lungs are clear.\n\nSCOLIOSIS: Unchanged, 20 degrees.\n\nIMPRESSION: No acute process.\n"
    left = scrub(text, ["Scoliosis"], RULES)
    assert "20 degrees" not in left
    assert "The lungs are clear." in left
    assert "No acute process." in left


def test_what_implies_a_finding_stays_where_its_words_do_not_name_it():
    text = "IMPRESSION: A hydropneumothorax. No pneumothorax."
    assert scrub(text, ["Pneumothorax"], RULES).strip() == "IMPRESSION: A hydropneumothorax."


def test_a_phrase_over_a_sentences_end_goes_with_both_sentences_and_the_heading_between_stays():
    text = "FINDINGS: Clear lungs. Bulky hila.\n\nIMPRESSION: Enlarged heart. No effusion."
    left = scrub(text, ["Hilum"], RULES)
    assert not matcher_of(["Hilum"]).matches(words_of(left))
    assert "Clear lungs." in left
    assert "No effusion." in left
    assert "IMPRESSION:" in left


def test_a_finding_without_rules_is_refused_by_its_name():
    with pytest.raises(UsageError, match="Pleural Mass"):
        scrub("A mass.", ["Pleural Mass"], RULES)


def test_indirect_wordings_go_by_description_or_list_and_generic_words_stay():
    text = "FINDINGS: A thin-walled lucency at the apex. {} Clear lungs."
    for said, finding, phrases in [
        ("Thin walled lucencies are seen.", "Bulla", ()),
        ("Reduced density of bone.", "Osteopenia", ("(reduced|low) density ...2 bone",)),
        ("Decreased bone densities.", "Osteopenia", ()),
        ("Lateral curvature of spine.", "Scoliosis", ()),
        ("Bulky right lung root.", "Hilum", (as_phrase("bulky lung roots"),)),
    ]:
        left = scrub(text.format(said), ["Bulla", finding], RULES, phrases)
        assert " ".join(left.split()) == "FINDINGS: Clear lungs."
    for said in (
        "A lucency in the humerus.",
        "Enlarged cardiac silhouette.",
        "A pacemaker and heart failure.",
        "Callus.",
    ):
        assert said in scrub(text.format(said), FIVE, RULES)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abcdesy", min_size=2, max_size=12), min_size=1, max_size=15))  # an article may be left out
def test_a_plain_wording_matches_itself_and_its_plural(words):
    wording = " ".join(words)
    matcher = Matcher([as_phrase(wording)])
    assert matcher.matches(words_of(f"Seen: {wording.upper()}."))
    assert not matcher.matches(words_of(f"Seen: {wording}x."))


def test_a_list_that_is_no_phrase_is_refused_by_file_finding_and_phrase(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('Bulla: [air cyst, "(air"]')
    with pytest.raises(UsageError, match=r"mine.yaml.*'Bulla'.*\(air"):
        read_phrases(path)
    path.write_text("Bulla: [air cyst]\nHilum: [lung roots]")
    assert own_phrases(["Hilum"], read_phrases(path)) == (as_phrase("lung roots"),)
