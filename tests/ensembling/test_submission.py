"""A submission is checked against the task, and only a good one is written, whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scored_cohort

from cxrlt_ray.data.tasks import TASK2, Task, load_task
from cxrlt_ray.ensembling import submission
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

TASK = Task("mine", ("Mass", "Nodule", "Normal"))
IDS = np.array(["a", "b", "c", "d"])


def good() -> pd.DataFrame:
    return submission.build(IDS, np.linspace(0, 1, 12).reshape(4, 3), TASK.findings)


def faults(frame: pd.DataFrame) -> list[str]:
    return submission.check(frame, TASK, IDS)


def test_what_build_makes_has_the_ids_then_the_findings_in_order_and_no_fault():
    assert list(good().columns) == ["dicom_id", "Mass", "Nodule", "Normal"]
    assert faults(good()) == []
    assert faults(good().iloc[::-1]) == []  # rows may stand in any order


def test_missing_and_extra_columns_are_named():
    frame = good().drop(columns="Nodule").assign(split="test")
    assert faults(frame) == ["1 column(s) missing: Nodule.", "1 column(s) too many: 'split'."]
    assert faults(good().drop(columns="dicom_id")) == ["1 column(s) missing: dicom_id."]


def test_column_of_almost_a_findings_name_is_proposed():
    assert faults(good().rename(columns={"Nodule": "nodule "}))[0] == (
        "1 column(s) missing: Nodule (near: 'nodule ' for Nodule)."
    )


def test_data_in_the_place_of_a_header_is_not_shown():
    frame = good().rename(columns={"Nodule": "p10012345"})
    assert "10012345" not in " ".join(faults(frame))


def test_columns_out_of_order_are_told_with_their_place():
    # the trap of the challenge: task 1 orders Mass, Nodule, Normal; task 2 Mass, Normal, Nodule
    (fault,) = faults(good()[["dicom_id", "Mass", "Normal", "Nodule"]])
    assert fault == "columns are out of the task's order: column 3 is 'Normal' where 'Nodule' belongs."
    frame = submission.build(IDS, np.zeros((4, 26)), sorted(TASK2))
    (fault,) = submission.check(frame, load_task("task2"), IDS)
    assert "'Nodule' where 'Normal' belongs" in fault


def test_columns_standing_twice_are_named():
    frame = pd.concat([good(), good()[["Mass"]]], axis=1)
    assert faults(frame) == ["column(s) standing twice: 'Mass'."]


def test_missing_extra_and_duplicate_rows_are_counted_and_the_first_is_named_by_its_row():
    frame = pd.concat([good().iloc[1:], good().iloc[[1, 1]], good().iloc[[2]].assign(dicom_id="z")])
    assert faults(frame) == [
        "1 of the 4 image(s) to score have no row.",
        "1 image(s) are none of those to score, the first in row 3 (line 4).",
        "1 image(s) have more than one row, the first in row 2 (line 3).",
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "no finite number"), (np.inf, "no finite number"), (-0.1, "outside 0 to 1"), (1.01, "outside 0 to 1")],
)
def test_values_that_are_no_probability_are_told_with_finding_and_row(value, said):
    frame = good()
    frame.loc[2, "Nodule"] = value
    assert faults(frame) == [f"'Nodule' has 1 value(s) that are {said}, the first is {value:.4g} in row 3 (line 4)."]


def test_text_among_the_values_is_told():
    frame = good().astype({"Mass": object})
    frame.loc[1, "Mass"] = "high"
    assert faults(frame) == ["'Mass' has 1 value(s) that are no finite number, the first is text in row 2 (line 3)."]


def test_faulty_submission_is_refused_with_every_fault_and_nothing_is_written(tmp_path: Path):
    frame = good().iloc[1:]
    frame.loc[2, "Mass"] = 7
    with pytest.raises(CxrltError, match=r"submission\.csv is no submission to mine: 1 of the 4 .* 'Mass' has 1 value"):
        submission.write(Store(str(tmp_path)), frame, TASK, IDS, zip=True)
    assert list(tmp_path.iterdir()) == []


def test_written_submission_reads_back_exactly_and_zip_holds_the_same(tmp_path: Path):
    frame = submission.build(IDS, np.random.default_rng(0).random((4, 3)).astype(np.float32), TASK.findings)
    submission.write(Store(str(tmp_path)), frame, TASK, IDS, zip=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["submission.csv", "submission.zip"]
    for name in ("submission.csv", "submission.zip"):
        again = submission.read(str(tmp_path / name))
        np.testing.assert_array_equal(again[list(TASK.findings)].astype(np.float32), frame[list(TASK.findings)])
        assert faults(again) == []
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == ["submission.csv"]
    before = (tmp_path / "submission.zip").read_bytes()
    submission.write(Store(str(tmp_path)), frame, TASK, IDS, zip=True)
    assert (tmp_path / "submission.zip").read_bytes() == before


def test_ids_that_look_like_numbers_stay_text(tmp_path: Path):
    ids = np.array(["0012", "0013"])
    submission.write(Store(str(tmp_path)), submission.build(ids, np.zeros((2, 3)), TASK.findings), TASK, ids)
    assert submission.check(submission.read(str(tmp_path / "submission.csv")), TASK, ids) == []


@pytest.mark.parametrize("content", [b"", b'a,b\n1,2\n3,4,5\n"', b"\xff\xfe\x00\x00"])
def test_file_that_is_no_table_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    with pytest.raises(CxrltError, match=r"broken\.csv cannot be read as a table"):
        submission.read(str(path))


def test_file_that_is_not_there_and_zip_without_csv_are_named(tmp_path: Path):
    with pytest.raises(CxrltError, match=r"none\.csv cannot be read"):
        submission.read(str(tmp_path / "none.csv"))
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(CxrltError, match=r"empty\.zip.* holds 0 CSV files"):
        submission.read(str(tmp_path / "empty.zip"))


# to images whose labels are known


def test_submission_is_scored_by_name_whatever_the_order_of_its_rows(tmp_path: Path):
    images = scored_cohort.cohort(tmp_path / "data").of_split("test")
    frame = submission.read(scored_cohort.submit(tmp_path, images.table["image_id"].tolist()))
    kept, scores = submission.aligned(frame, scored_cohort.TASK, images, "it")
    assert len(kept.table) == len(images.table) - 1  # the image without labels
    again = submission.aligned(frame.sample(frac=1, random_state=0), scored_cohort.TASK, images, "it")[1]
    np.testing.assert_array_equal(scores.probabilities, again.probabilities)
    without = submission.aligned(frame.iloc[:-1], scored_cohort.TASK, images, "it")[
        1
    ]  # images without labels may be left out
    np.testing.assert_array_equal(scores.probabilities, without.probabilities)


def test_submission_with_missing_images_is_refused_with_the_faults(tmp_path: Path):
    images = scored_cohort.cohort(tmp_path / "data").of_split("test")
    frame = submission.read(scored_cohort.submit(tmp_path, images.table["image_id"].tolist()[2:]))
    with pytest.raises(CxrltError, match=r"^it is no submission to auto: 2 of the 39 image\(s\) to score have no row"):
        submission.aligned(frame, scored_cohort.TASK, images, "it")
    with pytest.raises(CxrltError, match=r"column\(s\) missing: dicom_id"):
        submission.aligned(frame.drop(columns="dicom_id"), scored_cohort.TASK, images, "it")


@pytest.mark.parametrize(
    ("change", "scale"),
    [(lambda p: p, "probability"), (lambda p: 100 * p, "percent"), (lambda p: np.log(p / (1 - p)), "logit")],
)
def test_submission_on_any_scale_is_read_as_probabilities(tmp_path: Path, change, scale):
    images = scored_cohort.cohort(tmp_path / "data").of_split("test")
    frame = submission.read(scored_cohort.submit(tmp_path, images.table["image_id"].tolist()))
    straight = submission.aligned(frame, scored_cohort.TASK, images, "it")[1]
    names = list(scored_cohort.FINDINGS)
    changed = frame.assign(**{name: change(frame[name]) for name in names})
    scaled = submission.aligned(changed, scored_cohort.TASK, images, "it")[1]
    assert scaled.scale == scale
    np.testing.assert_allclose(scaled.probabilities, straight.probabilities, atol=1e-12)
    assert len(scaled.notes) == (scale != "probability")


def test_rounding_beyond_one_is_clipped_and_more_is_refused(tmp_path: Path):
    images = scored_cohort.cohort(tmp_path / "data").of_split("test")
    frame = submission.read(scored_cohort.submit(tmp_path, images.table["image_id"].tolist()))
    frame.loc[3, "Mass"] = 1.0000001
    scaled = submission.aligned(frame, scored_cohort.TASK, images, "it")[1]
    assert scaled.probabilities.max() == 1
    assert scaled.notes == ["1 score of it beyond 0 to 1 by rounding clipped: finding 'Mass' has 1.0000001"]
    frame.loc[3, "Mass"] = 1.001
    with pytest.raises(CxrltError, match=r"it: finding 'Mass' has scores from .* to 1\.001 .* all findings must be on"):
        submission.aligned(frame, scored_cohort.TASK, images, "it")
    with pytest.raises(CxrltError, match=r"'Mass' has 1 value\(s\) that are outside 0 to 1, the first is 1\.0000001"):
        submission.raise_faults(
            submission.check(frame.assign(Mass=1.0000001)[:1], scored_cohort.TASK, frame["dicom_id"][:1]),
            "it",
            scored_cohort.TASK,
        )


def test_images_without_labels_can_be_submitted_but_not_scored(tmp_path: Path):
    images = scored_cohort.cohort(tmp_path / "data").of_split("test")
    frame = submission.read(scored_cohort.submit(tmp_path, images.table["image_id"].tolist()))
    with pytest.raises(CxrltError, match="carry no label"):
        submission.aligned(frame, scored_cohort.TASK, images.where(images.table["Mass"].isna()), "it")


def test_the_tasks_of_2026_are_submitted_by_image_id(tmp_path):
    task = load_task("2026-task1")
    ids = ["1_00-01.png", "2_00-02.png"]
    frame = submission.build(ids, np.full((2, 30), 0.5), task.findings, task.id_column)
    assert list(frame.columns) == ["ImageID", *task.findings]
    submission.write(Store(str(tmp_path)), frame, task, ids)
    again = submission.read(str(tmp_path / "submission.csv"))
    assert submission.check(again, task, ids) == []
    assert again["ImageID"].tolist() == ids
    faults = " ".join(submission.check(again.rename(columns={"ImageID": "dicom_id"}), task, ids))
    assert "column(s) missing: ImageID" in faults
