"""The Ray cluster that a command joins: where it is, whether it answers, and that no proxy comes between."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cxrlt_ray import cli
from cxrlt_ray.cluster import ray_private
from cxrlt_ray.errors import UsageError

ANSWER_SECONDS = 15.0  # until a cluster whose head takes no connection is given up
CONNECT_SECONDS = 5.0  # of one connection
ALONE = "leave --address out to use this machine alone"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
CLIENT = "ray://"


@dataclass(frozen=True)
class Head:
    """The head of a cluster. where: HOST:PORT.  source: what named it, for messages."""

    where: str
    source: str

    @property
    def host(self) -> str:
        """The machine's name or IP address."""
        return self.where.rpartition(":")[0].strip("[]")

    @property
    def way_on(self) -> str:
        """How to go on without the cluster."""
        return ALONE + (", and unset RAY_ADDRESS" if self.source == "RAY_ADDRESS" else "")

    def answers(self, seconds: float) -> bool:
        """Whether something takes a connection there."""
        port = self.where.rpartition(":")[2]
        if not port.isdigit():
            return True  # Ray will say what it thinks of it
        try:
            socket.create_connection((self.host, int(port)), timeout=seconds).close()
        except OSError:
            return False
        return True


def head_of(address: str) -> Head | None:
    """The head that `address` means: HOST:PORT, or 'auto' for RAY_ADDRESS, else the last `ray start` of this machine.

    None where none is known. Raises UsageError for ray://, which has no Ray Train.
    """
    source = "--address"
    if address == "auto":
        source, address = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "")
    if address.startswith(CLIENT):
        raise UsageError(
            f"{source} {CLIENT}... is not supported: run the command on the cluster's head with --address auto "
            "(`ray attach cluster.yaml`, or `ray exec cluster.yaml 'python -m cxrlt_ray.sweep ... --address auto'`)."
        )
    if address in ("", "auto", "local"):
        source, address = "the last `ray start` of this machine", ray_private.started_address() or ""
    return Head(address, source) if address else None


def wait_for(head: Head) -> None:
    """Return once something answers at a cluster's head. Raises UsageError where nothing does in ANSWER_SECONDS."""
    until = time.monotonic() + ANSWER_SECONDS
    announced = False
    while not head.answers(min(CONNECT_SECONDS, ANSWER_SECONDS)):
        if not announced:
            announced = True
            cli.say(f"Waiting up to {ANSWER_SECONDS:.0f} s for the Ray cluster at {head.where} ({head.source})")
        if time.monotonic() > until:
            raise UsageError(
                f"no Ray cluster answers at {head.where}, which {head.source} names: start it (`ray start --head`), or "
                f"{head.way_on}."
            )
        time.sleep(0.5)


@contextmanager
def waiting_announced(head: Head) -> Iterator[None]:
    """Where joining takes long, print what is waited for: Ray itself tries for minutes and says nothing."""
    line = f"Waiting for the Ray cluster at {head.where} ({head.source}); else stop with Ctrl-C and {head.way_on}"
    timer = threading.Timer(ANSWER_SECONDS, cli.say, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def keep_from_proxies(*hosts: str) -> None:
    """Let no proxy of http_proxy or https_proxy take what this machine and `hosts` say to each other.

    Sets no_proxy and NO_PROXY, which the processes that Ray starts here inherit.
    """
    if not any(name.lower() in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy") for name in os.environ):
        return
    present = [host for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",") if host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*present, *LOOPBACK_HOSTS, *hosts]))


def other_cluster() -> str:
    """A line on a cluster that this machine could join and does not, or nothing."""
    head = None if os.environ.get("RAY_ADDRESS", "").startswith(CLIENT) else head_of("auto")
    if head is None or (head.source != "RAY_ADDRESS" and not head.answers(1.0)):
        return ""
    beside = "" if head.source == "RAY_ADDRESS" else ", whose CPUs are counted twice then"
    where = f"{head.where} ({head.source}){beside}"
    return f"This machine alone is used, not the Ray cluster at {where}: --address auto joins it"
