"""What tells a changed file from one that was prepared."""

import os

import numpy as np
import pytest
import s3 as server

from cxrlt_ray.data.file_states import ABSENT, CHECKSUM, STATE, file_states
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
