"""What is wrong with data is said in one sentence that names the place; the summary lists all of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import cli
from cxrlt_ray.cohort import examine, read_cohort
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.phantom import labels, tree

Change = Callable[[pd.DataFrame], pd.DataFrame]


def _table(count: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "image_id": [f"i{k}" for k in range(count)],
            "path": [f"x/{k}.png" for k in range(count)],
            "subject_id": [str(k // 2) for k in range(count)],
            "view": "PA",
            "split": np.repeat(["train", "val", "test"], [count - 12, 6, 6]),
            "Mass": rng.integers(0, 2, count).astype(str),
            "Nodule": rng.integers(0, 2, count).astype(str),
        }
    ).astype(str)


def _write(root: Path, change: Change = lambda table: table) -> Path:
    change(_table()).to_csv(root / "labels.csv", index=False)
    return root


def _set(row: int, column: str, value: str) -> Change:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return change


@pytest.fixture
def task(tmp_path) -> str:
    """A task file of the two findings, so that a bad cell is an error and not a column to ignore."""
    (tmp_path / "task.yaml").write_text("findings: [Mass, Nodule]")
    return str(tmp_path / "task.yaml")


BAD_TABLES: dict[str, tuple[Change, str]] = {
    "text for a label": (
        _set(3, "Mass", "yes"),
        r"labels.csv: column 'Mass', row 4 \(line 5\) holds 'yes': a label is",
    ),
    "NaN for a label": (_set(0, "Nodule", "NaN"), r"column 'Nodule', row 1 \(line 2\) holds nan"),
    "a share for a label": (_set(2, "Mass", "0.5"), r"column 'Mass', row 3 \(line 4\) holds 0.5"),
    "-1 for a label": (_set(2, "Mass", "-1"), r"column 'Mass', row 3 \(line 4\) holds -1"),
    "two bad labels": (
        lambda t: _set(3, "Mass", "x")(_set(1, "Mass", "y")(t)),
        r"row 2 .* holds 'y' \(and 1 more row\)",
    ),
    "an image twice": (
        _set(7, "image_id", "i2"),
        r"image 'i2' stands twice, in labels.csv row 3 and in labels.csv row 8",
    ),
    "a subject in two splits": (
        _set(0, "split", "test"),
        r"subject '0' stands in 2 splits, test \(1 image\) and train \(1 image\)",
    ),
    "more subjects in two splits": (
        lambda t: _set(0, "split", "test")(_set(2, "split", "val")(t)),
        r"subject '0' .* as do 1 more subject",
    ),
    "an unknown split": (_set(5, "split", "training"), r"column 'split', row 6 \(line 7\) holds 'training'"),
    "an empty id": (_set(4, "image_id", ""), r"column 'image_id' is empty in row 5 \(line 6\)"),
    "an empty path": (_set(4, "path", ""), r"column 'path' is empty in row 5"),
    "an empty subject": (_set(4, "subject_id", ""), r"column 'subject_id' is empty in row 5"),
    "no image_id": (lambda t: t.drop(columns="image_id"), r"labels.csv has no column 'image_id'; it has 'path'"),
    "no path and no subject": (
        lambda t: t.drop(columns=["path", "subject_id"]),
        r"labels.csv has no column 'path', 'subject_id'",
    ),
    "no training images": (lambda t: t.assign(split="test"), r"has no images of split train"),
    "no images": (lambda t: t.head(0), r"has no images"),
    "one subject": (
        lambda t: t.head(4).assign(subject_id="1").drop(columns="split"),
        r"split test cannot be carved from train: 1 subject is too few",
    ),
    "no finding column": (lambda t: t[t.columns[:5]], r"no finding column"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_in_one_sentence(tmp_path, task, name):
    change, sentence = BAD_TABLES[name]
    _write(tmp_path, change)
    with pytest.raises(CxrltError, match=sentence) as caught:
        read_cohort(str(tmp_path), task=task)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_good_table_is_not_refused(tmp_path, task):
    assert read_cohort(str(_write(tmp_path)), task=task).manifest.findings == ("Mass", "Nodule")


def test_empty_cells_are_not_labelled(tmp_path, task):
    manifest = read_cohort(str(_write(tmp_path, _set(3, "Mass", ""))), task=task).manifest
    row = (manifest.table["image_id"] == "i3").to_numpy()
    assert manifest.targets()[row, 0].tolist() == [-1]


def test_a_file_that_is_no_csv_is_named(tmp_path):
    _write(tmp_path)
    (tmp_path / "labels.csv").write_text("image_id,path,subject_id,Mass\n1,2\n")
    with pytest.raises(CxrltError, match=r"labels.csv cannot be read as CSV: .*Expected 4 columns, got 2"):
        read_cohort(str(tmp_path), task="auto")
    (tmp_path / "labels.csv").write_text("image_id,path,subject_id,Mass,Mass\n1,2,3,0,1\n")
    with pytest.raises(CxrltError, match=r"labels.csv has column 'Mass' twice"):
        read_cohort(str(tmp_path), task="auto")


def test_a_task_of_findings_that_the_data_lacks_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="no column for 38 of the 40 findings of task1: Adenopathy"):
        read_cohort(str(_write(tmp_path)), task="task1")
    with pytest.raises(UsageError, match="no task 'task9'"):
        read_cohort(str(tmp_path), task="task9")
    with pytest.raises(UsageError, match="--uncertain is one of null, zero, one, not 'two'"):
        read_cohort(str(tmp_path), task="auto", uncertain="two")


def test_several_problems_are_counted_and_all_listed_by_examine(tmp_path, task):
    _write(tmp_path, lambda t: _set(7, "image_id", "i2")(_set(0, "split", "test")(_set(3, "Mass", "yes")(t))))
    with pytest.raises(CxrltError, match=r"\(2 more: python -m cxrlt_ray.cohort"):
        read_cohort(str(tmp_path), task=task)
    _, problems = examine(str(tmp_path), task=task)
    assert [sum(word in problem for problem in problems) for word in ("'yes'", "twice", "2 splits")] == [1, 1, 1]


def test_data_to_be_scored_only_may_lack_training_and_leak(tmp_path):
    _write(tmp_path, lambda t: t.assign(split="test"))
    assert len(read_cohort(str(tmp_path), task="auto", training=False).manifest.table) == 30
    _write(tmp_path, lambda t: _set(0, "split", "test")(_set(3, "Mass", "yes")(t)))
    assert read_cohort(str(tmp_path), task="task1", labelled=False).manifest.findings == ("Nodule",)
    _write(tmp_path, _set(7, "image_id", "i2"))
    with pytest.raises(CxrltError, match="stands twice"):
        read_cohort(str(tmp_path), task="auto", labelled=False)


def test_the_carved_validation_depends_on_seed_and_share_only(tmp_path):
    _write(tmp_path, lambda t: t[t["split"] == "train"])
    first = read_cohort(str(tmp_path), task="auto", seed=1, validation=0.3)
    assert (
        first.manifest.fingerprint
        == read_cohort(str(tmp_path), task="auto", seed=1, validation=0.3).manifest.fingerprint
    )
    _write(tmp_path, lambda t: t[t["split"] == "train"][::-1])
    assert (
        first.manifest.fingerprint
        == read_cohort(str(tmp_path), task="auto", seed=1, validation=0.3).manifest.fingerprint
    )
    assert any("There is no test split" in note for note in first.notes)


def _summary(capsys, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.run("cohort", list(arguments))
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out + captured.err


def test_the_summary_of_usable_data_counts_and_exits_0(tmp_path, capsys):
    _write(tmp_path, _set(3, "Mass", ""))
    (tmp_path / "x").mkdir()
    for k in range(30):
        (tmp_path / f"x/{k}.png").touch()
    code, said = _summary(capsys, str(tmp_path))
    assert code == 0
    words = [line.split() for line in said.splitlines()]
    assert ["train", "18", "18", "9", "18", "0", "0", "0", "0"] in words
    assert next(line for line in words if line[:2] == ["Mass", "head"])[-1] == "1"
    assert "0 images not on disk" in said
    assert "Usable. Next: python -m cxrlt_ray.sweep auto" in said


def test_the_summary_names_missing_and_unnamed_files(tmp_path, capsys):
    _write(tmp_path)
    (tmp_path / "x" / "deep").mkdir(parents=True)
    for name in [*range(1, 30), "deep/more"]:
        (tmp_path / f"x/{name}.png").touch()
    code, said = _summary(capsys, str(tmp_path))
    assert code == 0
    assert "1 images not on disk: x/0.png" in said
    assert "1 image files that no row names: x/deep/more.png" in said
    for k in range(1, 10):
        (tmp_path / f"x/{k}.png").unlink()
    code, said = _summary(capsys, str(tmp_path))
    assert code == 1
    assert "10 of 30 images are not below" in said
    assert _summary(capsys, str(tmp_path), "--no-files")[0] == 0


def test_the_summary_of_bad_data_still_counts_lists_all_and_exits_1(tmp_path, capsys, task):
    _write(tmp_path, lambda t: _set(0, "split", "test")(_set(3, "Mass", "yes")(t)))
    code, said = _summary(capsys, str(tmp_path), "--task", task, "--no-files")
    assert code == 1
    assert "2 reasons" in said
    assert "holds 'yes'" in said
    assert "subject '0' stands in 2 splits" in said
    assert "Nodule" in said


def test_the_summary_of_what_is_no_data_exits_2(tmp_path, capsys):
    code, said = _summary(capsys, str(tmp_path))
    assert code == 2
    assert said.startswith("error: ")
    assert "holds no format that is known" in said


@pytest.mark.slow
def test_the_release_at_full_size_takes_under_30_s_and_4_gib(tmp_path):
    for _ in tree.write_tables(tmp_path, labels.draw_cohort(377_110, 0), 64, 0):
        pass
    code = (
        "import resource; from cxrlt_ray.cohort import read_cohort\n"
        f"table = read_cohort({str(tmp_path)!r}, task='task1').manifest.table\n"
        "print(len(table), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 30
    rows, kibibytes = map(int, done.stdout.split())
    assert rows == 377_110
    assert kibibytes < 4 << 20
