"""A command and its processes, watched from /proc: memory, files, threads, and which outlive it. Linux only."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LINGER = 10.0  # seconds that the processes of a command may take to end after it


@dataclass(frozen=True)
class Process:
    """A process by /proc; bytes. `own`: neither files' content nor shared memory."""

    pid: int
    began: str  # in ticks since the machine's start: tells this process from a later one of the same pid
    title: str
    rss: int
    own: int
    shared: int  # in shared memory, as Ray's object store is
    peak: int  # the most RSS so far
    threads: int
    files: int


def process_of(pid: int) -> Process | None:
    """A process now; None once it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        lines = (line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        status = {name: value.split()[0] for name, value in lines if value.strip()}
        began = (folder / "stat").read_text().rpartition(")")[2].split()[19]
        title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        files = len(os.listdir(folder / "fd"))
    except OSError:
        return None
    if "VmRSS" not in status:  # a zombie
        return None
    sizes = (int(status[name]) * 1024 for name in ("VmRSS", "RssAnon", "RssShmem", "VmHWM"))
    return Process(pid, began, title, *sizes, threads=int(status["Threads"]), files=files)


def tree(pid: int) -> list[Process]:
    """`pid`, which comes first, and its descendants; [] once it has ended."""
    processes, pids = [], [pid]
    while pids:
        current = pids.pop()
        if (process := process_of(current)) is None:
            continue
        processes.append(process)
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                pids += map(int, task.read_text().split())
            except OSError:
                continue
    return processes


@dataclass(frozen=True)
class Watched:
    """The resources of a command, bytes and seconds, and its output.

    peak: its own RSS. together: the most that it and all its processes had of their own, with the shared memory of one.
    most: processes at once. left: the titles of those that outlived it by LINGER. code: of its exit.
    """

    seconds: float
    peak: int
    together: int
    most: int
    left: tuple[str, ...]
    code: int
    output: str


def watched(command: Sequence[str | Path], every: float = 0.2) -> Watched:
    """Run a command to its end."""
    began, peak, together, most = time.monotonic(), 0, 0, 0
    seen: dict[tuple[int, str], str] = {}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if present := tree(process.pid):
                peak, most = max(peak, present[0].peak), max(most, len(present))
                together = max(together, sum(p.own for p in present) + max(p.shared for p in present))
                seen |= {(p.pid, p.began): p.title for p in present}
            time.sleep(every)
        seconds = time.monotonic() - began
        log.seek(0)
        output = log.read()
    deadline = time.monotonic() + LINGER
    while (left := alive(seen)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return Watched(seconds, peak, together, most, tuple(left), process.returncode, output)


def alive(known: Iterable[tuple[int, str]]) -> list[str]:
    """The titles of those processes, known by pid and beginning, that have not ended."""
    present = ((process_of(pid), began) for pid, began in known)
    return [process.title for process, began in present if process is not None and process.began == began]
