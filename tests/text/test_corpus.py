"""A corpus: what is drawn from it, how it is kept, whose reports it takes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling import labelled
from cxrlt_ray.labelling.phrases import Matcher, words_of
from cxrlt_ray.labelling.reports import read_reports
from cxrlt_ray.labelling.rules import load_rules
from cxrlt_ray.storage import Store
from cxrlt_ray.text.build import build_corpus, write_corpus
from cxrlt_ray.text.corpus import KINDS, Corpus, check_coverage
from cxrlt_ray.text.descriptions import CHALLENGE_FINDINGS, read_descriptions

REPORTS = {
    "s1": "EXAMINATION: CHEST\n\nINDICATION: Cough.\n\nFINDINGS: The heart is enlarged. No pneumothorax. Seen by Dr. "
    "Smith at 3:45 pm.\n\nIMPRESSION: Cardiomegaly.",
    "s2": "FINDINGS: No effusion. No pneumothorax.\n\nIMPRESSION: Unchanged.",
    "s3": "FINDINGS: Thoracic scoliosis. Clear lungs. A left rib fracture.",
    "s4": "",
    "s5": "Sin derrame pleural ni consolidacion. La silueta cardiaca es de tamano normal.",
    "s9": "FINDINGS: Of no study of the cohort.",
}


def manifest_of(studies: list[str], splits: list[str] | None = None) -> Manifest:
    """Two images a study."""
    rows = []
    for k, study in enumerate(studies):
        split = splits[k] if splits else "train"
        for n in range(2):
            row = dict.fromkeys(META) | {"image_id": f"i{k}{n}", "study_id": study, "subject_id": study}
            rows.append(row | {"path": f"{k}{n}.png", "split": split, "view": "PA", "Mass": 0})
    return Manifest(pd.DataFrame(rows).astype({"Mass": "Int8"}), ("Mass",), "table", "/")


def table_at(path: Path, reports: dict[str, str]) -> str:
    pd.DataFrame({"study_id": list(reports), "text": list(reports.values())}).to_csv(path, index=False)
    return str(path)


COHORT = manifest_of(["s1", "s2", "s3", "s4", "s5"])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Corpus, list[str]]:
    folder = tmp_path_factory.mktemp("corpus")
    copy = {"s1": "FINDINGS: The heart has grown. There is no pneumothorax.", "s77": "FINDINGS: Clear.", "s3": "  "}
    second = table_at(folder / "second.csv", copy)
    return build_corpus(table_at(folder / "reports.csv", REPORTS), COHORT, Store(str(folder)), second=second)


@pytest.fixture(scope="module")
def corpus(built) -> Corpus:
    return built[0]


def drawn(corpus: Corpus, study: str, kind: str, epochs: int = 60, **settings) -> set[str]:
    row = np.array([corpus.studies.get_loc(study)])
    return {corpus.draw(row, kind, 0, epoch, **settings)[0] for epoch in range(epochs)}


def test_images_find_their_studys_report_and_others_have_none(corpus):
    rows = corpus.rows_of(COHORT)
    assert rows[0] == rows[1]
    assert len(set(rows)) == 5  # four studies, and -1 for that whose report is empty
    assert set(rows[6:8]) == {-1}
    assert "s9" not in corpus.studies


@pytest.mark.parametrize(("reports", "cohort"), [("s{}", "{}"), ("{}", "s{}")])
def test_mimics_ids_match_with_and_without_their_s(tmp_path, reports, cohort):
    texts = {reports.format(k): f"FINDINGS: Report {'abc'[k]}." for k in range(3)}
    manifest = manifest_of([cohort.format(k) for k in range(3)])
    corpus, _ = build_corpus(table_at(tmp_path / "r.csv", texts), manifest, Store(str(tmp_path)))
    texts = corpus.draw(corpus.rows_of(manifest)[::2], "report", 0, 0)
    assert texts == ["FINDINGS: Report a.", "FINDINGS: Report b.", "FINDINGS: Report c."]


def test_each_kind_is_drawn_and_nothing_else(corpus):
    findings, impression = "The heart is enlarged. No pneumothorax. Seen by at .", "Cardiomegaly."
    assert drawn(corpus, "s1", "section") == {findings, impression}
    assert drawn(corpus, "s1", "sentence") == {"The heart is enlarged.", "No pneumothorax.", "Seen by at .", impression}
    assert drawn(corpus, "s1", "statement") == {"The heart is enlarged.", impression}
    (whole,) = drawn(corpus, "s1", "report")
    assert whole.startswith("INDICATION: Cough. FINDINGS: The heart")


def test_without_an_affirmed_statement_a_sentence_is_drawn(corpus):
    texts = drawn(corpus, "s2", "statement")
    assert {"No effusion.", "No pneumothorax."} <= texts == drawn(corpus, "s2", "sentence")


@pytest.mark.parametrize("kind", KINDS)
def test_no_report_is_an_empty_text(corpus, kind):
    empty = corpus.studies.get_loc("s4")
    assert corpus.draw(np.array([-1, empty]), kind, 0, 0) == ["", ""]
    assert corpus.draw(np.array([], np.int64), kind, 0, 0) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_depends_on_seed_epoch_and_study_alone(corpus, kind):
    rows = np.array([0, 1, 2, 4, -1, 0])
    once = corpus.draw(rows, kind, 3, 7, mask=0.5, second=0.5)
    assert once == corpus.draw(rows, kind, 3, 7, mask=0.5, second=0.5)
    order = np.array([5, 2, 0, 4, 3, 1])
    assert [once[k] for k in order] == corpus.draw(rows[order], kind, 3, 7, mask=0.5, second=0.5)
    alone = [corpus.draw(rows[[k]], kind, 3, 7, mask=0.5, second=0.5)[0] for k in range(len(rows))]
    assert once == alone == pickle.loads(pickle.dumps(corpus)).draw(rows, kind, 3, 7, mask=0.5, second=0.5)


def test_epochs_and_seeds_differ(corpus):
    rows = np.array([0])
    by_epoch = [corpus.draw(rows, "sentence", 0, epoch)[0] for epoch in range(40)]
    by_seed = [corpus.draw(rows, "sentence", seed, 0)[0] for seed in range(40)]
    assert len(set(by_epoch)) == len(set(by_seed)) == 4
    assert by_epoch != by_seed


def test_masking_and_the_second_wording_are_drawn_with_their_probability(corpus):
    shown = drawn(corpus, "s1", "report", mask=0.0)
    assert shown == {" ".join(REPORTS["s1"].split())}
    some = drawn(corpus, "s1", "report", mask=0.5)
    assert any("Smith" in text for text in some)
    assert any("Smith" not in text for text in some)
    assert len(some) > 2  # kinds of fields are masked on their own
    assert drawn(corpus, "s1", "sentence", second=1.0) == {"The heart has grown.", "There is no pneumothorax."}
    rows = np.zeros(1, np.int64)
    copies = ["grown" in corpus.draw(rows, "report", 0, epoch, second=0.3)[0] for epoch in range(400)]
    assert 0.2 < np.mean(copies) < 0.4
    assert drawn(corpus, "s2", "report", second=1.0) == drawn(corpus, "s2", "report")
    assert drawn(corpus, "s3", "report", second=1.0) == drawn(corpus, "s3", "report")  # the other wording is empty
    everything = corpus.drawable(COHORT, "sentence", second=True)
    assert set(everything) - set(corpus.drawable(COHORT, "sentence")) == {
        "The heart has grown.",
        "There is no pneumothorax.",
    }


def test_statements_name_finding_and_value(corpus):
    said = {(said.text, said.finding, said.value) for said in corpus.statements(corpus.studies.get_loc("s3"))}
    assert ("Thoracic scoliosis.", "Scoliosis", 1) in said
    assert ("A left rib fracture.", "Fracture", 1) in said
    assert not corpus.statements(corpus.studies.get_loc("s5"))


def test_notes_say_what_is_special(built):
    notes = " ".join(built[1])
    assert "5 studies, 1 with a second wording" in notes
    assert "1 of 5 have no text" in notes
    assert "1 of 5 are not in English" in notes
    assert "1 of 5 training studies (20.0 %) have no report" in notes


def test_too_few_reports_are_refused_unless_allowed(corpus):
    cohort = manifest_of(["s1", "s7", "s8", "s10"])
    with pytest.raises(UsageError, match=r"3 of 4 training studies \(75\.0 %\) have no report; at most 50 %"):
        check_coverage(corpus, cohort)
    assert check_coverage(corpus, cohort, most_without=0.8)
    elsewhere = manifest_of(["s1", "s7", "s8"], ["train", "val", "test"])
    assert check_coverage(corpus, elsewhere) == []


def test_another_cohort_without_reports_is_said_and_not_refused(corpus):
    both = manifest_of(["s1", "nih/7", "nih/8", "nih/9"])
    table = both.table.assign(cohort=["main"] * 2 + ["nih"] * 6)
    (line,) = check_coverage(corpus, replace(both, table=table))
    assert line == "Reports, cohort nih: 3 of 3 training studies (100.0 %) have no report."
    with pytest.raises(UsageError, match="3 of 3 training studies"):
        check_coverage(corpus, replace(both, table=table.assign(cohort=["nih"] * 2 + ["main"] * 6)))


def test_an_unknown_kind_and_a_second_wording_of_other_studies_are_refused(corpus, tmp_path):
    with pytest.raises(UsageError, match="paragraph"):
        corpus.draw(np.array([0]), "paragraph", 0, 0)
    reports, other = table_at(tmp_path / "r.csv", REPORTS), table_at(tmp_path / "o.csv", {"x1": "Clear."})
    with pytest.raises(UsageError, match="no study of the reports"):
        build_corpus(reports, COHORT, Store(str(tmp_path)), second=other)


def test_it_is_read_back_as_it_was_and_of_another_version_refused(corpus, tmp_path):
    store = Store(str(tmp_path))
    corpus.write(store)
    again = Corpus.read(store)
    assert again.table.equals(corpus.table)
    assert again.about == corpus.about
    of_two = Corpus.read(store, manifest=manifest_of(["2", "3"]))
    assert set(of_two.studies) == {"s2", "s3"}
    row = np.array([of_two.studies.get_loc("s3")])
    assert of_two.draw(row, "sentence", 1, 1) == corpus.draw(np.array([2]), "sentence", 1, 1)
    old = corpus.table.replace_schema_metadata({b"cxrlt_ray": corpus.about.as_json().replace(b'n": 2', b'n": 9')})
    pq.write_table(old, tmp_path / "old.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    for name in ("old.parquet", "other.parquet", "missing.parquet"):
        with pytest.raises(CxrltError, match=name):
            Corpus.read(store, name)


def test_a_corpus_without_studies(tmp_path):
    store = Store(str(tmp_path))
    write_corpus(read_reports(table_at(tmp_path / "r.csv", REPORTS)), store, manifest_of(["x"]))
    empty = Corpus.read(store)
    assert list(empty.rows_of(COHORT)) == [-1] * 10
    assert empty.draw(np.array([-1]), "report", 0, 0) == [""]
    assert empty.scrubbed(["Scoliosis"]).table.num_rows == 0


def test_scrubbing_leaves_no_phrase_and_no_statement_of_the_findings(corpus):
    rules, hidden = load_rules(), ("Cardiomegaly", "Fracture", "Scoliosis")
    scrubbed = corpus.scrubbed(hidden)
    matcher = Matcher([phrase for name in hidden for phrase in rules[name].phrases])
    assert not any(matcher.matches(words_of(text)) for text in scrubbed.table["text"].to_pylist())
    assert not {said.finding for row in range(5) for said in scrubbed.statements(row)} & set(hidden)
    assert scrubbed.about.hidden == hidden
    assert scrubbed.about.removed == 4  # the copy says it in words that are no phrase
    assert drawn(scrubbed, "s3", "sentence") == {"Clear lungs."}
    assert drawn(scrubbed, "s2", "sentence") == drawn(corpus, "s2", "sentence")
    assert drawn(scrubbed, "s5", "report") == {""}  # another language cannot be searched
    assert any("4 sentences on Cardiomegaly, Fracture, Scoliosis are removed" in note for note in scrubbed.notes)
    twice = scrubbed.scrubbed(["Pneumothorax"])
    assert twice.about.hidden == (*hidden, "Pneumothorax")
    assert drawn(twice, "s2", "sentence") == {"No effusion.", "Unchanged."}


def test_a_list_of_the_users_is_scrubbed_too_and_kept_when_more_is_scrubbed(tmp_path):
    reports = table_at(tmp_path / "r.csv", {"s1": "FINDINGS: Bulky lung roots. An air cyst. Clear lungs. No effusion."})
    corpus, _ = build_corpus(reports, manifest_of(["s1"]), Store(str(tmp_path)))
    phrases = {"Hilum": ["bulky lung root"], "Bulla": ["air cyst"]}
    base = corpus.scrubbed(["Hilum"], phrases=phrases)
    assert drawn(base, "s1", "sentence") == {"An air cyst.", "Clear lungs.", "No effusion."}
    both = base.scrubbed(["Bulla"], None, phrases)
    assert drawn(both, "s1", "sentence") == {"Clear lungs.", "No effusion."}
    both.write(Store(str(tmp_path)), "again.parquet")
    assert Corpus.read(Store(str(tmp_path)), "again.parquet").about == both.about


OWN = """finding: {}
names: [{}]
appearance: Round.
keywords: [thin wall, lucency, air]
"""


def test_the_words_of_the_users_descriptions_are_scrubbed_and_a_finding_needs_no_rules(tmp_path):
    text = "FINDINGS: A pleural-based mass. Heart not enlarged; cardiomegaly. Two air cysts. Clear lungs."
    corpus, _ = build_corpus(table_at(tmp_path / "r.csv", {"s1": text}), manifest_of(["s1"]), Store(str(tmp_path)))
    own = []
    for finding, name in (("Bulla", "air cyst"), ("Pleural Mass", "pleural-based mass")):
        (tmp_path / "own.yaml").write_text(OWN.format(finding, name))
        own += read_descriptions(tmp_path / "own.yaml")
    left = corpus.scrubbed(["bulla", "Pleural Mass", "cardiomegaly"], descriptions=own)
    assert drawn(left, "s1", "sentence") == {"Clear lungs."}
    assert left.about.hidden == ("Bulla", "Pleural Mass", "Cardiomegaly")
    assert not {said.finding for said in left.statements(0)} & set(left.about.hidden)
    assert drawn(left.scrubbed(["Hilum"]), "s1", "report") == {"FINDINGS: Clear lungs."}
    by_list = corpus.scrubbed(["Sail Sign"], phrases={"sail sign": ["air cyst"]})
    assert "Two air cysts." not in drawn(by_list, "s1", "sentence")
    with pytest.raises(UsageError, match=r"no rules and no description for finding 'Sail Sign'.*--scrub FILE"):
        corpus.scrubbed(["Sail Sign"], phrases={"Bulla": ["air cyst"]})


def test_every_finding_of_the_challenges_can_be_scrubbed(corpus):
    assert corpus.scrubbed(CHALLENGE_FINDINGS).about.removed >= 4


def test_an_implied_statement_is_hidden_where_its_own_words_are_not_there(tmp_path):
    reports = table_at(tmp_path / "r.csv", {"s1": "FINDINGS: A hydropneumothorax."})
    corpus, _ = build_corpus(reports, manifest_of(["s1"]), Store(str(tmp_path)))
    assert "Pneumothorax" in {said.finding for said in corpus.statements(0)}
    said = corpus.scrubbed(["Pneumothorax"]).statements(0)
    assert "Hydropneumothorax" in {statement.finding for statement in said}
    assert "Pneumothorax" not in {statement.finding for statement in said}


def test_a_long_report_is_kept_whole(tmp_path):
    long = "FINDINGS: " + "The heart is enlarged and the lungs are clear. " * 2500
    corpus, _ = build_corpus(table_at(tmp_path / "r.csv", {"s1": long}), manifest_of(["s1"]), Store(str(tmp_path)))
    assert len(corpus.draw(np.array([0]), "report", 0, 0)[0].split()) == 2500 * 9 + 1
    assert drawn(corpus, "s1", "sentence", 3) == {"The heart is enlarged and the lungs are clear."}


def test_memory_is_texts_and_numbers(tmp_path):
    """No Python object a sentence: what a corpus holds beside its text is a few numbers a sentence."""
    reports = {f"s{k}": f"FINDINGS: Heart {k} is enlarged. " + "No pneumothorax. " * 20 for k in range(300)}
    corpus, _ = build_corpus(table_at(tmp_path / "r.csv", reports), manifest_of([*reports]), Store(str(tmp_path)))
    corpus.draw(np.arange(300), "statement", 0, 0)
    text, sentences = sum(map(len, reports.values())), 300 * 21
    assert corpus.table.nbytes < text + 40 * sentences
    assert all(values.base is not None for _, values in corpus._lists.values())  # views of the table, no copies


def test_many_reports_go_through_ray_and_come_out_the_same(corpus, tmp_path, monkeypatch, ray):
    monkeypatch.setattr(labelled, "RAY_FROM", 0)
    for study, text in REPORTS.items():
        (tmp_path / f"{study}.txt").write_text(text)
    by_ray, _ = build_corpus(str(tmp_path), COHORT, Store(str(tmp_path / "out")))
    own = corpus.table.slice(0, 5)
    assert by_ray.table.equals(own)
    scrubbed = by_ray.scrubbed(["Scoliosis"])
    monkeypatch.undo()
    assert scrubbed.table.equals(by_ray.scrubbed(["Scoliosis"]).table)
    assert scrubbed.about.removed == 1
