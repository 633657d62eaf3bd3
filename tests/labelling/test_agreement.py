"""`agree`: table 8's form; uncertain and blank count as is said; tables that do not match are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from cxrlt_ray import agree
from cxrlt_ray.agree import AgreeRequest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation.published import published_label_precision
from cxrlt_ray.labelling.labels import evidence_schema

FINDINGS = ["Edema", "Mass", "Pneumonia"]


def drawn(folder: Path, studies: int = 200) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """gold.csv, good.csv and poor.csv in `folder`, and what they hold."""
    rng = np.random.default_rng(0)
    gold = pd.DataFrame((rng.random((studies, 3)) < 0.3).astype(int), columns=FINDINGS)
    ids = {"study_id": [f"s{50_000_000 + k}" for k in range(studies)], "subject_id": np.arange(studies) // 2}
    tables = {}
    for name, wrong in {"good": 0.03, "poor": 0.2}.items():
        flipped = rng.random(gold.shape) < wrong
        tables[name] = gold.where(~flipped, 1 - gold)
    for name, table in {"gold": gold, **tables}.items():
        table.assign(**ids)[[*ids, *FINDINGS]].to_csv(folder / f"{name}.csv", index=False)
    return gold, tables


def asked(folder: Path, *names: str, **options: object) -> AgreeRequest:
    labels = [str(folder / f"{name}.csv") for name in names]
    return AgreeRequest(gold=str(folder / "gold.csv"), labels=labels, **{"rounds": 200, **options})


def test_mean_is_the_plain_mean_of_findings_and_the_better_labeller_is_better_beyond_chance(tmp_path, capsys):
    gold, tables = drawn(tmp_path)
    agreement = agree.run(asked(tmp_path, "good", "poor"))
    for name, table in tables.items():
        each = [reference.precision_score(gold[f], table[f]) for f in FINDINGS]
        assert agreement.rates[name].macro["precision"].value == pytest.approx(np.mean(each))
        assert agreement.rates[name].of_finding["kappa"][1] == pytest.approx(
            reference.cohen_kappa_score(gold["Mass"], table["Mass"])
        )
    assert agreement.subjects == 100
    assert agreement.differences["poor"]["pooled", "f1"].low > 0
    printed = capsys.readouterr().out
    assert "uncertain (-1) counts as 0" in printed
    assert "GPT-4o" in printed
    assert "s5000" not in printed


def test_the_papers_means_are_plain_means_over_its_26_findings():
    means = [round(float(np.mean(list(values.values()))), 4) for values in published_label_precision().values()]
    assert means == [0.7114, 0.7863]
    assert all(len(values) == 26 for values in published_label_precision().values())


@pytest.mark.parametrize(
    ("options", "affirmed"),
    [({}, 1), ({"uncertain": "one"}, 2), ({"uncertain": "null"}, 1)],
)
def test_uncertain_counts_as_it_is_asked_for(tmp_path, options, affirmed):
    pd.DataFrame({"study_id": ["a", "b", "c", "d"], "Mass": [1, 1, 0, 0]}).to_csv(tmp_path / "gold.csv", index=False)
    pd.DataFrame({"study_id": ["a", "b", "c", "d"], "Mass": [1, -1, 0, None]}).to_csv(tmp_path / "x.csv", index=False)
    rates = agree.run(asked(tmp_path, "x", **options)).rates["x"].of_finding
    positives = 1 if options == {"uncertain": "null"} else 2  # of those that are compared
    assert rates["recall"][0] == affirmed / positives


def test_blank_cells_of_the_gold_are_not_scored_unless_asked(tmp_path):
    pd.DataFrame({"study_id": list("abc"), "Mass": [1, None, 0]}).to_csv(tmp_path / "gold.csv", index=False)
    pd.DataFrame({"study_id": list("abc"), "Mass": [1, 1, 0]}).to_csv(tmp_path / "x.csv", index=False)
    assert agree.run(asked(tmp_path, "x")).rates["x"].of_finding["precision"][0] == 1
    assert agree.run(asked(tmp_path, "x", gold_blank="zero")).rates["x"].of_finding["precision"][0] == 0.5


def test_disagreements_come_with_their_evidence_and_are_safe_in_a_spreadsheet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pd.DataFrame({"study_id": ["=a", "b"], "Mass": [0, 1]}).to_csv(tmp_path / "gold.csv", index=False)
    pd.DataFrame({"study_id": ["=a", "b"], "Mass": [1, 1]}).to_csv(tmp_path / "x.csv", index=False)
    mention = {"study_id": "=a", "finding": "Mass", "value": 1, "column": "text", "section": "FINDINGS", "sentence": 2}
    mention |= {"begin": 40, "end": 44, "phrase": "-mass", "trigger": ""}
    pq.write_table(pa.Table.from_pylist([mention], evidence_schema()), tmp_path / "evidence.parquet")
    agree.run(asked(tmp_path, "x", disagreements=str(tmp_path / "differ.csv")))
    table = pd.read_csv(tmp_path / "differ.csv")
    assert table[["finding", "gold", "x"]].to_numpy().tolist() == [["Mass", 0, 1]]
    assert table["study_id"][0] == "'=a"
    assert table["x evidence"][0] == "'-mass [FINDINGS, sentence 2, 40-44]"
    assert (tmp_path / "differ.csv").stat().st_mode & 0o077 == 0


def test_evidence_is_found_where_ids_differ_by_mimics_s(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pd.DataFrame({"study_id": [50000001, 50000002], "Mass": [0, 1]}).to_csv(tmp_path / "gold.csv", index=False)
    pd.DataFrame({"study_id": ["s50000001", "s50000002"], "Mass": [1, 1]}).to_csv(tmp_path / "x.csv", index=False)
    place = {"value": 1, "column": "", "section": "FINDINGS", "sentence": 2, "begin": 40, "end": 44, "trigger": ""}
    mentions = [{"study_id": f"s5000000{k}", "finding": "Mass", "phrase": f"mass {k}"} | place for k in (1, 2, 3)]
    pq.write_table(pa.Table.from_pylist(mentions, evidence_schema()), tmp_path / "evidence.parquet")
    agree.run(asked(tmp_path, "x", disagreements=str(tmp_path / "differ.csv")))
    assert pd.read_csv(tmp_path / "differ.csv")["x evidence"].tolist() == ["mass 1 [FINDINGS, sentence 2, 40-44]"]


def test_ids_with_and_without_mimics_s_and_a_byte_order_mark_match(tmp_path, capsys):
    drawn(tmp_path)
    text = (tmp_path / "good.csv").read_text().replace("\ns", "\n")
    (tmp_path / "good.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert agree.run(asked(tmp_path, "good")).studies == 200
    assert "without their leading s" in capsys.readouterr().out


def test_studies_that_a_table_lacks_are_left_out_and_counted(tmp_path, capsys):
    drawn(tmp_path)
    pd.read_csv(tmp_path / "good.csv").iloc[:150].to_csv(tmp_path / "good.csv", index=False)
    assert agree.run(asked(tmp_path, "good", "poor")).studies == 150
    assert "50 of 200" in capsys.readouterr().out


def other_ids(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(study_id=[f"x{k}" for k in range(len(table))])


def other_subjects(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(subject_id=table["subject_id"].to_numpy()[::-1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (other_ids, UsageError, "share no study"),
        (other_subjects, CxrltError, "different subjects"),
        (lambda t: pd.concat([t, t.iloc[:1]]), CxrltError, "repeat a study"),
        (lambda t: t.rename(columns=dict(zip(FINDINGS, "xyz", strict=True))), UsageError, "share no finding"),
        (lambda t: t.assign(Mass=7), CxrltError, "Mass"),
        (lambda t: t.assign(study_id=[None, *t["study_id"][1:]]), CxrltError, "'study_id' is empty in 1 row"),
    ],
)
def test_tables_that_do_not_match_are_refused_without_an_id_in_the_message(tmp_path, change, error, message):
    drawn(tmp_path)
    change(pd.read_csv(tmp_path / "good.csv")).to_csv(tmp_path / "good.csv", index=False)
    with pytest.raises(error, match=message) as caught:
        agree.run(asked(tmp_path, "good"))
    assert "s5000" not in str(caught.value)


def test_a_finding_that_a_table_lacks_is_refused(tmp_path):
    drawn(tmp_path)
    with pytest.raises(UsageError, match="no finding 'Hernia'"):
        agree.run(asked(tmp_path, "good", findings=["Hernia"]))


def test_inclusion_probabilities_of_the_gold_weigh_it(tmp_path):
    gold = {"study_id": list("abcd"), "inclusion_probability": [1, 0.25, 1, 0.5], "Mass": [1, 0, 0, 0]}
    pd.DataFrame(gold).to_csv(tmp_path / "gold.csv", index=False)
    pd.DataFrame({"study_id": list("abcd"), "Mass": [1, 1, 0, 0]}).to_csv(tmp_path / "x.csv", index=False)
    agreement = agree.run(asked(tmp_path, "x"))
    assert agreement.rates["x"].of_finding["precision"][0] == pytest.approx(1 / 5)
    pd.DataFrame({**gold, "inclusion_probability": [1, 0, 1, 2]}).to_csv(tmp_path / "gold.csv", index=False)
    with pytest.raises(CxrltError, match="2 cells that are no probability"):
        agree.run(asked(tmp_path, "x"))
