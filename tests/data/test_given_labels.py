"""Labels of studies in the place of a cohort's or beside them: who prevails, what is null, and what is tested on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.data.given_labels import GivenLabels
from cxrlt_ray.errors import UsageError

NA = pd.NA


@pytest.fixture
def cohort(tmp_path):
    """Six images of studies s1 to s6, Mass and Nodule labelled; the last two are to be scored."""
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(1, 7)], "path": [f"{k}.png" for k in range(1, 7)]})
    table = table.assign(subject_id=table["image_id"], study_id=[f"s{k}" for k in range(1, 7)])
    table["split"] = ["train", "train", "train", "val", "test", "test"]
    table["Mass"] = [1, 0, None, 1, 1, 0]
    table["Nodule"] = [0, 0, 1, 1, 0, None]
    table.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def given(mode: str, blank: str = "zero", uncertain: str = "null", **columns: list) -> GivenLabels:
    """Labels of s1, s2, s3 and s5."""
    index = pd.Index(["s1", "s2", "s3", "s5"], name="study_id")
    table = pd.DataFrame({name: pd.array(values, "Int8") for name, values in columns.items()}, index)
    return GivenLabels(table, "given.csv", mode, blank, uncertain)


def read(cohort, labels: GivenLabels, task: str = "auto") -> pd.DataFrame:
    manifest = read_cohort(str(cohort), task=task, labels=labels).manifest
    return manifest.table.set_index("image_id")[list(manifest.findings)]


def values(column: pd.Series) -> list[int | None]:
    return [None if value is NA else int(value) for value in column]


def test_replaced_labels_are_the_tables_but_of_images_that_are_scored(cohort):
    table = read(cohort, given("replace", Mass=[0, 1, -1, 0], Nodule=[None, 1, 0, 1]))
    assert values(table["Mass"]) == [0, 1, None, None, 1, 0]  # s4 is not in the table; s5, s6 are scored
    assert values(table["Nodule"]) == [0, 1, 0, None, 0, None]


def test_of_joined_labels_the_cohorts_prevail_and_the_table_fills(cohort):
    table = read(cohort, given("join", Mass=[0, 1, 1, 0], Nodule=[1, 1, 1, 1]))
    assert values(table["Mass"]) == [1, 0, 1, 1, 1, 0]
    assert values(table["Nodule"]) == [0, 0, 1, 1, 0, None]


@pytest.mark.parametrize(("uncertain", "means"), [("null", None), ("zero", 0), ("one", 1)])
@pytest.mark.parametrize(("blank", "empty"), [("null", None), ("zero", 0)])
def test_uncertain_and_blank_are_what_the_policies_say(cohort, uncertain, means, blank, empty):
    labels = given("replace", blank, uncertain, Mass=[-1, None, 1, 0], Nodule=[1, 0, 1, 0])
    assert values(read(cohort, labels)["Mass"])[:3] == [means, empty, 1]


def test_findings_of_the_table_alone_are_trained_where_the_data_says_what_to_train(cohort):
    labels = {"Edema": [1, 0, 1, 0], "Mass": [1, 1, 0, 0]}
    assert list(read(cohort, given("replace", **labels))) == ["Mass", "Edema"]
    joined = read(cohort, given("join", **labels))
    assert list(joined) == ["Mass", "Nodule", "Edema"]
    assert values(joined["Edema"]) == [1, 0, 1, None, None, None]  # no label of a report in what is scored


def test_a_named_task_takes_findings_that_the_cohort_lacks_from_the_table(cohort, tmp_path):
    task = tmp_path / "own.yaml"
    task.write_text("findings: [Mass, Edema]")
    assert list(read(cohort, given("join", Edema=[1, 0, 1, 0]), str(task))) == ["Mass", "Edema"]
    with pytest.raises(UsageError, match=r"--labels has no column for 1 of the 2 findings of the task: Mass"):
        read(cohort, given("replace", Edema=[1, 0, 1, 0]), str(task))


def test_splits_are_carved_by_the_new_labels(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"s{k}" for k in range(200)]
    table = pd.DataFrame({"image_id": ids, "path": [f"{k}.png" for k in ids], "subject_id": ids, "study_id": ids})
    table.assign(Mass=0).to_csv(tmp_path / "labels.csv", index=False)
    new = pd.DataFrame({"Mass": pd.array((rng.random(200) < 0.1).astype(int), "Int8")}, pd.Index(ids, name="study_id"))
    manifest = read_cohort(str(tmp_path), task="auto", labels=GivenLabels(new, "x")).manifest
    positives = manifest.table.groupby("split")["Mass"].sum()
    assert positives["test"] >= 2
    assert positives["val"] >= 2
    assert positives.sum() == new["Mass"].sum()


def test_ids_with_and_without_mimics_s_match_and_none_in_common_is_refused(cohort):
    labels = given("replace", Mass=[0, 1, 1, 0], Nodule=[0, 0, 0, 0])
    plain = GivenLabels(labels.table.set_axis(["1", "2", "3", "5"]), "x")
    assert values(read(cohort, plain)["Mass"])[:3] == [0, 1, 1]
    with pytest.raises(UsageError, match="none of the cohort's studies"):
        read(cohort, GivenLabels(labels.table.set_axis(["a", "b", "c", "d"]), "x"))


def test_what_was_done_is_said_without_an_id(cohort):
    notes = read_cohort(str(cohort), task="auto", labels=given("replace", Mass=[0, 0, 1, 0], Nodule=[0, 0, 1, 0])).notes
    said = " ".join(notes)
    assert "4 of 6 images have a study there" in said
    assert "1 of the cohort's changed, 1 added, 2 removed" in said
    assert "2 images of the cohort's own test split keep theirs" in said
    assert "s1" not in said


def test_both_labellings_are_kept_side_by_side_by_study(cohort):
    labels = given("replace", Mass=[0, 1, -1, 0], Nodule=[None, 1, 0, 1], Edema=[1, 1, 1, 1])
    both = read_cohort(str(cohort), task="auto", labels=labels).labellings
    assert both.findings == ("Mass", "Nodule")  # the cohort does not label the third
    assert both.own.tolist() == [[1, 0], [0, 0], [-1, 1], [1, 0]]  # s1, s2, s3, s5
    assert both.given.tolist() == [[0, 0], [1, 1], [-1, 0], [0, 1]]
    assert both.scored.tolist() == [False, False, False, True]
    assert both.subjects.tolist() == ["i1", "i2", "i3", "i5"]
    assert both.part(True).own.tolist() == [[1, 0]]


def test_a_study_of_two_images_counts_once_and_without_common_findings_nothing_is_compared(cohort):
    table = pd.read_csv(cohort / "labels.csv")
    second = table.iloc[:1].assign(image_id="i1b", path="1b.png")
    pd.concat([table, second]).to_csv(cohort / "labels.csv", index=False)
    labels = given("replace", Mass=[0, 1, 1, 0])
    assert len(read_cohort(str(cohort), task="auto", labels=labels).labellings.own) == 3  # s3 has no label of its own
    assert read_cohort(str(cohort), task="auto", labels=given("join", Edema=[1, 0, 1, 0])).labellings is None
