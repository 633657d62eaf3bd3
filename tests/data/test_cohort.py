"""What is wrong with data is said in one sentence that names the place; the summary lists all of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from releases import write_brax, write_nih, write_padchest, write_vindr

from cxrlt_ray import cli
from cxrlt_ray.data.cohort import examine, read_cohort
from cxrlt_ray.data.decode import decode
from cxrlt_ray.data.joining import parse_cohorts
from cxrlt_ray.data.manifest import Cohort
from cxrlt_ray.data.mapping import load_mapping
from cxrlt_ray.data.readers.files import common_root
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.phantom import labels, tree, write_phantom

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
        _set(3, "Mass", "maybe"),
        r"labels.csv: column 'Mass', row 4 \(line 5\) holds text: a label is",
    ),
    "a share for a label": (_set(2, "Mass", "0.5"), r"column 'Mass', row 3 \(line 4\) holds 0.5"),
    "-2 for a label": (_set(2, "Mass", "-2"), r"column 'Mass', row 3 \(line 4\) holds -2"),
    "two bad labels": (
        lambda t: _set(3, "Mass", "x")(_set(1, "Mass", "w")(t)),
        r"row 2 .* holds text \(and 1 more row\)",
    ),
    "an image twice": (
        _set(7, "image_id", "i2"),
        r"an image stands twice, in labels.csv row 3 and in labels.csv row 8",
    ),
    "a subject in two splits": (
        _set(0, "split", "test"),
        r"a subject stands in 2 splits, test \(1 image, labels.csv row 1\) and train \(1 image, labels.csv row 2\)",
    ),
    "more subjects in two splits": (
        lambda t: _set(0, "split", "test")(_set(2, "split", "val")(t)),
        r"a subject .* as do 1 more subject",
    ),
    "an unknown split": (_set(5, "split", "training"), r"column 'split', row 6 \(line 7\) holds text"),
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
    with pytest.raises(CxrltError, match=r"labels.csv cannot be read as a table: .*Expected 4 columns, got 2"):
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
    _write(tmp_path, lambda t: _set(7, "image_id", "i2")(_set(0, "split", "test")(_set(3, "Mass", "maybe")(t))))
    with pytest.raises(CxrltError, match=r"\(2 more: python -m cxrlt_ray.cohort"):
        read_cohort(str(tmp_path), task=task)
    _, problems = examine(str(tmp_path), task=task)
    assert [sum(word in problem for problem in problems) for word in ("holds text", "twice", "2 splits")] == [1, 1, 1]


def test_data_to_be_scored_only_may_lack_training_and_leak(tmp_path):
    _write(tmp_path, lambda t: t.assign(split="test"))
    assert len(read_cohort(str(tmp_path), task="auto", training=False).manifest.table) == 30
    _write(tmp_path, lambda t: _set(0, "split", "test")(_set(3, "Mass", "maybe")(t)))
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
    assert "1 images not on disk: labels.csv row 1" in said
    assert "1 image files that no row names\n" in said
    for k in range(1, 10):
        (tmp_path / f"x/{k}.png").unlink()
    code, said = _summary(capsys, str(tmp_path))
    assert code == 1
    assert "10 of 30 images are not below" in said
    assert _summary(capsys, str(tmp_path), "--no-files")[0] == 0


def test_the_summary_of_bad_data_still_counts_lists_all_and_exits_1(tmp_path, capsys, task):
    _write(tmp_path, lambda t: _set(0, "split", "test")(_set(3, "Mass", "maybe")(t)))
    code, said = _summary(capsys, str(tmp_path), "--task", task, "--no-files")
    assert code == 1
    assert "2 reasons" in said
    assert "holds text" in said
    assert "a subject stands in 2 splits" in said
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
        "import resource; from cxrlt_ray.data.cohort import read_cohort\n"
        f"table = read_cohort({str(tmp_path)!r}, task='task1').manifest.table\n"
        "print(len(table), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 30
    rows, kibibytes = map(int, done.stdout.split())
    assert rows == 377_110
    assert kibibytes < 4 << 20


# several cohorts at once


@pytest.fixture
def main_data(tmp_path) -> Path:
    """A plain table of two of CXR-LT's findings, in a folder beside those of other cohorts."""
    (tmp_path / "main").mkdir()
    return _write(tmp_path / "main")


