"""`gold`: blinded sheets that hold no labeller's label, and what becomes of them when they come back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import gold
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.gold import GoldRequest
from cxrlt_ray.labelling.gold_folder import Design
from cxrlt_ray.labelling.page import page

FINDINGS = ["Edema", "Mass", "Pneumonia"]


@pytest.fixture
def truth(tmp_path) -> pd.DataFrame:
    """The true labels of 400 studies; a.csv and b.csv are two labellers' of them."""
    rng = np.random.default_rng(0)
    truth = pd.DataFrame((rng.random((400, 3)) < [0.3, 0.03, 0.1]).astype(int), columns=FINDINGS)
    truth.index = pd.Index([f"s{60_000_000 + k}" for k in range(400)], name="study_id")
    for name in "ab":
        labels = truth.where(rng.random(truth.shape) > 0.1, 1 - truth)
        labels.assign(subject_id=np.arange(400) // 2).to_csv(tmp_path / f"{name}.csv")
    return truth


def drawn(folder: Path, **options: object) -> Design:
    files = [str(folder / "a.csv"), str(folder / "b.csv")]
    request = GoldRequest(action="sample", files=files, out=str(folder / "gold"), **{"studies": 60, **options})
    design = gold.run(request)
    assert isinstance(design, Design)
    return design


def filled(folder: Path, truth: pd.DataFrame, name: str, wrong: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """A reader's sheet with the truth but for a share of `wrong` labels, saved as a spreadsheet does."""
    path = folder / "gold" / f"{name}.csv"
    sheet = pd.read_csv(path, dtype=str)
    said = truth.loc[sheet["study_id"]].reset_index(drop=True)
    sheet[FINDINGS] = said.where(np.random.default_rng(seed).random(said.shape) >= wrong, 1 - said)
    sheet["read"] = "1"
    sheet.to_csv(path, index=False, sep=";", encoding="utf-8-sig")
    return sheet


def merged(folder: Path, names: tuple[str, ...] = ("reader1", "reader2"), **options: object):
    files = [str(folder / "gold"), *(str(folder / "gold" / f"{name}.csv") for name in names)]
    return gold.run(GoldRequest(action="merge", files=files, **options))


def test_sheets_are_blinded_in_an_order_of_their_own_and_of_one_sample(tmp_path, truth):
    design = drawn(tmp_path, readers=3)
    sheets = [pd.read_csv(tmp_path / "gold" / f"reader{k}.csv", dtype=str) for k in (1, 2, 3)]
    for sheet in sheets:
        assert set(sheet["item"]) == set(design.table.index)
        assert sheet[[*FINDINGS, "read"]].isna().all(axis=None)
        assert not {"subject_id", "inclusion_probability"} & set(sheet)
    assert len({tuple(sheet["item"]) for sheet in sheets}) == 3
    assert design.table["inclusion_probability"].sum() <= 60


def test_merge_weighs_labellers_on_all_studies_and_says_how_readers_agree(tmp_path, truth, capsys):
    drawn(tmp_path, studies=250)
    for k in (1, 2):
        filled(tmp_path, truth, f"reader{k}")
    agreement = merged(tmp_path, labels=[str(tmp_path / "a.csv")], rounds=200)
    labels = pd.read_csv(tmp_path / "a.csv")[FINDINGS].to_numpy()
    precision = truth.to_numpy()[labels == 1].mean()
    estimate = agreement.rates["a"].pooled["precision"]
    assert estimate.low <= precision <= estimate.high
    assert estimate.value == pytest.approx(precision, abs=0.06)
    assert agreement.subjects < agreement.studies
    printed = capsys.readouterr().out
    assert "1.000" in printed
    assert "weighted to all studies" in printed
    assert "s6000" not in printed


def test_what_readers_differ_on_is_open_until_it_is_adjudicated(tmp_path, truth, capsys):
    drawn(tmp_path)
    filled(tmp_path, truth, "reader1")
    filled(tmp_path, truth, "reader2", wrong=0.1)
    merged(tmp_path)
    table = pd.read_csv(tmp_path / "gold" / "gold.csv").set_index("study_id")
    listed = pd.read_csv(tmp_path / "gold" / "adjudicate.csv", dtype={"item": str})
    assert table[FINDINGS].isna().sum().sum() == len(listed) > 0
    right = truth.loc[table.index]
    assert (table[FINDINGS].fillna(right) == right).all(axis=None)

    listed["label"] = [truth.loc[study, finding] for study, finding in listed[["study_id", "finding"]].to_numpy()]
    listed.to_csv(tmp_path / "done.csv", index=False)
    merged(tmp_path, adjudicated=str(tmp_path / "done.csv"))
    table = pd.read_csv(tmp_path / "gold" / "gold.csv").set_index("study_id")
    assert (table[FINDINGS] == right).all(axis=None)

    # the same rows twice are the same labels; one that differs is not known
    pd.concat([listed, listed]).to_csv(tmp_path / "twice.csv", index=False)
    capsys.readouterr()
    merged(tmp_path, adjudicated=str(tmp_path / "twice.csv"))
    assert " 0 open" in capsys.readouterr().out
    other = listed.head(1).assign(label=1 - listed["label"].iloc[0])
    pd.concat([listed, other]).to_csv(tmp_path / "differ.csv", index=False)
    with pytest.raises(UsageError, match="1 label given twice and differently"):
        merged(tmp_path, adjudicated=str(tmp_path / "differ.csv"))


def test_of_three_readers_the_majority_decides(tmp_path, truth):
    drawn(tmp_path, readers=3)
    filled(tmp_path, truth, "reader1")
    filled(tmp_path, truth, "reader2")
    filled(tmp_path, truth, "reader3", wrong=0.5)
    merged(tmp_path, ("reader1", "reader2", "reader3"))
    table = pd.read_csv(tmp_path / "gold" / "gold.csv").set_index("study_id")
    assert (table[FINDINGS] == truth.loc[table.index]).all(axis=None)


def test_reports_that_nobody_read_are_no_negatives(tmp_path, truth, capsys):
    drawn(tmp_path)
    sheet = filled(tmp_path, truth, "reader1")
    sheet = sheet.astype(str)
    sheet.loc[:9, [*FINDINGS, "read"]] = ""
    sheet.to_csv(tmp_path / "gold" / "reader1.csv", index=False)
    merged(tmp_path, ("reader1",))
    assert len(pd.read_csv(tmp_path / "gold" / "gold.csv")) == 50
    assert "10 by none" in capsys.readouterr().out


def test_sheets_with_reports_hold_no_ids_and_no_formulas(tmp_path, truth):
    texts = ["=cmd|' /C calc'!A0", '-Edema, "better"\nthan before. <b>x</b></script>'] * 200
    pd.DataFrame({"study_id": truth.index, "text": texts}).to_csv(tmp_path / "reports.csv", index=False)
    drawn(tmp_path, reports=str(tmp_path / "reports.csv"))
    sheet = pd.read_csv(tmp_path / "gold" / "reader1.csv", dtype=str)
    assert "study_id" not in sheet
    assert sheet["report"].str.startswith("'").all()
    html = (tmp_path / "gold" / "reader1.html").read_text()
    assert "s6000" not in html
    content = json.loads(re.search(r'id="sheet">(.*?)</script>', html, re.DOTALL).group(1))
    assert {row["report"] for row in content["items"]} <= {texts[0], texts[1]}


def test_a_page_loads_nothing_from_elsewhere_and_no_text_ends_its_script():
    html = page("reader1", "x", [{"item": "item1", "report": "</script><script>alert(1)</script>"}], {"Mass": "<i>"})
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)\s*=\s*[\"']", html)
    assert html.count("</script>") == 2
    assert "alert(1)</script>" not in html


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.assign(Mass="maybe"), CxrltError, r"column 'Mass', row 1 \(line 2\) holds text"),
        (lambda s: pd.concat([s, s.iloc[:2]]), CxrltError, "2 rows repeat an item"),
        (lambda s: s.assign(item="item999"), CxrltError, "repeat an item"),
        (lambda s: s.assign(item=[f"other{k}" for k in range(len(s))]), UsageError, "of no item of this sample"),
        (lambda s: s.drop(columns="Edema"), CxrltError, "no column 'Edema'"),
        (lambda s: s.assign(**dict.fromkeys(["read", *FINDINGS], "")), UsageError, "no report is read yet"),
    ],
)
def test_a_sheet_that_does_not_fit_is_refused(tmp_path, truth, change, error, message):
    drawn(tmp_path)
    change(filled(tmp_path, truth, "reader1")).to_csv(tmp_path / "gold" / "reader1.csv", index=False)
    with pytest.raises(error, match=message) as caught:
        merged(tmp_path, ("reader1",))
    assert "s6000" not in str(caught.value)


def test_a_sample_is_not_overwritten_and_options_of_the_other_action_are_refused(tmp_path, truth):
    drawn(tmp_path)
    with pytest.raises(UsageError, match="has a sample already"):
        drawn(tmp_path)
    with pytest.raises(UsageError, match="--labels is not for gold sample"):
        GoldRequest(action="sample", files=["a.csv"], labels=["b.csv"])
    with pytest.raises(UsageError, match="--seed is not for gold merge"):
        GoldRequest(action="merge", files=["gold", "r.csv"], seed=1)
    with pytest.raises(UsageError, match="--shares"):
        GoldRequest(action="sample", files=["a.csv"], shares=[0, 50, 50])


def test_ids_that_look_like_formulas_come_back_as_they_were(tmp_path):
    studies = [f"-{k}" for k in range(40)]
    table = pd.DataFrame({"study_id": studies, "Mass": [0, 1] * 20})
    for name in "ab":
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    design = drawn(tmp_path, studies=10)
    assert set(Design.read(str(tmp_path / "gold")).table["study_id"]) == set(design.table["study_id"]) <= set(studies)
