"""How much memory this process may still take: of the machine, and of every container (cgroup) that it is in.

Slurm's --mem, Docker's --memory and Kubernetes' limits are cgroups, which /proc/meminfo does not reflect. A process
that takes more than its cgroup leaves is killed, and what it wrote to /dev/shm counts. A cgroup's parents bind it as
well. Page cache that the kernel would drop (inactive_file) counts as available, as it does in MemAvailable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # bytes from which on a limit of cgroup v1 is none: it says 2**63 - 4096


@dataclass(frozen=True)
class Memory:
    """Bytes in all and bytes that can still be had, of the machine or of the narrowest container around the process."""

    total: int
    available: int


@dataclass(frozen=True)
class _Version:
    """How a version of cgroups calls its files of limits (the lowest holds), of usage, and reclaimable cache."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: str


_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version(("memory.max", "memory.high"), "memory.current", "inactive_file")


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes that this process can still take before the machine or a container is out of memory.

    None where neither says so. proc, cgroups: where the two file systems are mounted.
    """
    memory = measure(proc, cgroups)
    return None if memory is None else memory.available


def measure(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory | None:
    """Total and available memory, each the least over the machine and the containers; None where nothing says so."""
    parts = [*_machine(proc), *_containers(proc, cgroups)]
    if not parts:
        return None
    return Memory(min(part.total for part in parts), max(0, min(part.available for part in parts)))


def _machine(proc: Path) -> Iterator[Memory]:
    values = _numbers(proc / "meminfo")
    if "MemTotal" in values and "MemAvailable" in values:
        yield Memory(1024 * values["MemTotal"], 1024 * values["MemAvailable"])


def _containers(proc: Path, cgroups: Path) -> Iterator[Memory]:
    """The process's memory cgroups that have a limit, from its own up to the mount point."""
    for version, root, path in _own_cgroups(proc, cgroups):
        # without a cgroup namespace the path is the host's, and what is mounted begins at the container: no such
        # directory exists below the root then, and the root is the process's cgroup
        for directory in (root / path, *(root / path).parents):
            yield from _limited(directory, version)
            if directory == root:
                break


def _own_cgroups(proc: Path, cgroups: Path) -> Iterator[tuple[_Version, Path, str]]:
    """The process's position in each hierarchy of cgroups that may limit its memory: version, mount point, path."""
    paths = {_V1: "", _V2: ""}
    for line in _lines(proc / "self/cgroup"):
        number, controllers, path = line.split(":", 2)
        inside = path.strip("/") if ".." not in path.split("/") else ""  # outside of this namespace's root
        if number == "0" and not controllers:
            paths[_V2] = inside
        elif "memory" in controllers.split(","):
            paths[_V1] = inside
    yield _V1, cgroups / "memory", paths[_V1]
    yield _V2, cgroups, paths[_V2]


def _limited(directory: Path, version: _Version) -> Iterator[Memory]:
    """Memory of one cgroup, where it has a limit."""
    words = [line for name in version.limits for line in _lines(directory / name)]
    limits = [int(word) for word in words if word.isdigit() and int(word) < UNLIMITED]
    usage = [int(word) for word in _lines(directory / version.usage)]
    if limits and usage:
        reclaimable = _numbers(directory / "memory.stat").get(version.reclaimable, 0)
        yield Memory(min(limits), min(limits) - max(0, usage[0] - reclaimable))


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name value` or `name: value unit` of a file."""
    fields = (line.replace(":", " ").split() for line in _lines(path))
    return {name: int(value) for name, value, *_ in fields}


def _lines(path: Path) -> list[str]:
    """The lines of a file; [] where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
