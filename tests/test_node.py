"""Decoded images in a machine's memory: shared, bounded, and gone when they should be."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cxrlt_ray import node
from cxrlt_ray.prepare import Shards
from cxrlt_ray.storage import Store

pytestmark = pytest.mark.skipif(not node.MEMORY.is_dir(), reason="no /dev/shm here")


@pytest.fixture(autouse=True)
def _own_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "MEMORY", tmp_path)


def shards(name="a", size=8):
    return Shards(Store(f"/somewhere/{name}"), size)


def image(value, size=8):
    return np.full((size, size), value, np.uint8)


def test_what_one_process_decoded_another_finds(tmp_path):
    mine = node.Decoded(shards(), 10, 10_000)
    mine.put(3, image(7))
    code = (
        "import pathlib; from cxrlt_ray import node; from cxrlt_ray.prepare import Shards; "
        "from cxrlt_ray.storage import Store; node.MEMORY = pathlib.Path(r'%s'); "
        "there = node.Decoded(Shards(Store('/somewhere/a'), 8), 10, 10_000); "
        "assert (there.get(3) == 7).all() and there.get(4) is None; there.put(4, there.get(3) + 1)"
    )
    subprocess.run([sys.executable, "-c", code % tmp_path], check=True)
    assert (mine.get(4) == 8).all()


def test_no_more_is_kept_than_the_bound_over_all_sizes():
    first = node.Decoded(shards("a"), 10, 6 * 65)
    second = node.Decoded(shards("b"), 10, 6 * 65)
    assert (first.capacity, second.capacity) == (6, 0)
    first.put(6, image(1))
    assert first.get(6) is None
    second.put(0, image(1))
    assert second.get(0) is None
    assert node._held() <= 6 * 65


def test_without_a_bound_nothing_is_kept_nor_written(tmp_path):
    assert node.Decoded(shards(), 10, 0).get(0) is None
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_reads_is_not(tmp_path):
    left = tmp_path / f"{node.PREFIX}-left.u8"
    left.write_bytes(b"0" * 100)
    live = node.Decoded(shards("a"), 2, 1000)
    node.Decoded(shards("b"), 2, 1000)
    assert not left.exists()
    live.put(0, image(5))
    node.forget()
    assert not list(tmp_path.glob("*.u8"))
    assert (live.get(0) == 5).all()  # who has it open keeps it


def test_a_files_rights_keep_other_users_out(tmp_path):
    node.Decoded(shards(), 2, 1000)
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("*.u8"))


def test_shards_of_an_object_store_are_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setattr(node.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train-00000.parquet").write_bytes(b"content")
    there = Shards(Store(f"file://{tmp_path}/shards"), 8)
    first = node.fetched(there, "train-00000.parquet")
    assert first.read_bytes() == b"content"
    assert first.parent.stat().st_mode & 0o077 == 0
    (tmp_path / "shards" / "train-00000.parquet").unlink()
    assert node.fetched(there, "train-00000.parquet") == first


def test_the_oldest_copies_make_room(tmp_path, monkeypatch):
    import os
    from collections import namedtuple

    monkeypatch.setattr(node.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(
        node.shutil,
        "disk_usage",
        lambda _: usage(0 if len(list((tmp_path / "tmp").rglob("*.parquet"))) > 1 else 1e12),
    )
    (tmp_path / "shards").mkdir()
    there = Shards(Store(f"file://{tmp_path}/shards"), 8)
    found = []
    for k, name in enumerate(("a.parquet", "b.parquet", "c.parquet")):
        (tmp_path / "shards" / name).write_bytes(b"x")
        found.append(node.fetched(there, name))
        os.utime(found[-1], (k, k))
    assert [path.exists() for path in found] == [False, True, True]
