"""Mappings of other cohorts' findings: what they may say, and what they make of labels."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import config
from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.mapping import FOLDER, CohortMapping, load_mapping, map_findings, posing
from cxrlt_ray.data.readers import all_readers
from cxrlt_ray.data.tasks import ALL_FINDINGS, TASK1
from cxrlt_ray.errors import UsageError

SHIPPED = sorted(path.stem for path in (Path(config.PACKAGE).parent / FOLDER).glob("*.yaml"))


def _file(folder: Path, text: str, name: str = "nih") -> str:
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


def test_each_published_cohort_has_a_mapping():
    assert {"brax", "chexpert", "cxrlt2026", "mimic", "nih", "padchest", "vindr"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_mapping_leads_from_its_readers_findings_to_cxr_lts(name):
    mapping = load_mapping(name)
    assert mapping.name == name
    assert mapping.reader == {"mimic": "cxrlt2024", "synthetic": "table"}.get(name, name)
    assert set(mapping.findings) <= set(all_readers()[mapping.reader].findings or ())
    assert mapping.reached <= set(ALL_FINDINGS)
    # what is called alike is mapped to itself
    alike = {finding for finding in ALL_FINDINGS if finding in (all_readers()[mapping.reader].findings or ())}
    assert all(finding in mapping.findings[finding] for finding in alike)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("findings: {Effusion: Plural Efusion}", r"key 'findings.Effusion': given 'Plural Efusion'.*Pleural Effusion"),
        ("findings: {Mass: [Mass, Nodul]}", r"key 'findings.Mass': given .*'Nodul' is none of CXR-LT's 45.*Nodule"),
        (
            "findings: {Effusoin: Pleural Effusion}",
            r"'findings.Effusoin.*': given 'Effusoin': reader nih.*Effusion",
        ),
        ("findings: {Mass: []}", r"key 'findings.Mass': given \[\]: an empty list"),
        ("findings: {Mass: 3}", r"key 'findings.Mass': given 3: '3' is none of"),
        ("findings: {}", r"key 'findings': given {}: map at least one"),
        ("findings: {Mass: Mass}\nnot_labelled: {Norml: why}", r"'not_labelled.Norml.*nearest: Normal"),
        ("findings: {Mass: Mass}\nnot_labelled: {Mass: why}", r"'Mass' stands under both findings and not_labelled"),
        ("findings: {Mass: Mass}\nreader: nhi", r"key 'reader': given 'nhi': no reader of that name; there are: brax"),
        ("findings: {Mass: Mass}\nname: main", r"key 'name': given 'main'"),
        (
            "findings: {Mass: Mass}\nfinding: {}",
            r"unknown key 'finding'; allowed at the top: name, reader, synthetic, findings",
        ),
        ("findings: [Mass]", r"key 'findings': given \['Mass'\]"),
        ("fine: {}", r"key 'findings' is missing"),
    ],
)
def test_a_wrong_mapping_is_refused_with_file_key_value_and_the_nearest(tmp_path, text, said):
    with pytest.raises(UsageError, match=rf"^.*nih\.yaml: .*{said}") as caught:
        load_mapping(_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_all_mistakes_of_a_mapping_are_told_at_once(tmp_path):
    with pytest.raises(UsageError, match=r"'Lump'.*'Maas'"):
        load_mapping(_file(tmp_path, "findings: {Mass: Lump, Maas: Mass}"))


def test_a_mapping_that_is_not_there_is_told_which_are(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"no cohorts file 'nhi': .*brax, chexpert, cxrlt2026, images, mimic, nih, padchest, synthetic, vindr",
    ):
        load_mapping("nhi")


def test_a_mapping_in_the_working_directory_goes_before_the_shipped_one(tmp_path, monkeypatch):
    (tmp_path / FOLDER).mkdir()
    _file(tmp_path / FOLDER, "findings: {Effusion: Pleural Effusion}")
    monkeypatch.chdir(tmp_path)
    assert load_mapping("nih").reached == {"Pleural Effusion"}


def test_a_plain_table_may_name_its_findings_as_it_likes(tmp_path):
    mapping = load_mapping(_file(tmp_path, "reader: table\nfindings: {derrame: Pleural Effusion}", "alicante"))
    assert (mapping.name, mapping.reader) == ("alicante", "table")
    with pytest.raises(UsageError, match=r"alicante\.yaml: key 'reader': given 'alicante'"):
        load_mapping(_file(tmp_path, "findings: {derrame: Pleural Effusion}", "alicante"))


def _mapped(labels: dict[str, list[int | None]], findings: dict[str, tuple[str, ...]], wanted: list[str]) -> np.ndarray:
    """int8 [N, C], -1 for null."""
    table = pd.DataFrame({name: pd.array(column, "Int8") for name, column in labels.items()})
    mapping = CohortMapping(name="x", reader="table", findings=findings)
    mapped = map_findings(table, mapping, wanted)
    assert set(map(str, mapped.dtypes)) == {"Int8"}
    return mapped.fillna(-1).to_numpy(np.int8)


def test_several_findings_make_one_positive_if_any_is_and_negative_if_all_are_known_to_be():
    values = list(product([1, 0, None], repeat=3))
    columns = dict(zip("abc", map(list, zip(*values, strict=True)), strict=True))
    mapped = _mapped(columns, dict.fromkeys("abc", ("Fracture",)), ["Fracture"])[:, 0]
    for row, given in zip(mapped.tolist(), values, strict=True):
        assert row == (1 if 1 in given else -1 if None in given else 0)


def test_one_finding_makes_several_and_what_is_not_mapped_is_null():
    findings = {"rib": ("Rib Fracture", "Fracture"), "clavicle": ("Clavicle Fracture", "Fracture")}
    labels = {"rib": [1, 0, 0], "clavicle": [0, 0, 1]}
    wanted = ["Fracture", "Rib Fracture", "Mass"]
    assert _mapped(labels, findings, wanted).tolist() == [[1, 1, -1], [0, 0, -1], [1, 0, -1]]


def test_a_mapped_finding_that_the_data_lacks_is_unknown():
    findings = {"rib": ("Fracture",), "clavicle": ("Fracture",)}
    assert _mapped({"rib": [1, 0]}, findings, ["Fracture"]).tolist() == [[1], [-1]]


def _in_cxr_lt(count: int = 6) -> Manifest:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: [f"{name}{k}" for k in range(count)] for name in META})
    labels = {name: pd.array(rng.integers(0, 2, count), "Int8") for name in TASK1}
    return Manifest(table.assign(**labels), TASK1, "cxrlt2024", "/data")


@pytest.mark.parametrize("name", SHIPPED)
def test_posing_keeps_what_the_cohort_labels_and_nulls_the_rest(name):
    manifest = _in_cxr_lt()
    before = manifest.targets()
    posed = posing(manifest, name, ALL_FINDINGS)
    assert posed.findings == ALL_FINDINGS
    assert list(posed.table.columns) == [*META, *ALL_FINDINGS]
    for finding in ALL_FINDINGS:
        kept = finding in load_mapping(name).reached and finding in TASK1
        assert (posed.targets((finding,)) == (manifest.targets((finding,)) if kept else -1)).all()
    assert (manifest.targets() == before).all()
