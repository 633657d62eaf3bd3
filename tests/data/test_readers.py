"""Readers, each on a tree in its exact format made on the spot."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from releases import (
    BRAX,
    PADCHEST,
    RELEASE,
    VINDR,
    WRITERS,
    write_brax,
    write_chexpert,
    write_cxrlt2023,
    write_cxrlt2024,
    write_nih,
    write_padchest,
    write_table,
    write_vindr,
)

from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.data.manifest import META, VIEWS, Cohort
from cxrlt_ray.data.paths import SAMPLE
from cxrlt_ray.data.readers import all_readers
from cxrlt_ray.data.readers.columns import ages, views
from cxrlt_ray.data.tasks import ALL_FINDINGS, TASK1, TASK2, TASK3
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.phantom import tree


def _read(root: Path, **options) -> Cohort:
    return read_cohort(str(root), **{"task": "auto"} | options)


def _edit(file: Path, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    changed = change(table)
    (table if changed is None else changed).to_csv(file, index=False)


@pytest.mark.parametrize(
    ("position", "code", "view"),
    [
        ("PA", "", "PA"),
        ("ap", "", "AP"),
        ("LL", "left lateral", "LATERAL"),
        ("XTABLE LATERAL", "", "LATERAL"),
        ("PA LLD", "postero-anterior", "OTHER"),
        ("LAO", "", "OTHER"),
        ("", "postero-anterior", "PA"),
        ("", "", "UNKNOWN"),
    ],
)
def test_view_positions_are_normalised(position, code, view):
    assert views(pd.Series([position]), pd.Series([code])).tolist() == [view]


def test_ages_are_years_however_they_are_written():
    written = pd.Series(["58", "58.0", "058Y", "006M", "", "414Y", "old"])
    assert ages(written).fillna(-1).tolist() == [58, 58, 58, 0.5, -1, -1, -1]


def test_every_reader_of_tables_has_a_tree_here():
    assert {*WRITERS, "images"} == set(all_readers())


@pytest.mark.parametrize("format", WRITERS)
def test_a_tree_is_recognised_and_becomes_a_whole_manifest(tmp_path, format):
    WRITERS[format](tmp_path)
    cohort = _read(tmp_path)
    manifest, table = cohort.manifest, cohort.manifest.table
    assert manifest.source == format
    assert format in cohort.notes[0]
    assert list(table.columns) == [*META, *manifest.findings]
    assert {str(table[name].dtype) for name in manifest.findings} == {"Int8"}
    assert table["age"].dtype == "float32"
    assert table[["image_id", "study_id", "subject_id", "view", "path", "split"]].notna().all(axis=None)
    assert set(table["view"]) <= set(VIEWS)
    assert set(table["split"]) == {"train", "val", "test"}
    assert table["image_id"].is_unique
    assert list(table.index) == list(range(len(table)))
    assert table.groupby("subject_id")["split"].nunique().max() == 1
    assert manifest.fingerprint == _read(tmp_path, format=format).manifest.fingerprint


@pytest.mark.parametrize("format", WRITERS)
def test_a_release_to_be_scored_is_no_directory_of_bare_images(tmp_path, format):
    WRITERS[format](tmp_path)
    (tmp_path / "scan.png").touch()
    assert _read(tmp_path, labelled=False).manifest.source == format


@pytest.mark.parametrize("format", WRITERS)
def test_a_reader_finds_no_finding_that_it_does_not_tell_of(tmp_path, format):
    WRITERS[format](tmp_path)
    known = all_readers()[format].findings
    assert known is None or set(_read(tmp_path).manifest.findings) <= set(known)


@pytest.mark.parametrize("format", WRITERS)
def test_a_manifest_comes_back_from_its_file_with_the_same_fingerprint(tmp_path, format):
    WRITERS[format](tmp_path)
    manifest = _read(tmp_path).manifest
    manifest.write(tmp_path / "manifest.parquet")
    assert type(manifest).read(tmp_path / "manifest.parquet").fingerprint == manifest.fingerprint


@pytest.mark.parametrize("format", WRITERS)
def test_a_uri_reads_as_the_directory_does(tmp_path, format):
    WRITERS[format](tmp_path)
    assert read_cohort(f"file://{tmp_path}", task="auto").manifest.fingerprint == _read(tmp_path).manifest.fingerprint


NOT_ROOT = """
import os, sys
from cxrlt_ray.data.readers import all_readers, choose_reader
from cxrlt_ray.data.readers.files import all_files
from cxrlt_ray.storage import Store

