"""A table is read whatever kind of file holds it, and what is no table is refused in a sentence."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from member_tables import FINDINGS, Folder, archive, labels, same, scores

from cxrlt_ray.ensembling.members import read_npz
from cxrlt_ray.ensembling.tables import read_table
from cxrlt_ray.errors import CxrltError


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_every_kind_of_file_holds_the_same(folder: Folder):
    frame = scores(1)
    expected = read_table(folder.write("a.csv", frame))
    assert expected.index.tolist() == frame["dicom_id"].tolist()
    frame.to_csv(folder.path / "a.csv.gz", index=False)
    frame.to_parquet(folder.path / "a.parquet")
    frame.set_index("dicom_id").to_parquet(folder.path / "indexed.parquet")
    content = (folder.path / "a.csv").read_bytes()
    (folder.path / "excel.csv").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    with zipfile.ZipFile(folder.path / "a.zip", "w") as archive:
        archive.writestr("submission.csv", content)
        archive.writestr("__MACOSX/._submission.csv", b"\0")
    others = ("a.csv.gz", "a.parquet", "indexed.parquet", "excel.csv", "a.zip")
    for path in [*(str(folder.path / name) for name in others), f"file://{folder.path}/a.csv"]:
        read = read_table(path)
        pd.testing.assert_index_equal(read.index, expected.index)
        np.testing.assert_array_equal(read[FINDINGS].astype(np.float32), frame[FINDINGS])


@pytest.mark.parametrize("column", ["image_id", "id", "Image Index", "image", "filename"])
def test_image_ids_are_found_by_the_columns_name(folder: Folder, column):
    straight = folder.read([folder.write("a.csv", scores(0))])
    assert same(folder.read([folder.write("a.csv", scores(0).rename(columns={"dicom_id": column}))]), straight)


def test_image_ids_in_a_column_of_another_name_are_asked_for(folder: Folder):
    path = folder.write("a.csv", scores(0).rename(columns={"dicom_id": "uid"}))
    assert "a.csv has no column of image ids, dicom_id or image_id" in folder.told([path])
    assert "--id-column" in folder.told([path])
    folder.write("labels.csv", labels().rename(columns={"dicom_id": "uid"}))
    assert folder.read([path], id_column="uid").image_id[7] == "0007"
    told = folder.told([path], id_column="pid")
    assert "labels.csv has no column of image ids, pid; it has 'uid', 'subject_id'" in told


def test_text_far_down_in_a_large_file_is_told_too(folder: Folder):
    ids = [f"image-{k}" for k in range(200_000)]  # several of the blocks that the parser takes at a time
    table = pd.DataFrame({"id": ids, "Mass": 0, "Nodule": 1})
    folder.write("labels.csv", table)
    table = table.astype({"Mass": object})
    table.loc[100_000, "Mass"] = 0.25
    assert folder.read([folder.write("a.csv", table)]).predictions[0, 100_000, 0] == 0.25
    table.loc[199_999, "Mass"] = "high"
    assert "finding 'Mass' in row 200000 (line 200001) is text:" in folder.told([folder.write("a.csv", table)])


def test_numbers_written_as_text_are_numbers(folder: Folder):
    straight = folder.read([folder.write("a.csv", scores(0))])
    scores(0).astype(dict.fromkeys(FINDINGS, str)).to_parquet(folder.path / "a.parquet")
    assert same(folder.read([str(folder.path / "a.parquet")]), straight)


def test_repeated_images_and_columns_are_refused(folder: Folder):
    again = pd.concat([scores(0), scores(1).iloc[[9, 2]]])
    assert folder.told([folder.write("a.csv", again)]) == (
        "a.csv: an image stands twice, again in row 31 (line 32) (and 1 more like it): keep one row an image."
    )
    again = pd.concat([scores(0), scores(1)[["Mass"]]], axis=1)
    assert "a.csv has column 'Mass' twice" in folder.told([folder.write("a.csv", again)])
    folder.write("labels.csv", pd.concat([labels(), labels().iloc[[5]]]))
    assert "labels.csv: an image stands twice, again in row 31 (line 32):" in folder.told(folder.three())


def test_row_without_id_and_file_without_rows_are_refused(folder: Folder):
    frame = scores(0)
    frame.loc[4, "dicom_id"] = None
    assert "a.csv: column 'dicom_id' is empty in row 5" in folder.told([folder.write("a.csv", frame)])
    assert "a.csv has no rows" in folder.told([folder.write("a.csv", frame[:0])])


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b""), ("a.csv", b"id,b\n1,2\n3,4,5\n"), ("a.parquet", b"PAR1"), ("a.zip", b"PK")]
)
def test_file_that_is_no_table_is_named(folder: Folder, name, content):
    (folder.path / name).write_bytes(content)
    assert f"{name} cannot be read as a table: " in folder.told([str(folder.path / name)])


def test_file_that_is_not_there_and_zip_without_csv_are_named(folder: Folder):
    assert "none.csv cannot be read" in folder.told([str(folder.path / "none.csv")])
    with zipfile.ZipFile(folder.path / "a.zip", "w"):
        pass
    assert "a.zip cannot be read as a table: the archive holds 0 CSV files" in folder.told([str(folder.path / "a.zip")])


def test_file_that_is_no_npz_is_named(folder: Folder):
    for content in (b"", b"id,Mass\n1,0.5\n", _npy()):
        (folder.path / "bad.npz").write_bytes(content)
        with pytest.raises(CxrltError, match=r"bad\.npz cannot be read as an \.npz of plain arrays"):
            read_npz(str(folder.path / "bad.npz"))
    with pytest.raises(CxrltError, match=r"none\.npz cannot be read"):
        read_npz(str(folder.path / "none.npz"))
    assert "all.npz holds arrays, not a table" in folder.told([archive(folder)])


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()
