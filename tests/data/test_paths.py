"""Paths as tables have them are settled once, by what is on disk and only where that is beyond doubt."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from cxrlt_ray import cli
from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.data.originals import read_original
from cxrlt_ray.data.paths import SAMPLE, settled
from cxrlt_ray.storage import Store

NAMES = [f"images/p{k // 2}/Img{k}.png" for k in range(24)]


def _files(root: Path, names: list[str]) -> Store:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return Store(str(root))


def _settled(root: Store, paths: list[str]) -> tuple[list[str], str]:
    found, notes = settled(pd.Series(paths, dtype="str"), root, "labels.csv")
    return found.tolist(), " ".join(notes)


FORMS = {
    "as they are": (lambda p: p, ""),
    "backslashes": (lambda p: p.replace("/", "\\"), r"with / for \\,"),
    "two slashes": (lambda p: p.replace("/", "//"), "without // and ./"),
    "./": (lambda p: f"./{p}", "without // and ./"),
    "another case": (str.upper, "another case or ending"),
    "another ending": (lambda p: p.replace(".png", ".jpg"), r"\(.png for .jpg\)"),
    "no ending": (lambda p: p.removesuffix(".png"), "for no ending"),
    "from /": (lambda p: f"/{p}", "by file name"),
    "another machine": (lambda p: f"/home/x/cxr/{p}", "without 'home/x/cxr/'"),
    "Windows": (lambda p: "D:\\cxr\\" + p.replace("/", "\\"), "without 'cxr/'"),
    "a URI": (lambda p: f"file:///mnt/{p}", "without 'mnt/'"),
    "a folder less": (lambda p: p.removeprefix("images/"), "in 'images/'"),
    "another folder": (lambda p: p.replace("images/", "/mnt/pngs/"), "without 'mnt/pngs/' and in 'images/'"),
    "from a folder beside": (lambda p: f"../data/{p}", r"without '\.\./data/'"),
}


@pytest.mark.parametrize(("there", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_with_accents_are_found_as_a_mac_has_copied_them(tmp_path, there, written):
    """It writes an accented letter as two characters, a table as one: both look alike."""
    names = [f"images/Jos\u00e9/\u00fcbersicht {k}.png" for k in range(4)]
    on_disk, paths = ([unicodedata.normalize(form, name) for name in names] for form in (there, written))
    assert on_disk != paths
    root = _files(tmp_path, on_disk)
    found, notes = _settled(root, paths)
    assert found == on_disk
    assert "4 paths are found under another case or ending (accents composed otherwise)" in notes
    found, _ = _settled(root, [f"/mnt/elsewhere/{path}" for path in paths])
    assert found == on_disk


@pytest.mark.parametrize("form", FORMS)
def test_paths_are_found_however_they_are_written_and_said_to_be(tmp_path, form):
    import re

    write, said = FORMS[form]
    found, notes = _settled(_files(tmp_path, NAMES), list(map(write, NAMES)))
    assert found == NAMES
    assert re.search(said, notes)
    assert bool(notes) == bool(said)


def test_absolute_paths_below_the_root_are_its_own(tmp_path):
    root = _files(tmp_path, NAMES)
    assert _settled(root, [f"{tmp_path}/{name}" for name in NAMES])[0] == NAMES


def test_images_without_an_ending_and_backslashes_in_names_on_disk_are_found(tmp_path):
    names = [f"images/1.2.{k}" for k in range(20)]
    assert _settled(_files(tmp_path / "a", names), [f"{name}.dcm" for name in names])[0] == names
    literal = [f"images\\{k}.png" for k in range(20)]
    assert _settled(_files(tmp_path / "b", literal), literal)[0] == literal


@pytest.mark.parametrize(
    ("files", "paths"),
    [
        (["a/1.png", "b/1.png"], ["/x/1.png"]),  # two of one name
        (["a/1.png", "a/1.jpg"], ["a/1"]),
        (["p7/s1/view1.png"], ["p5/s1/view1.png"]),  # another patient's
        (["p7/s1/view1.png"], ["/data/p5/s1/view1.png"]),
        (["a/1.png"], ["a/1.jpg", "a/1.tif"]),  # two rows for one file
        (["a/1.png"], ["a/1.png", "a/1.jpg"]),  # a file that another row has
        (["x/1.png", "y/2.png"], ["p1/1.png", "p2/2.png"]),
    ],
)
def test_a_match_that_is_in_doubt_is_none(tmp_path, files, paths):
    assert _settled(_files(tmp_path, files), paths)[0] == paths


def test_an_image_missing_among_many_is_not_replaced_by_one_in_another_folder(tmp_path):
    root = _files(tmp_path, [*NAMES[1:], f"old/{Path(NAMES[0]).name}"])
    assert _settled(root, NAMES)[0] == NAMES


def test_missing_images_are_told_with_what_was_tried_and_what_is_there_without_ids(tmp_path):
    found, notes = _settled(_files(tmp_path, NAMES), [f"images/x/scan{k}7001.png" for k in range(30)])
    assert "30 of 30 images are not below" in notes
    assert "tried: as written" in notes
    assert "xxxxxx/x/xxxx99999.png, those there are as" in notes
    assert "7001" not in notes
    assert found[0] == "images/x/scan07001.png"


def test_only_a_few_images_are_looked_for_and_nothing_is_listed_where_they_exist(tmp_path, monkeypatch):
    root, asked = _files(tmp_path, NAMES), []
    exists = Store.exists
    monkeypatch.setattr(Store, "exists", lambda self, name: asked.append(name) or exists(self, name))
    monkeypatch.setattr(os, "scandir", None)
    assert _settled(root, NAMES)[0] == NAMES
    assert 0 < len(asked) <= SAMPLE


def test_nothing_outside_the_data_is_found(tmp_path):
    root = _files(tmp_path / "data", ["a/0.png"])
    _files(tmp_path / "other", ["1.png"])
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other")
    paths = ["../other/1.png", "/etc/passwd", f"{tmp_path}/other/1.png"]
    assert _settled(root, paths)[0] == paths


def _summary(capsys, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.run("cohort", list(arguments))
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out + captured.err


def _table(root: Path, paths: list[str]) -> None:
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(len(paths))], "path": paths})
    table.assign(subject_id=table.index // 2, Mass=table.index % 3 // 2).to_csv(root / "labels.csv", index=False)


@pytest.mark.parametrize("form", ["two slashes", "backslashes", "another case", "another machine"])
def test_the_summary_and_the_reader_of_images_agree_on_paths(tmp_path, capsys, form):
    _files(tmp_path, NAMES)
    _table(tmp_path, list(map(FORMS[form][0], NAMES)))
    code, said = _summary(capsys, str(tmp_path))
    assert code == 0
    assert "0 images not on disk" in said
    assert "0 image files that no row names" in said
    table = read_cohort(str(tmp_path), task="auto").manifest.table
    assert all(read_original(str(tmp_path), path) == path.encode() for path in table["path"])


def test_the_summary_and_the_reader_of_images_agree_on_links(tmp_path, capsys, monkeypatch):
    _files(tmp_path / "data", [name.replace("images", ".hidden") for name in NAMES])
    (tmp_path / "data" / "images").symlink_to(".hidden")
    _table(tmp_path / "data", NAMES)
    assert _summary(capsys, str(tmp_path / "data"))[0] == 0
    (tmp_path / "farm" / "images").mkdir(parents=True)
    for k in range(24):
        (tmp_path / "farm" / "images" / f"{k}.png").symlink_to(tmp_path / "data" / NAMES[k])
    _table(tmp_path / "farm", [f"images/{k}.png" for k in range(24)])
    code, said = _summary(capsys, str(tmp_path / "farm"))
    assert code == 1
    assert "CXRLT_RAY_FOLLOW_LINKS=1 follows it" in said
    monkeypatch.setenv("CXRLT_RAY_FOLLOW_LINKS", "1")
    assert _summary(capsys, str(tmp_path / "farm"))[0] == 0
    for file in (tmp_path / "data" / ".hidden").rglob("*.png"):
        file.unlink()  # links to nowhere
    assert "24 images not on disk" in _summary(capsys, str(tmp_path / "farm"))[1]
