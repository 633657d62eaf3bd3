"""Groups of images: the manifest's columns, a table's, what is unknown, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.data.groups import MOST_VALUES, OWN, group_columns
from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.errors import UsageError

MARK = "ZQX"


@pytest.fixture
def images() -> Manifest:
    table = pd.DataFrame([dict.fromkeys(META)] * 4)
    table["image_id"] = [f"{MARK}{k}" for k in range(4)]
    table["study_id"] = ["s50", "s50", "s51", "s52"]
    table["subject_id"] = ["10", "10", "11", "12"]
    table["sex"] = ["F", "F", "M", None]
    table["age"] = np.array([17.5, 17.5, 80, np.nan], np.float32)
    table["race"] = ["WHITE - RUSSIAN", "WHITE - RUSSIAN", "WHITE", "PORTUGUESE"]
    table["view"] = ["PA", "LATERAL", "AP", "UNKNOWN"]
    return Manifest(table, (), "table", "")


def written(folder, text: str) -> str:
    path = folder / "groups.csv"
    path.write_text(text)
    return str(path)


def test_columns_of_the_manifest_with_age_in_bands_and_races_by_family(images):
    columns = {name: groups.tolist() for name, groups in group_columns(images, OWN).items()}
    assert columns == {
        "sex": ["F", "F", "M", "unknown"],
        "age": ["0-17", "0-17", "80+", "unknown"],
        "race": ["WHITE", "WHITE", "WHITE", "PORTUGUESE"],
        "view": ["PA", "LATERAL", "AP", "unknown"],
        "cohort": ["main"] * 4,
    }


@pytest.mark.parametrize(
    "text",
    [
        "subject_id,site\n10.0,A\n11.0,B\n",
        "study_id,site\n50,A\n51,B\n",
        f"image_id,site\n{MARK}0,A\n{MARK}1,A\n{MARK}2,B\n{MARK}3,\n",
        f"dicom_id,site\n{MARK}0,A\n{MARK}1,A\n{MARK}2,B\n{MARK}3,NA\n",
        "subject_id,site\n10,A\n10,A\n11,B\n",
    ],
)
def test_a_table_by_subject_study_or_image_adds_columns(images, tmp_path, text):
    columns = group_columns(images, ["site"], written(tmp_path, text))
    assert columns["site"].tolist() == ["A", "A", "B", "unknown"]


def test_a_tables_column_counts_before_the_manifests(images, tmp_path):
    columns = group_columns(images, ["sex", "age"], written(tmp_path, "subject_id,sex,Age\n10,male,45\n11,,7\n"))
    assert columns["sex"].tolist() == ["M", "M", "unknown", "unknown"]
    assert columns["age"].tolist() == ["40-59", "40-59", "0-17", "unknown"]


@pytest.mark.parametrize(
    ("text", "by", "message"),
    [
        (
            "subject_id,site\n10,A\n10,B\n",
            "site",
            r"row 2 \(line 3\) contradicts an earlier row of the same subject_id",
        ),
        ("patient,site\n10,A\n", "site", "needs a column image_id, dicom_id, study_id or subject_id"),
        ("subject_id,site\n99,A\n", "site", "none of the images by its subject_id"),
        ("subject_id,site\n10,A\n", "hospital", "--by hospital is none of the columns"),
    ],
)
def test_a_table_that_does_not_fit_is_told_without_naming_a_patient(images, tmp_path, text, by, message):
    with pytest.raises(UsageError, match=message) as error:
        group_columns(images, [by], written(tmp_path, text))
    assert MARK not in str(error.value)
    assert "10" not in str(error.value).replace(str(tmp_path), "")


def test_a_column_of_many_values_is_no_column_of_groups(images):
    many = pd.concat([images.table] * 10, ignore_index=True)
    many["image_id"] = [f"i{k}" for k in range(len(many))]
    text = "image_id,note\n" + "\n".join(f"i{k},{MARK} {k}" for k in range(MOST_VALUES + 1))
    with pytest.raises(UsageError, match=f"{MOST_VALUES + 1} values") as error:
        group_columns(Manifest(many, (), "table", ""), ["note"], _text(text))
    assert MARK not in str(error.value)


def _text(text: str) -> str:
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "notes.csv"
    path.write_text(text)
    return str(path)


def test_a_value_that_a_spreadsheet_would_run_is_made_harmless(images, tmp_path):
    columns = group_columns(images, ["site"], written(tmp_path, "subject_id,site\n10,=1+1\n"))
    assert columns["site"].tolist()[0] == "'=1+1"


def test_sex_age_and_race_of_the_phantom_are_read_from_its_tables(tmp_path):
    from cxrlt_ray.phantom import write_phantom
    from cxrlt_ray.phantom.labels import draw_cohort

    write_phantom(tmp_path / "p", images=300, size=32, seed=4, pictures=False, say=lambda _: None)
    manifest = read_cohort(str(tmp_path / "p")).manifest
    drawn = draw_cohort(300, 4).subjects.set_index("subject_id")
    of = drawn.loc[manifest.table["subject_id"].astype(int)]
    columns = group_columns(manifest, ["sex", "race"])
    assert (columns["sex"] == np.where(of["female"], "F", "M")).all()
    assert np.allclose(manifest.table["age"].astype(float), of["age"])
    assert {"WHITE", "BLACK", "unknown"} <= set(columns["race"])
