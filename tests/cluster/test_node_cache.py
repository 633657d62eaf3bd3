"""Decoded images in a machine's memory: shared, bounded, and gone when they should be."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import s3 as server

from cxrlt_ray.cluster import node_cache
from cxrlt_ray.cluster.node_cache import ShardFiles
from cxrlt_ray.data.shards import Shards, forget_indexes
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

pytestmark = pytest.mark.skipif(not node_cache.MEMORY.is_dir(), reason="no /dev/shm here")


@pytest.fixture(autouse=True)
def _own_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "MEMORY", tmp_path)


def shards(name="a", size=8):
    return ShardFiles(Store(f"/somewhere/{name}"), size)


def image(value, size=8):
    return np.full((size, size), value, np.uint8)


def test_what_one_process_decoded_another_finds(tmp_path):
    mine = node_cache.DecodedImages(shards(), 10, 10_000)
    mine.put(3, image(7))
    code = (
        "import pathlib; from cxrlt_ray.cluster import node_cache as node; "
        "from cxrlt_ray.storage import Store; node.MEMORY = pathlib.Path(r'%s'); "
        "there = node.DecodedImages(node.ShardFiles(Store('/somewhere/a'), 8), 10, 10_000); "
        "assert (there.get(3) == 7).all() and there.get(4) is None; there.put(4, there.get(3) + 1)"
    )
    subprocess.run([sys.executable, "-c", code % tmp_path], check=True)
    assert (mine.get(4) == 8).all()


def test_no_more_is_kept_than_the_bound_over_all_sizes():
    first = node_cache.DecodedImages(shards("a"), 10, 6 * 65)
    second = node_cache.DecodedImages(shards("b"), 10, 6 * 65)
    assert (first.capacity, second.capacity) == (6, 0)
    first.put(6, image(1))
    assert first.get(6) is None
    second.put(0, image(1))
    assert second.get(0) is None
    assert node_cache._bytes_held() <= 6 * 65


def test_without_a_bound_nothing_is_kept_nor_written(tmp_path):
    assert node_cache.DecodedImages(shards(), 10, 0).get(0) is None
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_reads_is_not(tmp_path):
    left = tmp_path / f"{node_cache.PREFIX}-left.u8"
    left.write_bytes(b"0" * 100)
    live = node_cache.DecodedImages(shards("a"), 2, 1000)
    node_cache.DecodedImages(shards("b"), 2, 1000)
    assert not left.exists()
    live.put(0, image(5))
    node_cache.forget()
    assert not list(tmp_path.glob("*.u8"))
    assert (live.get(0) == 5).all()  # who has it open keeps it


def test_a_files_rights_keep_other_users_out(tmp_path):
    node_cache.DecodedImages(shards(), 2, 1000)
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("*.u8"))


@pytest.fixture(scope="module")
def s3():
    with server.served("bucket") as served:
        yield served


@pytest.fixture
def far(s3, tmp_path, monkeypatch):
    """Shards in an S3 bucket, and the server; their copies go below tmp_path/tmp."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    there = Shards(Store(f"s3://bucket/{tmp_path.name}/shards"), 8)
    write_shards(there.store, "content")
    s3.requests.clear()
    return there.files(), s3


def write_shards(store, content, names=("train-00000", "train-00001", "val-00000")):
    """Files that hold their name and `content`, and the index that knows where each begins."""
    rows = [
        {"image_id": name, "file": f"{name}.parquet", "offset": len(name), "length": len(content)} for name in names
    ]
    for row in rows:
        store.write(row["file"], (row["image_id"] + content).encode())
    with store.place("index.parquet") as path:
        pd.DataFrame(rows).to_parquet(path)


def gets(s3, name):
    return sum(method == "GET" and path.endswith(name) for method, path in s3.requests)


def test_shards_of_an_object_store_are_fetched_once(far):
    there, s3 = far
    first = node_cache.fetch(there, "train-00000.parquet")
    assert first.read_bytes() == b"train-00000content"
    assert first.parent.stat().st_mode & 0o077 == 0
    assert node_cache.read(there, "train-00000.parquet", 11, 7) == b"content"
    assert node_cache.fetch(there, "train-00000.parquet") == first
    assert gets(s3, "train-00000.parquet") == 1


