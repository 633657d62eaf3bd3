"""A Ray of one's own machine: its workers are as nice as its user, and hardly spin at barriers; a start may fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from cxrlt_ray.cluster import address, ray_private, start
from cxrlt_ray.errors import CxrltError, Terminated, UsageError

CODE = """
import os
from cxrlt_ray.cluster.start import start_ray
ray = start_ray()

@ray.remote(num_cpus=0)
def worker():
    return os.nice(0), os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")

print(*ray.get(worker.remote()))
ray.shutdown()
"""


def worker_of(**environment):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        env={**{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GOMP_"))}, **environment},
    )
    return done.stdout.split()


def test_workers_take_no_niceness_and_hardly_spin_at_barriers_on_a_machine_of_ones_own(ray):
    """In the session's own Ray: beside another program workers of niceness 15 nearly stood still."""

    @ray.remote(num_cpus=0)
    def worker():
        return os.nice(0), os.environ.get("OMP_WAIT_POLICY"), int(os.environ["GOMP_SPINCOUNT"])

    niceness, policy, spins = ray.get(worker.remote())
    assert (niceness, policy) == (os.nice(0), "PASSIVE")
    assert 0 < spins < 10_000  # of 300,000, which is the default, beside another program little is left


def test_who_asks_for_another_niceness_gets_it():
    assert worker_of(RAY_worker_niceness="7", OMP_WAIT_POLICY="ACTIVE") == ["7", "ACTIVE", "None"]


BUSY = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.fixture
def starts(monkeypatch, tmp_path):
    """A Ray that is not there: a function whose argument is what each call of `ray.init` does; it returns the calls."""
    import ray

    def replaced(act):
        calls = []

        def init(**options):
            calls.append(options)
            return act(len(calls))

        monkeypatch.setattr(ray, "init", init)
        return calls

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(start, "END_SECONDS", 0.3)
    monkeypatch.setattr(ray_private, "started_address", lambda: None)
    monkeypatch.setattr(start, "own_dir", lambda folder: tmp_path)
    for name in ("RAY_ADDRESS", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return replaced


def test_a_start_that_a_busy_machine_breaks_off_is_tried_again(starts, capsys):
    def third(number):
        if number < 3:
            raise Exception(BUSY)

    calls = starts(third)
    start.start_ray()
    assert [call["address"] for call in calls] == ["local"] * 3
    told = capsys.readouterr().out.splitlines()
    assert [line.rpartition("): ")[2] for line in told] == ["attempt 2 of 3", "attempt 3 of 3"]


def test_a_start_that_fails_again_and_again_is_one_sentence(starts):
    calls = starts(lambda number: (_ for _ in ()).throw(Exception(BUSY)))
    with pytest.raises(CxrltError, match=r"did not start in 3 attempts.*too busy.*raylet\.err.*timed out") as refused:
        start.start_ray()
    assert len(calls) == 3
    assert refused.value.exit_code == 1
    assert "\n" not in str(refused.value)


def test_a_disk_that_refuses_is_named_at_once(starts):
    calls = starts(lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CxrltError, match=r"cannot be started: .*No space left"):
        start.start_ray()
    assert len(calls) == 1


def test_processes_of_a_start_that_failed_are_ended_and_no_others(starts, tmp_path):
    sleep = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(900)"
    )
    command = [sys.executable, "-c", sleep]
    pipe = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipe) as other:
        left = []

        def failing(number):
            left.append(subprocess.Popen([*command, f"--temp_dir={tmp_path}/ray/session_1"], **pipe))
            left[-1].stdout.readline()
            raise Exception(BUSY)

        starts(failing)
        with pytest.raises(CxrltError):
            start.start_ray()
        assert [process.wait(60) for process in left] == [-signal.SIGKILL] * 3
        assert other.poll() is None
        other.kill()


def test_sigterm_is_as_it_was_before_ray_was_started(starts):
    def own_handler(number):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    before = signal.getsignal(signal.SIGTERM)
    starts(own_handler)
    start.start_ray()
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_while_ray_starts_is_no_exit_of_rays_own(starts):
    starts(lambda number: sys.exit(15))
    with pytest.raises(Terminated):
        start.start_ray()


