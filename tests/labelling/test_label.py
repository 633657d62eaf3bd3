"""The command: what it reads, what it writes, and what it says of bad input, never a report's text or an id."""

from __future__ import annotations

import gzip
import os

import pandas as pd
import pyarrow.parquet as pq
import pytest

from cxrlt_ray import label
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.labels import read_labels

SECRET = "Mister Nobody has a large effusion."


def run(tmp_path, reports, **options) -> pd.DataFrame:
    label.run(label.LabelRequest(reports=str(reports), out=str(tmp_path / "out" / "labels.csv"), **options))
    return read_labels(str(tmp_path / "out" / "labels.csv"), options.get("id_column")).table


def evidence(tmp_path) -> pd.DataFrame:
    return pq.read_table(tmp_path / "out" / "evidence.parquet").to_pandas()


def write_tree(folder, texts: dict[str, bytes]):
    for k, (name, text) in enumerate(texts.items()):
        path = folder / "files" / "p10" / f"p1000000{k}" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return folder


def test_a_tree_as_mimic_has_it_in_any_usual_encoding(tmp_path, capsys):
    texts = {
        "s1": b"FINDINGS: Small effusion.\r\n\r\nIMPRESSION: No pneumothorax.\r\n",
        "s2": b"\xef\xbb\xbfIMPRESSION: Cardiomegaly \x96 r\xc3\xa9sum\xc3\xa9.".replace(b"\x96", b"-"),
        "s3": "IMPRESSION: Nodule in the café.".encode("cp1252"),
        "s4": "IMPRESSION: Edema.".encode("utf-16"),
        "s5": b"IMPRESSION: Emph\0ysema? Pneumonia.",
        "s6": b"",
        "s7": b"\xff\xfe\x00",
        "s8": b"INDICATION: Edema.\rFINDINGS: Small effusion.\rIMPRESSION: Hernia.\r",
    }
    root = write_tree(tmp_path / "mimic", texts)
    (root / "CLASSES.txt").write_text("no report")
    labels = run(tmp_path, root)
    assert labels.columns.tolist() == list(ALL_FINDINGS)
    assert labels.loc["s1", ["Pleural Effusion", "Pneumothorax"]].tolist() == [1, 0]
    assert [labels.loc[s, f] for s, f in (("s2", "Cardiomegaly"), ("s3", "Nodule"), ("s4", "Edema"))] == [1, 1, 1]
    assert labels.loc["s5", "Pneumonia"] == 1
    assert labels.loc["s8", ["Pleural Effusion", "Hernia"]].tolist() == [1, 1]
    assert labels.loc["s8", ["Edema"]].isna().all()
    hernia = evidence(tmp_path).query("study_id == 's8' and finding == 'Hernia'").iloc[0]
    assert texts["s8"][hernia["begin"] : hernia["end"]] == b"Hernia"
    assert labels.loc[["s6", "s7"]].isna().all(axis=None)
    table = pd.read_csv(tmp_path / "out" / "labels.csv", dtype=str)
    assert table["subject_id"].tolist()[0] == "10000000"
    said = capsys.readouterr().out
    assert "2 of 8 reports have no text that is read" in said
    assert "1 other .txt files" in said


def test_a_table_with_quoted_newlines_and_its_evidence_in_the_cells_own_places(tmp_path):
    table = pd.DataFrame(
        {
            "study_id": ["1", "2"],
            "findings": ["Heart is\nenlarged, as before.", ""],
            "impression": ["No effusion; no pneumothorax.", "Small left\r\neffusion."],
        }
    )
    table.to_csv(tmp_path / "reports.csv", index=False)
    labels = run(tmp_path, tmp_path / "reports.csv")
    assert labels.loc["1", ["Cardiomegaly", "Pleural Effusion"]].tolist() == [1, 0]
    places = {(row.study_id, row.finding): (row.column, row.begin, row.end) for row in evidence(tmp_path).itertuples()}
    column, begin, end = places["1", "Cardiomegaly"]
    assert (column, table.loc[0, column][begin:end]) == ("findings", "Heart is\nenlarged")
    column, begin, end = places["2", "Pleural Effusion"]
    assert (column, table.loc[1, column][begin:end]) == ("impression", "effusion")


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz", "r.tsv", "r.parquet"])
def test_tables_of_any_form_give_the_same_labels(tmp_path, name):
    table = pd.DataFrame({"id": ["a1", "a2"], "text": ["Cardiomegaly.", "No effusion."], "subject_id": [7, 8]})
    path = tmp_path / name
    if name.endswith("parquet"):
        table.to_parquet(path)
    else:
        content = table.to_csv(index=False, sep="\t" if "tsv" in name else ",").encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    labels = run(tmp_path, path, id_column="id")
    assert labels.loc["a1", "Cardiomegaly"] == 1
    assert labels.loc["a2", "Pleural Effusion"] == 0
    assert pd.read_csv(tmp_path / "out" / "labels.csv")["subject_id"].tolist() == [7, 8]