READS = """
import pickle, sys
from cxrlt_ray.cluster import node_cache as node
print("ready", flush=True)
print(node.read(pickle.load(sys.stdin.buffer), "val-00000.parquet", 9, 7).decode())
"""


def test_threads_and_processes_that_want_the_same_shard_fetch_it_once(far):
    there, s3 = far
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", READS], env=environment, **pipes) as other:
        assert other.stdout.readline() == b"ready\n"
        with s3.failing(lambda method, path: 0.5 if "val-00000" in path and method == "GET" else None):
            other.stdin.write(pickle.dumps(there))
            other.stdin.close()
            with ThreadPoolExecutor(8) as threads:
                found = list(threads.map(lambda _: node_cache.read(there, "val-00000.parquet", 9, 7), range(8)))
            assert other.stdout.read() == b"content\n"
    assert found == [b"content"] * 8
    assert gets(s3, "val-00000.parquet") == 1


def test_shards_that_were_mended_are_fetched_anew(far):
    there, _ = far
    assert node_cache.read(there, "train-00000.parquet", 11, 7) == b"content"
    write_shards(there.store, "mended!!")
    forget_indexes()  # as in a process that comes later
    mended = Shards(there.store, there.size).files()
    assert node_cache.read(mended, "train-00000.parquet", 11, 8) == b"mended!!"


def test_the_oldest_copies_make_room(far, monkeypatch):
    there, s3 = far
    monkeypatch.setattr(node_cache, "KEEP_COPIES", 1)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(
        node_cache.shutil,
        "disk_usage",
        lambda folder: usage(0 if len(list(folder.rglob("*.parquet"))) > 1 else 1e12),
    )
    found = []
    for k, name in enumerate(("train-00000.parquet", "train-00001.parquet", "val-00000.parquet")):
        found.append(node_cache.fetch(there, name))
        os.utime(found[-1], (k, k))
    assert [path.exists() for path in found] == [False, True, True]
    assert node_cache.read(there, "train-00000.parquet", 11, 7) == b"content"  # it comes back
    assert gets(s3, "train-00000.parquet") == 2


def test_a_full_disk_keeps_the_shards_that_are_mixed_at_present(far, monkeypatch):
    there, _ = far
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda _: usage(0))
    found = [node_cache.fetch(there, f"{name}.parquet") for name in ("train-00000", "train-00001", "val-00000")]
    assert all(path.exists() for path in found)


def test_a_shard_that_is_gone_is_named(far, tmp_path):
    there, _ = far
    with pytest.raises(CxrltError, match=r"s3://bucket/.*/none\.parquet cannot be fetched to .*: No such file"):
        node_cache.read(there, "none.parquet", 0, 1)
    with pytest.raises(CxrltError, match=r"none\.parquet is gone"):
        node_cache.read(ShardFiles(Store(str(tmp_path)), 8), "none.parquet", 0, 1)


def test_threads_and_processes_that_begin_at_once_share_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "MEMORY", tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for k in range(40):
            found = list(pool.map(lambda _, k=k: node_cache._open(f"{k}-32", 10, 1025, 10**7), range(8)))
            assert {capacity for capacity, _ in found} == {10}
            assert len({os.fstat(file.fileno()).st_ino for _, file in found}) == 1


def test_a_file_that_another_process_removes_while_its_size_is_asked_counts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "MEMORY", tmp_path)
    kept, removed = (tmp_path / f"{node_cache.PREFIX}-{name}.u8" for name in "ab")
    for path in (kept, removed):
        path.write_bytes(b"1" * 5000)
    stat = Path.stat

    def gone_at_once(path, **options):
        removed.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", gone_at_once)
    assert node_cache._bytes_held() == 5000
    assert node_cache._bytes_written() >= 5000


@pytest.mark.parametrize(("free", "available", "room"), [(1000, None, 900), (10**9, 1000, 900), (10**9, 10**9, 65_000)])
def test_a_machine_keeps_no_more_than_it_holds_whatever_a_larger_one_asked_for(monkeypatch, free, available, room):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda path: usage(free, 0, free))
    monkeypatch.setattr(node_cache, "available_memory", lambda: available)
    cache = node_cache.DecodedImages(shards(), 1000, 10**9)
    assert cache.capacity == room // 65
