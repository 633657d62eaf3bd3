"""Files and directories, here and on an object store: whole or not there, whatever happens to who writes them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import s3 as server
from pyarrow import fs

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import NotThere, Store, remote, whole


@pytest.fixture(scope="module")
def s3():
    with server.served("bucket") as served:
        yield served


@pytest.fixture(params=["local", "file://", "s3://"])
def store(request, tmp_path):
    """An empty store of each kind."""
    if request.param == "s3://":
        request.getfixturevalue("s3")
        return Store(f"s3://bucket/{tmp_path.name}")
    return Store(f"file://{tmp_path}" if request.param == "file://" else str(tmp_path))


@pytest.fixture
def far(s3, tmp_path):
    """An empty store in the bucket."""
    return Store(f"s3://bucket/{tmp_path.name}")


@pytest.fixture
def hasty(monkeypatch):
    """Faults are tried again twice only: as what goes on for ever."""
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    remote.connect.cache_clear()
    yield
    remote.connect.cache_clear()


def put(store, name, *contents):
    """A directory of two files that say the same."""
    with store.place(name) as folder:
        folder.mkdir()
        for content in contents:
            (folder / "a").write_text(content)
            (folder / "b").write_text(content)


def got(store, name):
    """What both files of the directory say."""
    with store.fetched(name) as folder:
        one, two = (folder / "a").read_text(), (folder / "b").read_text()
    assert one == two, "a mix"
    return one


# --- what is written comes back


def test_a_file_and_a_directory_come_back_as_written(store):
    store.write("a/b.txt", b"content")
    put(store, "models/fold-0", "weights")
    assert store.read("a/b.txt") == b"content"
    assert store.list("models") == ["fold-0"]
    assert store.list() == ["a", "models"]
    assert store.exists("models/fold-0/a")
    assert store.exists("models/fold-0")
    assert not store.exists("models/fold-1")
    assert got(store, "models/fold-0") == "weights"
    with store.fetched("a/b.txt") as path:
        assert path.read_bytes() == b"content"
    assert store.size() == len("content") + 2 * len("weights")
    assert store.size("models") == 2 * len("weights")
    assert store.size("nothing") == 0
    store.delete("a/b.txt")
    assert not store.exists("a/b.txt")
    (store / "models").remove()
    assert not store.exists("models/fold-0")


def test_a_directory_is_replaced_as_a_whole(store):
    put(store, "model", "first")
    with store.place("model") as folder:
        folder.mkdir()
        (folder / "second").write_text("second")
    assert store.list("model") == ["second"]
    assert store.list() == ["model"]
    assert [each for each in os.listdir(store.local) if each != "model"] == [] if store.local else True


def test_what_ends_with_an_exception_leaves_nothing(store):
    put(store, "a/old", "old")
    with pytest.raises(RuntimeError), store.place("a/b.txt") as path:  # noqa: PT012
        path.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), store.place("a/old") as path:  # noqa: PT012
        path.mkdir()
        (path / "a").write_text("half")
        raise RuntimeError
    assert not store.exists("a/b.txt")
    assert store.list("a") == ["old"]
    assert got(store, "a/old") == "old"
    assert sum(len(files) for *_, files in os.walk(store.local)) == 2 if store.local else True


def test_many_files_are_read_at_once_and_those_that_are_not_there_are_left_out(store):
    for k in range(20):
        store.write(f"{k}.json", str(k).encode())
    found = store.read_many([f"{k}.json" for k in range(25)])
    assert found == {f"{k}.json": str(k).encode() for k in range(20)}
    assert store.read_json_many(["3.json", "25.json", "1.json"]) == {"3.json": 3, "1.json": 1}  # in their order
    store.write("bad.json", b"{")
    with pytest.raises(CxrltError, match=r"bad\.json is not the JSON it should be"):
        store.read_json_many(["3.json", "bad.json"])


def test_json_has_null_where_a_number_is_none(store):
    """JSON has neither nan nor infinities: other programs could not read them."""
    content = {"a": float("nan"), "b": [1.5, float("inf"), (np.float64("-inf"), "nan")], "c": {"d": np.float64("nan")}}
    store.write_json("a.json", content)
    assert store.read_json("a.json") == {"a": None, "b": [1.5, None, [None, "nan"]], "c": {"d": None}}
    assert content["b"][1] == float("inf")  # what was given stays as it is


def test_after_a_fault_no_more_of_many_files_are_asked_for(s3, far):
    before = len(s3.requests)
    with s3.failing(lambda method, path: 403), pytest.raises(CxrltError, match="access is denied"):
        far.read_many([f"{k}.json" for k in range(200)])
    assert len(s3.requests) - before < 100


@pytest.mark.parametrize("name", ["my%20runs", "a%41", "a?b", "a#b", "a b", "Größe", "a{b}", "a\nb", "s3:x", "-x", "~"])
@pytest.mark.parametrize("given", ["as a path", "below the working folder", "as a URI"])
def test_a_folder_of_any_name_holds_what_is_written_there(tmp_path, monkeypatch, name, given):
    monkeypatch.chdir(tmp_path)
    ways = {"as a path": str(tmp_path / name), "below the working folder": name, "as a URI": (tmp_path / name).as_uri()}
    store = Store(ways[given])
    (store / name).write("a.txt", b"content")
    with store.place("table.parquet") as path:
        pd.DataFrame({"a": [1]}).to_parquet(path)
    with store.fetched("table.parquet") as path:
        assert pd.read_parquet(path)["a"].tolist() == [1]
    assert (tmp_path / name / name / "a.txt").read_bytes() == b"content"
    assert store.list() == sorted([name, "table.parquet"])
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    again = store.absolute()
    assert again.absolute().local == Store(again.uri).local == tmp_path / name


def test_a_packed_file_is_unpacked(store, tmp_path):
    import gzip

    store.write("a.csv.gz", gzip.compress(b"a,b\n"))
    assert store.read("a.csv.gz") == b"a,b\n"
    store.write("b.csv.gz", b"no gzip")
    with pytest.raises(CxrltError, match=r"b\.csv\.gz cannot be read"):
        store.read("b.csv.gz")


def test_a_file_that_is_not_there_is_named(store):
    with pytest.raises(NotThere, match=r"missing\.json cannot be read: No such file or directory\.$"):
        store.read_json("missing.json")
    with pytest.raises((NotThere, FileNotFoundError), match="No such file or directory"):
        got(store, "missing")
    with pytest.raises(CxrltError, match="missing cannot be removed"):
        (store / "missing").remove()


def test_a_store_with_a_relative_directory_is_below_where_the_process_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Store(".").write("a", b"1")
    put(Store("runs"), "b", "2")
    put(Store("runs"), "b", "3")
    assert (Path("a").read_bytes(), got(Store("runs"), "b")) == (b"1", "3")


# --- killed writers

KILLED = """
import os, signal, sys
from cxrlt_ray.storage import Store, local
if sys.argv[2] == "renames":
    local.exchange = lambda one, other: False
