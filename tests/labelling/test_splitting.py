"""`split`: nobody stands on two sides, each finding gets its share, and labels with images become a cohort."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import split
from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.data.splits import assign_shares
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.split import SplitRequest


def labelled(folder: Path, studies: int = 600) -> pd.DataFrame:
    """labels.csv in `folder`: studies of subjects, a common and a rare finding, some of it uncertain or blank."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"study_id": [f"s{70_000_000 + k}" for k in range(studies)]})
    table["subject_id"] = 10_000_000 + rng.integers(0, studies // 2, studies)
    table["Edema"] = rng.choice([1, 0, -1], studies, p=[0.3, 0.6, 0.1])
    table["Mass"] = pd.array(np.where(rng.random(studies) < 0.03, 1, 0), "Int8")
    table.loc[rng.random(studies) < 0.3, "Mass"] = pd.NA
    table.to_csv(folder / "in.csv", index=False)
    return table


def tree(folder: Path, table: pd.DataFrame) -> Path:
    """Two images a study as MIMIC's tree has them."""
    image = np.full((16, 16), 90, np.uint8)
    for study, subject in table[["study_id", "subject_id"]].astype(str).to_numpy():
        place = folder / "files" / f"p{subject[:2]}" / f"p{subject}" / study
        place.mkdir(parents=True)
        for view in "ab":
            cv2.imwrite(str(place / f"{study}-{view}.jpg"), image)
    return folder


def asked(folder: Path, **options: object) -> SplitRequest:
    return SplitRequest(labels=str(folder / "in.csv"), **options)


def test_each_subject_is_in_one_split_and_each_finding_in_all_by_its_share(tmp_path):
    table = labelled(tmp_path)
    divided = split.run(asked(tmp_path, out=str(tmp_path / "out.csv")))
    left = pd.read_csv(tmp_path / "out.csv")
    assert set(left["study_id"]) == set(table["study_id"])
    assert (left.groupby("subject_id")["split"].nunique() == 1).all()
    for name, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        part = left[left["split"] == name]
        assert len(part) == pytest.approx(share * len(left), rel=0.1)
        for finding, slack in {"Edema": 4, "Mass": 2}.items():
            assert (part[finding] == 1).sum() == pytest.approx(share * (left[finding] == 1).sum(), abs=slack)
    assert (left["Edema"] == -1).sum() == (table["Edema"] == -1).sum()  # what -1 means is for the sweep to say
    assert left["Mass"].notna().all()
    assert divided.table["split"].tolist() == left["split"].tolist()


def test_blank_labels_stay_blank_where_that_is_asked_for(tmp_path):
    table = labelled(tmp_path)
    split.run(asked(tmp_path, out=str(tmp_path / "out.csv"), blank="keep"))
    assert pd.read_csv(tmp_path / "out.csv")["Mass"].isna().sum() == table["Mass"].isna().sum()


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    rng = np.random.default_rng(0)
    targets, subjects = (rng.random((300, 3)) < 0.2).astype(np.int8), rng.integers(0, 120, 300).astype(str)
    first = assign_shares(targets, subjects, [0.7, 0.1, 0.2], 0)
    order = rng.permutation(300)
    assert (assign_shares(targets[order], subjects[order], [0.7, 0.1, 0.2], 0) == first[order]).all()
    assert (assign_shares(targets, subjects, [0.7, 0.1, 0.2], 1) != first).any()


@pytest.mark.parametrize("above", [False, True])
def test_labels_and_mimics_tree_become_a_cohort_that_a_sweep_reads(tmp_path, above):
    table = labelled(tmp_path, 60)
    root = tree(tmp_path / "mimic", table)
    out = tmp_path if above else root
    split.run(asked(tmp_path, images=str(root), out=str(out / "labels.csv") if above else None))
    cohort = read_cohort(str(out), format="table", task="auto")
    images = cohort.manifest.table
    assert len(images) == 120
    assert set(images["study_id"]) == set(table["study_id"])
    assert set(images["subject_id"]) == set(table["subject_id"].astype(str))
    assert cohort.manifest.findings == ("Edema", "Mass")
    assert set(images["split"]) == {"train", "val", "test"}
    expected = table.set_index("study_id")["Mass"].fillna(0)
    assert (images["Mass"] == expected.loc[images["study_id"]].to_numpy()).all()
    assert all((Path(cohort.manifest.root) / path).is_file() for path in images["path"])


def test_labels_without_subjects_take_them_from_mimics_folders(tmp_path):
    table = labelled(tmp_path, 40)
    root = tree(tmp_path / "mimic", table)
    table.drop(columns="subject_id").to_csv(tmp_path / "in.csv", index=False)
    divided = split.run(asked(tmp_path, images=str(root)))
    assert set(divided.table["subject_id"]) == set(table["subject_id"].astype(str))


def test_images_without_labels_and_labels_without_images_are_counted_and_left_out(tmp_path, capsys):
    table = labelled(tmp_path, 40)
    root = tree(tmp_path / "mimic", table)
    more = table.assign(study_id=table["study_id"].str.replace("s7", "s8"))
    pd.concat([table.iloc[:30], more.iloc[:5]]).to_csv(tmp_path / "in.csv", index=False)
    assert len(split.run(asked(tmp_path, images=str(root))).table) == 60
    printed = capsys.readouterr().out
    assert "20 images of 80 without labels left out" in printed
    assert "5 of 35 labelled studies have no image" in printed


def test_an_existing_table_is_not_overwritten_and_one_elsewhere_is_refused(tmp_path):
    root = tree(tmp_path / "mimic", labelled(tmp_path, 30))
    with pytest.raises(UsageError, match="below its own folder"):
        split.run(asked(tmp_path, images=str(root), out=str(tmp_path / "elsewhere" / "labels.csv")))
    split.run(asked(tmp_path, images=str(root)))
    with pytest.raises(UsageError, match="exists"):
        split.run(asked(tmp_path, images=str(root), format="images"))


def with_cell(column: str, value: object):
    def change(table: pd.DataFrame) -> pd.DataFrame:
        return table.astype({column: object}).assign(**{column: [value, *table[column].tolist()[1:]]})

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.drop(columns="subject_id"), UsageError, "no column subject_id"),
        (with_cell("subject_id", None), CxrltError, "empty in 1 row"),
        (with_cell("subject_id", "=1+1"), CxrltError, "take for a formula"),
        (lambda t: pd.concat([t, t.iloc[:2]]), CxrltError, "2 rows repeat a study"),
        (with_cell("Mass", 3), CxrltError, "'Mass' holds 1 cell"),
        (lambda t: t.rename(columns={"Mass": "=Goitre"}), UsageError, "formula"),
        (lambda t: t.assign(subject_id=1), CxrltError, "3 parts need at least 3 subjects"),
    ],
)
def test_labels_that_cannot_be_divided_are_refused_without_an_id(tmp_path, change, error, message):
    change(labelled(tmp_path, 30)).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(error, match=message) as caught:
        split.run(asked(tmp_path, out=str(tmp_path / "out.csv")))
    assert "s7000" not in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_labels_and_images_that_name_other_subjects_are_refused(tmp_path):
    table = labelled(tmp_path, 30)
    root = tree(tmp_path / "mimic", table)
    table.assign(subject_id=table["subject_id"].to_numpy()[::-1]).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(CxrltError, match="different subjects"):
        split.run(asked(tmp_path, images=str(root)))


@pytest.mark.parametrize("shares", [[70, 30], [70, 30, 0], [1, 1, -1]])
def test_shares_are_three_numbers_above_0(shares):
    with pytest.raises(UsageError, match="--shares"):
        SplitRequest(labels="x.csv", shares=shares)