def test_to_explain_one_study_of_a_tree_only_its_file_is_read(tmp_path, monkeypatch, capsys):
    from cxrlt_ray.storage import Store

    root = write_tree(tmp_path / "mimic", {f"s{k}": b"IMPRESSION: Edema." for k in range(9)})
    opened, read = [], Store.read
    monkeypatch.setattr(Store, "read", lambda store, name, *rest: opened.append(name) or read(store, name, *rest))
    label.run(label.LabelRequest(reports=str(root), explain="s7"))
    assert "[Edema|1]" in capsys.readouterr().out
    assert [name.rpartition("/")[2] for name in opened if name.endswith(".txt")] == ["s7.txt"]


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
def test_a_table_without_rows_is_refused_and_nothing_is_left(tmp_path, name):
    table = pd.DataFrame({"study_id": pd.Series([], dtype=str), "text": pd.Series([], dtype=str)})
    table.to_parquet(tmp_path / name) if name.endswith("parquet") else table.to_csv(tmp_path / name, index=False)
    with pytest.raises(UsageError, match=r"no reports to label: .* has no rows"):
        run(tmp_path, tmp_path / name)
    assert not (tmp_path / "out" / "labels.csv").exists()


def test_ids_of_which_pandas_made_floats_are_whole_numbers_again(tmp_path):
    table = pd.DataFrame({"study_id": [1.0, 2.0, 3.0], "subject_id": [10.0, None, 11.0], "text": ["Edema."] * 3})
    table.to_parquet(tmp_path / "r.parquet")
    run(tmp_path, tmp_path / "r.parquet")
    written = pd.read_csv(tmp_path / "out" / "labels.csv", dtype=str, keep_default_na=False)
    assert written["study_id"].tolist() == ["1", "2", "3"]
    assert written["subject_id"].tolist() == ["10", "", "11"]


def test_a_columns_name_that_would_steer_the_terminal_is_not_shown(tmp_path, capsys):
    (tmp_path / "r.csv").write_text("study_id,te\x1b[31mxt\na,No effusion.\n")
    with pytest.raises(UsageError, match=r"it has 'study_id', \(not shown\)") as refusal:
        run(tmp_path, tmp_path / "r.csv")
    (tmp_path / "r.csv").write_text("study_id,t\x9bext\na,No effusion.\n")
    run(tmp_path, tmp_path / "r.csv")
    (tmp_path / "r.csv").write_text("study_id,text,t\x1bx,t\x1bx\na,No effusion.,1,2\n")
    with pytest.raises(CxrltError, match=r"column \(not shown\) twice") as twice:
        run(tmp_path, tmp_path / "r.csv")
    said = capsys.readouterr().out.replace("\n", "")
    assert all(text.isprintable() for text in (str(refusal.value), str(twice.value), said))


def test_a_manifest_of_images_names_each_studys_report_once(tmp_path):
    root = write_tree(tmp_path / "mimic", {"s1": b"IMPRESSION: Cardiomegaly."})
    row = {"image_id": "i", "study_id": "s1", "subject_id": "1", "view": "PA", "path": "i.jpg", "split": "train"}
    row |= {"report": "files/p10/p10000000/s1.txt", "cohort": "main"}
    table = pd.DataFrame([row, row | {"image_id": "j"}]).astype("str")
    for name in ("sex", "age", "race", "photometric"):
        table[name] = None
    Manifest(table, (), "mimic", str(root)).table.to_csv(root / "manifest.csv", index=False)
    assert run(tmp_path, root / "manifest.csv").loc["s1", "Cardiomegaly"] == 1


@pytest.mark.parametrize(("policy", "value"), [("keep", -1), ("one", 1), ("zero", 0), ("null", None), ("policy", 0)])
def test_policies_for_uncertain(tmp_path, policy, value):
    (tmp_path / "s1.txt").write_text("Possible pneumonia.")
    labels = run(tmp_path, tmp_path, uncertain=policy, findings=["Pneumonia"])
    assert labels.columns.tolist() == ["Pneumonia"]
    assert (labels.loc["s1", "Pneumonia"] == value) if value is not None else pd.isna(labels.loc["s1", "Pneumonia"])


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("1", SECRET), ("1", "Other.")], "row 1 and row 2 are of one study and hold different reports"),
        ([("", SECRET)], "row 1 has no study_id"),
        ([("=1+1", SECRET)], "row 1 has an id that a spreadsheet would take for a formula"),
        ([("@x", SECRET)], "formula"),
    ],
)
def test_what_is_in_doubt_is_refused_without_text_or_ids(tmp_path, rows, sentence):
    pd.DataFrame(rows, columns=["study_id", "text"]).to_csv(tmp_path / "r.csv", index=False)
    with pytest.raises(CxrltError, match=sentence) as refusal:
        run(tmp_path, tmp_path / "r.csv")
    assert "Nobody" not in str(refusal.value)
    assert not (tmp_path / "out" / "labels.csv").exists()


