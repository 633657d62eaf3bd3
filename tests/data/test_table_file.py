"""A table is read whatever Excel, Windows or pandas has made of it; what is in doubt is refused with its cause."""

from __future__ import annotations

import io
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_ray.data.column_names import is_no_finding
from cxrlt_ray.data.table_file import TableFile, header, parsed_table
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

TABLE = pd.DataFrame(
    {
        "image_id": ["007", "a", "b"],
        "report": ["two\nlines", "a, b; c\td", 'a "quote"'],
        "Épanchement": [1, 0, 1],
        "Mass": [0.5, 0.25, None],
    }
)


def _parsed(content: bytes | str, **options) -> TableFile:
    content = content if isinstance(content, bytes) else content.encode()
    return parsed_table(content, "t.csv", **{"text": ("image_id", "report")} | options)


def _refusal(content: bytes | str) -> str:
    with pytest.raises(CxrltError) as caught:
        _parsed(content)
    return str(caught.value)


def _csv(**options) -> str:
    return TABLE.to_csv(index=False, **options)


AS_PEOPLE_SAVE_IT = {
    "plain": (_csv().encode(), ""),
    "gzip": (None, ""),
    "byte-order mark": (_csv().encode("utf-8-sig"), ""),
    "Windows' line ends": (_csv(lineterminator="\r\n").encode(), ""),
    "all quoted": (_csv(quoting=1).encode(), ""),
    "Excel's Unicode text": (_csv(sep="\t").encode("utf-16"), "UTF-16.*tab"),
    "UTF-16, big end first": (b"\xfe\xff" + _csv().encode("utf-16-be"), "UTF-16"),
    "UTF-16 without mark": (_csv().encode("utf-16-le"), "UTF-16"),
    "UTF-32": (_csv().encode("utf-32"), "UTF-32"),
    "Latin-1": (_csv().encode("latin-1"), "cp1252"),
    "a typographic apostrophe": (_csv().replace("Mass", "Crohn’s").encode("cp1252"), "cp1252"),
    "semicolons": (_csv(sep=";").encode(), "semicolon"),
    "tabs": (_csv(sep="\t").encode(), "tab"),
    "bars": (_csv(sep="|").encode(), "separator |"),
    "decimal commas": (_csv(sep=";", decimal=",").encode(), "semicolon.*decimal commas in 1 column"),
    "a sep line": (("sep=;\r\n" + _csv(sep=";")).encode(), "semicolon"),
    "lines before it": (("\r\n\r\n" + _csv()).encode(), ""),
    "headers with blanks": (_csv().replace("Mass", " Mass ").encode(), ""),
    "headers in other case": (_csv().replace("image_id", "Image ID").encode(), "'Image ID' taken as 'image_id'"),
    "empty cells as words": (_csv(na_rep="NaN").encode(), ""),
    "an index": (TABLE.to_csv().encode(), ""),
}


@pytest.mark.parametrize("form", AS_PEOPLE_SAVE_IT)
def test_the_same_table_is_read_from_whatever_form_it_is_saved_in_and_others_than_the_plain_are_remarked_on(form):
    import gzip
    import re

    content, remark = AS_PEOPLE_SAVE_IT[form]
    read = _parsed(gzip.compress(_csv().encode()) if content is None else content)
    frame = read.table.to_pandas().rename(columns={"Crohn’s": "Mass"})[list(TABLE)]
    pd.testing.assert_frame_equal(frame, TABLE, check_dtype=False)
    said = ", ".join(read.remarks)
    assert bool(said) == bool(remark)
    assert re.search(remark, said)


def test_empty_columns_and_rows_that_excel_leaves_are_left_out_and_counted():
    lines = [f"{line}," if k % 2 else f"{line},," for k, line in enumerate(["id,Mass", "a,1", "b,0"])]
    for ends in ([",,,"] * 3, ["", ",,,", ""]):
        read = _parsed("\r\n".join([f"{line.rstrip(',')},," for line in lines] + ends))
        assert read.table.to_pydict() == {"id": ["a", "b"], "Mass": [1, 0]}
        assert "2 columns without a name or a cell" in ", ".join(read.remarks)
    assert _parsed("id,Mass\na,1,,\nb,0,,\n").table.to_pydict() == {"id": ["a", "b"], "Mass": [1, 0]}


def test_a_column_without_a_name_that_holds_something_is_kept_as_no_finding():
    (unnamed, mass) = _parsed(",Mass\n5,1\n7,0\n").table.column_names
    assert is_no_finding(unnamed)
    assert not is_no_finding(mass)