store = Store(sys.argv[1])

def version(content):
    with store.place("model") as folder:
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).write_text(content)

def found():
    with store.fetched("model") as folder:
        return [(folder / name).read_text() for name in ("a", "b")]

version("0")
seen, count = [], 0
while True:
    count += 1
    child = os.fork()
    if child == 0:
        left = count
        def hook(event, args):
            global left
            if event.split(".")[0] in ("open", "os", "shutil", "ctypes"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        version(str(count))
        os._exit(0)
    killed = os.waitpid(child, 0)[1] != 0
    one, two = found()
    assert one == two, (count, one, two)
    assert store.list() == ["model"] and store.exists("model/a") and int(store.read("model/a")) <= int(one)
    seen.append(one == str(count))
    if not killed:
        break
assert sorted(os.listdir(sys.argv[1])) == ["model"], os.listdir(sys.argv[1])
print(count, sum(seen))
"""


def test_two_who_write_a_new_directory_at_once_both_succeed(tmp_path, monkeypatch):
    """Trials that end the same stage keep its weights under one name."""
    store, replace, others = Store(str(tmp_path)), os.replace, ["theirs"]

    def after_another(source, target):
        if others:
            put(store, "stages/key", others.pop())
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_another)
    put(store, "stages/key", "ours")
    assert got(store, "stages/key") == "ours"
    assert os.listdir(tmp_path / "stages") == ["key"]


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_directory_whose_writer_is_killed_at_any_step_is_the_old_or_the_new_one(tmp_path, how):
    """The writer is killed at its first system call, the second ...; no kill may lose both, or mix them."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    steps, new = map(int, done.stdout.split())
    assert steps > 10
    assert 1 < new < steps - 3  # killed before and after it was there


def test_an_upload_of_a_directory_that_breaks_off_at_any_request_leaves_the_old_or_the_new_one(s3, far):
    """From its first request on nothing is answered well, from its second ...: what is left is as after a kill."""
    put(far, "model", "0")
    seen = []
    for count in range(1, 60):
        before = len(s3.requests)
        with s3.failing(lambda method, path, last=before + count: 403 if len(s3.requests) >= last else None):
            try:
                put(far, "model", str(count))
                broken = False
            except CxrltError:
                broken = True
        found = got(far, "model")
        assert far.list() == ["model"]
        assert far.exists("model/a")
        assert int(far.read("model/a")) <= int(found)  # by itself, a file may be the old one's
        seen.append(found == str(count))
        if not broken:
            break
    assert not broken
    assert 1 < sum(seen) < len(seen) - 3
    put(far, "model", "last")
    filesystem, root = far.opened()
    assert [each.base_name for each in filesystem.get_file_info(fs.FileSelector(root))] == ["model"]  # others left none


UPLOADS = """
import sys
from cxrlt_ray.storage import Store
with Store(sys.argv[1]).place("large.bin") as path:
    path.write_bytes(bytes(40_000_000))
"""


def test_a_large_file_whose_upload_is_killed_is_not_there(s3, far):
    held, killed = threading.Event(), threading.Event()

    def hold(method, path):
        if "partNumber=3" in path:
            held.set()
            killed.wait(300)

    with s3.failing(hold):
        process = subprocess.Popen([sys.executable, "-c", UPLOADS, far.uri])
        assert held.wait(300)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
    time.sleep(0.2)
    assert any("partNumber=1" in path for _, path in s3.requests)
    assert far.list() == []
    assert not far.exists("large.bin")
    with far.place("large.bin") as path:
        path.write_bytes(b"small")
    assert far.read("large.bin") == b"small"


@pytest.mark.parametrize("status", [403, 500])
def test_a_large_file_whose_upload_fails_half_way_is_not_there(s3, far, hasty, status):
    far.write("large.bin", b"the old one")
    refused = s3.failing(lambda method, path: status if "partNumber=2" in path else None)
    with refused, pytest.raises(CxrltError, match=r"large\.bin cannot be written"):
        far.write("large.bin", bytes(40_000_000))
    assert far.read("large.bin") == b"the old one"
    assert far.list() == ["large.bin"]


def dead():
    """The id of a process that ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_killed_writers_left_is_not_listed_and_goes_with_the_next_one(store):
    host, alive = os.uname().nodename, os.getppid()
    left, writing = f"x.bin.{host}-{dead()}-00000000.part", f"x.bin.{host}-{alive}-00000000.part"
    others = "x.bin.elsewhere-1-00000000.part"
    for name in (left, writing, others):
        put(store, name, "half")
    assert store.list() == []
    assert not store.exists("x.bin")
    put(store, "x.bin", "whole")
    assert store.list() == ["x.bin"]
    assert [store.exists(name) for name in (left, writing, others)] == [False, True, True]


def test_what_another_machine_left_a_day_ago_goes_too(tmp_path):
    part = tmp_path / "x.elsewhere-1-00000000.part"
    part.write_text("half")
    os.utime(part, (0, time.time() - whole.ABANDONED - 60))
    Store(str(tmp_path)).write("x", b"whole")
    assert os.listdir(tmp_path) == ["x"]


def test_writers_of_one_directory_at_once_leave_one_of_theirs(store):
    threads = [threading.Thread(target=put, args=(store, "model", str(k))) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got(store, "model") in {"0", "1", "2", "3"}
    assert store.list() == ["model"]


# --- faults


def test_faults_that_heal_are_not_noticed(s3, far):
    before, answers = len(s3.requests), iter([503, 500])
    with s3.failing(lambda method, path: next(answers, None)):
        far.write("a", b"content")
        answers = iter([503])
        assert far.read("a") == b"content"
    assert len(s3.requests) - before == 3 + 1 + 2


def test_a_server_that_pauses_is_waited_for_and_one_that_is_silent_is_given_up(s3, far, hasty, monkeypatch):
    far.write("a", b"content")
    with s3.failing(lambda method, path: 3.5 if method == "GET" else None):  # more than the SDK's own patience, 3 s
        assert far.read("a") == b"content"
    monkeypatch.setattr(remote, "SILENCE", 1.0)
    remote.connect.cache_clear()
    started = time.monotonic()
    with s3.failing(lambda method, path: 5.0), pytest.raises(CxrltError, match="no server answers"):
        far.read("a")
    assert time.monotonic() - started < 60


WAYS = {
    "write": lambda store: store.write("a", b"1"),
    "place": lambda store: put(store, "a", "1"),
    "read": lambda store: store.read("a"),
    "many": lambda store: store.read_many(["a", "b"]),
    "fetched": lambda store: got(store, "a"),
    "list": lambda store: store.list(),
    "exists": lambda store: store.exists("a"),
    "size": lambda store: store.size(),
    "delete": lambda store: store.delete("a"),
    "remove": lambda store: store.remove(),
    "writable": lambda store: store.check_writable(),
}


def safe(error):
    """Its sentence, which no credential stands in, nor in what it is printed with."""
    import traceback

    whole = "".join(traceback.format_exception(error)) + repr(error)
    assert not any(secret in whole for secret in (server.KEY, server.SECRET, server.TOKEN))
    assert "Traceback (most" not in str(error)
    assert str(error).count("\n") == 0
    return str(error)


@pytest.mark.parametrize("way", WAYS)
def test_who_is_not_let_in_is_told_so_and_how_to_mend_it(s3, far, way):
    with s3.failing(lambda method, path: 403), pytest.raises(CxrltError) as caught:
        WAYS[way](far)
    told = safe(caught.value)
    assert told.startswith(far.uri)
    assert "access is denied; give credentials" in told
    assert "AWS_SECRET_ACCESS_KEY" in told


def test_a_bucket_itself_is_a_store(s3):
    store = Store("s3://bucket")
    store.write("a", b"1")
    assert store.read("a") == b"1"
    assert store.exists("")
    assert not store.exists("b")
    assert not Store("s3://bucket/b").exists("")
    assert not Store("s3://nobucket").exists("")
    assert not Store("s3://nobucket/b").exists("c")
    assert "a" in store.list()
    with pytest.raises(NotThere):
        store.read("b")
    put(store, "model", "1")
    put(store, "model", "2")
    assert got(store, "model") == "2"


@pytest.mark.parametrize("way", ["write", "place", "list", "writable", "remove"])
def test_a_bucket_that_is_not_there_is_told_so(s3, way):
    with pytest.raises(CxrltError) as caught:
        WAYS[way](Store("s3://nobucket/runs"))
    assert re_match(r"s3://nobucket/runs.* there is no such bucket; make it, or name another\.$", safe(caught.value))


def re_match(pattern, text):
    import re

    assert re.match(pattern, text), text
    return True


@pytest.mark.parametrize("way", ["write", "list", "read"])
def test_a_server_that_does_not_answer_is_told_so(s3, hasty, monkeypatch, way):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(CxrltError) as caught:
        WAYS[way](Store("s3://bucket/runs"))
    re_match(
        r"s3://bucket/runs.*no server answers; check the network .*AWS_ENDPOINT_URL .*127\.0\.0\.1", safe(caught.value)
    )


def test_a_server_that_goes_on_failing_is_told_so(s3, far, hasty):
    with s3.failing(lambda method, path: 503), pytest.raises(CxrltError) as caught:
        far.write("a", b"1")
    re_match(rf"{far.uri}/a cannot be written: the server goes on failing; try again later \(Put", safe(caught.value))


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{server.KEY}:{server.SECRET}@bucket/runs",
        f"s3://{server.KEY}@bucket/runs",
        f"s3://bucket/runs?secret_key={server.SECRET}",
        f"gs://user:{server.SECRET}@bucket/runs",
        f"abfss://box:{server.SECRET}@account/runs",
        "s3://",
    ],
)
def test_a_uri_with_a_secret_in_it_is_refused_and_not_echoed(uri):
    with pytest.raises(UsageError, match="give ") as caught:
        Store(uri)
    assert not any(part in safe(caught.value) for part in ("secret", "nobody", "user:"))


def test_a_store_holds_no_credentials(s3, far):
    far.write("a", b"1")
    for text in (repr(far), str(far), pickle.dumps(far).decode("latin1"), repr(pickle.loads(pickle.dumps(far)))):
        assert not any(secret in text for secret in (server.KEY, server.SECRET, server.TOKEN))


def test_a_scheme_that_is_unknown_is_refused():
    with pytest.raises(UsageError, match="ftp:// is no storage that can be opened: give a directory, s3:// or gs://"):
        Store("ftp://host/runs").list()


# --- processes, threads, and how often the server is asked


def test_connections_are_kept_until_the_environment_is_another(s3, far, monkeypatch):
    first = far.opened()[0]
    assert (far / "below").opened()[0] is pickle.loads(pickle.dumps(far)).opened("x")[0] is first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert far.opened()[0] is not first


def test_a_forked_process_and_one_that_was_given_a_store_read_it(s3, far):
    far.write("a", b"1")
    far.read("a")
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os._exit(0 if far.read("a") == b"1" else 1)
    assert os.waitpid(child, 0)[1] == 0
    code = "import pickle, sys; assert pickle.loads(sys.stdin.buffer.read()).read('a') == b'1'"
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(far), check=True)


def test_two_hundred_small_files_are_listed_and_read_in_401_requests_many_at_a_time(s3, far):
    for k in range(200):
        far.write(f"trials/T{k:04d}/trial.json", b"{}")
    s3.requests.clear()
    lock, active, most = threading.Lock(), [0], [0]

    def busy(method, path):
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        time.sleep(0.02)
        with lock:
            active[0] -= 1

    with s3.failing(busy):
        found = far.read_many([f"trials/{name}/trial.json" for name in far.list("trials")])
    assert len(found) == 200
    assert len(s3.requests) == 401
    assert most[0] > 2  # one after the other they took 16 s here


def test_a_large_file_is_read_in_one_request(s3, far):
    far.write("large.bin", bytes(12_000_000))
    s3.requests.clear()
    assert len(far.read("large.bin")) == 12_000_000
    assert [method for method, _ in s3.requests] == ["HEAD", "GET"]


def test_the_region_is_the_buckets_own_or_the_environments(s3, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setattr(fs, "resolve_s3_region", lambda bucket: "eu-west-3")
    assert Store("s3://one/runs").opened()[0].region == "eu-west-3"

    def unreachable(bucket):
        raise OSError("no route")

    monkeypatch.setattr(fs, "resolve_s3_region", unreachable)
    assert Store("s3://two/runs").opened()[0].region == "us-east-1"  # AWS_DEFAULT_REGION
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(CxrltError, match="s3://three/runs cannot be opened: no route"):
        Store("s3://three/runs").list()


# --- disks


def test_free_is_that_of_the_disk_where_the_directory_will_be(tmp_path):
    import shutil

    found = Store(str(tmp_path / "not" / "there")).free()
    assert found is not None
    assert abs(found - shutil.disk_usage(tmp_path).free) < 1e9
    assert Store("s3://bucket/runs").free() is None


@pytest.fixture
def small(tmp_path):
    """A disk of 1 MB; skipped where none may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here, so that none is full")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path):
    path.write_bytes(bytes(2_000_000))


def tensors(path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2_000_000, np.uint8)}, path)


