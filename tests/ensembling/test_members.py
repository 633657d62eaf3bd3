"""Predictions from anywhere are matched by image id and column name, and what does not fit is told in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from member_tables import FINDINGS, IMAGES, Folder, archive, arrays, labels, same, scores, shuffled

from cxrlt_ray.ensembling.members import read_apply, read_npz
from cxrlt_ray.errors import CxrltError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_three_csvs_are_stacked_in_the_order_of_the_labels(folder: Folder):
    members = folder.read(folder.three())
    table = labels()
    assert members.names == ["a", "b", "c"]
    assert members.findings == FINDINGS
    assert members.image_id.tolist() == table["dicom_id"].tolist()
    assert members.groups.tolist() == table["subject_id"].tolist()
    assert members.predictions.dtype == np.float32
    for seed in range(3):
        np.testing.assert_array_equal(members.predictions[seed], scores(seed)[FINDINGS])
    assert members.targets.dtype == np.int8
    np.testing.assert_array_equal(members.targets, table[FINDINGS].fillna(-1).astype(int))
    assert members.targets[3, 0] == -1
    assert members.notes == []


def test_order_of_rows_and_columns_does_not_matter(folder: Folder):
    straight = folder.read(folder.three())
    for seed, name in enumerate("abc"):
        folder.write(f"{name}.csv", shuffled(scores(seed), seed))
    assert same(folder.read([str(folder.path / f"{name}.csv") for name in "abc"]), straight)


def test_labels_in_another_order_move_images_and_findings_alike(folder: Folder):
    paths = folder.three()
    straight = folder.read(paths)
    folder.write("labels.csv", shuffled(labels(), 5))
    moved = folder.read(paths)
    assert moved.image_id.tolist() != straight.image_id.tolist()
    assert moved.findings != straight.findings
    images = [moved.image_id.tolist().index(each) for each in straight.image_id]
    columns = [moved.findings.index(each) for each in straight.findings]
    np.testing.assert_array_equal(moved.predictions[:, images][:, :, columns], straight.predictions)
    np.testing.assert_array_equal(moved.targets[images][:, columns], straight.targets)
    np.testing.assert_array_equal(moved.groups[images], straight.groups)


@pytest.mark.parametrize(
    ("cell", "shown"),
    [("", "empty or nan"), ("NaN", "empty or nan"), ("inf", "inf"), ("high", "text"), ("0,5", "text")],
)
def test_score_that_is_no_finite_number_is_told_with_member_row_and_finding(folder: Folder, cell, shown):
    frame = scores(1).astype({"Nodule": object})
    frame.loc[[7, 9], "Nodule"] = cell
    paths = [*folder.three()[:2], folder.write("bad.csv", shuffled(frame, 3))]
    assert folder.told(paths) == (
        f"bad.csv: the score of finding 'Nodule' in row 13 (line 14) is {shown} (and 1 more like it): every score must "
        "be a finite number."
    )


def test_member_that_lacks_an_image_is_named_and_the_image_can_be_left_out(folder: Folder):
    paths = folder.three()
    everything = folder.read(paths)
    folder.write("b.csv", scores(1).drop([4, 11]))
    folder.write("c.csv", shuffled(scores(2).drop(4), 1))
    assert folder.told(paths) == (
        "b.csv lacks 2 of the 30 images of labels.csv, the first is that of row 5 (line 6): add them, or "
        "leave them out by --drop-missing."
    )
    members = folder.read(paths, drop_missing=True)
    kept = np.delete(np.arange(IMAGES), [4, 11])
    np.testing.assert_array_equal(members.image_id, everything.image_id[kept])
    np.testing.assert_array_equal(members.predictions, everything.predictions[:, kept])
    np.testing.assert_array_equal(members.targets, everything.targets[kept])
    np.testing.assert_array_equal(members.groups, everything.groups[kept])
    assert members.notes == ["2 of 30 images left out, lacking in b 2, c 1"]


def test_of_ids_that_are_written_otherwise_the_forms_are_shown_side_by_side(folder: Folder):
    path = folder.write("a.csv", scores(0).assign(dicom_id=lambda frame: frame["dicom_id"] + ".jpg"))
    for drop in (False, True):
        assert folder.told([path], drop_missing=drop) == (
            "a.csv lacks 30 of the 30 images of labels.csv, the first is that of row 1 (line 2), as 9999, "
            "where its own first is as 9999.xxx: write the ids alike."
        )


def test_members_without_a_common_image_are_refused(folder: Folder):
    paths = [folder.write("a.csv", scores(0)[:10]), folder.write("b.csv", scores(0)[10:])]
    assert "no image of labels.csv is in all 2 files" in folder.told(paths, drop_missing=True)


def test_images_without_labels_are_not_used_whatever_they_hold(folder: Folder):
    straight = folder.read(folder.three())
    more = scores(1).assign(dicom_id=lambda frame: "x" + frame["dicom_id"], Mass=np.nan)
    folder.write("b.csv", shuffled(pd.concat([scores(1), more]), 2))
    members = folder.read([str(folder.path / f"{name}.csv") for name in "abc"])
    assert same(members, straight)
    assert members.notes == [f"30 images of b not used: {folder.path}/labels.csv does not have them"]


def test_finding_that_one_file_lacks_is_named_and_the_others_can_be_chosen(folder: Folder):
    paths = folder.three()
    everything = folder.read(paths)
    folder.write("b.csv", scores(1).drop(columns="Nodule"))
    told = folder.told(paths)
    assert told.startswith("b.csv has no column 'Nodule'; it has 'Mass', 'Round(ed) Atelectasis', 'Normal': add it")
    assert "--findings" in told
    members = folder.read(paths, findings=["Normal", "Mass"])
    assert members.findings == ["Normal", "Mass"]
    np.testing.assert_array_equal(members.predictions, everything.predictions[:, :, [3, 0]])
    np.testing.assert_array_equal(members.targets, everything.targets[:, [3, 0]])
    assert "labels.csv has no column 'Hernia'" in folder.told(paths, findings=["Hernia"])


def test_what_only_labels_or_only_predictions_hold_is_left_out_and_noted(folder: Folder):
    folder.write("labels.csv", labels().assign(Hernia=0))
    members = folder.read([folder.write("a.csv", scores(0).assign(Bulla=0.5))])
    assert members.findings == FINDINGS
    (note,) = members.notes
    assert "'Bulla', 'Hernia' not used" in note


def test_metadata_is_no_finding_even_where_every_file_carries_it(folder: Folder):
    head = labels().assign(view="PA", ViewPosition=1, age=1, Rows=2544, comment="fine")
    folder.write("labels.csv", head.reset_index(names="Unnamed: 0"))
    carried = head.drop(columns=FINDINGS).merge(scores(0), on="dicom_id")
    members = folder.read([folder.write("a.csv", carried.reset_index(names=""))])
    assert members.findings == FINDINGS
    (note,) = members.notes
    assert "columns 'comment' not used" in note


def test_columns_that_differ_in_case_blanks_or_underscores_are_read_and_noted(folder: Folder):
    straight = folder.read(folder.three())
    lower = scores(1).rename(columns={"Round(ed) Atelectasis": "round(ed)_ATELECTASIS"})
    members = folder.read([*folder.three()[:1], folder.write("b.csv", lower), str(folder.path / "c.csv")])
    assert same(members, straight)
    assert members.notes == [f"column 'round(ed)_ATELECTASIS' of {folder.path}/b.csv read as 'Round(ed) Atelectasis'"]
    apply = folder.write("test/a.csv", of_test(0).rename(columns=str.upper).rename(columns={"DICOM_ID": "dicom_id"}))
    _, predictions, (note,) = read_apply([apply], folder.read(folder.three()[:1]))
    np.testing.assert_array_equal(predictions[0], of_test(0)[FINDINGS])
    assert "column 'MASS' of" in note
    assert note.endswith("read as 'Mass' (and 3 more)")


def test_two_columns_of_one_form_are_not_taken_for_each_other(folder: Folder):
    path = folder.write("a.csv", scores(0).rename(columns={"Mass": "mass"}).assign(MASS=0.5))
    told = folder.told([path], findings=["Mass", "Normal"])
    assert told.startswith("a.csv has no column 'Mass'; it has 'mass', 'Nodule', 'Round(ed) Atelectasis'")
    assert "(near: 'MASS' for 'Mass')" in told or "(near: 'mass' for 'Mass')" in told


def test_files_that_share_no_finding_are_refused_with_the_columns_of_both(folder: Folder):
    path = folder.write("a.csv", scores(0).rename(columns=lambda name: name if name == "dicom_id" else f"p {name}"))
    told = folder.told([path])
    assert "share no finding" in told
    assert "'p Mass'" in told
    assert "'Mass'" in told


def test_uncertain_and_empty_labels_are_not_labelled_and_uncertain_ones_noted(folder: Folder):
    table = labels().astype(dict.fromkeys(FINDINGS, "Float64"))  # 1.0, 0.0, as CheXpert writes them
    table.loc[[5, 6], "Normal"] = -1
    folder.write("labels.csv", table)
    members = folder.read(folder.three())
    assert members.targets[[3, 5, 6], [0, 3, 3]].tolist() == [-1, -1, -1]
    assert (members.targets == -1).sum() == 3
    assert members.notes == ["2 labels of -1 (uncertain) taken as not labelled"]


def test_true_and_false_are_labels(folder: Folder):
    straight = folder.read(folder.three())
    folder.write("labels.csv", labels().astype(dict.fromkeys(FINDINGS, "boolean")))
    assert same(folder.read([str(folder.path / f"{name}.csv") for name in "abc"]), straight)


@pytest.mark.parametrize("value", [2, 0.5, "yes", -2])
def test_other_labels_are_refused_with_file_row_finding_and_number(folder: Folder, value):
    table = labels().astype({"Normal": object})
    table.loc[8, "Normal"] = value
    folder.write("labels.csv", table)
    told = folder.told(folder.three())
    held = "text" if value == "yes" else value
    start = f"labels.csv: the label of finding 'Normal' in row 9 (line 10) is {held}"
    assert told.startswith(f"{start}: a label is 1, 0, -1 or nothing; if 'Normal' is no finding")
    assert told.endswith("--findings.")
    paths = [str(folder.path / f"{name}.csv") for name in "abc"]
    assert folder.read(paths, findings=FINDINGS[:3]).findings == FINDINGS[:3]
    assert folder.told(paths, findings=["Normal"]).startswith(start)


def test_a_column_without_any_label_is_refused_where_it_is_asked_for(folder: Folder):
    folder.write("labels.csv", labels().assign(Normal=0.5))
    paths = folder.three()
    assert folder.read(paths).findings == FINDINGS[:3]
    assert "finding 'Normal' in row 1 (line 2) is 0.5 (and 29 more like it)" in folder.told(paths, findings=FINDINGS)


def test_without_subjects_each_image_is_its_own_and_that_is_noted(folder: Folder):
    folder.write("labels.csv", labels().drop(columns="subject_id"))
    members = folder.read(folder.three())
    np.testing.assert_array_equal(members.groups, members.image_id)
    (note,) = members.notes
    assert "has no column subject_id (--groups): each image counts as a subject of its own" in note


def test_subjects_come_from_another_column_or_another_file(folder: Folder):
    expected = folder.read(folder.three()).groups
    paths = [str(folder.path / f"{name}.csv") for name in "abc"]
    bare = labels().rename(columns={"subject_id": "Patient ID"})
    folder.write("labels.csv", bare)
    assert folder.read(paths, groups="Patient ID").groups.tolist() == expected.tolist()
    table = shuffled(labels()[["dicom_id", "study_id", "subject_id"]], 1)
    members = folder.read(paths, groups=folder.write("subjects.csv", table))
    assert members.groups.astype(int).tolist() == expected.astype(int).tolist()
    assert members.notes == []
    pairs = table[["dicom_id", "study_id"]].rename(columns={"study_id": "group"})
    members = folder.read(paths, groups=folder.write("subjects.csv", pairs))
    assert members.groups.tolist() == [str(k) for k in range(IMAGES)]


def test_subjects_that_do_not_fit_are_told(folder: Folder):
    paths = folder.three()
    assert "--groups patient is no file and no column of labels.csv" in folder.told(paths, groups="patient")
    table = labels()[["dicom_id", "study_id", "split"]]
    assert "must have subject_id or one column" in folder.told(paths, groups=folder.write("s.csv", table))
    table = labels()[["dicom_id", "subject_id"]]
    assert "s.csv lacks 1 of the 30 images" in folder.told(paths, groups=folder.write("s.csv", table[1:]))
    table.loc[6, "subject_id"] = None
    assert "s.csv: column 'subject_id' is empty in row 7 (line 8)." in folder.told(
        paths, groups=folder.write("s.csv", table)
    )


def test_a_column_of_subjects_is_no_finding(folder: Folder):
    folder.write("labels.csv", labels().assign(pid=lambda frame: frame["study_id"]))  # 0 and 1 look like labels
    members = folder.read([folder.write("a.csv", scores(0).assign(pid=range(IMAGES)))], groups="pid")
    assert members.findings == FINDINGS


def test_files_of_one_name_are_told_apart_by_their_folders(folder: Folder):
    paths = [folder.write(name, scores(0)) for name in ("x/submission.csv", "y/submission.csv", "b.v2.csv")]
    assert folder.read(paths).names == ["x/submission", "y/submission", "b.v2"]
    assert "2 files are called x/submission" in folder.told([paths[0], *paths])
    assert "2 files are called" in folder.told([paths[0], paths[0].replace("submission.csv", "./submission.csv")])


def test_the_labels_themselves_are_no_member(folder: Folder):
    with pytest.raises(UsageError, match="holds the labels"):
        folder.read([*folder.three(), str(folder.path / "labels.csv")])


def logits(seed: int, times: float = 1) -> pd.DataFrame:
    frame = scores(seed)
    frame[FINDINGS] = times * np.log(frame[FINDINGS] / (1 - frame[FINDINGS])).astype(float)
    return frame


def test_logits_become_probabilities_and_that_is_noted(folder: Folder):
    straight = folder.read(folder.three())
    folder.write("b.csv", logits(1))
    members = folder.read([str(folder.path / f"{name}.csv") for name in "abc"])
    np.testing.assert_allclose(members.predictions, straight.predictions, atol=1e-6)
    assert members.scales == ["probability", "logit", "probability"]
    (note,) = members.notes
    assert note.startswith("scores of 'b', from -")
    assert note.endswith("are taken as logits")


def test_percentages_become_probabilities_and_that_is_noted(folder: Folder):
    straight = folder.read(folder.three())
    percent = scores(1)
    percent[FINDINGS] *= 100
    folder.write("b.csv", percent)
    members = folder.read([str(folder.path / f"{name}.csv") for name in "abc"])
    np.testing.assert_allclose(members.predictions, straight.predictions, rtol=1e-6)
    assert "are taken as percentages" in members.notes[0]


def test_rounding_beyond_one_is_clipped_and_counted_and_nothing_else_changes(folder: Folder):
    straight = folder.read(folder.three())
    frame = scores(1).astype(dict.fromkeys(FINDINGS, float))
    frame.loc[[3, 4], "Mass"] = [1.0000001, -2e-6]
    folder.write("b.csv", frame)
    members = folder.read([str(folder.path / f"{name}.csv") for name in "abc"])
    assert members.predictions[1, [3, 4], 0].tolist() == [1, 0]
    kept = np.ones((IMAGES, 4), bool)
    kept[[3, 4], 0] = False
    np.testing.assert_array_equal(members.predictions[1][kept], straight.predictions[1][kept])
    assert members.notes == ["2 scores of 'b' beyond 0 to 1 by rounding clipped: finding 'Mass' has 1.0000001"]


@pytest.mark.parametrize(("change", "shown"), [(lambda p: 100 * p, "percentages"), (lambda p: 10 * p - 5, "logits")])
def test_one_finding_on_another_scale_is_refused_with_its_name_and_extremes(folder: Folder, change, shown):
    frame = scores(1).assign(Nodule=lambda table: change(table["Nodule"].astype(float)))
    extremes = f"{frame['Nodule'].min():.4g} to {frame['Nodule'].max():.4g}"
    told = folder.told([folder.write("b.csv", frame)])
    assert told.startswith(f"b.csv: finding 'Nodule' has scores from {extremes} ({shown}) where finding 'Mass' has")
    assert "--scores" in told


def test_scores_in_doubt_are_refused_and_taken_as_said(folder: Folder):
    frame = scores(1)
    frame[FINDINGS] = 5 * frame[FINDINGS]
    paths = [*folder.three()[:1], folder.write("b.csv", frame)]
    assert "these may be percentages or logits: " in folder.told(paths)
    members = folder.read(paths, scales=["probability", "percent"])
    np.testing.assert_allclose(members.predictions[1], scores(1)[FINDINGS] * 0.05, rtol=1e-6)
    assert members.notes[0].endswith("are taken as percentages, as --scores says")
    assert folder.read(paths, scales=["logit"]).scales == ["logit", "logit"]
    assert "finding 'Mass' has scores from" in folder.told(paths, scales=["probability"])
    assert "one scale for all 2 members or one each, not 3" in folder.told(paths, scales=["logit"] * 3)


def test_large_logits_keep_their_order(folder: Folder):
    straight = folder.read([folder.write("a.csv", logits(1))])
    members = folder.read([folder.write("a.csv", logits(1, 30))])
    assert members.predictions.max() == 1
    np.testing.assert_array_equal(members.predictions.argsort(axis=1), straight.predictions.argsort(axis=1))
    assert (np.diff(np.sort(members.predictions, axis=1), axis=1) > 0).all()


def test_a_finding_of_one_score_is_noted(folder: Folder):
    members = folder.read([folder.write("a.csv", scores(0).assign(Mass=0.5))])
    assert members.notes == ["finding 'Mass' of 'a' has one score for all images (0.5): it ranks none before another"]


def test_number_too_large_for_float32_is_no_finite_number(folder: Folder):
    frame = scores(0).astype(dict.fromkeys(FINDINGS, float))
    frame.loc[2, "Mass"] = 1e300
    assert "finding 'Mass' in row 3 (line 4) is a large number" in folder.told([folder.write("a.csv", frame)])


def of_test(seed: int) -> pd.DataFrame:
    return scores(seed + 10).assign(dicom_id=lambda frame: "t" + frame["dicom_id"])


def test_test_files_of_the_members_names_are_matched_by_them(folder: Folder):
    members = folder.read(folder.three())
    paths = [folder.write(f"test/{name}.csv", shuffled(of_test(seed), seed)) for seed, name in enumerate("abc")]
    ids, predictions, notes = read_apply([paths[2], paths[0], paths[1]], members)
    assert notes == []
    assert predictions.dtype == np.float32
    rows = [of_test(0)["dicom_id"].tolist().index(each) for each in ids]
    assert sorted(rows) == list(range(IMAGES))
    for seed in range(3):
        np.testing.assert_array_equal(predictions[seed], of_test(seed)[FINDINGS].to_numpy()[rows])


def test_test_files_of_other_names_are_matched_by_order_and_that_is_noted(folder: Folder):
    members = folder.read(folder.three())
    paths = [folder.write(f"test_{name}.csv", of_test(seed)) for seed, name in enumerate("abc")]
    ids, predictions, notes = read_apply(paths, members)
    assert ids.tolist() == of_test(0)["dicom_id"].tolist()
    np.testing.assert_array_equal(predictions[1], of_test(1)[FINDINGS])
    (note,) = notes
    assert "test_a for a, test_b for b, test_c for c" in note


def test_test_files_that_do_not_fit_the_members_are_refused(folder: Folder):
    members = folder.read(folder.three(), findings=["Mass", "Normal"])
    paths = [folder.write(f"test/{name}.csv", of_test(seed)) for seed, name in enumerate("abc")]
    with pytest.raises(UsageError, match=r"each member, 'a', 'b', 'c': 3, not 2\."):
        read_apply(paths[:2], members)
    with pytest.raises(UsageError, match=r"a stands where b belongs"):
        read_apply([folder.write("test/d.csv", of_test(3)), paths[0], paths[2]], members)
    folder.write("test/b.csv", of_test(1).drop(columns="Normal"))
    with pytest.raises(CxrltError, match=r"b\.csv has no column 'Normal'"):
        read_apply(paths, members)
    folder.write("test/b.csv", of_test(1).drop(3))
    with pytest.raises(
        CxrltError,
        match=r"b\.csv lacks 1 of the 30 images of .*a\.csv, the first is that of row 4 \(line 5\): add them\.",
    ):
        read_apply(paths, members)
    folder.write("test/b.csv", pd.concat([of_test(1), of_test(1)[:2].assign(dicom_id=["new", "other"])]))
    with pytest.raises(
        CxrltError,
        match=r"a\.csv lacks 2 of the 32 images of .*b\.csv, the first is that of row 31 \(line 32\): add them\.",
    ):
        read_apply(paths, members)
    folder.write("test/b.csv", of_test(1).assign(Mass=np.nan))
    with pytest.raises(CxrltError, match=r"b\.csv: the score of finding 'Mass' in row 1 \(line 2\) is empty or nan"):
        read_apply(paths, members)


def test_test_images_are_read_on_the_scale_of_the_labelled_ones_whatever_they_look_like(folder: Folder):
    members = folder.read([folder.write("a.csv", logits(0))])
    _, predictions, notes = read_apply([folder.write("test/a.csv", of_test(0))], members)
    expected = 1 / (1 + np.exp(-of_test(0)[FINDINGS]))
    np.testing.assert_allclose(predictions[0], expected, rtol=1e-6)
    assert "taken as logits, as those of the labelled images, though all lie from 0 to 1" in notes[0]


def test_test_images_beyond_the_scale_of_the_labelled_ones_are_refused(folder: Folder):
    members = folder.read([folder.write("a.csv", scores(0))])
    apply = folder.write("test/a.csv", of_test(0).assign(Mass=-2.0))
    with pytest.raises(CxrltError, match="'Mass' has scores from -2 to -2, where probabilities are from 0 to 1"):
        read_apply([apply], members)
    frame = of_test(0).astype(dict.fromkeys(FINDINGS, float))
    frame.loc[0, "Mass"] = 1.00001
    _, predictions, (note,) = read_apply([folder.write("test/a.csv", frame)], members)
    assert predictions[0, 0, 0] == 1
    assert note.startswith("1 score of")
    _, _, notes = read_apply([folder.write("test/a.csv", of_test(0).assign(Mass=0.5))], members)
    assert "finding 'Mass' of" in notes[0]


def test_npz_holds_what_the_tables_hold(folder: Folder):
    tables = folder.read(folder.three())
    read = read_npz(archive(folder))
    assert same(read, tables)
    targets = np.where(arrays()["targets"] < 0, np.nan, arrays()["targets"])
    assert same(read_npz(archive(folder, targets=targets)), tables)


def test_npz_without_names_gets_some(folder: Folder):
    members = read_npz(archive(folder, groups=None, members=None, image_id=None, findings=None))
    assert members.names == ["member-0", "member-1", "member-2"]
    assert members.findings[3] == "finding-3"
    assert members.image_id[29] == "image-29"
    np.testing.assert_array_equal(members.groups, members.image_id)
    assert any("each image counts as a subject" in note for note in members.notes)
    np.testing.assert_array_equal(members.predictions, arrays()["predictions"])


def with_value(key: str, place: tuple[int, ...], value: float) -> np.ndarray:
    changed = arrays()[key].astype(np.float32)
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"targets": None, "labels": np.zeros(3)}, r"no array 'targets', but 'predictions', .*'labels': name them"),
        ({"predictions": np.zeros((3, 4))}, r"predictions must be numbers \[members, images, findings\].*\[3, 4\]"),
        ({"predictions": np.zeros((0, 30, 4))}, r"predictions must be .* one at least"),
        ({"predictions": np.full((3, 30, 4), "x")}, r"predictions must be numbers"),
        ({"targets": np.zeros((4, 30))}, r"targets \[4, 30\] must be \[30, 4\]"),
        ({"groups": np.zeros(29)}, r"groups \[29\] must be \[30\]"),
        ({"groups": np.array([*range(29), np.nan])}, r"groups are empty in row 30 .*give each image its subject"),
        ({"groups": np.array(["", *"a" * 28, " "])}, r"groups are empty in row 1 .*and 1 more"),
        ({"members": np.array(["a", "b"])}, r"members \[2\] must be 3 names"),
        ({"findings": np.array(["Mass", "Mass", "x", "y"])}, r"findings \[4\] must be 4 names, each once"),
        ({"image_id": np.array([["a"]])}, r"image_id \[1, 1\] must be 30 names"),
        ({"members": np.array(["a", "b", None])}, r"plain arrays: Object arrays cannot be loaded"),
        (
            {"predictions": with_value("predictions", (1, 7, 2), np.nan)},
            r"member b: the score of finding 'Round\(ed\) Atelectasis' in row 8 \(line 9\) is empty or nan",
        ),
        ({"targets": with_value("targets", (7, 2), 3)}, r"targets: the label of finding .* is 3: a label is"),
    ],
)
def test_npz_that_does_not_fit_is_refused_in_a_sentence(folder: Folder, changes, told):
    with pytest.raises(CxrltError, match=told):
        read_npz(archive(folder, **changes))


def test_npz_of_test_images_is_matched_by_the_names_it_has(folder: Folder):
    members = folder.read(folder.three(), findings=["Normal", "Mass"])
    given = arrays(targets=None, groups=None)
    moved = {"predictions": given["predictions"][[2, 0, 1]], "members": np.array(["c", "a", "b"])}
    ids, predictions, notes = read_apply([archive(folder, targets=None, groups=None, **moved)], members)
    assert notes == []
    np.testing.assert_array_equal(ids, given["image_id"])
    np.testing.assert_array_equal(predictions, given["predictions"][:, :, [3, 0]])


def test_npz_of_test_images_without_names_is_taken_in_order(folder: Folder):
    members = folder.read(folder.three())
    bare = dict.fromkeys(("targets", "groups", "members", "image_id", "findings"))
    ids, predictions, notes = read_apply([archive(folder, **bare)], members)
    assert ids[1] == "image-1"
    np.testing.assert_array_equal(predictions, arrays()["predictions"])
    assert "member-1 for b" in notes[0]
    with pytest.raises(UsageError, match="no column 'Mass'"):
        read_apply([archive(folder, **bare, predictions=np.zeros((3, 5, 2)))], members)
    with pytest.raises(UsageError, match="3, not 2"):
        read_apply([archive(folder, **bare, predictions=np.zeros((2, 5, 4)))], members)
