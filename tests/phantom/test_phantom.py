import hashlib
import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import phantom
from cxrlt_ray.data.tasks import ALL_FINDINGS, TASK1, TASK2, TASK3
from cxrlt_ray.errors import UsageError
from cxrlt_ray.phantom.labels import NEGATED, POSITIVE, SILENT, UNCERTAIN, draw_cohort, split_sizes
from cxrlt_ray.phantom.pictures import Picture, draw_picture
from cxrlt_ray.phantom.reports import write_report
from cxrlt_ray.phantom.tree import report_paths

IDS = ["dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "fpath"]
METADATA = [
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"),
    *("StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning"),
    "PatientOrientationCodeSequence_CodeMeaning",
]
IMAGES, SIZE, SEED = 300, 32, 5
DRAWN = [name for name in ALL_FINDINGS if name != "Normal"]


def quiet(_: str) -> None:
    pass


def write(folder, **changed):
    arguments = {"images": IMAGES, "size": SIZE, "seed": SEED, "say": quiet, "processes": 1} | changed
    phantom.write_phantom(folder, **arguments)
    return folder


@pytest.fixture(scope="module")
def progress():
    return []


@pytest.fixture(scope="module")
def tree(tmp_path_factory, progress):
    return write(tmp_path_factory.mktemp("phantom") / "tree", say=progress.append)


@pytest.fixture(scope="module")
def cohort():
    return draw_cohort(1500, 3)


def contents(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def release(root, name):
    return pd.read_csv(root / "cxr-lt-2024" / f"{name}.csv")


def picture(findings, *, lateral=False, dicom="0000004d-x", study=9):
    return draw_picture(Picture(7, study, dicom, lateral, False, findings), 128, SEED).astype(int)


def changed(name, strength, *, side=1, lateral=False):
    """How much each pixel differs from the same patient's healthy picture."""
    return np.abs(picture({name: (strength, side)}, lateral=lateral) - picture({}, lateral=lateral))


def middle(change):
    """The centre (x, y) of what changed, as fractions."""
    weight = np.where(change > 8, change, 0)
    y, x = np.indices(weight.shape)
    return (x * weight).sum() / weight.sum() / 128, (y * weight).sum() / weight.sum() / 128


# the tree


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(tree, tmp_path):
    assert contents(write(tmp_path / "two", processes=2)) == contents(tree)


def test_a_plain_cohort_is_that_of_version_1(tree):
    """As written before there were options: what is on disk from then is used again, and results stay comparable.

    Pictures by their means: OpenCV's versions may differ in a gray level here and there.
    """
    texts = [tree / "phantom.json", tree / "cxr-lt-2024" / "labels.csv", *sorted(tree.glob("files/**/*.txt"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in texts)).hexdigest()
    assert digest == "9bcd1e17f5ed26250f962535ac02f107d820522a9474acc680498eb9991679e7"
    images = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(tree.glob("files/**/*.jpg"))[::60]]
    assert [image.mean() for image in images] == pytest.approx([125.6, 81.16, 99.85, 76.78, 87.18], abs=0.1)


def test_another_seed_gives_another_cohort(tree, tmp_path):
    other = write(tmp_path / "other", seed=SEED + 1, pictures=False)
    assert not set(release(other, "labels")["dicom_id"]) & set(release(tree, "labels")["dicom_id"])


@pytest.mark.parametrize(
    ("name", "findings"),
    [
        ("train_labeled", TASK1),
        *(
            (f"{part}_labeled_task{n}", t)
            for part in ("development", "test")
            for n, t in ((1, TASK1), (2, TASK2), (3, TASK3))
        ),
    ],
)
def test_label_tables_have_the_release_columns_and_types(tree, name, findings):
    table = release(tree, name)
    assert table.columns.tolist() == [*IDS, *findings]
    assert (table[list(findings)].dtypes == np.int64).all()
    assert table[list(findings)].isin([0, 1]).all(axis=None)
    assert table["subject_id"].dtype == np.int64
    assert table["study_id"].str.fullmatch(r"s5\d{7}").all()
    assert table["dicom_id"].str.fullmatch(r"([0-9a-f]{8}-){4}[0-9a-f]{8}").all()
    assert table["dicom_id"].is_unique


def test_labels_csv_holds_all_45_findings_alphabetically_and_the_split_last(tree):
    table = release(tree, "labels")
    assert table.columns.tolist() == [*IDS, *sorted(TASK1 + TASK3), "split"]
    assert set(table["split"]) == {"train", "val", "test"}
    assert len(table) == IMAGES


def test_rows_of_the_task_files_are_those_of_their_split(tree):
    table = release(tree, "labels").set_index("dicom_id")
    for name, split in (
        ("train_labeled", "train"),
        ("development_labeled_task1", "val"),
        ("test_labeled_task3", "test"),
    ):
        assert set(release(tree, name)["dicom_id"]) == set(table.index[table["split"] == split])
    gold = release(tree, "test_labeled_task2")
    assert gold["study_id"].is_unique
    assert (table.loc[gold["dicom_id"], "split"] == "test").all()


def test_every_image_stands_at_its_path_gray_and_of_the_asked_size(tree):
    table = release(tree, "labels")
    rule = [
        f"files/p{str(p)[:2]}/p{p}/{s}/{d}.jpg"
        for p, s, d in zip(table["subject_id"], table["study_id"], table["dicom_id"], strict=True)
    ]
    assert table["fpath"].tolist() == rule
    assert sorted(rule) == sorted(str(path.relative_to(tree)) for path in tree.glob("files/**/*.jpg"))
    assert sorted((tree / "IMAGE_FILENAMES").read_text().split()) == sorted(rule)
    for path in rule[::10]:
        assert cv2.imread(str(tree / path), cv2.IMREAD_UNCHANGED).shape == (SIZE, SIZE)


def test_every_study_has_a_report_with_findings_and_impression(tree):
    table = release(tree, "labels").drop_duplicates("study_id")
    for path in table["fpath"]:
        text = (tree / path).parent.with_suffix(".txt").read_text()
        assert text.index("FINDINGS: ") < text.index("IMPRESSION: ")
    assert len(list(tree.glob("files/**/*.txt"))) == len(table)


def test_mimic_tables_join_by_integer_ids(tree):
    table = release(tree, "labels")
    table["study_id"] = table["study_id"].str[1:].astype(int)
    metadata = pd.read_csv(tree / "mimic-cxr-2.0.0-metadata.csv.gz")
    split = pd.read_csv(tree / "mimic-cxr-2.0.0-split.csv.gz")
    for other in (metadata, split):
        joined = table.merge(other, on=["dicom_id", "subject_id", "study_id"], validate="1:1")
        assert len(joined) == len(table) == len(other)
    assert metadata.columns.tolist() == METADATA
    assert split["split"].isin(["train", "validate", "test"]).all()
    for name in ("chexpert", "negbio"):
        judged = pd.read_csv(tree / f"mimic-cxr-2.0.0-{name}.csv.gz")
        assert judged.columns[:2].tolist() == ["subject_id", "study_id"]
        assert judged.shape == (table["study_id"].nunique(), 16)
        assert judged.iloc[:, 2:].isin([1.0, 0.0, -1.0, np.nan]).all(axis=None)
    patients = pd.read_csv(tree / "patients.csv.gz")
    assert set(patients["subject_id"]) == set(table["subject_id"])
    assert patients["gender"].isin(["F", "M"]).all()
    assert set(pd.read_csv(tree / "admissions.csv.gz")["subject_id"]) <= set(patients["subject_id"])


def test_a_missing_view_is_an_empty_cell(tmp_path):
    root = write(tmp_path / "tables", images=2000, pictures=False)
    text = (root / "cxr-lt-2024" / "labels.csv").read_text()
    assert "nan" not in text.lower()
    assert 0.01 < release(root, "labels")["ViewPosition"].isna().mean() < 0.1


def test_tables_alone_are_written_without_any_picture_or_report(tmp_path):
    root = write(tmp_path / "tables", pictures=False)
    assert not (root / "files").exists()
    assert len(release(root, "labels")) == IMAGES


# who has what


def test_a_subject_stands_in_one_split_only(tree):
    assert release(tree, "labels").groupby("subject_id")["split"].nunique().max() == 1


@pytest.mark.parametrize("images", [200, 1500])
def test_every_finding_has_positives_in_every_split(images):
    drawn = draw_cohort(images, 0)
    for split in ("train", "val", "test"):
        assert drawn.labels[drawn.studies["split"] == split].any(axis=0).all()


def test_studies_have_one_to_eleven_images_mostly_one_or_two(cohort):
    sizes = cohort.images.groupby("study").size()
    assert sizes.min() == 1
    assert sizes.max() == 11
    assert ((sizes == 1).mean(), (sizes == 2).mean()) == pytest.approx((0.45, 0.46), abs=0.06)


def test_a_normal_study_has_no_other_finding(cohort):
    normal = cohort.truth[:, ALL_FINDINGS.index("Normal")]
    assert normal.any()
    assert (cohort.truth[normal].sum(axis=1) == 1).all()


def test_a_broken_rib_is_a_fracture(cohort):
    assert cohort.truth[cohort.truth[:, ALL_FINDINGS.index("Rib Fracture")], ALL_FINDINGS.index("Fracture")].all()


def test_labels_err_in_train_only(cohort):
    wrong = (cohort.labels != cohort.truth).any(axis=1)
    assert set(cohort.studies["split"][wrong]) == {"train"}


def test_the_findings_of_task_3_are_hidden_from_train(tree):
    assert not set(TASK3) & set(release(tree, "train_labeled").columns)
    assert release(tree, "labels").query("split == 'train'")[list(TASK3)].any().all()


def test_at_the_release_size_its_counts_come_out():
    assert split_sizes(377_110) == {"train": 258_871, "val": 39_293, "test": 78_946}


# reports


NAMED = {
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Kyphosis": "kyphosis",
    "Nodule": "nodule",
    "Osteopenia": "osteopenia",
    "Pneumonia": "pneumonia",
    "Pneumothorax": r"\bpneumothorax",
    "Scoliosis": "scoliosis",
    "Tuberculosis": "tuberculosis",
}
DENIED = re.compile(r"\b(no|without)\b", re.IGNORECASE)
HEDGED = re.compile(
    "possible|cannot be excluded|may represent|difficult to exclude|questionable|equivocal", re.IGNORECASE
)


def sentences(report, word):
    result = re.split(r"(?<=[.:])\s+", report)
    return [sentence for sentence in result if re.search(word, sentence, re.IGNORECASE)]


@pytest.mark.parametrize("finding", NAMED)
def test_reports_agree_with_what_is_mentioned(cohort, finding):
    column, seen = ALL_FINDINGS.index(finding), set()
    for k in range(len(cohort.studies)):
        says = cohort.mention[k, column]
        seen.add(int(says))
        report = write_report(cohort.mention[k], cohort.strength[k], cohort.side[k], k, SEED)
        result = sentences(report, NAMED[finding])
        assert bool(result) == (says != SILENT), report
        assert all(bool(DENIED.search(s)) == (says == NEGATED) for s in result), report
        assert all(bool(HEDGED.search(s)) == (says == UNCERTAIN) for s in result), report
    assert seen >= {POSITIVE, NEGATED, SILENT}


@pytest.mark.parametrize("finding", DRAWN)
def test_every_finding_can_be_affirmed_hedged_and_denied(finding):
    reports = {}
    for says in (POSITIVE, UNCERTAIN, NEGATED, SILENT):
        mention = [says if name == finding else SILENT for name in ALL_FINDINGS]
        reports[says] = write_report(mention, [0.6] * 45, [0] * 45, 1, SEED)
    assert len(set(reports.values())) == 4
    assert DENIED.search(reports[NEGATED])
    assert HEDGED.search(reports[UNCERTAIN])
    assert not HEDGED.search(reports[POSITIVE])


def test_a_written_report_is_that_of_its_study(tree):
    drawn = draw_cohort(IMAGES, SEED)
    text = (tree / report_paths(drawn)[3]).read_text()
    study = int(drawn.studies["study_id"][3])
    assert text == write_report(drawn.mention[3], drawn.strength[3], drawn.side[3], study, SEED)


# pictures


@pytest.mark.parametrize("finding", DRAWN)
def test_a_sign_changes_the_picture_and_more_so_when_plain(finding):
    faint, plain = changed(finding, 0.3), changed(finding, 1.0)
    assert (faint > 8).sum() > 5
    assert plain.sum() > faint.sum()


def test_normal_is_drawn_as_nothing():
    assert (picture({"Normal": (1.0, 0)}) == picture({})).all()


@pytest.mark.parametrize(
    "finding",
    ["Pneumothorax", "Tuberculosis", "Clavicle Fracture", "Lobar Atelectasis", "Bulla", "Azygos Lobe", "Kyphosis"],
)
def test_signs_of_the_apex_lie_in_the_upper_half(finding):
    assert middle(changed(finding, 1.0))[1] < 0.5


@pytest.mark.parametrize(
    "finding", ["Pleural Effusion", "Atelectasis", "Hernia", "Pneumoperitoneum", "Cardiomegaly", "Fibrosis"]
)
def test_signs_of_the_base_lie_in_the_lower_half(finding):
    assert middle(changed(finding, 1.0))[1] > 0.5


@pytest.mark.parametrize(
    "finding", ["Mass", "Pneumothorax", "Pleural Effusion", "Rib Fracture", "Consolidation", "Infarction"]
)
def test_the_patients_left_is_on_the_viewers_right(finding):
    assert middle(changed(finding, 1.0, side=0))[0] < 0.5 < middle(changed(finding, 1.0, side=1))[0]


def test_a_study_shows_the_same_sign_in_all_its_images_under_other_grain():
    mass = {"Mass": (1.0, 1)}
    first, second = picture(mass, dicom="0000004d-x"), picture(mass, dicom="0000004e-x")
    assert (first != second).mean() > 0.5
    other = np.abs(picture(mass, study=10) - picture({}, study=10))
    assert middle(changed("Mass", 1.0)) != pytest.approx(middle(other), abs=0.01)


def test_frontal_and_lateral_views_differ():
    frontal, lateral = picture({}), picture({}, lateral=True)
    assert np.corrcoef(frontal.ravel(), lateral.ravel())[0, 1] < 0.8


def test_a_picture_is_the_same_at_any_size_but_for_its_grain():
    whole = Picture(7, 9, "0000004d-x", False, False, {"Mass": (0.8, 0)})
    small, large = draw_picture(whole, 64, SEED), draw_picture(whole, 512, SEED)
    large = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.95


# the command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"images": 50}, "too few"),
        ({"size": 16}, "out of range"),
        ({"seed": -1}, "negative"),
        ({"processes": 0}, "too few"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, told):
    with pytest.raises(UsageError, match=told):
        write(tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_a_finished_folder_is_used_again(tree):
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    write(tree)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before


def test_an_unfinished_folder_is_completed(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "tree")
    (root / "phantom.json").rename(root / "phantom.unfinished.json")
    lost = sorted(root.glob("files/**/*.jpg"))[::7]
    for path in lost:
        path.unlink()
    (root / "cxr-lt-2024" / "labels.csv").write_text("torn")
    write(root)
    assert contents(root) == contents(tree)


def test_a_folder_with_other_arguments_is_refused_naming_them(tree):
    with pytest.raises(UsageError, match=f"seed {SEED}, .*seed 99"):
        write(tree, seed=99)


def test_a_folder_with_other_contents_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="other files"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_progress_tells_images_a_second_and_the_time_left(tree, progress):
    assert re.search(rf"{IMAGES} of {IMAGES} images drawn, \d+ images/s, 0 s left", progress[-1])


def test_the_command_writes_a_tree_and_refuses_in_one_sentence(tmp_path):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "cxrlt_ray.phantom", *arguments], capture_output=True, text=True, check=False
        )

    done = command(str(tmp_path / "tree"), "--images", "250", "--size", "64", "--seed", "1", "--no-pictures")
    assert done.returncode == 0, done.stderr
    marker = json.loads((tmp_path / "tree" / "phantom.json").read_text())
    assert (marker["images"], marker["size"], marker["seed"], marker["pictures"]) == (250, 64, 1, False)
    refused = command(str(tmp_path / "other"), "--images", "3")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --images 3 is too few")
    assert refused.stderr.count("\n") == 1


def test_processes_that_draw_load_neither_torch_nor_ray():
    code = (
        "import sys, cxrlt_ray.phantom; light = 'pandas' not in sys.modules and 'cv2' not in sys.modules;"
        "import cxrlt_ray.phantom.pictures, cxrlt_ray.phantom.reports;"
        "print(light, 'torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]
