"""Mined labels: what a report says becomes, whose studies are mined, and how they join a cohort's own labels."""

from __future__ import annotations

import pandas as pd
import pytest

from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.tasks import TASK2_2026
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.reports import read_reports
from cxrlt_ray.text.mining import beside, mine, of_splits

REPORTS = {
    "s1": "FINDINGS: Thoracic scoliosis. No bulla.",
    "s2": "FINDINGS: Possible scoliosis. The lungs are clear.",
    "s3": "INDICATION: Scoliosis.\n\nFINDINGS: The lungs are clear.",
    "s4": "",
    "s5": "Sin derrame pleural ni consolidacion. La silueta cardiaca es de tamano normal.",
    "s6": "FINDINGS: Large bulla in the right upper lobe.",
}
SPLITS = {"1": "train", "2": "train", "3": "val", "4": "train", "5": "train", "6": "test", "7": "val"}
ASKED = ("Scoliosis", "Bulla")


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    path = tmp_path_factory.mktemp("mined") / "reports.csv"
    pd.DataFrame({"study_id": list(REPORTS), "text": list(REPORTS.values())}).to_csv(path, index=False)
    return mine(read_reports(str(path)), ASKED)


@pytest.fixture
def manifest() -> Manifest:
    rows = [
        dict.fromkeys(META)
        | {"image_id": f"i{study}", "study_id": study, "subject_id": study, "path": f"{study}.png", "split": split}
        | {"Mass": 1, "Bulla": 1}
        for study, split in SPLITS.items()
    ]
    return Manifest(pd.DataFrame(rows).astype({"Mass": "Int8", "Bulla": "Int8"}), ("Mass", "Bulla"), "table", "/")


def column(table: pd.DataFrame, name: str) -> list[int | None]:
    return [None if pd.isna(value) else int(value) for value in table[name]]


def test_affirmed_is_1_denied_and_silent_0_unsure_and_unread_null(mined):
    assert mined.findings == ASKED
    assert column(mined.table, "Scoliosis") == [1, None, 0, None, None, 0]
    assert column(mined.table, "Bulla") == [0, 0, 0, None, None, 1]
    assert any("Scoliosis: 1 positive, 2 negative, 3 without label" in note for note in mined.notes)


def test_studies_of_train_and_val_are_mined_by_the_manifests_ids(mined, manifest):
    own = of_splits(mined, manifest)
    assert list(own.table.index) == ["1", "2", "3", "4", "5"]
    assert column(own.table, "Scoliosis") == [1, None, 0, None, None]
    with pytest.raises(UsageError, match="no study of the splits development"):
        of_splits(mined, manifest, ("development",))


def test_mined_labels_stand_beside_the_cohorts_and_its_test_split_keeps_its_own(mined, manifest):
    joined = beside(manifest, mined)
    assert joined.findings == ("Mass", "Bulla", "Scoliosis")
    assert column(joined.table, "Mass") == [1] * 7
    assert column(joined.table, "Bulla") == [0, 0, 0, None, None, 1, None]  # 6 is scored: its own; 7 has no report
    assert column(joined.table, "Scoliosis") == [1, None, 0, None, None, None, None]
    assert column(manifest.table, "Bulla") == [1] * 7  # not changed in place
    assert joined.fingerprint != manifest.fingerprint


def test_rules_are_found_in_any_spelling_and_by_an_alias(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("study_id,text\ns1,Free air under the diaphragm: pneumoperitoneum. No scoliosis.\n")
    table = mine(read_reports(str(path)), ["scoliosis", "pneumoperitoneo"]).table
    assert list(table) == ["scoliosis", "pneumoperitoneo"]
    assert column(table, "scoliosis") == [0]
    assert column(table, "pneumoperitoneo") == [1]


def test_the_findings_of_cxr_lt_2026_can_be_mined(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("study_id,text\ns1,Large substernal goiter.\ns2,No goiter. Pulmonary infarct.\n")
    table = mine(read_reports(str(path)), TASK2_2026).table
    assert list(table) == list(TASK2_2026)
    assert column(table, "goiter") == [1, 0]
    assert column(table, "Infarction") == [0, 1]


def test_a_finding_without_rules_and_a_table_without_reports_are_refused(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("study_id,text\ns1,Clear lungs.\n")
    with pytest.raises(UsageError, match=r"no rules for finding 'Pleural Mass'.*another --track"):
        mine(read_reports(str(path)), ["Pleural Mass"])
    path.write_text("study_id,text\n")
    with pytest.raises(UsageError, match="no reports to mine"):
        mine(read_reports(str(path)), ["Scoliosis"])