def _joined(main: Path, **others: str) -> Cohort:
    return read_cohort(str(main), task="auto", others=others)


def test_another_cohort_only_trains_and_is_told_by_its_name(main_data, tmp_path):
    write_nih(tmp_path / "nih")
    alone, cohort = read_cohort(str(main_data), task="auto"), _joined(main_data, nih=str(tmp_path / "nih"))
    main, nih = cohort.manifest.of_cohort("main"), cohort.manifest.of_cohort("nih")
    unprefixed = main.table["path"].str.removeprefix("main/")
    pd.testing.assert_frame_equal(main.table.assign(path=unprefixed), alone.manifest.table)
    assert (cohort.manifest.table["cohort"].iloc[: len(main.table)] == "main").all()
    assert set(nih.table["split"]) == {"train"}
    assert len(nih.table) == 38
    assert cohort.manifest.findings == alone.manifest.findings
    for column in ("image_id", "study_id", "subject_id"):
        assert nih.table[column].str.startswith("nih/").all()
    assert any("38 images from" in note and "never scored" in note for note in cohort.notes)
    assert any("does not label" not in note and "Labelled: 2 of the task's 2" in note for note in cohort.notes)


def test_subjects_of_the_same_name_in_two_cohorts_stay_two(main_data, tmp_path):
    write_nih(tmp_path / "nih")
    subjects = _joined(main_data, nih=str(tmp_path / "nih")).manifest.table.groupby("subject_id")
    assert {"0", "nih/0"} <= set(subjects.groups)
    assert (subjects["cohort"].nunique() == 1).all()
    assert (subjects["split"].nunique() == 1).all()


def test_splits_are_carved_from_the_main_data_as_without_others(main_data, tmp_path):
    write_nih(tmp_path / "nih")
    _write(main_data, lambda t: t.drop(columns="split"))
    alone = read_cohort(str(main_data), task="auto", seed=3).manifest
    cohort = read_cohort(str(main_data), task="auto", seed=3, others={"nih": str(tmp_path / "nih")}).manifest
    assert cohort.of_cohort("main").table["split"].tolist() == alone.table["split"].tolist()
    assert set(cohort.of_split("val", "test").table["cohort"]) == {"main"}


def test_what_a_cohort_does_not_label_is_null_and_images_without_a_label_are_left_out(tmp_path):
    (tmp_path / "main").mkdir()
    _write(tmp_path / "main", lambda t: t.rename(columns={"Nodule": "Normal"}))
    write_nih(tmp_path / "nih")
    file = tmp_path / "nih" / "Data_Entry_2017.csv"
    file.write_text(file.read_text().replace("00000005_000.png,Pleural_Thickening|Mass,", "00000005_000.png,,"))
    cohort = _joined(tmp_path / "main", nih=str(tmp_path / "nih"))
    nih = cohort.manifest.of_cohort("nih")
    assert (nih.targets(("Normal",)) == -1).all()
    assert (nih.targets(("Mass",)) >= 0).all()
    assert "nih/00000005_000" not in set(nih.table["image_id"])
    assert any("1 image without a label of the task left out" in note for note in cohort.notes)
    assert any("does not label Normal (its No Finding only says" in note for note in cohort.notes)


def test_labels_of_another_cohort_are_mapped(tmp_path):
    (tmp_path / "main").mkdir()
    renamed = {"Mass": "Fracture", "Nodule": "Rib Fracture"}
    _write(tmp_path / "main", lambda t: t.rename(columns=renamed))
    write_vindr(tmp_path / "vindr")
    own = read_cohort(str(tmp_path / "vindr"), task="auto").manifest.table.set_index("image_id")
    manifest = _joined(tmp_path / "main", vindr=str(tmp_path / "vindr")).manifest.of_cohort("vindr")
    own = own.loc[manifest.table["image_id"].str.removeprefix("vindr/")]
    rib, clavicle = (own[name].to_numpy(int) for name in ("Rib fracture", "Clavicle fracture"))
    assert (manifest.targets(("Rib Fracture",))[:, 0] == rib).all()
    assert (manifest.targets(("Fracture",))[:, 0] == np.maximum(rib, clavicle)).all()