def parquet(path):
    random = np.random.default_rng(0)
    pd.DataFrame({"a": random.random(250_000)}).to_parquet(path)


def directory(path):
    path.mkdir()
    fill(path / "model.safetensors")


@pytest.mark.parametrize("writer", [fill, tensors, parquet, directory])
def test_a_full_disk_is_told_and_keeps_what_was_there(small, writer):
    store = Store(str(small))
    store.write("a/old", b"old")
    with (
        pytest.raises(CxrltError, match=r"a/new cannot be written: the disk is full; make room"),
        store.place("a/new") as path,
    ):
        writer(path)
    assert os.listdir(small / "a") == ["old"]
    store.write("a/new", b"small enough")
    assert store.read("a/old") == b"old"


def test_a_full_temporary_directory_on_the_way_to_an_object_store_is_told(far, small, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(small))
    with (
        pytest.raises(CxrltError, match=rf"a cannot be written, as {small} cannot: the disk is full"),
        far.place("a") as path,
    ):
        fill(path)
    assert os.listdir(small) == []
    far.write("large.bin", bytes(2_000_000))
    with (
        pytest.raises(CxrltError, match=rf"large\.bin cannot be fetched to {small}/.*: the disk is full"),
        far.fetched("large.bin"),
    ):
        pass


def test_a_disk_that_is_read_only_for_a_while_is_told_and_taken_again(small):
    store = Store(str(small))
    store.write("a", b"1")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(CxrltError, match=r"a cannot be written: Read-only file system\."):
        store.write("a", b"2")
    assert store.read("a") == b"1"
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    store.write("a", b"2")
    assert store.read("a") == b"2"
    assert os.listdir(small) == ["a"]


def test_a_storage_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CxrltError, match="cannot be written"):
        Store(str(tmp_path / "file" / "below")).check_writable()


def test_all_files_below_are_listed_with_their_size_and_time(store):
    store.write("a/b/c.txt", b"123")
    store.write("d.txt", b"")
    files = store.files()
    assert {path: size for path, (size, _) in files.items()} == {"a/b/c.txt": 3, "d.txt": 0}
    assert store.files("a") == {"b/c.txt": files["a/b/c.txt"]}
    assert store.files("nothing") == {}
    assert abs(files["d.txt"][1] / 1e9 - time.time()) < 60
