"""Starting Ray on this machine or joining a cluster, and Ray Data's settings."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cxrlt_ray import cli
from cxrlt_ray.cluster import node_cache, ray_private
from cxrlt_ray.cluster.address import (
    ALONE,
    CLIENT,
    Head,
    head_of,
    keep_from_proxies,
    other_cluster,
    wait_for,
    waiting_announced,
)
from cxrlt_ray.errors import CxrltError, Terminated, UsageError
from cxrlt_ray.privacy import own_dir

ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",  # its lines for every epoch of every trial would flood ours
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # warnings of Ray's own core, on every actor pool
    # Ray ends idle processes after a second; a data task's costs 5 to 15 s of imports to start again
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_num_workers_soft_limit": "8",
}
# of a Ray of one machine: it listens on the loopback alone; Ray's own switch, named after where it is on by itself
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# of a Ray of one machine, which serves its user alone, unless the environment says otherwise: beside any other program
# workers of Ray's own niceness (15) get next to no time, and threads that spin at barriers take it from each other
OWN_MACHINE = {"RAY_worker_niceness": "0"}
# 2,000 turns, by libgomp's estimate 20 us: without any, training takes 1.3 times as long on a quiet machine
# (benchmarks/contention.py)
BARRIERS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
LONGEST = 43  # letters of Ray's directory: with its session's sockets a path may have 107
DATA_CPUS = 0.5  # of one Ray Data task: two decode on the core that a trial leaves free
STARTS = 3  # of Ray on this machine
END_SECONDS = 5.0  # until a process of a start that failed is killed
FORGET_SECONDS = 60.0  # that the machines of a cluster have to remove decoded images


def start_ray(address: str | None = None) -> Any:
    """Start Ray for this process alone, or join the cluster at `address` ('auto' from its head).

    Returns the module `ray`. Raises UsageError for ray:// and where no cluster answers, CxrltError where Ray does not
    start. `_one_machine_options` says what protects a Ray that is started.
    """
    head = head_of(address) if address is not None and address.startswith(CLIENT) else None  # raises, before Ray loads
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    if ray.is_initialized():
        return ray
    options = {"log_to_driver": False, "logging_level": "ERROR", "job_config": ray_private.job_of_this_package()}
    if address is None:
        _start(ray, options)
    elif head := head_of(address):
        _join(ray, head, options)
    else:
        raise UsageError(
            f"--address {address}: no Ray was started on this machine, and RAY_ADDRESS names none: start one "
            f"(`ray start --head`), or {ALONE}."
        )
    return ray


def _join(ray: Any, head: Head, options: dict[str, Any]) -> None:
    """Join a cluster that runs. Raises UsageError where it does not answer as one."""
    keep_from_proxies(head.host, socket.gethostname())
    wait_for(head)
    try:
        with _quietly(), waiting_announced(head):
            ray.init(address=head.where, **options)
    except Exception as error:
        raise UsageError(
            f"no Ray cluster answers at {head.where}, which {head.source} names ({_line(error)}): start it, or "
            f"{head.way_on}."
        ) from None


def _start(ray: Any, options: dict[str, Any]) -> None:
    """Start Ray on this machine; on a busy one it may not be up in Ray's own time, and is started again.

    Raises CxrltError where STARTS attempts fail, or the disk does not let it.
    """
    if line := other_cluster():
        cli.say(line)
    directory = ray_directory()
    options |= _one_machine_options(directory)
    for attempt in range(1, STARTS + 1):
        try:
            with _quietly():
                ray.init(address="local", **options)
            return
        except Exception as error:
            _clean_up(ray, directory)
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                raise CxrltError(f"Ray cannot be started: {_line(error)}.") from None
            if attempt == STARTS:
                raise CxrltError(
                    f"Ray did not start in {STARTS} attempts, as on a machine that is too busy ({_load()}): try again "
                    f"when it has room; {directory}/session_latest/logs/raylet.err may say more ({_line(error)})."
                ) from None
            cli.say(f"Ray did not start ({_load()}): attempt {attempt + 1} of {STARTS}")


def _clean_up(ray: Any, directory: str) -> None:
    """End what a failed start has left: Ray forgets its processes where one of them was not up in time."""
    with suppress(Exception):
        ray.shutdown()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in _children(directory):
            with suppress(OSError):
                os.kill(process, number)
        until = time.monotonic() + END_SECONDS
        while _children(directory) and time.monotonic() < until:
            time.sleep(0.1)


def _children(directory: str) -> list[int]:
    """Processes that this one has started for a Ray in `directory`, by /proc; none where there is no /proc."""
    own, running = str(os.getpid()), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == own and f"{directory}/".encode() in (process / "cmdline").read_bytes():  # a dead one has none
                running.append(int(process.name))
    return running


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _line(error: Exception) -> str:
    """An error's first sentence, in a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0][:300].rstrip(".")