def test_the_order_in_which_cohorts_are_given_does_not_matter(main_data, tmp_path):
    write_nih(tmp_path / "nih")
    write_padchest(tmp_path / "padchest")
    where = {name: str(tmp_path / name) for name in ("nih", "padchest")}
    first, second = _joined(main_data, **where), _joined(main_data, **dict(reversed(where.items())))
    assert first.manifest.fingerprint == second.manifest.fingerprint
    assert first.manifest.fingerprint != read_cohort(str(main_data), task="auto").manifest.fingerprint
    assert list(first.manifest.table["cohort"].unique()) == ["main", "nih", "padchest"]


def test_uncertain_labels_of_another_cohort_become_what_is_asked(tmp_path):
    (tmp_path / "main").mkdir()
    _write(tmp_path / "main", lambda t: t.rename(columns={"Mass": "Edema"}))
    write_brax(tmp_path / "brax")
    others = {"brax": str(tmp_path / "brax")}
    options = {"task": "auto", "others": others}
    null, one = (read_cohort(str(tmp_path / "main"), uncertain=u, **options).manifest for u in ("null", "one"))
    # an image whose only label of the task is uncertain is left out
    assert 0 < len(null.of_cohort("brax").table) < len(one.of_cohort("brax").table) == 40


def test_subjects_that_the_main_data_scores_are_left_out_of_another_cohort(tmp_path):
    (tmp_path / "main").mkdir()
    write_nih(tmp_path / "nih")
    # the main data: some images of NIH's, as a table. Subject 5 has images 10 and 11
    _write(tmp_path / "main", lambda t: t.assign(image_id=t["image_id"].replace({"i4": "00000010_000"})))
    cohort = _joined(tmp_path / "main", nih=str(tmp_path / "nih"))
    left = set(cohort.manifest.of_cohort("nih").table["subject_id"])
    assert "nih/5" not in left
    assert len(left) == 18
    assert any("2 images left out, of 1 subject of whom the main data has" in note for note in cohort.notes)


def test_a_phantom_poses_as_another_cohort(tmp_path):
    for seed, name in enumerate(("main", "other")):
        write_phantom(tmp_path / name, images=200, seed=seed, pictures=False)
    whole = read_cohort(str(tmp_path / "other"), task="task1").manifest
    others = {"nih": f"phantom:{tmp_path / 'other'}", "vindr": f"phantom:{tmp_path / 'other'}"}
    manifest = read_cohort(str(tmp_path / "main"), task="task1", others=others).manifest
    for name in others:
        posed = manifest.of_cohort(name)
        reached = [finding for finding in manifest.findings if finding in load_mapping(name).reached]
        truth = whole.table.set_index("image_id").loc[posed.table["image_id"].str.removeprefix(f"{name}/")]
        assert len(posed.table) == 200
        assert (posed.targets(tuple(reached)) == truth[reached].to_numpy(int)).all()
        assert (posed.targets(tuple(set(manifest.findings) - set(reached))) == -1).all()
        assert set(posed.table["split"]) == {"train"}


def test_a_phantom_that_is_the_main_data_itself_does_not_train_on_its_own_test_images(tmp_path):
    write_phantom(tmp_path, images=200, pictures=False)
    with pytest.raises(CxrltError, match=r"cohort nih .*has no image to train on. .*200 images left out"):
        read_cohort(str(tmp_path), task="task1", others={"nih": f"phantom:{tmp_path}"})


def test_real_data_do_not_pose_as_a_phantom(main_data, tmp_path):
    with pytest.raises(UsageError, match="holds no phantom cohort to pose as another"):
        _joined(main_data, nih=f"phantom:{main_data}")


def test_what_is_wrong_with_another_cohort_is_told_with_its_name(main_data, tmp_path):
    write_nih(tmp_path / "nih")
    file = tmp_path / "nih" / "Data_Entry_2017.csv"
    file.write_text(file.read_text().replace("Hernia", "Hernai", 1))
    with pytest.raises(CxrltError, match=r"^cohort nih: Data_Entry_2017.csv: .*row 4 \(line 5\) holds what is none"):
        _joined(main_data, nih=str(tmp_path / "nih"))
    with pytest.raises(CxrltError, match="holds no PadChest"):
        _joined(main_data, padchest=str(tmp_path / "nih"))


