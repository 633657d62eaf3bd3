"""A Ray cluster with a token, as cluster.yaml and cluster/slurm.sbatch start it, lets nobody in who lacks it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

RAY = str(Path(sys.executable).parent / "ray")
COMMON = ["--num-cpus=1", "--object-store-memory=80000000", "--block", "--disable-usage-stats"]
JOIN = """
import ray, sys, time
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def env(home: Path, token: str | None, mode: str = "token") -> dict[str, str]:
    """The environment of somebody whose ~/.ray/auth_token holds `token`."""
    (home / ".ray").mkdir(parents=True)
    if token is not None:
        (home / ".ray" / "auth_token").write_text(token)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return {**kept, "HOME": str(home), "RAY_AUTH_MODE": mode}


def status(url: str, token: str | None = None) -> int:
    """What a GET of `url` is answered with; 0: nobody answers."""
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
def test_nodes_drivers_and_callers_without_the_token_are_refused(tmp_path):
    port, dashboard, agent = free_port(), free_port(), free_port()
    address, member = f"127.0.0.1:{port}", env(tmp_path / "member", "right" * 8)
    folder = Path(f"/tmp/ray-t{port}")  # short: the path of a socket has at most 107 characters
    running: list[subprocess.Popen] = []

    def begin(command: list[str], given: dict[str, str]) -> subprocess.Popen:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        running.append(subprocess.Popen(command, env=given, **options))
        return running[-1]

    join = [RAY, "start", f"--address={address}", *COMMON]
    try:
        head = [RAY, "start", "--head", f"--port={port}", f"--temp-dir={folder}", "--dashboard-host=127.0.0.1"]
        head += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", *COMMON]
        begin(head, member)
        until = time.monotonic() + 60
        while not status(f"http://127.0.0.1:{dashboard}/api/gcs_healthz"):
            assert time.monotonic() < until
            time.sleep(0.2)
        strangers = {
            "none": env(tmp_path / "none", None),
            "wrong": env(tmp_path / "wrong", "wrong" * 8),
            "off": env(tmp_path / "off", None, "disabled"),
        }
        begin(join, member)
        refused = {name: begin(join, given) for name, given in strangers.items()}
        refused["driver"] = begin([sys.executable, "-c", JOIN, address], strangers["wrong"])
        driver = begin([sys.executable, "-c", JOIN, address], member)
        assert driver.wait(120) == 0, driver.stdout.read()
        for name, process in refused.items():
            assert process.wait(120) != 0, name
            said = process.stdout.read()
            assert "no authentication token was found" in said or "InvalidAuthToken" in said, said
        jobs = f"http://127.0.0.1:{dashboard}/api/jobs/"
        assert (status(jobs, "right" * 8), status(jobs, "wrong" * 8)) == (200, 403)
        assert status(jobs) == 401
        # KubeRay's probes, which have no token
        assert status(f"http://127.0.0.1:{dashboard}/api/gcs_healthz") == 200
        assert status(f"http://127.0.0.1:{agent}/api/local_raylet_healthz") == 200
    finally:
        for process in reversed(running):
            try:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(40)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
        for process in running:
            process.stdout.close()
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        subprocess.run(["rm", "-rf", folder], check=True)
