"""A command and all that it starts, watched from /proc: memory, files, threads, what outlives it. Linux only."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LINGER = 10.0  # seconds that what a command started may take to end after it


@dataclass(frozen=True)
class Process:
    """What /proc says of a process; bytes. `own`: neither files' content nor shared memory."""

    pid: int
    began: str  # in ticks since the machine's start: with pid it is this process and no later one
    title: str
    rss: int
    own: int
    shared: int  # in shared memory, as Ray's object store is
    peak: int  # the most RSS so far
    threads: int
    files: int


def look(pid: int) -> Process | None:
    """A process now; None once it is gone."""
    place = Path(f"/proc/{pid}")
    try:
        lines = (line.split(":", 1) for line in (place / "status").read_text().splitlines())
        said = {name: value.split()[0] for name, value in lines if value.strip()}
        began = (place / "stat").read_text().rpartition(")")[2].split()[19]
        title = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        files = len(os.listdir(place / "fd"))
    except OSError:
        return None
    if "VmRSS" not in said:  # a zombie
        return None
    sizes = (int(said[name]) * 1024 for name in ("VmRSS", "RssAnon", "RssShmem", "VmHWM"))
    return Process(pid, began, title, *sizes, threads=int(said["Threads"]), files=files)


def tree(pid: int) -> list[Process]:
    """`pid`, which comes first, and all below it; [] once it is gone."""
    found, left = [], [pid]
    while left:
        at = left.pop()
        if (process := look(at)) is None:
            continue
        found.append(process)
        for task in Path(f"/proc/{at}/task").glob("*/children"):
            try:
                left += map(int, task.read_text().split())
            except OSError:
                continue
    return found


@dataclass(frozen=True)
class Watched:
    """What a command took, bytes and seconds, and what it said."""

    seconds: float
    peak: int  # its own RSS
    together: int  # the most that it and all it started had of their own, with the shared memory of one
    most: int  # processes at once
    left: tuple[str, ...]  # what it started and outlived it by LINGER
    code: int
    said: str


def watched(command: Sequence[str | Path], every: float = 0.2) -> Watched:
    """Run a command to its end."""
    began, peak, together, most = time.monotonic(), 0, 0, 0
    seen: dict[tuple[int, str], str] = {}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if now := tree(process.pid):
                peak, most = max(peak, now[0].peak), max(most, len(now))
                together = max(together, sum(each.own for each in now) + max(each.shared for each in now))
                seen |= {(each.pid, each.began): each.title for each in now}
            time.sleep(every)
        seconds = time.monotonic() - began
        log.seek(0)
        said = log.read()
    deadline = time.monotonic() + LINGER
    while (left := alive(seen)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return Watched(seconds, peak, together, most, tuple(left), process.returncode, said)


def alive(known: Iterable[tuple[int, str]]) -> list[str]:
    """The titles of processes of those numbers and beginnings that are still there."""
    now = ((look(pid), began) for pid, began in known)
    return [process.title for process, began in now if process is not None and process.began == began]
