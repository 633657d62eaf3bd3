"""Cells as people write them: ids that have lost digits are refused, views and labels read in all their forms."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from releases import write_cxrlt2024, write_padchest, write_table

from cxrlt_ray.data.cohort import examine, read_cohort
from cxrlt_ray.data.column_names import OWN, is_no_finding
from cxrlt_ray.data.manifest import META, Cohort
from cxrlt_ray.data.readers.ids import lossy, whole_ids
from cxrlt_ray.data.readers.views import remarks_on_views, view_of
from cxrlt_ray.data.tasks import ALL_FINDINGS, Task
from cxrlt_ray.ensembling.tables import read_table
from cxrlt_ray.errors import CxrltError, UsageError


def _series(*texts: str) -> pd.Series:
    return pd.Series(list(texts), dtype="str")


# ids


@pytest.mark.parametrize("seed", range(20))
def test_long_ids_are_sound_as_they_are_and_lost_once_pandas_or_excel_has_made_floats_of_them(seed):
    rng = random.Random(seed)
    ids = [rng.randrange(10**20, 10**40) for _ in range(8 + seed)]
    texts = _series(*map(str, ids))
    assert not lossy(texts).any()
    assert whole_ids(texts).tolist() == texts.tolist()
    for write in (lambda k: str(float(k)), lambda k: f"{k:.2E}".replace(".", ","), lambda k: str(int(float(k)))):
        assert lossy(_series(*map(write, ids))).any()
    assert lossy(_series(*(str(k)[:15] + "0" * (len(str(k)) - 15) for k in ids))).all()  # Excel


def test_ids_that_floats_hold_and_ids_that_only_look_like_exponents_are_sound():
    assert not lossy(_series("1.0", "100.0", "9007199254740991", "")).any()
    assert not lossy(_series("12e45", "5e10", "1.2.840.113", "s1+2")).any()
    assert not lossy(_series("20140915000000000")).any()  # one id shows nothing


def test_whole_numbers_lose_their_point_and_versions_keep_it():
    assert whole_ids(_series("100.0", "7", "")).tolist() == ["100", "7", ""]
    assert whole_ids(_series("1.0", "1.1")).tolist() == ["1.0", "1.1"]


@pytest.mark.parametrize("column", ["subject_id", "study_id", "image_id"])
def test_lost_ids_of_a_table_are_refused_with_how_to_read_them_and_none_is_shown(tmp_path, column):
    write_table(tmp_path)
    table = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    table[column] = [f"3.{k // 2 % 9}4e+38" for k in range(len(table))]
    table.to_csv(tmp_path / "labels.csv", index=False)
    _, problems = examine(str(tmp_path), task="auto")
    (problem,) = [text for text in problems if "exponent form" in text]
    assert f"column '{column}'" in problem
    assert f"dtype={{'{column}': str}}" in problem
    assert "Data > From Text/CSV" in problem
    assert "3.14e" not in problem


@pytest.mark.parametrize("word", ["nan", "None", "NULL", "<NA>"])
def test_a_subject_that_is_not_known_is_no_subject_called_nan(tmp_path, word):
    write_table(tmp_path)
    table = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    table.loc[[3, 9], "subject_id"] = word
    table.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(CxrltError, match=r"'subject_id' is empty in row 4 \(line 5\) \(and 1 more row\)"):
        read_cohort(str(tmp_path), task="auto")


def test_lost_ids_of_releases_and_of_predictions_are_refused_too(tmp_path):
    write_padchest(tmp_path)
    file = next(tmp_path.glob("PADCHEST*"))
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table.assign(PatientID=[f"{float(text):g}" for text in table["PatientID"]]).to_csv(file, index=False)
    with pytest.raises(CxrltError, match="'PatientID' holds numbers in exponent form"):
        read_cohort(str(tmp_path), task="auto")
    predictions = pd.DataFrame({"image_id": ["a", "b"], "subject_id": ["3.24e+38"] * 2, "Mass": [1, 0]})
    predictions.to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(CxrltError, match="'subject_id' holds numbers in exponent form"):
        read_table(str(tmp_path / "p.csv"))


def test_subjects_that_disagree_with_the_metadata_or_their_folders_are_refused(tmp_path):
    write_cxrlt2024(tmp_path, 120)
    (file,) = tmp_path.rglob("train_labeled.csv")
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table.assign(subject_id=table["subject_id"].str[:3] + "00000").to_csv(file, index=False)
    _, problems = examine(str(tmp_path), task="task1")
    merged = [text for text in problems if "several patients each in" in text]
    assert any("the folders of its paths" in text for text in merged)


# views


@pytest.mark.parametrize(
    ("text", "view"),
    [
        *dict.fromkeys(["AP Supine", "ap_erect", "AP semi-erect", "AP (portable)", "Portable", "supine"], "AP").items(),
        *dict.fromkeys(["ANTERO_POSTERIOR", "antero-posterior", "AP_horizontal", "Portable AP Chest"], "AP").items(),
        *dict.fromkeys(["POSTERO_ANTERIOR", "postero-anterior", "PA erect", "frontal", "PA View"], "PA").items(),
        *dict.fromkeys(["L", "LL", "Lat", "lateral", "Left Lateral", "lateral erect", "R-LAT"], "LATERAL").items(),
        *dict.fromkeys(["COSTAL", "EXCLUDE", "AP AXIAL", "PA LLD", "LAO", "swimmers", "oblique"], "OTHER").items(),
        *dict.fromkeys(["", "NaN", "unknown", "erect", "?", "None"], "UNKNOWN").items(),
        *dict.fromkeys(["knee", "SPINE", "7"], None).items(),
    ],
)
def test_a_view_is_known_in_all_its_forms(text, view):
    assert view_of(text) == view


def test_views_that_are_not_known_are_listed_with_their_counts_unless_they_may_be_a_patients():
    (note,) = remarks_on_views("labels.csv", _series("PA", "knee", "knee", "spine", "LAO", ""))
    assert "'knee' 2, 'spine' 1" in note
    names = [f"Name{'abcdefghijklmnopq'[k]}" for k in range(17)]
    (note,) = remarks_on_views("labels.csv", _series(*names, "20140915"))
    assert "other text 18" in note
    assert "Name" not in note
    (note,) = remarks_on_views("labels.csv", _series("", "frontal", "Frontal erect"), _series("PA", "AP", ""))
    assert "2 views say 'frontal' only" in note


# labels and names


def _auto(root: Path, **columns) -> Cohort:
    write_table(root)
    table = pd.read_csv(root / "labels.csv", dtype=str, keep_default_na=False).assign(**columns)
    table.to_csv(root / "labels.csv", index=False)
    return read_cohort(str(root), task="auto")


@pytest.mark.parametrize("name", [*OWN, "Cohort", "fold", "is_test", "dataset", "source", "index", "Unnamed: 0", "Row"])
def test_a_column_called_as_ours_or_as_what_people_keep_beside_findings_is_none_of_them(tmp_path, name):
    kept = {"image_id", "path", "subject_id", "split", "photometric"}
    cohort = _auto(tmp_path, **{name: np.arange(60) % 2} if name not in kept else {})
    assert cohort.manifest.findings == ("Mass", "Nodule")
    assert list(cohort.manifest.table.columns) == [*META, "Mass", "Nodule"]
    if name not in META or name == "cohort":
        assert any("never findings" in note and name in note for note in cohort.notes)
    assert cohort.origins["file"].unique().tolist() == ["labels.csv"]
    with pytest.raises(UsageError, match="is a column of the manifest"):
        Task("mine", ("Mass", "cohort"))


def test_no_finding_of_the_challenge_is_taken_for_something_else():
    assert not [name for name in (*ALL_FINDINGS, "No Finding", "Normal", "Pacemaker") if is_no_finding(name)]


def test_a_column_left_out_is_warned_of_in_a_line_of_its_own_with_the_first_other_cell(tmp_path):
    cohort = _auto(tmp_path, Edema=["2", *["1"] * 59], comment="fine")
    warnings = [note for note in cohort.notes if note.startswith("Warning: column")]
    assert [note.split()[2] for note in warnings] == ["scanner", "Edema", "comment"]
    assert "row 1 (line 2) holds 2;" in warnings[1]


@pytest.mark.parametrize(("uncertain", "code"), [("null", -1), ("zero", 0), ("one", 1)])
def test_minus_one_in_a_plain_table_is_what_uncertain_says_and_said(tmp_path, uncertain, code):
    _auto(tmp_path, Edema=["-1", "-1.0", *["1"] * 58])
    cohort = read_cohort(str(tmp_path), task="auto", uncertain=uncertain)
    table = cohort.manifest.table.set_index("image_id")["Edema"].fillna(-1)
    assert table.loc[["i000", "i001", "i002"]].tolist() == [code, code, 1]
    assert any(f"2 labels of -1 (uncertain) in 1 column read as {uncertain}" in note for note in cohort.notes)


@pytest.mark.parametrize("words", [("TRUE", "FALSE"), ("yes", "No"), ("1.0", "0.0"), ("Y", "n"), ("True", "0")])
@pytest.mark.parametrize("missing", ["", "NaN", "NA", "null", "None"])
def test_labels_in_words_are_labels_and_missing_ones_are_none(tmp_path, words, missing):
    cohort = _auto(tmp_path, Edema=[missing, words[0], *[words[1]] * 58])
    table = cohort.manifest.table.set_index("image_id")["Edema"].fillna(-1)
    assert table.loc[["i000", "i001", "i002"]].tolist() == [-1, 1, 0]
