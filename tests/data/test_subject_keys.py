"""A person is the same subject as main data and as another cohort, by release and id."""

from __future__ import annotations

import pandas as pd

from cxrlt_ray.data.fingerprints import keys_of_subjects, release_of, subject_keys
from cxrlt_ray.data.manifest import META, Manifest


def manifest(source, *rows):
    table = pd.DataFrame([dict.fromkeys(META) | {"cohort": name, "subject_id": subject} for name, subject in rows])
    return Manifest(table, (), source, "/")


def test_a_person_has_one_key_as_main_data_and_as_another_cohort(tmp_path):
    joined = manifest("mimic", ("main", "7"), ("nih", "nih/7"))
    keys = keys_of_subjects(joined, str(tmp_path), {"nih": str(tmp_path)})
    assert keys.tolist() == ["mimic/7", "nih/7"]
    assert keys_of_subjects(manifest("nih", ("main", "7")), str(tmp_path), {}).tolist() == ["nih/7"]


def test_ids_of_plain_tables_are_those_of_their_directory_and_a_lost_mapping_leaves_ids(tmp_path):
    joined = manifest("table", ("main", "7"), ("lost", "lost/7"))
    keys = keys_of_subjects(joined, str(tmp_path), {str(tmp_path / "lost.yaml"): str(tmp_path)})
    assert keys.tolist() == [*subject_keys(release_of("table", str(tmp_path)), ["7"]), "lost/7"]