def test_a_cohort_that_labels_nothing_of_the_task_is_refused(main_data, tmp_path):
    write_brax(tmp_path / "brax")
    with pytest.raises(UsageError, match="cohort brax labels none of the 2 findings of the task, such as Mass"):
        _joined(main_data, brax=str(tmp_path / "brax"))


@pytest.mark.parametrize("path", ["../main/x.png", "/etc/x.png", "a/../../x.png"])
def test_paths_that_lead_out_of_another_cohorts_directory_are_refused(main_data, tmp_path, path):
    (tmp_path / "mine.yaml").write_text("reader: table\nfindings: {Mass: Mass}")
    (tmp_path / "mine").mkdir()
    _write(tmp_path / "mine", lambda t: _set(0, "path", path)(t.assign(image_id="m" + t["image_id"])))
    with pytest.raises(CxrltError, match=r"cohort mine: labels.csv row 1: a path leads out of .*mine"):
        read_cohort(str(main_data), task="auto", others={str(tmp_path / "mine.yaml"): str(tmp_path / "mine")})


def test_ids_of_the_main_data_that_look_like_another_cohorts_are_refused(tmp_path):
    (tmp_path / "main").mkdir()
    _write(tmp_path / "main", _set(3, "image_id", "nih/3"))
    write_nih(tmp_path / "nih")
    with pytest.raises(CxrltError, match="cohort nih: the main data has ids that begin with nih/"):
        _joined(tmp_path / "main", nih=str(tmp_path / "nih"))


def test_two_mappings_of_one_name_are_refused(main_data, tmp_path):
    write_nih(tmp_path / "nih")
    (tmp_path / "other.yaml").write_text("name: nih\nreader: nih\nfindings: {Mass: Mass}")
    others = {"nih": str(tmp_path / "nih"), str(tmp_path / "other.yaml"): str(tmp_path / "nih")}
    with pytest.raises(UsageError, match="two cohorts are called nih"):
        read_cohort(str(main_data), task="auto", others=others)


def test_other_cohorts_are_not_read_to_score(main_data):
    with pytest.raises(UsageError, match="other cohorts only train"):
        read_cohort(str(main_data), task="auto", training=False, others={"nih": str(main_data)})


@pytest.mark.parametrize(
    ("roots", "above"),
    [
        (["/data/mimic", "/data/nih"], "/data"),
        (["/data", "/data/nih"], "/data"),
        (["/data/mimic", "/mnt/nih"], "/"),
        (["/data/ab", "/data/abc"], "/data"),
        (["s3://bucket/a/mimic", "s3://bucket/a/nih"], "s3://bucket/a"),
        (["s3://bucket/mimic", "s3://bucket/nih"], "s3://bucket"),
    ],
)
def test_the_root_of_several_cohorts_is_what_lies_above_all(roots, above):
    assert common_root(roots) == above


@pytest.mark.parametrize("roots", [["/data/mimic", "s3://bucket/nih"], ["s3://a/mimic", "s3://b/nih"]])
def test_cohorts_in_different_places_are_refused(roots):
    with pytest.raises(CxrltError, match=r"lie in different places \(.*local or in one bucket"):
        common_root(roots)


def test_a_uri_of_the_main_data_goes_with_a_local_cohort(main_data, tmp_path):
    write_nih(tmp_path / "nih")
    local = _joined(main_data, nih=str(tmp_path / "nih")).manifest
    by_uri = read_cohort(f"file://{main_data}", task="auto", others={"nih": f"file://{tmp_path}/nih"}).manifest
    assert (by_uri.root, by_uri.fingerprint) == (local.root, local.fingerprint)


