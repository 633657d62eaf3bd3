"""Other people's files do no harm, patients stay out of messages, and tables can be passed on."""

from __future__ import annotations

import ast
import io
import itertools
import os
import pickle
import resource
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_images
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pictures import dicom, encoded
from releases import WRITERS

import cxrlt_ray
from cxrlt_ray import cli, config, privacy
from cxrlt_ray.data import decode, prepare, tasks
from cxrlt_ray.data.cohort import examine, read_cohort
from cxrlt_ray.data.manifest import MAIN, META, Manifest
from cxrlt_ray.data.originals import read_original
from cxrlt_ray.ensembling import explain, members, submission, tables
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation.scores import Scores, evaluate
from cxrlt_ray.reporting import cohort
from cxrlt_ray.reporting.explanation import draw
from cxrlt_ray.reporting.scores import render

MARK = "ZQX"  # in every id, path and text of a patient here
NAMES = ["[red]x", "[/]", ":x:", "<script>alert(1)</script>", "$x^$", "a | b"]
FORMULAS = ["=1+1", "+1", "-1+1", "@SUM(A1)", "a\tb", "a\x1b[2J"]


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """A pickle that must not be opened; checked at the end."""
    sprung = tmp_path / "sprung"
    yield Trap(sprung)
    assert not sprung.exists()


def test_the_package_unpickles_nothing_but_what_it_packed_itself():
    found = []
    for path in Path(cxrlt_ray.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            if name in ("eval", "exec") or "pickle" in name or name.endswith(("joblib.load", "yaml.unsafe_load")):
                found.append(f"{path.name}: {name}")
            assert name != "torch.load" or given.get("weights_only") == "True", path
            assert name != "np.load" or given.get("allow_pickle") == "False", path
            assert name != "yaml.load" or ast.unparse(node.args[1]) == "_Loader", path
            assert given.get("shell") != "True", path
    # between the processes of a sweep: each batch's files, offsets and lengths
    assert sorted(found) == ["stream.py: pickle.dumps", "stream.py: pickle.loads"]


def test_pickles_in_weights_arrays_and_yaml_are_refused_and_not_run(trap, tmp_path):
    import torch

    from cxrlt_ray.models.weight_files import read_tensors

    torch.save({"state_dict": trap}, tmp_path / "weights.pth")
    with pytest.raises(CxrltError, match=r"cannot be read safely \(it holds .*pathlib"):
        read_tensors(str(tmp_path / "weights.pth"))
    np.savez(tmp_path / "all.npz", predictions=np.array([[[trap]]], object), targets=np.zeros((1, 1)))
    with pytest.raises(CxrltError, match="npz of plain arrays"):
        members.read_npz(str(tmp_path / "all.npz"))
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(trap))
    with pytest.raises(CxrltError, match="npz of plain arrays"):
        members.read_npz(str(tmp_path / "bare.npz"))
    (tmp_path / "space.yaml").write_text(f"!!python/object/apply:os.system ['touch {trap.path}']")
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        config.read_yaml(tmp_path / "space.yaml")


def test_a_parquet_of_pickled_types_is_read_as_what_it_holds(trap, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(trap)}
    schema = pa.schema([pa.field("id", pa.string()), pa.field("Mass", pa.float64(), metadata=about)])
    pq.write_table(pa.table([pa.array(["a"]), pa.array([0.5])], schema=schema), tmp_path / "a.parquet")
    assert tables.read_table(str(tmp_path / "a.parquet"))["Mass"].tolist() == [0.5]


# paths


