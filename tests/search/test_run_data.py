"""What a sweep trains and validates on, as its options say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import write_images
from releases import write_cxrlt2026

from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.search.given_labels import record_of_labels
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.run_data import run_data, with_validation_like
from cxrlt_ray.search.space_file import load_space

FINDINGS = ("Mass", "Normal")


def manifest(rows: list[tuple[str, str, int | None, int | None]]) -> Manifest:
    """Rows of view, split, Mass and Normal, each of a subject."""
    table = pd.DataFrame([dict.fromkeys(META) | {"view": view, "split": split} for view, split, *_ in rows])
    table = table.assign(image_id=[f"i{k}" for k in range(len(rows))], cohort="main")
    table = table.assign(subject_id=table["image_id"])
    labels = {name: pd.array([row[2 + c] for row in rows], "Int8") for c, name in enumerate(FINDINGS)}
    return Manifest(table.assign(**labels), FINDINGS, "table", "/data")


ROWS = [
    ("PA", "val", 1, 0),
    ("AP", "val", 0, 1),
    ("LATERAL", "val", 1, 0),
    ("PA", "val", None, None),
    ("LATERAL", "train", 0, 1),
    ("PA", "test", 0, 1),
]


@pytest.mark.parametrize(
    ("likeness", "left"),
    [(("frontal",), ["i0", "i1", "i3"]), (("any",), ["i0", "i2"]), (("frontal", "any"), ["i0"])],
)
def test_validation_keeps_what_is_like_the_test_and_nothing_else_changes(likeness, left, capsys):
    given = manifest(ROWS)
    changed = with_validation_like(given, FINDINGS, likeness)
    assert changed.of_split("val").table["image_id"].tolist() == left
    pd.testing.assert_frame_equal(changed.of_split("train", "test").table, given.of_split("train", "test").table)
    option = f"--val-like {','.join(likeness)}"
    assert f"{option}: {len(left)} of 4 validation images stay, of {len(left)} subjects" in capsys.readouterr().out


def test_images_of_other_cohorts_are_left_as_they_are():
    given = manifest(ROWS)
    given.table.loc[2, ["cohort", "split"]] = ["nih", "train"]
    assert "i2" in with_validation_like(given, FINDINGS, ("frontal",)).of_split("train").table["image_id"].tolist()


def test_what_leaves_no_positive_is_refused_with_what_it_leaves():
    with pytest.raises(CxrltError, match=r"--val-like frontal leaves 1 of 2 validation images, and no finding with a"):
        with_validation_like(manifest([("PA", "val", 0, 0), ("LATERAL", "val", 1, 0)]), FINDINGS, ("frontal",))
    with pytest.raises(CxrltError, match=r"leaves 0 of 1 .*names no view of them"):
        with_validation_like(manifest([("UNKNOWN", "val", 1, 0)]), FINDINGS, ("frontal",))


@pytest.mark.parametrize("value", ["side", "frontal,side", "", "frontal any"])
def test_another_likeness_is_refused(value):
    with pytest.raises(UsageError, match="--val-like is frontal, any or both"):
        SweepRequest(task="task1", val_like=value)


def _data(request: SweepRequest, folds: int = 0):
    return run_data(request, load_space("laptop"), folds)


def test_the_option_acts_on_any_format(tmp_path, capsys):
    made = write_images(tmp_path, 40)
    made.table.assign(view=np.where(np.arange(40) % 3, "PA", "LATERAL")).dropna(axis=1).drop(columns="split").to_csv(
        tmp_path / "labels.csv", index=False
    )
    plain = _data(SweepRequest(task="auto", data=str(tmp_path))).manifest
    like = _data(SweepRequest(task="auto", data=str(tmp_path), val_like="frontal,any")).manifest
    val = plain.of_split("val")
    alike = (val.table["view"] == "PA") & (val.targets() == 1).any(axis=1)
    assert 0 < alike.sum() < len(val.table)
    assert like.of_split("val").table["image_id"].tolist() == val.table.loc[alike, "image_id"].tolist()
    assert "--val-like frontal,any: " in capsys.readouterr().out


def test_folds_validate_on_every_image_and_are_refused_with_it(tmp_path):
    write_images(tmp_path, 40).table.dropna(axis=1).drop(columns="split").to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(UsageError, match="--val-like is for a validation split: with 3 folds"):
        _data(SweepRequest(task="auto", data=str(tmp_path), val_like="any"), folds=3)


def test_2026s_validation_can_be_as_its_test_is(tmp_path):
    write_cxrlt2026(tmp_path, 120)
    request = SweepRequest(task="2026-task1", data=str(tmp_path), val_like="frontal,any")
    val = _data(request).manifest.of_split("val")
    assert len(val.table)
    assert set(val.table["view"]) == {"PA"}
    assert (val.targets()[:, 1:] == 1).any(axis=1).all()


def test_labels_of_studies_are_trained_on_and_recorded(tmp_path, capsys):
    made = write_images(tmp_path / "data", 40)
    made.table.dropna(axis=1).to_csv(tmp_path / "data" / "labels.csv", index=False)
    new = made.table[["study_id", "Mass", "Nodule"]].assign(Mass=1 - made.table["Mass"])
    new.to_csv(tmp_path / "new.csv", index=False)
    request = SweepRequest(task="auto", data=str(tmp_path / "data"), labels=str(tmp_path / "new.csv"))
    data = _data(request)
    table = data.manifest.table.merge(made.table, on="image_id")
    scored = table["split_y"] == "test"
    assert (table["Mass_x"] == table["Mass_y"].where(scored, 1 - table["Mass_y"])).all()
    assert "--labels-mode replace" in capsys.readouterr().out
    record = record_of_labels(data.labels, data.labellings)
    assert record["labels"].startswith(f"{tmp_path}/new.csv (sha256 ")
    assert (record["labels_mode"], record["labels_blank"]) == ("replace", "zero")
    agreement = {(row.finding, row.scored): row for row in record["label_agreement"]}
    mass, nodule = (agreement[name, False] for name in ("Mass", "Nodule"))  # all of Mass is turned round
    assert (mass.both, mass.own + mass.given, nodule.both) == (0, mass.studies, nodule.own)
    assert (
        data.manifest.fingerprint != _data(SweepRequest(task="auto", data=str(tmp_path / "data"))).manifest.fingerprint
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "x.csv", "labels_mode": "mix"}, "--labels-mode is replace or join"),
        ({"labels": "x.csv", "labels_blank": "one"}, "--labels-blank is zero or null"),
        ({"labels_mode": "join"}, "give --labels FILE too"),
    ],
)
def test_wrong_options_of_labels_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        SweepRequest(task="task1", **options)


def test_labels_that_are_not_there_are_refused(tmp_path):
    made = write_images(tmp_path, 8)
    made.table.dropna(axis=1).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(UsageError, match=r"--labels .*cannot be read"):
        _data(SweepRequest(task="auto", data=str(tmp_path), labels=str(tmp_path / "nowhere.csv")))