def test_prepare_opens_the_images_of_all_cohorts(ray, tmp_path):
    """Gray 40 in the main data, 200 in NIH's, and PadChest's 16-bit ramps, of which every second one is inverted."""
    from cxrlt_ray.data.prepare import prepare

    (tmp_path / "main").mkdir()
    _write(tmp_path / "main")
    write_nih(tmp_path / "more" / "nih")
    write_padchest(tmp_path / "more" / "padchest", 8)
    ramp = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (64, 1))
    others = {name: str(tmp_path / "more" / name) for name in ("nih", "padchest")}
    manifest = _joined(tmp_path / "main", **others).manifest
    assert manifest.root == str(tmp_path)
    for cohort, path in zip(manifest.table["cohort"], manifest.table["path"], strict=True):
        image = {"main": np.full((64, 64), 40, np.uint8), "nih": np.full((64, 64), 200, np.uint8)}.get(cohort, ramp)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / path), image)
    (shards,) = prepare(manifest, str(tmp_path / "runs"), [32], say=lambda _: None)
    assert shards.summary["quarantined"] == 0
    index = shards.index()
    for _, row in manifest.table.iterrows():
        where = index.loc[row["image_id"]]
        content = shards.store.read(where["file"])[where["offset"] : where["offset"] + where["length"]]
        image, _ = decode(content)
        if row["cohort"] == "padchest":
            bright = "left" if row["photometric"] == "MONOCHROME1" else "right"
            assert (image[:, 0].mean() > image[:, -1].mean()) == (bright == "left")
        else:
            assert image.mean() == pytest.approx({"main": 40, "nih": 200}[row["cohort"]], abs=1)


# --cohort


def test_cohorts_are_given_as_name_and_directory(tmp_path):
    given = [f"nih={tmp_path}", f"vindr=phantom:{tmp_path}"]
    assert parse_cohorts(given) == {"nih": str(tmp_path), "vindr": f"phantom:{tmp_path}"}
    assert parse_cohorts([]) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nih", r"--cohort is NAME=DIR, such as nih=/data/nih; not 'nih'"),
        ("=/data", r"--cohort is NAME=DIR"),
        ("nih=", r"--cohort is NAME=DIR"),
        (
            "nhi=.",
            r"no cohorts file 'nhi': .*brax, chexpert, cxrlt2026, images, mimic, nih, padchest, synthetic, vindr",
        ),
        ("nih=/no/where", r"no directory /no/where"),
        ("nih=phantom:/no/where", r"no directory /no/where"),
    ],
)
def test_a_cohort_given_otherwise_is_wrong_usage(given, said):
    with pytest.raises(UsageError, match=said):
        parse_cohorts([given])


def test_a_cohort_given_twice_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="--cohort names nih twice"):
        parse_cohorts([f"nih={tmp_path}", f"nih={tmp_path}"])


def test_the_summary_counts_other_cohorts_apart(main_data, tmp_path, capsys):
    write_nih(tmp_path / "nih")
    (main_data / "x").mkdir()
    for k in range(30):
        (main_data / f"x/{k}.png").touch()
    (tmp_path / "nih" / "images_001" / "images" / "00000003_000.png").unlink()
    code, said = _summary(capsys, str(main_data), "--cohort", f"nih={tmp_path / 'nih'}")
    assert code == 0
    words = [line.split() for line in said.splitlines()]
    assert ["train", "18", "18", "9", "18", "0", "0", "0", "0"] in words
    assert ["cohort", "nih", "38", "38", "19", "38", "0", "0", "0", "0"] in words
    assert ["all", "68", "68", "34", "68", "0", "0", "0", "0"] in words
    positives = _joined(main_data, nih=str(tmp_path / "nih")).manifest.of_cohort("nih").targets(("Mass",)).sum()
    assert next(line for line in words if line[:2] == ["Mass", "head"])[5] == str(positives)
    assert "0 images not on disk" in said
    assert "1 images of cohort nih not on disk: Data_Entry_2017.csv row " in said
    assert f"sweep auto --data {main_data} --cohort nih={tmp_path / 'nih'}" in said
    for file in (tmp_path / "nih").rglob("*.png"):
        file.unlink()
    code, said = _summary(capsys, str(main_data), "--cohort", f"nih={tmp_path / 'nih'}")
    assert code == 1
    assert "38 of 38 images of cohort nih are not below" in said