def plain_table(folder: Path, count: int = 8, **columns: object) -> Path:
    folder.mkdir(exist_ok=True)
    k = np.arange(count)
    table = pd.DataFrame({"image_id": [f"i{n}" for n in k], "path": [f"{n}.png" for n in k], "subject_id": k // 2})
    table = table.assign(split=np.resize(["train", "train", "val", "val"], count), Mass=k % 2)
    for name, value in columns.items():
        table[name] = value
    table.to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.png", "a/../../x.png", "a/..", "x.png\0.jpg"])
def test_paths_of_a_table_cannot_leave_the_data(tmp_path, path):
    folder = plain_table(tmp_path / "data", path=["0.png", "1.png", path, *(f"{k}.png" for k in range(3, 8))])
    with pytest.raises(CxrltError, match=r"labels\.csv row 3: a path leads out of .*data"):
        read_cohort(str(folder), task="auto")
    with pytest.raises(ValueError, match="leads out"):
        read_original(str(folder), path)


def test_links_out_of_the_data_are_followed_only_where_that_is_asked_for(tmp_path, monkeypatch):
    data, other = plain_table(tmp_path / "data"), tmp_path / "other"
    other.mkdir()
    for folder in (data, other):
        (folder / "0.png").write_bytes(b"own" if folder == data else b"other")
    (data / "1.png").symlink_to(other / "0.png")
    (data / "2.png").symlink_to(data / "0.png")
    (data / "more").symlink_to(other)
    (tmp_path / "linked").symlink_to(data)
    assert read_original(str(data), "2.png") == b"own"
    assert read_original(str(tmp_path / "linked"), "0.png") == b"own"
    assert read_original(f"file://{data}", "0.png") == b"own"
    for path in ("1.png", "more/0.png"):
        with pytest.raises(ValueError, match="a link leads out"):
            read_original(str(data), path)
    # told at once, not after a night of quarantine
    cohort = read_cohort(str(plain_table(data, path=["more/0.png", *(f"{k}.png" for k in range(1, 8))])), task="auto")
    with pytest.raises(UsageError, match="CXRLT_RAY_FOLLOW_LINKS=1"):
        prepare.prepare(cohort.manifest, str(tmp_path / "runs"), [32])
    monkeypatch.setenv(privacy.FOLLOW_LINKS, "1")
    assert read_original(str(data), "more/0.png") == b"other"


def test_what_is_no_file_or_never_ends_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="not a file"):
        read_original(str(tmp_path), "pipe.png")
    with pytest.raises(ValueError, match="a link leads out"):
        read_original(str(tmp_path), "zero.png")
    monkeypatch.setenv(privacy.FOLLOW_LINKS, "1")
    with pytest.raises(ValueError, match="not a file"):
        read_original(str(tmp_path), "zero.png")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(decode.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="more than"):
        read_original(str(tmp_path), "huge.png")
    with pytest.raises(CxrltError):
        read_original(str(tmp_path), "missing.png")


def test_looking_for_missing_files_does_not_leave_the_data_either(tmp_path, capsys):
    folder = plain_table(tmp_path / "data", path=[f"../other/{k}.png" for k in range(8)])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{MARK}.png").touch()
    (folder / "loop").symlink_to(folder)
    with pytest.raises(SystemExit):
        cli.run("cohort", [str(folder)])
    assert "0 image files that no row names" in capsys.readouterr().out


# images


def png_header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes(1_000_000), 9)
    about = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + about + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    content = encoded(np.zeros((64, 64), np.uint8))
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def patched(image: bytes, old: int, new: int, form: str) -> bytes:
    return image.replace(struct.pack(form, old), struct.pack(form, new))