def test_a_comma_in_a_number_is_a_decimal_point_only_where_it_can_be_nothing_else():
    assert _parsed("id;p\na;1,234\nb;5,678\n").table["p"].to_pylist() == ["1,234", "5,678"]  # or thousands
    assert _parsed("id;p\na;1,234\nb;0,5\n").table["p"].to_pylist() == [1.234, 0.5]
    assert _parsed('id,p\na,"0,5"\nb,"0,25"\n').table["p"].to_pylist() == ["0,5", "0,25"]
    assert _parsed("image_id;p\n1,5;0,5\n").table["image_id"].to_pylist() == ["1,5"]  # text stays as written


def test_two_columns_of_one_name_but_for_case_stay_two():
    assert _parsed("image_id,Image_ID,Mass\na,b,1\n").table.column_names == ["image_id", "Image_ID", "Mass"]
    assert _parsed("Image-Id,Image ID,Mass\na,b,1\n").table.column_names == ["Image-Id", "Image ID", "Mass"]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("id,Очаг\n1,0\n".encode("cp1251"), "in doubt: save it as 'CSV UTF-8'"),
        ("id,肿块\n1,0\n".encode("gbk"), "in doubt"),
        ("id,neumonía\n1,0\n".encode("mac-roman"), "in doubt"),
        ("id,pleurésie\n1,0\n".encode("mac-roman"), "in doubt"),
        ("id,Épanchement é ü\n1,0\n".encode() + b"\xe9,1\n", "UTF-8 with some broken characters"),
        (b"\x00\x01\x02\x00\x05", "no text"),
        (b"\xff\xfea\x00,\x00b", "cut off"),
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\xef\xbb\xbf<html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b'{"a": 1}', "JSON"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), r"before 2007 \(.xls\)"),
        (b"id,Mass,Nodule\na,1,0\nb,1\n", "Expected 3 columns, got 2. A separator stands in a cell without quotes, or"),
        (b"id,Mass\na,1,0\n", "Expected 2 columns, got 3"),
        (b"id,Mass,Mass\na,1,0\n", "has column 'Mass' twice"),
    ],
)
def test_what_is_in_doubt_or_no_table_is_refused_with_its_likely_cause(content, cause):
    import re

    assert re.search(cause, _refusal(content))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("aé,;\t\"' \nß0", min_size=1, max_size=6), min_size=1, max_size=6),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_text_comes_back_from_any_separator_and_encoding(cells, separator, encoding):
    frame = pd.DataFrame({"image_id": [str(k) for k in range(len(cells))], "report": cells, "Mass": 1})
    read = _parsed(frame.to_csv(index=False, sep=separator, quoting=1).encode(encoding))
    assert read.table["report"].to_pylist() == cells


def test_a_header_is_read_as_the_table_is(tmp_path: Path):
    for name, content in (("a.csv", _csv(sep=";").encode("utf-16")), ("b.csv", b'sep=;\n"image_id";Mass\n1;2\n')):
        (tmp_path / name).write_bytes(content)
        known = ("image_id",)
        assert header(Store(str(tmp_path)), name, known) == parsed_table(content, name, known=known).table.column_names
    assert header(Store(str(tmp_path)), "none.csv") == []


def _workbook() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return stream.getvalue()


def test_an_excel_file_without_openpyxl_is_refused_with_what_to_install(monkeypatch):
    from cxrlt_ray.data import workbook

    monkeypatch.setattr(workbook, "find_spec", lambda name: None)
    assert "pip install 'cxrlt-ray[excel]'" in _refusal(_workbook())


@pytest.mark.skipif(find_spec("openpyxl") is None, reason="needs openpyxl (the extra excel)")
def test_an_excel_file_is_read_as_its_csv(tmp_path: Path):
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        TABLE.to_excel(book, sheet_name="labels", index=False)
        TABLE.head(1).to_excel(book, sheet_name="notes", index=False)
    read = _parsed((tmp_path / "t.xlsx").read_bytes())
    pd.testing.assert_frame_equal(read.table.to_pandas(), TABLE, check_dtype=False)
    assert read.remarks == ("sheet 1 of 2",)
    assert "cannot be opened" in _refusal(_workbook())


def test_a_large_plain_table_is_read_about_as_fast_as_by_pyarrow_alone():
    import time

    from pyarrow import csv

    n = 200_000
    columns = {f"F{k}": np.arange(n) % 2 for k in range(20)}
    names = [f"images/i{k:07d}.png" for k in range(n)]
    content = pd.DataFrame({"image_id": names, "report": names, **columns}).to_csv(index=False).encode()

    def seconds(function) -> float:
        start = time.process_time()  # of all threads: how busy the machine is does not matter
        function()
        return time.process_time() - start

    alone = min(seconds(lambda: csv.read_csv(io.BytesIO(content))) for _ in range(3))
    assert min(seconds(lambda: _parsed(content)) for _ in range(3)) < 3 * alone + 0.5