def test_what_is_in_the_working_folder_hides_no_library_from_workers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = ray_private.job_of_this_package()
    job._py_driver_sys_path.append(str(tmp_path))  # as Ray does
    assert job._py_driver_sys_path == []
    assert str(tmp_path).encode() not in job._serialize()


@pytest.mark.parametrize("name", ["torch", "numpy", "csv", "pandas", "random", "typing"])
def test_what_is_in_the_working_folder_hides_no_library_from_a_command(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    done = subprocess.run(
        [sys.executable, "-m", "cxrlt_ray.cohort", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: no directory nowhere.\n")


@pytest.fixture
def gone():
    """HOST:PORT at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    return where


@pytest.mark.parametrize("source", ["RAY_ADDRESS", "--address", "the last `ray start` of this machine"])
def test_a_cluster_that_is_gone_is_named_in_time_with_the_way_on_without_it(starts, gone, source, monkeypatch, capsys):
    calls = starts(lambda number: None)
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.5)
    if source == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", gone)
    monkeypatch.setattr(ray_private, "started_address", lambda: gone)
    with pytest.raises(
        UsageError, match=r"no Ray cluster answers at .*leave --address out to use this machine"
    ) as refused:
        start.start_ray(gone if source == "--address" else "auto")
    assert f"{gone}, which {source} names" in str(refused.value)
    assert ("unset RAY_ADDRESS" in str(refused.value)) == (source == "RAY_ADDRESS")
    assert f"the Ray cluster at {gone} ({source})" in capsys.readouterr().out
    assert not calls


def test_a_cluster_that_takes_connections_and_says_nothing_is_named_while_it_is_waited_for(starts, monkeypatch, capsys):
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.2)
    said, say = threading.Event(), address.cli.say
    monkeypatch.setattr(address.cli, "say", lambda line: (say(line), said.set()))
    starts(lambda number: said.wait(60))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        start.start_ray(where)
    assert f"Waiting for the Ray cluster at {where} (--address); else stop with Ctrl-C" in capsys.readouterr().out


def test_auto_without_any_cluster_is_refused(starts):
    with pytest.raises(UsageError, match="no Ray was started on this machine"):
        start.start_ray("auto")


def test_a_cluster_that_is_not_joined_is_named_and_hidden_from_our_processes(starts, gone, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", gone)
    starts(lambda number: None)
    start.start_ray()
    assert "RAY_ADDRESS" not in os.environ
    told = capsys.readouterr().out
    assert f"This machine alone is used, not the Ray cluster at {gone} (RAY_ADDRESS): --address auto joins it" in told


def test_a_head_that_runs_here_already_is_named_and_one_that_is_gone_is_not(starts, gone, monkeypatch, capsys):
    starts(lambda number: None)
    monkeypatch.setattr(ray_private, "started_address", lambda: gone)
    start.start_ray()
    assert capsys.readouterr().out == ""
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        where = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr(ray_private, "started_address", lambda: where)
        start.start_ray()
    assert (
        f"cluster at {where} (the last `ray start` of this machine), whose CPUs are counted" in capsys.readouterr().out
    )


def test_where_a_proxy_is_set_it_is_kept_from_rays_own_addresses(starts, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "my.example")
    starts(lambda number: None)
    start.start_ray()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "my.example,127.0.0.1,localhost,::1"


def test_where_no_proxy_is_set_nothing_is_changed(starts):
    starts(lambda number: None)
    start.start_ray()
    assert "no_proxy" not in os.environ


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_sockets_have_paths_that_the_system_takes_however_long_tmpdir_is(tmp_path, monkeypatch, variable):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv(variable, str(long))
    monkeypatch.setattr(start.tempfile, "tempdir", None)
    directory = start.ray_directory()
    assert len(f"{directory}/session_2026-11-29_10-15-00_123456_4194304/sockets/plasma_store") <= 107


def test_a_temporary_directory_that_cannot_be_written_is_a_sentence(monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(start, "own_dir", refuse)
    with pytest.raises(CxrltError, match=r"Ray's directory cannot be made in .*Permission denied.*set TMPDIR"):
        start.ray_directory()