def compressed(image: bytes, syntax: str) -> bytes:
    """A DICOM file of 64 x 64 by its header, with a compressed image that may claim to be larger."""
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from pydicom.encaps import encapsulate

    file = pydicom.dcmread(io.BytesIO(dicom(np.zeros((64, 64), np.uint8))))
    file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    file.PixelData = encapsulate([image])
    file["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def deflated(size: int) -> bytes:
    """A deflated DICOM file that unpacks to `size` bytes of zeros."""
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    file = pydicom.dcmread(io.BytesIO(dicom(np.zeros((64, 64), np.uint8))))
    file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file.PixelData = bytes(64 * 64)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    whole = buffer.getvalue()
    if not size:
        return whole
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = whole[: 144 + struct.unpack("<I", whole[140:144])[0]]  # what file_meta says of its own length
    block = bytes(1 << 24)
    return head + b"".join(packer.compress(block) for _ in range(-(-size // len(block)))) + packer.flush()


J2K = b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIHBBB", 41, 0, 65535, 65535, 0, 0, 65535, 65535, 0, 0, 1, 7, 1, 1)
BOMBS = {
    "png": lambda: png_header(65535, 65535),
    "png of 16 bit rgba": lambda: png_header(30_000, 30_000, 16, 6),
    "jpeg": lambda: jpeg_header(65535, 65535),
    "tiff": lambda: patched(encoded(np.zeros((77, 64), np.uint8), ".tif"), 77, 65535, "<H").replace(
        struct.pack("<HHII", 256, 3, 1, 64), struct.pack("<HHII", 256, 4, 1, 1 << 20)
    ),
    "bmp": lambda: patched(encoded(np.zeros((77, 64), np.uint8), ".bmp"), 77, 1 << 26, "<I"),
    "dicom header": lambda: dicom(np.zeros((64, 64), np.uint8), Rows=65535, Columns=65535),
    "dicom with a jpeg": lambda: compressed(jpeg_header(65535, 65535), "JPEGBaseline8Bit"),
    "dicom with a jpeg 2000": lambda: compressed(J2K, "JPEG2000Lossless"),
    "dicom, deflated": lambda: deflated(decode.MAX_BYTES + (1 << 24)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_that_claims_or_holds_too_much_is_refused_before_memory_is_taken(name, monkeypatch):
    if name == "dicom, deflated":
        monkeypatch.setattr(decode, "MAX_BYTES", 1 << 24)  # or the test itself would take a while
    content = BOMBS[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"pixels, more than|more than [\d,]+ (pixels|bytes)"):
        decode.decode(content, 512)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_deflated_dicom_of_a_radiographs_size_is_read():
    assert decode.decode(deflated(0))[0].shape == (64, 64)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1)])
def test_the_smallest_and_the_thinnest_images_become_squares(suffix, shape):
    image, _ = decode.decode(encoded(np.full(shape, 90, np.uint8), suffix), 512)
    assert decode.resize(image, 512).shape == (512, 512)
    assert abs(int(decode.resize(image, 512)[0, 0]) - 90) <= 1


def test_a_hundred_megapixels_are_read():
    image = np.zeros((10_000, 10_000), np.uint8)
    for suffix in (".png", ".jpg"):
        assert decode.resize(decode.decode(encoded(image, suffix), 512)[0], 512).shape == (512, 512)


def test_what_a_dicom_says_of_the_patient_is_not_warned_of(recwarn):
    decode.decode(dicom(np.zeros((64, 64), np.uint8), StudyDate="20260101").replace(b"20260101", b"ZQXZQXZQ"))
    assert not [warning for warning in recwarn if MARK in str(warning.message)]


# archives


def zipped(path: Path, name: str, content: bytes) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return str(path)


def test_archives_are_never_unpacked_to_disk_and_bombs_are_refused(tmp_path, monkeypatch):
    good = b"dicom_id,Mass\na,0.5\n"
    slip = zipped(tmp_path / "slip.zip", "../../slipped.csv", good)
    assert submission.read(slip)["Mass"].tolist() == [0.5]
    assert tables.read_table(slip)["Mass"].tolist() == [0.5]
    assert not list(tmp_path.parent.rglob("slipped.csv"))
    monkeypatch.setattr(privacy, "LARGE", 1_000_000)
    bomb = zipped(tmp_path / "bomb.zip", "submission.csv", good + bytes(2_000_000))
    for read in (submission.read, tables.read_table):
        with pytest.raises(CxrltError, match=r"bomb\.zip.*would unpack to 2,000,020 bytes"):
            read(bomb)
    npz = zipped(tmp_path / "bomb.npz", "predictions.npy", bytes(2_000_000))
    with pytest.raises(CxrltError, match=r"bomb\.npz.*would unpack"):
        members.read_npz(npz)


# names


@pytest.mark.parametrize("name", FORMULAS)
def test_names_that_a_spreadsheet_would_run_are_refused_wherever_they_come_in(tmp_path, name):
    quoted = f'"{name}"' if "\t" not in name else name
    folder = plain_table(tmp_path / "data", image_id=[quoted.strip('"'), *(f"i{k}" for k in range(1, 8))])
    with pytest.raises(CxrltError, match=r"labels\.csv row 1: an image's id"):
        read_cohort(str(folder), task="auto")
    _, problems = examine(str(plain_table(tmp_path / "data", **{name: [0, 1] * 4})), task="auto")
    assert any("would be taken for a formula" in problem for problem in problems)
    with pytest.raises(UsageError, match="would take it for a formula"):
        tasks.Task("mine", ("Mass", name))
    frame = pd.DataFrame({"dicom_id": [name, "b"], "Mass": [0.1, 0.2]})
    assert any("formula" in fault for fault in submission.check(frame, tasks.Task("mine", ("Mass",)), [name, "b"]))
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(CxrltError, match="for a formula"):
        tables.read_table(str(tmp_path / "a.csv"))
    with pytest.raises(UsageError, match="for a formula"):
        members.member_names([f"{tmp_path}/{name}.csv"])


def report(names: list[str]) -> Scores:
    rng = np.random.default_rng(0)
    targets = (rng.random((60, len(names))) < 0.4).astype(np.int8)
    return evaluate(targets, rng.random(targets.shape), names, ["head"] * len(names), np.arange(60), rounds=5)


def test_names_with_markup_html_or_emoji_are_printed_as_they_are(capsys, tmp_path):
    console = cli.console(200)
    for part in render(report(NAMES)):
        console.print(part)
    told = capsys.readouterr().out
    assert all(name in told for name in NAMES)
    table = pd.DataFrame({name: ["a", "b", "c"] for name in META} | {"split": ["train", "val", "test"], "age": 1.0})
    labels = {name: pd.array([1, 0, None], "Int8") for name in NAMES}
    cohort.print_counts(Manifest(table.assign(**labels, cohort=MAIN), tuple(NAMES), "table", "/data"), console)
    told = capsys.readouterr().out
    assert all(name in told for name in NAMES)


def test_pictures_of_names_that_look_like_formulas_of_tex_are_drawn():
    from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
    from cxrlt_ray.selection.honest import fit

    rng = np.random.default_rng(0)
    targets = (rng.random((40, 2)) < 0.5).astype(np.int8)
    values = np.ascontiguousarray(rng.random((2, 40, 2)), np.float32)
    groups = np.arange(40).astype(str)
    fitted = fit(EnsembleFile(selector="mean").methods(), values, targets, groups, folds=2, repeats=1, seed=0)
    found = explain.examine(["$a_$", "b"], ["$x^$", "[/]"], values, targets, groups, fitted, None, "members", 0)
    assert draw(found).startswith(b"\x89PNG")


# messages


def patients(count: int = 12) -> pd.DataFrame:
    """A table in which every cell of a patient begins with MARK."""
    k = np.arange(count)
    return pd.DataFrame(
        {
            "image_id": [f"{MARK}image{n}" for n in k],
            "path": [f"files/p10/{MARK}{n // 2}/{MARK}{n}.png" for n in k],
            "subject_id": [f"{MARK}subject{n // 2}" for n in k],
            "study_id": [f"{MARK}study{n // 2}" for n in k],
            "report": [f"{MARK} has a mass" for _ in k],
            "split": np.repeat(["train", "val", "test"], count // 3),
            "Mass": (k % 2).astype(str),
        }
    )


def spoilt(row: int, column: str, value: object) -> pd.DataFrame:
    table = patients().astype(object)
    table.loc[row, column] = value
    return table


WRONG = {
    "an image twice": spoilt(3, "image_id", f"{MARK}image1"),
    "a subject in two splits": spoilt(1, "split", "test"),
    "a label": spoilt(2, "Mass", f"{MARK} text"),
    "an id for a label": spoilt(2, "Mass", "10000032"),
    "a split": spoilt(2, "split", f"{MARK} text"),
    "a path": spoilt(2, "path", f"../{MARK}.png"),
    "an id": spoilt(2, "image_id", f"={MARK}"),
    "a photometric": patients().assign(photometric=f"{MARK} text"),
    "an empty id": spoilt(2, "subject_id", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_data_is_told_by_its_row_and_with_ids_only_where_asked_for(tmp_path, name, monkeypatch):
    WRONG[name].to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "task.yaml").write_text("findings: [Mass]")
    with pytest.raises(CxrltError, match=r"labels\.csv.* row \d") as caught:
        read_cohort(str(tmp_path), task=str(tmp_path / "task.yaml"))
    assert MARK not in str(caught.value)
    assert "10000032" not in str(caught.value)
    if name not in ("a subject in two splits", "an empty id"):
        monkeypatch.setenv(privacy.SHOW_IDS, "1")
        with pytest.raises(CxrltError, match=rf"{MARK}|10000032"):
            read_cohort(str(tmp_path), task=str(tmp_path / "task.yaml"))


def test_broken_lines_missing_headers_and_ignored_columns_quote_no_cell(tmp_path):
    lines = patients().to_csv(index=False).splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([*lines[:4], f"{MARK},{MARK}", *lines[4:]]))
    with pytest.raises(CxrltError, match=r"Row #5: Expected 7 columns, got 2\.") as caught:
        read_cohort(str(tmp_path), task="auto")
    assert MARK not in str(caught.value)
    with pytest.raises(CxrltError, match="Expected 7 columns") as caught:
        tables.read_table(str(tmp_path / "labels.csv"))
    assert MARK not in str(caught.value)
    numbers = patients().assign(image_id=range(10_000_032, 10_000_044))  # as MIMIC's are
    numbers.to_csv(tmp_path / "labels.csv", index=False, header=False)
    with pytest.raises(CxrltError, match="has no column 'image_id'") as caught:
        read_cohort(str(tmp_path), task="auto", format="table")
    assert "100000" not in str(caught.value)
    patients().assign(name=f"{MARK} name").to_csv(tmp_path / "labels.csv", index=False)
    notes = " ".join(read_cohort(str(tmp_path), task="auto").notes)
    assert "name (row 1 (line 2) holds text" in notes
    assert MARK not in notes


@pytest.mark.parametrize("format", WRITERS)
def test_no_reader_tells_of_a_patient_where_images_stand_twice_or_leak(tmp_path, format):
    WRITERS[format](tmp_path)
    tables_there = [path for path in tmp_path.rglob("*.csv") if len(path.read_text().splitlines()) > 5]
    good = read_cohort(str(tmp_path), format=format, task="auto").manifest.table
    needles = {str(each) for column in ("image_id", "path") for each in good[column] if len(str(each)) > 4}
    for path in tables_there:
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*lines[:4], lines[3], *lines[4:]]))
    try:
        cohort, problems = examine(str(tmp_path), format=format, task="auto")
        told = " ".join([*problems, *cohort.notes])
    except CxrltError as error:  # PadChest's cells of several lines are torn by that
        problems, told = [str(error)], str(error)
    assert problems
    assert not [needle for needle in needles if needle in told]


def test_faults_of_submissions_and_tables_of_scores_name_rows(tmp_path):
    ids = [f"{MARK}{k}" for k in range(6)]
    task = tasks.Task("mine", ("Mass",))
    frame = pd.DataFrame({"dicom_id": [*ids[:4], ids[1], f"{MARK}other"], "Mass": [0.1, 7, np.nan, 0.3, 0.4, 0.5]})
    faults = " ".join(submission.check(frame, task, ids))
    assert MARK not in faults
    for said in ("2 of the 6 image(s)", "row 6", "row 2", "row 3"):
        assert said in faults
    for kept, labelled, said in ((6, 6, "stands twice, again in row 5"), (3, 3, "in row 3"), (2, 6, "that of row 3")):
        frame.iloc[:kept].to_csv(tmp_path / "a.csv", index=False)
        labels = pd.DataFrame({"dicom_id": ids, "Mass": [0, 1] * 3}).iloc[:labelled]
        labels.to_csv(tmp_path / "labels.csv", index=False)
        with pytest.raises(CxrltError, match=said) as caught:
            members.read_members([str(tmp_path / "a.csv")], str(tmp_path / "labels.csv"))
        assert MARK not in str(caught.value)


# modes


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_folders_are_their_makers_alone_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        privacy.private_dir(tmp_path / "a" / "b")
        privacy.own_dir(tmp_path / "c")
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "c")} == {0o700}