def test_a_report_that_is_repeated_word_for_word_is_read_once_and_a_missing_subject_stays_empty(tmp_path, capsys):
    rows = [("1", "7", SECRET), ("1", "7", SECRET), ("2", "", "Cardiomegaly.")]
    pd.DataFrame(rows, columns=["study_id", "subject_id", "text"]).to_csv(tmp_path / "r.csv", index=False)
    assert len(run(tmp_path, tmp_path / "r.csv")) == 2
    said = capsys.readouterr().out
    assert "1 rows repeat a study's report word for word" in said
    assert "1 studies have no subject_id" in said
    assert "Nobody" not in said


def test_another_language_is_warned_of_and_left_blank(tmp_path, capsys):
    text = "Sin derrame pleural. Silueta cardiaca de tamano normal. No se observa neumotorax."
    (tmp_path / "s1.txt").write_text(text)
    assert run(tmp_path, tmp_path).isna().all(axis=None)
    assert "1 of 1 reports are not in English" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"uncertain": "maybe"}, "--uncertain takes keep, one, zero, null, policy, not 'maybe'"),
        ({"by": "hand"}, "--by takes rules, llm"),
        ({"out": "labels.xlsx"}, "must end in .csv"),
        ({"normal_blocked_by": ["all"]}, "--normal-blocked-by takes"),
        ({"findings": ["Effusion"]}, "no rules for finding 'Effusion'"),
        ({"id_column": "uid"}, "no column 'uid' \\(--id-column"),
        ({"text_column": ["body"]}, "no column 'body' \\(--text-column"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, sentence):
    pd.DataFrame({"study_id": ["1"], "text": [SECRET]}).to_csv(tmp_path / "r.csv", index=False)
    with pytest.raises(UsageError, match=sentence):
        label.run(label.LabelRequest(**{"reports": str(tmp_path / "r.csv"), "out": str(tmp_path / "o.csv")} | options))


def test_no_reports(tmp_path):
    with pytest.raises(UsageError, match=r"holds no \.txt file"):
        run(tmp_path, tmp_path)
    with pytest.raises(UsageError, match="no reports at"):
        run(tmp_path, tmp_path / "none.csv")
    with pytest.raises(UsageError, match="which reports"):
        label.LabelRequest()


def test_explain_prints_the_report_with_its_marks(tmp_path, capsys):
    (tmp_path / "s1.txt").write_text("FINDINGS: No effusion.\nHeart is enlarged.")
    label.run(label.LabelRequest(reports=str(tmp_path), explain="s1"))
    said = capsys.readouterr().out
    assert "No [effusion|1]." in said
    assert "Pleural Effusion: 0 in FINDINGS, sentence 1: 'effusion*', by 'No'" in said
    assert "labels: Cardiomegaly 1, Normal 0, Pleural Effusion 0" in said
    with pytest.raises(UsageError, match="no report of that study"):
        label.run(label.LabelRequest(reports=str(tmp_path), explain="s2"))


def test_check_needs_no_reports_and_fails_for_a_wrong_example(tmp_path, capsys):
    label.run(label.LabelRequest(check=True))
    assert "examples of 45 findings are labelled as they say" in capsys.readouterr().out
    (tmp_path / "mass.yaml").write_text(
        "finding: Mass\ndefinition: A mass.\nphrases: [lump]\nexamples: [{text: A mass., label: 1}]\n"
    )
    with pytest.raises(CxrltError, match="1 clashes"):
        label.run(label.LabelRequest(check=True, rules=str(tmp_path)))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    (tmp_path / "s1.txt").write_text("Cardiomegaly.")
    write = pq.ParquetWriter.write_table

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(CxrltError, match="the disk is full"):
        run(tmp_path, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(pq.ParquetWriter, "write_table", write)
    assert len(run(tmp_path, tmp_path)) == 1


def test_ctrl_c_leaves_nothing_half_and_the_same_command_ends(tmp_path, monkeypatch):
    from cxrlt_ray.labelling.labeller import Labeller

    (tmp_path / "s1.txt").write_text("Cardiomegaly.")
    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "read", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []
    assert len(run(tmp_path, tmp_path)) == 1


def test_many_reports_are_labelled_by_ray_in_their_order(tmp_path, monkeypatch, ray):
    from cxrlt_ray.labelling import labelled, reports

    rows = [(str(k), "Cardiomegaly." if k % 3 else "No effusion.") for k in range(57)]
    pd.DataFrame(rows, columns=["study_id", "text"]).to_csv(tmp_path / "r.csv", index=False)
    alone = run(tmp_path, tmp_path / "r.csv")
    monkeypatch.setattr(labelled, "RAY_FROM", 0)
    monkeypatch.setattr(reports, "PIECE", 10)
    pd.testing.assert_frame_equal(run(tmp_path, tmp_path / "r.csv"), alone)
