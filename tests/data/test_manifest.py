from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.errors import CxrltError


@pytest.fixture
def manifest() -> Manifest:
    rows = {name: ["a", "b", "c"] for name in META}
    table = pd.DataFrame({**rows, "split": ["train", "val", "test"], "age": np.float32([40, np.nan, 60])})
    table["Mass"] = pd.array([1, 0, None], dtype="Int8")
    return Manifest(table, ("Mass",), "table", "/data")


def test_a_manifest_comes_back_as_written(manifest, tmp_path):
    manifest.write(tmp_path / "manifest.parquet")
    back = Manifest.read(tmp_path / "manifest.parquet")
    assert back.fingerprint == manifest.fingerprint
    assert back.targets().tolist() == [[1], [0], [-1]]
    assert (back.findings, back.source, back.root) == (("Mass",), "table", "/data")


def test_the_fingerprint_tells_a_changed_label_or_split(manifest):
    for column, value in {"Mass": 1, "split": "train"}.items():
        table = manifest.table.copy()
        table.loc[1, column] = value
        assert Manifest(table, manifest.findings, "table", "/data").fingerprint != manifest.fingerprint


def test_a_finding_the_manifest_lacks_is_not_labelled(manifest):
    assert manifest.targets(("Hernia", "Mass")).tolist() == [[-1, 1], [-1, 0], [-1, -1]]


def test_a_file_that_is_no_manifest_is_named(tmp_path):
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(CxrltError, match=r"x\.parquet is not a manifest"):
        Manifest.read(tmp_path / "x.parquet")


def _without_cohorts(path, manifest):
    """The file that was written before there were cohorts."""
    manifest.write(path)
    old = pq.read_table(path)
    pq.write_table(old.drop_columns("cohort"), path)


def test_a_file_from_before_there_were_cohorts_is_of_the_main_data(manifest, tmp_path):
    _without_cohorts(tmp_path / "old.parquet", manifest)
    old = Manifest.read(tmp_path / "old.parquet")
    assert list(old.table.columns) == [*META, "Mass"]
    assert old.table["cohort"].tolist() == ["main"] * 3
    assert old.fingerprint == manifest.fingerprint


def test_the_fingerprint_is_what_it_was_before_there_were_cohorts(manifest):
    assert manifest.fingerprint == "eb5d6857d4a060df"  # of version 1, when META ended with photometric


def test_images_are_told_apart_by_cohort(manifest):
    several = replace(manifest, table=manifest.table.assign(cohort=["main", None, "nih"]))
    assert several.cohorts.tolist() == ["main", "main", "nih"]
    assert several.of_cohort("nih").table["split"].tolist() == ["test"]
    assert len(several.of_cohort("main", "nih").table) == 3
    assert replace(manifest, table=manifest.table.drop(columns="cohort")).cohorts.tolist() == ["main"] * 3