def test_a_folder_in_tmp_that_someone_else_laid_is_not_used(tmp_path):
    (tmp_path / "open").mkdir(mode=0o777)
    assert stat.S_IMODE(privacy.own_dir(tmp_path / "open").stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(CxrltError, match="not a directory of yours"):
        privacy.own_dir(tmp_path / "link")
    if os.getuid() == 0:
        os.chown(tmp_path / "open", 12345, -1)
        with pytest.raises(CxrltError, match="not a directory of yours"):
            privacy.own_dir(tmp_path / "open")


# small counts


def printed(folder: Path, capsys, least: int = 5) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.run("cohort", [str(folder), "--min-count", str(least)])
    assert not stop.value.code
    return capsys.readouterr().out


def test_cohorts_that_differ_in_small_counts_only_print_the_same(tmp_path, capsys):
    same = set()
    for rare, lateral in itertools.product(range(5), repeat=2):
        view = np.array(["PA"] * 80)
        view[np.flatnonzero(np.resize([False, False, True, True], 80))[:lateral]] = "LATERAL"  # of val, 40 less these
        folder = plain_table(tmp_path / "data", count=80, Rare=[1] * rare + [0] * (80 - rare), view=view)
        same.add(printed(folder, capsys).replace(" 35 ", " 40 "))  # val's PA, rounded: of how many views says nothing
    assert len({line for told in same for line in told.splitlines() if line.strip().startswith("Rare")}) == 1
    assert len({line.split()[5] for told in same for line in told.splitlines() if "val" in line.split()[:1]}) == 1


@given(st.lists(st.integers(0, 60), min_size=3, max_size=3), st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_totals_are_sums_of_what_is_shown_and_so_tell_nothing_else(counts, least):
    assume(sum(counts))  # a cohort without images is refused before
    rows = [
        (split, view) for split, count in zip(("train", "val", "test"), counts, strict=True) for view in [split] * count
    ]
    table = pd.DataFrame([(str(k), split) for k, (split, _) in enumerate(rows)], columns=["image_id", "split"])
    ids = {name: table["image_id"] for name in META if name not in ("split", "view", "age", "cohort")}
    whole = table.assign(**ids, view=np.resize(["PA", "LATERAL"], len(table)), age=1.0, cohort=MAIN)
    manifest = Manifest(whole.astype({"view": "str"}), (), "table", "/data")
    made = cohort._splits_table(manifest, cohort._parts(manifest), least)
    cells = [list(column.cells) for column in made.columns][1:]
    values = np.array(
        [[0 if each.startswith("<") else int(each.replace(",", "")) for each in column] for column in cells]
    )
    assert (values[:, -1] == values[:, :-1].sum(axis=1)).all()
    assert (values[0, :-1] == values[3:, :-1].sum(axis=0)).all()
    assert (values % least == 0).all()


def test_a_summary_to_pass_on_holds_no_small_count_no_row_and_no_note(tmp_path, capsys):
    folder = plain_table(tmp_path / "data", count=80, Rare=[1] * 3 + [0] * 77, Hernia=[0, 1] * 40)
    told = printed(folder, capsys, 10)
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
    assert lines["Rare"] == ["Rare", "-", "<10", "<10", "-"]
    assert lines["Hernia"] == ["Hernia", "-", "20", "20", "50.00"]
    assert lines["all"][1:4] == ["80", "80", "40"]
    assert "row" not in told
    assert "carved" not in told
    with pytest.raises(SystemExit) as stop:
        cli.run("cohort", [str(folder), "--min-count", "0"])
    assert stop.value.code == 2


def test_a_share_is_that_of_rounded_counts():
    assert cohort._share(3, 1000, 10) == "-"
    assert cohort._share(13, 999, 10) == "1.00"
    assert cohort._share(13, 999, 1) == "1.30"


def test_quarantine_names_the_file_and_the_message_does_not(ray, tmp_path):
    manifest = write_images(tmp_path / "images", 24)
    for k in (0, 1, 2):
        (tmp_path / "images" / f"00{k}.jpg").write_bytes(png_header(65535, 65535))
    with pytest.raises(CxrltError, match="3 of 24 images cannot be decoded") as caught:
        prepare.prepare(manifest, str(tmp_path / "runs"), [32], say=lambda _: None)
    assert "000.jpg" not in str(caught.value)
    (folder,) = (tmp_path / "runs" / "shards").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = pd.read_parquet(folder / "quarantine.parquet")
    assert sorted(found["path"]) == ["000.jpg", "001.jpg", "002.jpg"]
    assert found["reason"].str.contains("65535 x 65535 pixels").all()
