"""Soft targets: stored predictions beside the manifest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import write_images

from cxrlt_ray.data.soft_targets import read_from, read_soft_targets
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.storage import Store


def saved(tmp_path, table, name="soft.parquet"):
    table.to_parquet(tmp_path / name, index=False)
    return str(tmp_path / name)


def test_they_are_matched_by_image_and_finding_whatever_their_order(tmp_path):
    table = pd.DataFrame({"image_id": ["b", "a", "c"], "Nodule": [0.1, 0.2, None], "Mass": [0.9, 0.8, 0.7]})
    soft = read_soft_targets(saved(tmp_path, table))
    values = soft.at(np.array(["a", "c", "zz"]), ("Mass", "Nodule", "Hernia"))
    np.testing.assert_allclose(values, [[0.8, 0.2, np.nan], [0.7, np.nan, np.nan], [np.nan] * 3], rtol=1e-6)


def test_what_a_run_keeps_is_what_was_given_and_where_it_came_from(tmp_path):
    ids = np.array(["a", "b"], object)
    given = Predictions(ids, np.array([[0.25, 0.5], [1.0, 0.0]]), ("Mass", "Nodule"), "val", "f00", "fp32")
    given.write(Store(str(tmp_path)), "val.parquet")
    soft = read_soft_targets(f"{tmp_path}/val.parquet")
    assert "val.parquet" in soft.provenance
    assert "fingerprint f00" in soft.provenance
    soft.write(Store(str(tmp_path / "run")))
    again = read_from(Store(str(tmp_path / "run")))
    assert again.provenance == soft.provenance
    np.testing.assert_array_equal(again.at(ids, ("Nodule", "Mass")), soft.at(ids, ("Nodule", "Mass")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="image_id"), "has no column image_id"),
        (lambda t: t.assign(Mass=[1.5, 0.1]), "'Mass' has scores from 0.1 to 1.5"),
        (lambda t: t.assign(Mass=[np.inf, 0.1]), "column 'Mass' holds infinite numbers"),
        (lambda t: t.assign(Mass=["high", "low"]), "column 'Mass' does not hold numbers"),
        (lambda t: t.assign(image_id="a"), "has images twice: 1 rows repeat an image_id"),
    ],
)
def test_a_table_of_another_form_is_refused_without_a_value_of_it(tmp_path, change, message):
    table = change(pd.DataFrame({"image_id": ["id-7", "id-8"], "Mass": [0.2, 0.3]}))
    with pytest.raises(UsageError, match=message) as refused:
        read_soft_targets(saved(tmp_path, table))
    assert "id-7" not in str(refused.value)


def test_a_column_of_ids_is_named_and_none_of_them_shown(tmp_path):
    table = pd.DataFrame({"image_id": ["a", "b"], "Mass": [0.2, 0.3], "subject_id": [10012345, 10054321]})
    with pytest.raises(UsageError, match="finding 'subject_id' has scores from a large number") as refused:
        read_soft_targets(saved(tmp_path, table))
    assert "10012345" not in str(refused.value)


def test_logits_and_rounding_are_read_as_probabilities_and_told(tmp_path):
    manifest = write_images(tmp_path / "images", 8)
    logits = np.linspace(-6, 3, 8)
    table = pd.DataFrame({"image_id": manifest.table["image_id"], "Mass": logits, "Other": None}).astype(
        {"Other": float}
    )
    soft = read_soft_targets(saved(tmp_path, table))
    np.testing.assert_allclose(soft.table["Mass"], 1 / (1 + np.exp(-logits)), rtol=1e-6)
    assert soft.table["Other"].isna().all()
    assert "from -6 ('Mass') to 3 ('Mass'), are taken as logits" in soft.check(manifest, manifest.findings)[1]
    soft = read_soft_targets(saved(tmp_path, table.assign(Mass=[1.00001, *np.linspace(0, 1, 7)])))
    assert soft.table["Mass"].max() == 1
    assert "1 score of" in soft.notes[0]


def test_a_file_that_is_not_there_or_no_parquet_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_soft_targets(str(tmp_path / "nothing.parquet"))
    (tmp_path / "text.parquet").write_text("image_id,Mass\n")
    with pytest.raises(UsageError, match="is no Parquet file"):
        read_soft_targets(str(tmp_path / "text.parquet"))


def test_a_cohort_that_they_do_not_fit_is_refused_and_what_fits_is_counted(tmp_path):
    manifest = write_images(tmp_path / "images", 8)
    table = pd.DataFrame(
        {"image_id": manifest.table["image_id"][:5], "Mass": np.arange(5) / 5, "Other": np.arange(5) / 9}
    )
    soft = read_soft_targets(saved(tmp_path, table))
    training = int((manifest.table["split"][:5] == "train").sum())
    (note,) = soft.check(manifest, manifest.findings)
    assert f"Soft targets: {training} of 4 training images, 1 of 2 findings" in note
    with pytest.raises(UsageError, match="none of the findings that are trained; its columns are Mass, Other"):
        soft.check(manifest, ("Nodule",))
    strangers = read_soft_targets(saved(tmp_path, table.assign(image_id=[f"x{k}" for k in range(5)])))
    with pytest.raises(UsageError, match="none of the cohort's training images"):
        strangers.check(manifest, manifest.findings)
