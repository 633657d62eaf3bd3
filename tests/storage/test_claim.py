"""A claim: of several processes that want a directory at most one has it, and who has died has it no more."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
import s3 as server

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store
from cxrlt_ray.storage import claim as claims
from cxrlt_ray.storage.claim import Taken, claim, is_claimed


@pytest.fixture(scope="module")
def s3():
    with server.served("bucket") as served:
        yield served


@pytest.fixture(params=["local", "s3://"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "PAUSE", 0.02)
    if request.param == "s3://":
        request.getfixturevalue("s3")
        return Store(f"s3://bucket/{tmp_path.name}/run")
    return Store(str(tmp_path / "runs" / "run"))


def test_a_second_claim_is_refused_with_who_has_it_and_given_once_it_is_free(store):
    with claim(store), pytest.raises(Taken, match=f"process {os.getpid()} on "), claim(store):
        pass
    with claim(store):
        pass


def test_what_a_process_left_that_was_killed_is_no_claim(store):
    code = "import os, sys; from cxrlt_ray.storage import Store; from cxrlt_ray.storage.claim import claim\n"
    code += "claim(Store(sys.argv[1])).__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, store.uri], check=False).returncode == 9
    assert is_claimed(store) is False
    with claim(store):
        pass


def test_whether_there_is_a_claim_is_seen_without_taking_it(store):
    assert is_claimed(store) is False
    with claim(store):
        store.write("run.json", b"{}")
        assert is_claimed(store) is True
    assert is_claimed(store) is False


def test_of_many_at_the_same_moment_at_most_one_has_it(store):
    together, most, holders, lock, ended = threading.Barrier(6), [0], [0], threading.Lock(), []

    def work():
        together.wait()
        for _ in range(3 if store.local is None else 200):
            with ExitStack() as held:
                try:
                    held.enter_context(claim(store))
                except Taken:
                    continue
                with lock:
                    holders[0] += 1
                    most[0] = max(most[0], holders[0])
                with lock:
                    holders[0] -= 1
        ended.append(True)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 6
    assert most[0] <= 1
    if store.local is not None:
        assert most[0] == 1


def test_a_claim_that_led_to_nothing_leaves_nothing(tmp_path):
    store = Store(str(tmp_path / "run"))
    with claim(store):
        assert store.local.stat().st_mode & 0o777 == 0o700
    assert not store.local.exists()
    with claim(store):
        store.write("run.json", b"{}")
    assert store.exists("run.json")


def test_a_storage_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    with pytest.raises(CxrltError, match=r"No locks available.*file system with locks"), claim(Store(str(tmp_path))):
        pass
