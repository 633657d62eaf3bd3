"""CXR-LT 2026: its tables over PadChest's images, patients' true ids, what is left out, and what trains beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from releases import CXRLT2026_ROUNDED, PADCHEST, write_cxrlt2024, write_cxrlt2026, write_padchest

from cxrlt_ray.data.cohort import examine, read_cohort
from cxrlt_ray.data.mapping import in_cxr_lt
from cxrlt_ray.data.readers.files import compare_with_disk
from cxrlt_ray.data.tasks import TASK1_2026, TASK2_2026
from cxrlt_ray.errors import CxrltError

TRAIN, TEST = "CXRLT_2026_training.csv", "CXRLT_2026_TEST_ALL_TASK1.csv"


@pytest.fixture
def tree(tmp_path) -> Path:
    write_cxrlt2026(tmp_path / "2026")
    return tmp_path / "2026"


def _read(root: Path, task: str = "2026-task1", **options):
    return read_cohort(str(root), task=task, **options)


def _text(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def test_labels_are_read_by_name_whatever_the_order_of_rows_and_columns(tree):
    cohort = _read(tree)
    truth = _text(tree / TRAIN).set_index("ImageID")
    assert list(truth.columns)[-30:] != list(TASK1_2026)
    table = cohort.manifest.of_split("train", "val").table.set_index("image_id")
    assert cohort.manifest.findings == TASK1_2026
    assert (table[list(TASK1_2026)].astype(str) == truth.loc[table.index, list(TASK1_2026)]).all(axis=None)
    assert len(table) == len(truth) - 1  # the one that Removal.csv names


def test_subjects_studies_views_and_reports_are_padchests_by_image_id(tree):
    cohort = _read(tree)
    truth = _text(tree / PADCHEST).set_index("ImageID")
    table = cohort.manifest.table.set_index("image_id")
    truth = truth.loc[table.index]
    assert (table["subject_id"] == truth["PatientID"]).all()
    assert (table["study_id"] == truth["StudyID"]).all()
    assert (table["view"] == truth["Projection"].map({"PA": "PA", "L": "LATERAL"})).all()
    assert (table["photometric"] == truth["PhotometricInterpretation_DICOM"]).all()
    for place, row in zip(table["report"], truth.index, strict=True):
        name, _, number = place.partition("#")
        assert (name, _text(tree / PADCHEST)["ImageID"][int(number) - 1]) == (PADCHEST, row)
    assert table.groupby("subject_id")["split"].nunique().max() == 1
    assert any("Subjects, studies and views of 59 of the 59 images are from PADCHEST" in note for note in cohort.notes)


def test_images_that_removal_names_are_left_out_of_training_and_counted(tree):
    cohort = _read(tree)
    removed = set(_text(tree / "Removal.csv")["ImageID"])
    assert not removed & set(cohort.manifest.table["image_id"])
    assert "Removal.csv: 1 image left out of training, of the 2 it names." in cohort.notes


def test_an_image_that_is_not_on_disk_is_missing_where_the_others_lie(tree):
    manifest = _read(tree).manifest
    disk = compare_with_disk(manifest.table["path"], manifest.root)
    assert disk.missing == [f"images/{_missing(tree)}"]


def _missing(tree: Path) -> str:
    named = {*_text(tree / TRAIN)["ImageID"], *_text(tree / TEST)["ImageID"]}
    (name,) = named - {path.name for path in (tree / "images").iterdir()}
    return name


def test_images_are_found_in_any_folder_and_a_resized_copy_is_not_taken(tree):
    before = _read(tree).manifest
    shutil.copytree(tree / "images", tree / "images-224")
    for file in list((tree / "images-224").iterdir())[:3]:
        file.unlink()
    cohort = _read(tree)
    assert (cohort.manifest.table["path"] == before.table["path"]).all()
    assert any("lie in several folders: those of images" in note for note in cohort.notes)
    (tree / "images").rename(tree / "png")
    shutil.rmtree(tree / "images-224")
    assert set(_read(tree).manifest.table["path"].str.partition("/")[0]) == {"png"}


# ---------------------------------------------------------------- without PadChest's table


def test_rounded_ids_are_refused_with_how_to_get_the_true_ones_and_without_an_id(tree):
    (tree / PADCHEST).unlink()
    with pytest.raises(CxrltError) as refusal:
        _read(tree)
    said = str(refusal.value)
    assert f"{TRAIN}: column 'PatientID', row " in said
    assert "was rounded" in said
    assert "PADCHEST_chest_x_ray_images_labels_160K" in said
    assert "dtype=str" in said
    assert CXRLT2026_ROUNDED not in said


def test_padchests_own_table_with_rounded_ids_is_refused_too(tree):
    table = _text(tree / PADCHEST).assign(PatientID="8.39860488694292e+38")
    table.to_csv(tree / PADCHEST, index=False)
    with pytest.raises(CxrltError, match=r"PadChest's own table: the PatientID of the image of .* was rounded"):
        _read(tree)


def test_images_that_padchests_table_lacks_keep_their_own_ids_or_are_refused(tree):
    table = _text(tree / PADCHEST)
    lost = _text(tree / TRAIN)["ImageID"].iloc[5]
    table[table["ImageID"] != lost].to_csv(tree / PADCHEST, index=False)
    with pytest.raises(CxrltError, match=r"row 6 \(line 7\) holds a number that was rounded"):
        _read(tree)
    train = _text(tree / TRAIN)
    train.assign(PatientID=train["PatientID"].where(train["ImageID"] != lost, "77.0")).to_csv(tree / TRAIN, index=False)
    manifest = _read(tree).manifest
    assert manifest.table.set_index("image_id").at[lost, "subject_id"] == "77"


def test_ids_that_were_kept_as_text_do_without_padchests_table(tree):
    true = _text(tree / PADCHEST).set_index("ImageID")["PatientID"]
    train = _text(tree / TRAIN)
    train.assign(PatientID=true.loc[train["ImageID"]].to_numpy()).to_csv(tree / TRAIN, index=False)
    (tree / PADCHEST).unlink()
    cohort = _read(tree)
    table = cohort.manifest.of_split("train", "val").table.set_index("image_id")
    assert (table["subject_id"] == true.loc[table.index]).all()
    assert (table["study_id"] == table["subject_id"] + "_20140915").all()
    assert set(table["view"]) == {"UNKNOWN"}
    assert any("10 images of test name no patient" in note for note in cohort.notes)


# ---------------------------------------------------------------- tasks, tests, submissions


def test_an_unlabelled_test_is_read_and_said_to_be_so(tree):
    cohort = _read(tree)
    test = cohort.manifest.of_split("test")
    assert set(test.table["image_id"]) == set(_text(tree / TEST)["ImageID"])
    assert (test.targets() == -1).all()
    assert any(f"{TEST} is without labels" in note for note in cohort.notes)


def test_a_labelled_test_is_read_by_name(tree):
    labels = np.random.default_rng(0).integers(0, 2, (10, 30))
    table = _text(tree / TEST).assign(**dict(zip(TASK1_2026, labels.T, strict=True)))
    table.iloc[:, ::-1].to_csv(tree / TEST, index=False)
    test = _read(tree).manifest.of_split("test").table.set_index("image_id").loc[table["ImageID"]]
    assert (test[list(TASK1_2026)].to_numpy(int) == labels).all()


def test_the_unseen_findings_of_task_2_are_null_in_training(tree):
    manifest = _read(tree, task="2026-task2", training=False).manifest
    assert manifest.findings == (*TASK1_2026, *TASK2_2026)
    assert (manifest.targets(TASK2_2026) == -1).all()
    assert (manifest.of_split("train").targets(TASK1_2026) >= 0).all()


def test_images_to_be_scored_need_neither_labels_nor_true_ids(tree):
    (tree / PADCHEST).unlink()
    (tree / TRAIN).unlink()
    manifest = _read(tree, task="auto", labelled=False).manifest
    assert set(manifest.table["image_id"]) == set(_text(tree / TEST)["ImageID"])
    assert manifest.table["path"].str.startswith("images/").all()


def test_a_missing_finding_is_named(tree):
    _text(tree / TRAIN).drop(columns="sternotomy").to_csv(tree / TRAIN, index=False)
    with pytest.raises(CxrltError, match=f"{TRAIN} has no column 'sternotomy'"):
        _read(tree)


# ---------------------------------------------------------------- beside other cohorts


def test_another_cohorts_findings_are_joined_under_the_names_of_2026(tree, tmp_path):
    write_cxrlt2024(tmp_path / "mimic", 300)
    manifest = _read(tree, others={"mimic": str(tmp_path / "mimic")}).manifest
    joined = manifest.of_cohort("mimic").table.set_index("image_id")
    truth = _text(tmp_path / "mimic" / "cxr-lt-2024" / "train_labeled.csv")
    truth = (
        truth.assign(image_id="mimic/" + truth["dicom_id"])
        .set_index("image_id")
        .loc[lambda t: t.index.isin(joined.index)]
    )
    for finding, theirs in (
        ("aortic elongation", "Tortuous Aorta"),
        ("cardiomegaly", "Cardiomegaly"),
        ("Mass", "Mass"),
    ):
        assert (joined.loc[truth.index, finding].astype(str) == truth[theirs]).all()
    assert joined["alveolar pattern"].isna().all()
    assert joined["sternotomy"].isna().all()


def test_findings_are_cxr_lts_only_where_one_is_the_other_alone():
    names = in_cxr_lt((*TASK1_2026, *TASK2_2026), "cxrlt2026")
    assert names["pleural effusion"] == "Pleural Effusion"  # of which hydropneumothorax is a kind
    assert names["Support Devices"] == "Support Devices"
    assert names["Scoliosis"] == "Scoliosis"
    assert not {"central venous catheter", "alveolar pattern", "interstitial pattern", "sternotomy"} & set(names)
    assert len(set(names.values())) == len(names)
    assert in_cxr_lt(("Mass", "derrame"), "table") == {"Mass": "Mass"}


def test_padchest_beside_it_brings_no_image_of_a_subject_that_is_scored(tree, tmp_path):
    write_padchest(tmp_path / "padchest", 80)
    cohort = _read(tree, others={"padchest": str(tmp_path / "padchest")})
    own = cohort.manifest.of_cohort("main").table
    joined = cohort.manifest.of_cohort("padchest").table
    assert len(joined)
    assert not set(joined["subject_id"].str.removeprefix("padchest/")) & set(own["subject_id"])


def test_all_faults_are_listed_for_cohort(tree):
    (tree / PADCHEST).unlink()
    _text(tree / TRAIN).assign(Mass="2").to_csv(tree / TRAIN, index=False)
    _, problems = examine(str(tree), task="2026-task1")
    assert any("column 'Mass'" in problem for problem in problems)
    assert any("was rounded" in problem for problem in problems)