def _one_machine_options(directory: str) -> dict[str, Any]:
    """Options of `ray.init` for a Ray of this machine alone, whose objects are images and ids; sets its environment.

    It listens on the loopback, answers to a token that only its processes have (in their environment, on no disk), and
    keeps its sockets, logs and spilled objects in a directory that no one else can enter: Ray opens its own to all.
    """
    os.environ.update(LOOPBACK)
    share_processors()
    os.environ.pop("RAY_ADDRESS", None)  # of another cluster: our processes must not look for it
    keep_from_proxies()
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray_private.listen_on_loopback()  # as LOOPBACK says, should Ray have been imported before
    return {"include_dashboard": False, **ray_private.directory_option(directory)}


def share_processors() -> None:
    """Set what this process and its workers need beside other programs (OWN_MACHINE, and BARRIERS unless any of them is
    set); before torch is imported.
    """
    own = OWN_MACHINE if any(name in os.environ for name in BARRIERS) else OWN_MACHINE | BARRIERS
    for key, value in own.items():
        os.environ.setdefault(key, value)


def ray_directory() -> str:
    """Ray's directory on this machine: in RAY_TMPDIR or TMPDIR, or in /tmp where sockets there had too long a path.

    Raises CxrltError where it cannot be made, or is someone else's.
    """
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    parent = next(path for path in (base, Path("/tmp")) if len(f"{path}/cxrlt_ray-{os.getuid()}/ray") <= LONGEST)
    try:
        return str(own_dir(parent / f"cxrlt_ray-{os.getuid()}") / "ray")
    except OSError as error:
        raise CxrltError(
            f"Ray's directory cannot be made in {parent} ({error.strerror}): set TMPDIR to a directory of yours whose "
            f"path has at most {LONGEST - len(f'/cxrlt_ray-{os.getuid()}/ray')} letters."
        ) from None


@contextmanager
def _quietly() -> Iterator[None]:
    """While Ray starts: no words of its core, and SIGTERM as it was, then too: Ray's own handlers end in a C++ dump."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _stderr_silenced():
            yield
    except SystemExit:  # Ray's own handler
        raise Terminated from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Drop what Ray's core writes to file descriptor 2 while it starts: that it heeds RAY_BACKEND_LOG_LEVEL."""
    sys.stderr.flush()
    original = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(silence)
        os.close(original)


def data_context() -> Any:
    """Ray Data's settings in this process, its progress bars and lines off: the program prints its own."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger(ray_private.PROGRESS_LOGGER).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []  # they report a worker's memory every half minute
    return context


def forget_decoded() -> None:
    """Remove the decoded images that trials left in the memory of the cluster's machines."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        node_cache.forget()
        return
    forget = ray.remote(node_cache.forget)
    strategies = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    tasks = [forget.options(num_cpus=0, scheduling_strategy=strategy).remote() for strategy in strategies]
    ray.wait(tasks, timeout=FORGET_SECONDS)