all_readers()
if os.geteuid() == 0:
    os.setuid(65534)
data = Store(sys.argv[1])
print(choose_reader(data, None, True)[0].name, *sorted(all_files(data)))
"""


def test_at_the_top_of_a_disk_the_folder_that_only_its_administrator_may_enter_is_passed_over():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        Path(folder, "labels.csv").write_text("image_id,path,subject_id,Mass\na,images/a.png,1,1\n")
        Path(folder, "images").mkdir()
        Path(folder, "images", "a.png").touch()
        Path(folder, "lost+found").mkdir(mode=0)
        done = subprocess.run([sys.executable, "-c", NOT_ROOT, folder], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["table", "images/a.png", "labels.csv"], "")


def test_directories_without_a_known_format_are_told_what_was_looked_for(tmp_path):
    with pytest.raises(UsageError, match=r"train_labeled.csv.*Data_Entry_2017.*labels.csv.*--format"):
        _read(tmp_path)
    with pytest.raises(UsageError, match="no format 'nhi'; there are: brax, chexpert, cxrlt2023"):
        _read(tmp_path, format="nhi")
    with pytest.raises(UsageError, match="no directory"):
        _read(tmp_path / "nowhere")


@pytest.mark.parametrize("format", WRITERS)
def test_a_format_that_is_not_there_is_refused_in_a_sentence(tmp_path, format):
    with pytest.raises(CxrltError, match=r"^.*(holds no|cannot be read)"):
        _read(tmp_path, format=format)


# CXR-LT 2024


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """A small CXR-LT 2024 tree; not to be changed."""
    root = tmp_path_factory.mktemp("cxrlt2024")
    write_cxrlt2024(root)
    return root


@pytest.fixture
def own_release(tmp_path) -> Path:
    """A small CXR-LT 2024 tree to change."""
    write_cxrlt2024(tmp_path)
    return tmp_path


def test_task1_reads_each_label_of_each_split_from_the_release(release):
    manifest = _read(release, task="task1").manifest
    assert manifest.findings == TASK1
    truth = pd.read_csv(release / RELEASE / "labels.csv").set_index("dicom_id")
    there = manifest.table.set_index("image_id")
    assert there["split"].to_dict() == truth["split"].to_dict()
    assert (there[list(TASK1)].astype(int) == truth.loc[there.index, list(TASK1)]).all(axis=None)
    assert there["path"].to_dict() == truth["fpath"].to_dict()
    assert manifest.root == str(release)


def test_task2_is_tested_on_the_gold_rows_only(release):
    cohort = _read(release, task="task2")
    gold = pd.read_csv(release / RELEASE / "test_labeled_task2.csv")
    test = cohort.manifest.of_split("test").table.set_index("image_id")
    assert set(test.index) == set(gold["dicom_id"])
    gold = gold.set_index("dicom_id").loc[test.index]
    assert (test[list(TASK2)].astype(int) == gold[list(TASK2)]).all(axis=None)
    assert set(cohort.manifest.findings) == set(TASK2)
    assert any(f"{len(gold)} gold images" in note for note in cohort.notes)


def test_task3_is_not_labelled_in_train_and_known_in_val_and_test(release):
    manifest = _read(release, task="task3").manifest
    assert manifest.findings == ALL_FINDINGS
    unseen = manifest.targets(TASK3)
    train = (manifest.table["split"] == "train").to_numpy()
    assert (unseen[train] == -1).all()
    assert (unseen[~train] >= 0).all()
    assert (manifest.targets(TASK1) >= 0).all()


def test_auto_takes_the_findings_of_training(release):
    assert _read(release, task="auto").manifest.findings == TASK1


def test_a_task_from_a_file_takes_findings_of_both_task_files(release, tmp_path):
    (tmp_path / "mine.yaml").write_text("findings: [Scoliosis, Mass]")
    manifest = _read(release, task=str(tmp_path / "mine.yaml")).manifest
    assert manifest.findings == ("Mass", "Scoliosis")
    assert (manifest.of_split("test").targets() >= 0).all()


def test_without_the_task_files_labels_csv_gives_the_scored_labels(own_release):
    whole = _read(own_release, task="task1").manifest
    for file in (own_release / RELEASE).glob("*_labeled_task1.csv"):
        file.unlink()
    cohort = _read(own_release, task="task1")
    assert cohort.manifest.fingerprint == whole.fingerprint
    assert any("come from labels.csv" in note for note in cohort.notes)


def test_without_development_labels_validation_is_carved_from_train_by_subject(own_release):
    folder = own_release / RELEASE
    ids = pd.read_csv(folder / "development_labeled_task1.csv")[list(tree.ID_COLUMNS)]
    ids.to_csv(folder / "development.csv", index=False)
    pd.read_csv(folder / "test_labeled_task1.csv")[list(tree.ID_COLUMNS)].to_csv(folder / "test_task1.csv", index=False)
    for file in [*folder.glob("*_labeled_task*.csv"), folder / "labels.csv"]:
        file.unlink()
    cohort = _read(own_release, task="task1", validation=0.2)
    manifest = cohort.manifest
    assert (manifest.of_split("development", "test").targets() == -1).all()
    assert set(manifest.of_split("development").table["image_id"]) == set(ids["dicom_id"])
    val, train = (len(manifest.of_split(name).table) for name in ("val", "train"))
    assert val / (val + train) == pytest.approx(0.2, abs=0.03)
    assert (manifest.of_split("val").targets() == 1).any(axis=0).all()
    assert manifest.table.groupby("subject_id")["split"].nunique().max() == 1
    assert any("carved from train" in note for note in cohort.notes)
    assert any("test_task1.csv is without labels" in note for note in cohort.notes)


def test_study_ids_read_alike_with_and_without_their_s(own_release):
    with_s = _read(own_release, task="task1").manifest
    _edit(own_release / RELEASE / "train_labeled.csv", lambda t: t.assign(study_id=t["study_id"].str[1:]))
    assert _read(own_release, task="task1").manifest.fingerprint == with_s.fingerprint
    assert with_s.table["study_id"].str.fullmatch(r"s\d+").all()


def test_task_columns_are_found_by_name_whatever_their_order(own_release):
    before = _read(own_release, task="task2").manifest
    for name in ("train_labeled", "development_labeled_task2", "test_labeled_task2"):
        _edit(own_release / RELEASE / f"{name}.csv", lambda t: t[t.columns[::-1]])
    assert _read(own_release, task="task2").manifest.fingerprint == before.fingerprint


def test_views_are_the_releases_and_fall_back_on_mimics_metadata(own_release):
    file = own_release / RELEASE / "train_labeled.csv"
    table = pd.read_csv(file, keep_default_na=False)
    table["ViewPosition"] = np.where(table["ViewPosition"] == "PA", "", table["ViewPosition"])
    table["ViewCodeSequence_CodeMeaning"] = ""
    table.to_csv(file, index=False)
    before = _read(own_release, task="task1").manifest.of_split("train").table["view"]
    assert (before == "PA").any()
    assert (before == "LATERAL").any()
    (own_release / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    after = _read(own_release, task="task1").manifest.of_split("train").table["view"]
    assert (after[before == "PA"] == "UNKNOWN").all()


def test_demographics_come_from_mimic_iv_and_are_null_without(own_release):
    table = _read(own_release).manifest.table
    patients = pd.read_csv(own_release / "patients.csv.gz", dtype={"subject_id": str}).set_index("subject_id")
    assert (table["sex"] == table["subject_id"].map(patients["gender"])).all()
    assert (table["age"] == table["subject_id"].map(patients["anchor_age"])).all()
    assert 0.5 < table["race"].notna().mean() < 1
    for name in ("patients", "admissions"):
        (own_release / f"{name}.csv.gz").unlink()
    assert _read(own_release).manifest.table[["sex", "age", "race"]].isna().all(axis=None)


def test_reports_are_named_where_the_first_is_there(own_release):
    table = _read(own_release).manifest.table
    assert table["report"].isna().all()
    for path in table["path"]:
        report = own_release / f"{path.rsplit('/', 1)[0]}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.touch()
    reports = _read(own_release).manifest.table["report"]
    assert all((own_release / name).is_file() for name in reports)


def test_images_in_mimics_own_training_split_are_told(release):
    own = pd.read_csv(release / "mimic-cxr-2.0.0-split.csv.gz")
    test = pd.read_csv(release / RELEASE / "test_labeled_task1.csv")["dicom_id"]
    seen = test.isin(own.loc[own["split"] == "train", "dicom_id"]).sum()
    assert any(f"{seen} of the {len(test)} test images" in note for note in _read(release).notes)


@pytest.mark.parametrize("layout", ["tree", "release", "beside"])
def test_the_release_is_found_in_a_tree_on_its_own_and_beside_it(tmp_path, layout):
    tree_root = tmp_path / "mimic"
    write_cxrlt2024(tree_root)
    (tree_root / "files").mkdir()
    if layout == "beside":
        (tree_root / RELEASE).rename(tmp_path / "labels-of-mine")
    data = {"tree": tree_root, "release": tree_root / RELEASE, "beside": tmp_path}[layout]
    assert _read(data).manifest.root == str(tree_root)


def test_a_few_images_are_looked_for_and_none_is_opened_nor_any_report(release, monkeypatch):
    from cxrlt_ray.storage import Store

    asked = []
    exists = Store.exists
    monkeypatch.setattr(Store, "exists", lambda self, name: asked.append(name) or exists(self, name))
    _read(release, task="task1")
    assert len([name for name in asked if name.endswith(".jpg")]) <= SAMPLE
    assert len([name for name in asked if name.endswith(".txt")]) <= 2


# the others


def test_2023_calls_no_finding_normal_and_may_lack_labels(tmp_path):
    write_cxrlt2023(tmp_path)
    manifest = _read(tmp_path, task="task2").manifest
    assert set(manifest.findings) == set(TASK2)
    with pytest.raises(UsageError, match="no column for 14 of the 40 findings of task1: Adenopathy"):
        _read(tmp_path, task="task1")
    for name in ("development", "test"):
        _edit(tmp_path / "cxr-lt-2023" / f"{name}.csv", lambda t: t[t.columns[:6]])
    cohort = _read(tmp_path)
    assert set(cohort.manifest.table["split"]) == {"train", "val", "test", "development"}
    assert (cohort.manifest.of_split("test", "development").targets() == -1).all()
    assert cohort.manifest.table["sex"].notna().all()


def test_nih_reads_its_labels_lists_folders_and_ages(tmp_path):
    write_nih(tmp_path)
    cohort = _read(tmp_path)
    table = cohort.manifest.table.set_index("image_id")
    assert len(table) == 38
    assert any("2 images are left out" in note for note in cohort.notes)
    row = table.loc["00000021_000"]
    assert row[["Mass", "Pleural Thickening", "Hernia", "No Finding"]].tolist() == [1, 1, 0, 0]
    assert (row["path"], row["age"], row["sex"], row["view"]) == ("images_002/images/00000021_000.png", 61, "F", "PA")
    assert set(table.index[table["split"] == "test"]) == {f"{k:08d}_000" for k in range(30, 38)}
    assert all((tmp_path / path).is_file() for path in table["path"])


def test_nih_without_its_lists_is_divided_by_subject(tmp_path):
    write_nih(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    cohort = _read(tmp_path)
    assert sum("carved from train" in note for note in cohort.notes) == 2
    assert set(_read(tmp_path, labelled=False).manifest.table["split"]) == {"test"}


def test_nih_images_may_lie_in_one_folder(tmp_path):
    write_nih(tmp_path)
    (tmp_path / "images_001" / "images").rename(tmp_path / "images")
    paths = _read(tmp_path).manifest.table["path"]
    assert paths.tolist()[0] == "images/00000000_000.png"
    assert all((tmp_path / path).is_file() for path in paths)


def test_nih_names_a_label_that_it_does_not_know(tmp_path):
    write_nih(tmp_path)
    file = tmp_path / "Data_Entry_2017.csv"
    file.write_text(file.read_text().replace("Hernia", "Hernai", 1))
    with pytest.raises(CxrltError, match=r"'Finding Labels', row 4 \(line 5\) holds what is none of NIH's"):
        _read(tmp_path)


@pytest.mark.parametrize(("uncertain", "value"), [("null", -1), ("zero", 0), ("one", 1)])
def test_chexperts_uncertain_cells_become_what_is_asked_and_blanks_0(tmp_path, uncertain, value):
    write_chexpert(tmp_path)
    manifest = _read(tmp_path, uncertain=uncertain).manifest
    rows = (manifest.table["image_id"] == "patient00001_study1_view1_frontal").to_numpy()
    assert manifest.targets(("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly"))[rows].tolist() == [
        [0, 1, value]
    ]
    assert (manifest.targets() == -1).any() == (uncertain == "null")


def test_chexpert_is_scored_on_valid_and_keeps_its_paths_wherever_it_lies(tmp_path):
    write_chexpert(tmp_path)
    image = "train/patient00004/study1/view2_lateral.jpg"
    cohort = _read(tmp_path)
    assert set(cohort.manifest.of_split("test").table["subject_id"]) == {"patient64541", "patient64542"}
    assert any("valid.csv" in note for note in cohort.notes)
    row = cohort.manifest.table.set_index("image_id").loc["patient00004_study1_view2_lateral"]
    assert (row["path"], row["view"], row["sex"]) == (image, "LATERAL", "F")
    assert cohort.manifest.root == str(tmp_path / "CheXpert-v1.0-small")
    (tmp_path / "CheXpert-v1.0-small").rename(tmp_path / "mine")
    assert _read(tmp_path / "mine").manifest.fingerprint == cohort.manifest.fingerprint


def test_chexperts_labelled_test_set_replaces_valid(tmp_path):
    write_chexpert(tmp_path)
    release = tmp_path / "CheXpert-v1.0-small"
    test = pd.read_csv(release / "valid.csv").head(1)
    test["Path"] = "CheXpert-v1.0-small/test/patient70000/study1/view1_frontal.jpg"
    test.to_csv(release / "test.csv", index=False)
    assert set(_read(tmp_path).manifest.of_split("test").table["subject_id"]) == {"patient70000"}
    test[["Path"]].to_csv(release / "test.csv", index=False)
    assert len(_read(tmp_path).manifest.of_split("test").table) == 2
    assert set(_read(tmp_path, labelled=False).manifest.of_split("test").table["subject_id"]) == {"patient70000"}


def _vindr(root: Path, train: str, test: str = "") -> Cohort:
    """Two findings of a VinDr-CXR release, all other columns 0, from rows 'image reader Atelectasis Edema'."""
    (root / "annotations").mkdir(exist_ok=True)
    for split, rows in (("train", train), ("test", test)):
        cells = [row.replace("-", "").split(" ") for row in rows.split(", ") if row]
        table = pd.DataFrame(cells, columns=["image_id", "rad_id", "Atelectasis", "Edema"])
        others = [name for name in VINDR if name not in table]
        table[others] = "0"
        if rows:
            table.to_csv(root / "annotations" / f"image_labels_{split}.csv", index=False)
    return _read(root, training=False)


def test_vindrs_three_readers_vote_and_its_consensus_stands(tmp_path):
    cohort = _vindr(tmp_path, "a R1 1 1, b R1 0 1, a R2 1 0, a R3 0 0, b R2 0 1, b R3 0 1", "c  1 0")
    table = cohort.manifest.table.set_index("image_id")
    assert table[["Atelectasis", "Edema"]].astype(int).to_numpy().tolist() == [[1, 0], [0, 1], [1, 0]]
    assert table["split"].tolist() == ["train", "train", "test"]
    assert table["path"].tolist() == ["train/a.dicom", "train/b.dicom", "test/c.dicom"]
    assert set(table["view"]) == {"PA"}
    assert table["subject_id"].is_unique
    assert any("each image is a subject of its own" in note for note in cohort.notes)
    assert not any("another number" in note for note in cohort.notes)


def test_vindrs_readers_who_split_evenly_or_say_nothing_leave_no_label(tmp_path):
    cohort = _vindr(tmp_path, "a R1 1 -, a R2 0 -, b R1 1 1, b R2 - 1, b R3 - 0, b R4 - 0")
    assert cohort.manifest.targets(("Atelectasis", "Edema")).tolist() == [[-1, -1], [1, -1]]
    assert any("2 images of train read by another number than 3" in note for note in cohort.notes)


def test_vindrs_rows_that_cannot_be_are_named(tmp_path):
    with pytest.raises(CxrltError, match=r"row 3 \(line 4\) is a second reading of one image by the same radiologist"):
        _vindr(tmp_path, "a R1 1 0, a R2 1 0, a R1 0 0")
    with pytest.raises(CxrltError, match=r"image_labels_train.csv: column 'Edema', row 2 \(line 3\) holds '?2"):
        _vindr(tmp_path, "a R1 1 0, a R2 1 2, a R3 0 0")
    with pytest.raises(
        CxrltError, match=r"an image stands twice, in image_labels_train.csv row 1 and in image_labels_t"
    ):
        _vindr(tmp_path, "a R1 1 0", "a  1 0")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_vindrs_exports_are_found_by_their_suffix_and_its_csvs_beside_them(tmp_path, suffix):
    write_vindr(tmp_path)
    before = _read(tmp_path).manifest
    assert before.table["path"].str.endswith(".dicom").all()
    for file in tmp_path.glob("t*/*.dicom"):
        file.with_suffix(f".{suffix}").touch()
    for file in (tmp_path / "annotations").iterdir():
        file.rename(tmp_path / file.name)
    after = _read(tmp_path).manifest
    assert (after.table["path"] == before.table["path"].str.replace(".dicom", f".{suffix}")).all()
    assert after.root == before.root == str(tmp_path)
    assert (after.targets() == before.targets()).all()


@pytest.mark.parametrize(("uncertain", "value"), [("null", -1), ("zero", 0), ("one", 1)])
def test_brax_follows_the_rule_of_chexpert(tmp_path, uncertain, value):
    write_brax(tmp_path)
    truth = pd.read_csv(tmp_path / "master_spreadsheet_update.csv", keep_default_na=False, dtype=str)
    manifest = _read(tmp_path, uncertain=uncertain).manifest
    assert set(manifest.findings) == set(BRAX)
    truth = truth.set_index("PngPath").loc[manifest.table["path"], list(manifest.findings)]
    meaning = {"1.0": 1, "0.0": 0, "": 0, "-1.0": value}
    assert (manifest.targets() == truth.map(meaning.get).to_numpy()).all()


def test_brax_reads_studies_ages_and_views_as_it_writes_them(tmp_path):
    write_brax(tmp_path)
    table = _read(tmp_path).manifest.table.set_index("image_id")
    first, last = table.loc["image-00000000-17"], table.loc["image-00000003-17"]
    assert first[["study_id", "subject_id", "view", "sex", "age"]].tolist() == [
        "id_00000000_0",
        "id_00000000",
        "PA",
        "M",
        35,
    ]
    assert last[["view", "age"]].tolist() == ["LATERAL", 85]
    # accession numbers repeat across patients
    assert table["study_id"].nunique() == 20


def test_brax_takes_the_dicom_files_where_there_are_no_png(tmp_path):
    write_brax(tmp_path)
    assert _read(tmp_path).manifest.table["path"].str.fullmatch(r"images/.*png").all()
    (tmp_path / "images").rename(tmp_path / "Anonymized_DICOMs")
    for file in tmp_path.rglob("*.png"):
        file.rename(file.with_suffix(".dcm"))
    assert _read(tmp_path).manifest.table["path"].str.fullmatch(r"Anonymized_DICOMs/.*dcm").all()


def test_brax_names_a_label_and_a_column_that_are_wrong(tmp_path):
    write_brax(tmp_path)
    file = tmp_path / "master_spreadsheet_update.csv"
    _edit(file, lambda t: t.assign(Edema=t["Edema"].where(t.index != 4, "2")))
    with pytest.raises(CxrltError, match=r"'Edema', row 5 \(line 6\) holds 2: a label is 1, 0, -1 or empty"):
        _read(tmp_path)
    _edit(file, lambda t: t.drop(columns="AccessionNumber"))
    with pytest.raises(CxrltError, match="has no column 'AccessionNumber'"):
        _read(tmp_path)


def _padchest(root: Path, *labels: str, **columns: str) -> Cohort:
    """Images of a PadChest release with these cells of Labels, each of a patient, all to train on."""
    write_padchest(root, len(labels))
    images = [str(k) for k in range(len(labels))]
    _edit(root / PADCHEST, lambda t: t.assign(Labels=labels, ImageID=images, PatientID=images, **columns))
    return _read(root, training=False)


@pytest.mark.parametrize(
    ("cell", "positive"),
    [
        ("['pleural effusion', 'cardiomegaly']", ["cardiomegaly", "pleural effusion"]),
        ("[' pneumonia', '', 'Unchanged']", ["pneumonia"]),
        ("['nsg tube', 'copd signs', 'chilaiditi sign']", ["COPD signs", "Chilaiditi sign", "NSG tube"]),
        ('["double J stent"]', ["double J stent"]),
        ("['normal', 'unchanged']", ["normal"]),
        ("['suboptimal study', 'nodule']", ["nodule"]),
    ],
)
def test_padchests_lists_are_its_positives_and_all_else_is_0(tmp_path, cell, positive):
    manifest = _padchest(tmp_path, cell).manifest
    assert [name for name in manifest.findings if manifest.table[name].iloc[0] == 1] == positive
    assert (manifest.targets() >= 0).all()
    assert not {"exclude", "unchanged", "suboptimal study"} & set(manifest.findings)


@pytest.mark.parametrize("cell", ["", "[]", "['']", "['unchanged']", "['suboptimal study']", "['exclude', 'mass']"])
def test_padchests_lists_that_name_no_finding_are_no_label(tmp_path, cell):
    cohort = _padchest(tmp_path, cell, "['mass']")
    assert (cohort.manifest.targets()[0] == -1).all()
    assert (cohort.manifest.targets()[1] >= 0).all()
    assert any("1 image not labelled" in note for note in cohort.notes)


def test_padchests_excluded_projections_are_not_labelled(tmp_path):
    assert (_padchest(tmp_path, "['mass']", Projection="EXCLUDE").manifest.targets() == -1).all()


@pytest.mark.parametrize(
    "cell", ["cardiomegaly", "['mass'", "['mass' 'nodule']", "__import__('os').getcwd()", "[mass]"]
)
def test_padchests_cells_that_are_no_list_are_named_and_never_run(tmp_path, cell):
    with pytest.raises(CxrltError, match=r"column 'Labels', row 2 should be a list such as"):
        _padchest(tmp_path, "['mass']", cell)


def test_padchests_unknown_labels_are_told(tmp_path):
    cohort = _padchest(tmp_path, "['covid 19', 'mass']", "['covid 19', 'post covid']")
    assert any("2 labels not known and left out: 'covid 19', 'post covid'." in note for note in cohort.notes)
    assert cohort.manifest.targets(("mass",)).tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("projection", "position", "view"),
    [
        ("AP_horizontal", "", "AP"),
        ("L", "POSTEROANTERIOR", "LATERAL"),
        ("COSTAL", "", "OTHER"),
        ("", "ANTEROPOSTERIOR", "AP"),
        ("", "", "UNKNOWN"),
    ],
)
def test_padchests_projection_is_its_view(tmp_path, projection, position, view):
    cohort = _padchest(tmp_path, "['mass']", Projection=projection, ViewPosition_DICOM=position)
    assert cohort.manifest.table["view"].tolist() == [view]


def test_padchest_reads_years_and_inverted_images(tmp_path):
    write_padchest(tmp_path)
    table = _read(tmp_path).manifest.table
    assert set(table["age"]) == {84}
    assert set(table["photometric"]) == {"MONOCHROME1", "MONOCHROME2"}
    assert (table["photometric"] == "MONOCHROME1").tolist() == table["path"].str.startswith("0/").tolist()
    assert set(_padchest(tmp_path / "x", "['mass']", PatientBirth="").manifest.table["age"].isna()) == {True}


@pytest.mark.parametrize("layout", ["folders", "images", "flat"])
def test_padchests_images_are_found_wherever_they_lie(tmp_path, layout):
    write_padchest(tmp_path)
    below = {"folders": "", "images": "images", "flat": "images-224"}[layout]
    (tmp_path / below).mkdir(exist_ok=True)
    for folder in ("0", "1"):
        if layout == "images":
            (tmp_path / folder).rename(tmp_path / below / folder)
        elif layout == "flat":
            for file in (tmp_path / folder).iterdir():
                file.rename(tmp_path / below / file.name)
            (tmp_path / folder).rmdir()
    assert all((tmp_path / path).is_file() for path in _read(tmp_path).manifest.table["path"])


def test_padchests_packed_table_is_read_as_the_plain_one(tmp_path):
    write_padchest(tmp_path)
    before = _read(tmp_path).manifest.fingerprint
    (tmp_path / f"{PADCHEST}.gz").write_bytes(gzip.compress((tmp_path / PADCHEST).read_bytes()))
    (tmp_path / PADCHEST).unlink()
    assert _read(tmp_path).manifest.fingerprint == before


def test_a_plain_table_names_the_columns_it_ignores(tmp_path):
    write_table(tmp_path)
    cohort = _read(tmp_path)
    assert cohort.manifest.findings == ("Mass", "Nodule")
    assert any("scanner (row 1 (line 2) holds text" in note for note in cohort.notes)
    table = cohort.manifest.table
    assert table["Nodule"].isna().sum() == 10
    assert set(table["view"]) == {"PA", "LATERAL"}
    assert set(table["sex"]) == {"M", "F"}
    assert table["subject_id"].iloc[0] == "0000"


def test_a_plain_table_does_with_its_three_columns_and_findings(tmp_path):
    write_table(tmp_path)
    _edit(tmp_path / "labels.csv", lambda t: t[["image_id", "path", "subject_id", "Mass"]])
    cohort = _read(tmp_path)
    table = cohort.manifest.table
    assert (table["study_id"] == table["image_id"]).all()
    assert set(table["view"]) == {"UNKNOWN"}
    assert set(table["split"]) == {"train", "val", "test"}
    assert sum("carved from train" in note for note in cohort.notes) == 2
    assert table.groupby("subject_id")["split"].nunique().max() == 1


def test_studies_of_a_plain_table_are_told_apart_as_mimics_are(tmp_path):
    write_table(tmp_path)
    _edit(tmp_path / "labels.csv", lambda t: t.assign(study_id=[f"{'s' * (k % 2)}{k // 2}" for k in range(len(t))]))
    assert _read(tmp_path).manifest.table["study_id"].nunique() == 30


def test_unlabelled_tables_and_bare_images_can_be_read_to_be_scored(tmp_path):
    write_table(tmp_path / "t")
    _edit(tmp_path / "t" / "labels.csv", lambda t: t[["image_id", "path"]])
    cohort = _read(tmp_path / "t", task="task1", labelled=False)
    assert cohort.manifest.findings == ()
    assert set(cohort.manifest.table["split"]) == {"test"}
    for name in ("a/1.jpg", "a/2.PNG", "3.jpeg", "notes.txt", "a/._1.jpg"):
        path = tmp_path / "i" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    images = _read(tmp_path / "i", labelled=False).manifest
    assert images.table["path"].tolist() == ["a/1.jpg", "a/2.PNG", "3.jpeg"]
    assert images.table["image_id"].tolist() == ["1", "2", "3"]
    assert images.source == "images"
    (tmp_path / "i" / "1.jpg").touch()
    assert set(_read(tmp_path / "i", labelled=False).manifest.table["image_id"]) == {"1", "a/1", "a/2", "3"}
    with pytest.raises(CxrltError, match="can be scored"):
        _read(tmp_path / "i", format="images")


def test_the_challenges_unlabelled_files_can_be_read_to_be_scored(own_release):
    folder = own_release / RELEASE
    pd.read_csv(folder / "test_labeled_task1.csv")[list(tree.ID_COLUMNS)].to_csv(folder / "test_task1.csv", index=False)
    for file in [*folder.glob("*labeled*.csv"), folder / "labels.csv"]:
        file.unlink()
    manifest = _read(own_release, task="task1", labelled=False).manifest
    assert set(manifest.table["split"]) == {"test"}
    assert (manifest.targets() == -1).all()


@pytest.mark.parametrize("name", ["nih64", "nih384"])
def test_real_chest_x_rays_in_a_plain_table(shared_data, name):
    manifest = _read(shared_data / name).manifest
    truth = pd.read_csv(shared_data / name / "labels.csv").set_index("image_id")
    there = manifest.table.set_index("image_id")
    assert manifest.findings == tuple(truth.columns[7:])
    assert (there[list(manifest.findings)].astype(int) == truth.loc[there.index, truth.columns[7:]]).all(axis=None)
    assert there["age"].notna().all()


def test_a_real_label_table_at_scale_keeps_its_nulls(shared_data, tmp_path):
    table = pd.read_parquet(shared_data / "labels" / "nih_cxr_lt.parquet").assign(path=lambda t: t["image_id"])
    table["split"] = table["split"].replace("train_14_only", "train")
    table.to_csv(tmp_path / "labels.csv", index=False)
    manifest = _read(tmp_path).manifest
    tail = ("Pneumoperitoneum", "Pneumomediastinum", "Subcutaneous Emphysema", "Tortuous Aorta")
    assert len(manifest.table) == 112_120
    assert len(manifest.findings) == 20
    assert (manifest.of_split("train").targets(tail) == -1).all()
    assert (manifest.of_split("val", "test").targets(tail) >= 0).all()


def test_compressed_tables_are_read(own_release):
    before = _read(own_release).manifest.fingerprint
    plain = own_release / "patients.csv"
    plain.write_bytes(gzip.decompress((own_release / "patients.csv.gz").read_bytes()))
    (own_release / "patients.csv.gz").unlink()
    assert _read(own_release).manifest.fingerprint == before


def test_images_are_found_by_prepare_where_the_manifest_says(tmp_path):
    from cxrlt_ray.data.prepare import decode
    from cxrlt_ray.storage import Store

    write_table(tmp_path)
    for k in range(60):
        cv2.imwrite(str(tmp_path / f"{k:03d}.jpg"), np.full((8, 8), k, np.uint8))
    manifest = _read(tmp_path).manifest
    image, _ = decode(Store(manifest.root).read(manifest.table["path"].iloc[7]))
    assert image.mean() == pytest.approx(7, abs=1)
