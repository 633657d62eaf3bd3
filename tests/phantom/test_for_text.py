"""What the options for reading systems do to reports, labels and the test split, and what they leave alone."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import phantom
from cxrlt_ray.data.tasks import ALL_FINDINGS, TASK3
from cxrlt_ray.errors import UsageError
from cxrlt_ray.phantom.labels import NEGATED, NORMAL, POSITIVE, SILENT, TRUE_PREVALENCE, draw_cohort
from cxrlt_ray.phantom.options import FOR_TEXT, PLAIN, PhantomOptions, combined, words
from cxrlt_ray.phantom.reports import Wording, wording_of, write_report
from cxrlt_ray.phantom.wordings import INDIRECT, PHRASES, RESERVED

SEED = 5
HELD_OUT = [text for texts in RESERVED.values() for text in texts]
FIVE = [ALL_FINDINGS.index(name) for name in TASK3]
# words that give a finding away; for the others its whole name does
STEMS = {
    "Adenopathy": "adenopath", "Atelectasis": "atelect", "Azygos Lobe": "azygos", "Bulla": "bulla|bullous",
    "Cardiomyopathy": "cardiomyopath|myopath", "Clavicle Fracture": "clavic|fractur", "Consolidation": "consolidat",
    "Edema": "edema", "Emphysema": "emphysem", "Fibrosis": "fibro", "Fissure": "fissur", "Fracture": "fractur",
    "Granuloma": "granuloma\\b|granulomas", "Hernia": "hernia", "Hilum": "hilum|hilar|hila\\b", "Infarction": "infarct",
    "Hydropneumothorax": "thorax", "Infiltration": "infiltrat", "Kyphosis": "kypho", "Lobar Atelectasis": "atelect",
    "Lung Lesion": "lesion", "Lung Opacity": "opaci", "Mass": "mass", "Nodule": "nodul", "Osteopenia": "osteopen",
    "Pleural Effusion": "effusion", "Pleural Thickening": "thicken", "Pneumomediastinum": "pneumomed",
    "Pneumonia": "pneumonia", "Pneumoperitoneum": "pneumoperi", "Pneumothorax": "pneumothor",
    "Pulmonary Embolism": "embol", "Pulmonary Hypertension": "hypertens", "Rib Fracture": "fractur",
    "Round(ed) Atelectasis": "atelect", "Scoliosis": "scolio", "Subcutaneous Emphysema": "emphysem|subcutan",
    "Support Devices": "devices", "Tortuous Aorta": "tortu", "Tuberculosis": "tubercul",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    return draw_cohort(2400, 3)


@pytest.fixture(scope="module")
def for_text():
    return draw_cohort(2400, 3, FOR_TEXT)


def reports(cohort, options, split, most=400):
    wording = wording_of(options, training=split == "train")
    for k in np.flatnonzero(cohort.studies["split"] == split)[:most]:
        yield write_report(cohort.mention[k], cohort.strength[k], cohort.side[k], int(k), SEED, wording)


def positives(cohort, split, name):
    return int(cohort.truth[cohort.studies["split"] == split, ALL_FINDINGS.index(name)].sum())


def test_without_options_nothing_is_another(plain):
    again = draw_cohort(2400, 3, PLAIN)
    for name in ("truth", "labels", "strength", "side", "mention", "gold"):
        assert (getattr(again, name) == getattr(plain, name)).all()
    told = plain.mention[7], plain.strength[7], plain.side[7], 7, SEED
    assert write_report(*told) == write_report(*told, wording_of(PLAIN, training=True))
    assert PLAIN.changed() == {}


@pytest.mark.parametrize("finding", INDIRECT)
def test_indirect_wordings_do_not_name_the_finding(finding):
    for phrase in (*INDIRECT[finding], *RESERVED.get(finding, ())):
        assert not re.search(STEMS.get(finding, finding), phrase, re.IGNORECASE), phrase
        assert phrase not in PHRASES[finding]


def test_every_finding_but_normal_has_indirect_wordings():
    assert set(INDIRECT) == set(ALL_FINDINGS) - {"Normal"}
    assert set(RESERVED) == set(TASK3)


@pytest.mark.parametrize("says", [POSITIVE, NEGATED])
def test_with_a_share_of_one_no_finding_is_named(says):
    for finding, stem in STEMS.items():
        mention = [says if name == finding else SILENT for name in ALL_FINDINGS]
        for study in range(12):
            report = write_report(mention, [0.4] * 45, [1] * 45, study, SEED, Wording(indirect=1.0))
            body = report.partition("FINDINGS")[2].partition("IMPRESSION")[0]
            assert not re.search(stem, body, re.IGNORECASE), body
            assert bool(re.search(r"\b(no|without)\b", body, re.IGNORECASE)) == (says == NEGATED)


def test_half_the_mentions_are_indirect_at_a_half():
    mention = [POSITIVE if name == "Scoliosis" else SILENT for name in ALL_FINDINGS]
    wording = Wording(indirect=0.5)
    texts = [write_report(mention, [0.6] * 45, [0] * 45, k, SEED, wording) for k in range(400)]
    assert np.mean(["scoliosis" in text.lower() for text in texts]) == pytest.approx(0.5, abs=0.08)


def test_a_quarter_of_the_true_findings_is_left_out_and_nothing_else_changes(plain):
    cohort = draw_cohort(2400, 3, PhantomOptions(unmentioned=0.25))
    changed = cohort.mention != plain.mention
    assert (cohort.truth == plain.truth).all()
    assert (cohort.labels == plain.labels).all()
    assert (cohort.mention[changed] == SILENT).all()
    assert cohort.truth[changed].all()
    assert not changed[:, NORMAL].any()
    true = cohort.truth.copy()
    true[:, NORMAL] = False
    assert changed[true].mean() == pytest.approx(0.25, abs=0.03)


# texts held out


def test_held_out_texts_are_in_no_training_report_and_in_some_test_reports(for_text):
    def count(split):
        plain = map(words, reports(for_text, FOR_TEXT, split))
        return sum(words(text) in report for report in plain for text in HELD_OUT)

    assert count("train") == 0
    assert count("test") > 10


@pytest.mark.parametrize(
    "text", ["Scoliosis", "levoscoliosis or a tortuous AORTA", "mild  scoliosis", "There is evidence of pneumothorax"]
)
def test_a_users_own_text_is_kept_out_whatever_its_case_and_blanks(for_text, text):
    options = PhantomOptions(held_out=(text,))
    assert not any(words(text) in words(report) for report in reports(for_text, options, "train", most=150))


def test_a_finding_whose_names_are_held_out_is_worded_otherwise():
    mention = [POSITIVE if name == "Scoliosis" else SILENT for name in ALL_FINDINGS]
    wording = wording_of(PhantomOptions(held_out=("scoliosis",)), training=True)
    text = write_report(mention, [0.6] * 45, [0] * 45, 3, SEED, wording)
    assert any(phrase.format(side="right") in text.lower() for phrase in map(str.lower, INDIRECT["Scoliosis"]))


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (("mass", "tumor", "neoplasm", "shadow"), "no wording for Mass"),
        (("no", "without"), "no sentence for a denied finding"),
        (("clear", "contours"), "no sentence for a normal chest"),
        (("?!",), "no word in them"),
    ],
)
def test_texts_that_leave_nothing_to_say_are_refused_before_a_file_is_written(tmp_path, texts, told):
    with pytest.raises(UsageError, match=told):
        phantom.write_phantom(tmp_path / "x", 300, 32, options=PhantomOptions(held_out=texts), say=lambda _: None)
    assert not (tmp_path / "x").exists()


# the test split


def test_each_finding_of_task_3_is_in_sixty_test_studies_or_more(for_text):
    assert all(positives(for_text, "test", name) >= 60 for name in TASK3)


def test_in_the_test_split_they_come_without_their_company():
    """Lift of each common finding given one of the five, among the test studies that are not Normal: 1 but for chance.

    Plain, cardiomegaly is beside every cardiomyopathy. Over three cohorts, the deviation of a lift is about .12.
    """
    lifts = []
    for seed in range(3):
        cohort = draw_cohort(24_000, seed, PhantomOptions(apart=300))
        test = cohort.truth[(cohort.studies["split"] == "test").to_numpy()]
        ill = test[~test[:, NORMAL]]
        common = [k for k in range(45) if k not in (*FIVE, NORMAL) and cohort.truth[:, k].mean() > 0.05]
        assert len(common) > 8
        lifts.append([ill[ill[:, five]][:, common].mean(axis=0) / ill[:, common].mean(axis=0) for five in FIVE])
    assert np.mean(lifts, axis=0) == pytest.approx(1, abs=0.5)
    assert np.mean(lifts) == pytest.approx(1, abs=0.06)


def test_in_the_other_splits_the_company_stays(for_text, plain):
    heart, muscle = ALL_FINDINGS.index("Cardiomegaly"), ALL_FINDINGS.index("Cardiomyopathy")
    for cohort in (for_text, plain):
        train = cohort.truth[(cohort.studies["split"] == "train").to_numpy()]
        assert train[train[:, muscle], heart].all()


def test_a_normal_study_stays_one_without_other_findings(for_text):
    normal = for_text.truth[:, NORMAL]
    assert (for_text.truth[normal].sum(axis=1) == 1).all()


def test_counts_of_task_3_near_the_truth_with_a_floor():
    cohort = draw_cohort(40_000, 3, PhantomOptions(true_counts=True))
    train = cohort.truth[(cohort.studies["split"] == "train").to_numpy()]
    share = train[:, FIVE].mean(axis=0)
    assert share == pytest.approx([TRUE_PREVALENCE[name] for name in TASK3], rel=0.15, abs=1e-4)
    assert 0.8 < share[TASK3.index("Hilum")] / share.sum() < 0.95
    small = draw_cohort(400, 3, PhantomOptions(true_counts=True))
    assert all(positives(small, split, name) for split in ("train", "val", "test") for name in TASK3)


def test_an_enriched_cohort_has_more_of_task_3_to_learn_from_and_is_tested_as_any_other():
    plain, enriched = (draw_cohort(8_000, 3, PhantomOptions(true_counts=True, enriched=share)) for share in (0, 0.06))
    split = enriched.studies["split"].to_numpy()
    for name in ("train", "val"):
        shares = enriched.truth[split == name][:, FIVE].mean(axis=0)
        least = [max(0.06, TRUE_PREVALENCE[finding]) for finding in TASK3]
        assert shares == pytest.approx(least, abs=0.006)
    assert (enriched.truth[split == "test"] == plain.truth[split == "test"]).all()
    heart, muscle = ALL_FINDINGS.index("Cardiomegaly"), ALL_FINDINGS.index("Cardiomyopathy")
    assert enriched.truth[enriched.truth[:, muscle] & (split != "test"), heart].all()


def test_too_small_a_test_split_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(UsageError, match=r"--apart 60 .* test split has \d+ studies: give --images"):
        phantom.write_phantom(tmp_path / "x", 400, 32, options=FOR_TEXT, say=lambda _: None)
    assert not (tmp_path / "x").exists()


# the command


def test_the_preset_takes_single_options_beside_it():
    assert combined(True) == FOR_TEXT
    assert combined(False) == PLAIN
    mixed = combined(True, ["crooked spine"], apart=20, boxes=False)
    assert (mixed.apart, mixed.boxes, mixed.unmentioned) == (20, False, FOR_TEXT.unmentioned)
    assert mixed.held_out == (*FOR_TEXT.held_out, "crooked spine")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"unmentioned": 1.5}, "--unmentioned 1.5 is out of range"),
        ({"indirect": -0.1}, "--indirect -0.1 is out of range"),
        ({"apart": -3}, "--apart -3 is negative"),
        ({"enriched": 0.5}, "--enriched 0.5 is out of range: give a share from 0 to 0.2"),
    ],
)
def test_options_out_of_range_are_refused(given, told):
    with pytest.raises(UsageError, match=told):
        combined(False, **given)


def test_the_marker_names_the_options_and_another_choice_is_another_cohort(tmp_path):
    texts = tmp_path / "prompts.txt"
    texts.write_text("crooked spine\n\nfrail bones\n")
    phantom.main(tmp_path / "a", 300, 32, pictures=False, unmentioned=0.25, held_out=texts)
    marker = json.loads((tmp_path / "a" / "phantom.json").read_text())
    assert marker["unmentioned"] == 0.25
    assert marker["held_out"].startswith("2 texts")
    assert "apart" not in marker
    with pytest.raises(UsageError, match="holds another phantom cohort"):
        phantom.main(tmp_path / "a", 300, 32, pictures=False, unmentioned=0.5, held_out=texts)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"])
def test_a_file_of_texts_that_cannot_be_read_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "texts").write_bytes(content)
    with pytest.raises(UsageError, match=r"--held-out .*texts (cannot be read|has no line)"):
        phantom.main(tmp_path / "a", 300, 32, held_out=tmp_path / "texts")


def test_written_reports_of_training_studies_alone_are_without_the_held_out_texts(tmp_path):
    texts = tmp_path / "texts"
    texts.write_text("pneumothorax\nedema\n")
    phantom.main(tmp_path / "a", 200, 32, processes=1, held_out=texts, seed=SEED)
    table = pd.read_csv(tmp_path / "a" / "cxr-lt-2024" / "labels.csv").drop_duplicates("study_id")
    said = {"train": 0, "val": 0, "test": 0}
    for path, split in zip(table["fpath"], table["split"], strict=True):
        report = words((tmp_path / "a" / path).parent.with_suffix(".txt").read_text())
        said[split] += " pneumothorax " in report or " edema " in report
    assert said["train"] == 0
    assert said["test"] > 3
