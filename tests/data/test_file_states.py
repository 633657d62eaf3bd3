"""What tells a changed file from one that was prepared."""

import os

import numpy as np
import pytest
import s3 as server
from conftest import write_images

from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.data.file_states import ABSENT, CHECKSUM, STATE, file_states
from cxrlt_ray.data.originals import read_original
from cxrlt_ray.data.readers.files import compare_with_disk
from cxrlt_ray.storage import Store


@pytest.fixture
def bucket(tmp_path):
    with server.served("bucket"):
        yield Store(f"s3://bucket/{tmp_path.name}")


def test_size_time_and_content_are_seen_and_absence_is_a_state(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"one")
    (tmp_path / "a" / "2.png").write_bytes(b"three")
    paths = ["a/1.png", "a/2.png", "a/3.png", "../elsewhere.png", "a//1.png"]
    first = file_states(str(tmp_path), paths, checksum=True)
    assert first["bytes"].tolist()[:3] == [3, 5, ABSENT]
    assert first.iloc[0].equals(first.iloc[4])
    assert first[CHECKSUM].iloc[3] == ABSENT  # what leads out of the data is not read
    status = (tmp_path / "a" / "1.png").stat()
    (tmp_path / "a" / "1.png").write_bytes(b"two")
    os.utime(tmp_path / "a" / "1.png", ns=(status.st_mtime_ns, status.st_mtime_ns))
    second = file_states(str(tmp_path), paths, checksum=True)
    assert first[STATE].equals(second[STATE])
    assert (first[CHECKSUM] != second[CHECKSUM]).tolist() == [True, False, False, False, True]
    os.utime(tmp_path / "a" / "2.png", ns=(1, 1))
    assert (file_states(str(tmp_path), paths)["modified"] != first["modified"]).tolist() == [False, True, *[False] * 3]


@pytest.mark.parametrize("name", ["my%20data", "a%41", "a?b", "a#b", "a b", "Größe", "a{b}"])
def test_data_in_a_folder_of_any_name_is_read_to_its_last_image(tmp_path, name):
    manifest = write_images(tmp_path / name, 6)
    columns = ["image_id", "path", "subject_id", "split", *manifest.findings]
    manifest.table[columns].to_csv(tmp_path / name / "labels.csv", index=False)
    read = read_cohort(str(tmp_path / name), task="auto", labelled=False).manifest
    paths = read.table["path"].tolist()
    assert len(paths) == 6
    assert (file_states(read.root, paths)["bytes"] > 0).all()
    assert compare_with_disk(read.table["path"], read.root).missing == []
    assert all(read_original(read.root, path).startswith(b"\xff\xd8") for path in paths)


def test_no_paths_have_no_states(tmp_path):
    assert file_states(str(tmp_path), [], checksum=True).shape == (0, 3)
    assert file_states(str(tmp_path), [])["bytes"].dtype == np.int64


def test_a_bucket_is_listed_once_and_a_replaced_object_is_seen(bucket):
    store = bucket
    store.write("images/1.png", b"one")
    store.write("2.png", b"three")
    paths = ["images/1.png", "2.png", "images/3.png"]
    first = file_states(store.uri, paths)
    assert first["bytes"].tolist() == [3, 5, ABSENT]
    store.write("images/1.png", b"other")
    second = file_states(store.uri, paths, checksum=True)
    assert (first[STATE] != second[STATE]).any(axis=1).tolist() == [True, False, False]
    assert (second[CHECKSUM] == ABSENT).tolist() == [False, False, True]
