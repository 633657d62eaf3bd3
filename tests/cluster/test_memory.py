"""Memory that can still be had, of the machine and in cgroups of both versions; files stand for the kernel's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlt_ray.cluster import memory, node_cache
from cxrlt_ray.cluster.memory import Memory, available_memory, measure
from cxrlt_ray.doctor import machine

GB = 10**9
NO_LIMIT_V1 = 2**63 - 4096


@pytest.fixture
def system(tmp_path):
    """A function that writes /proc and /sys/fs/cgroup: the machine's bytes, the process's cgroups, files by path."""

    def write(total=64 * GB, available=40 * GB, cgroup="", files=None):
        contents = {f"sys/{path}": f"{content}\n" for path, content in (files or {}).items()}
        if total:
            contents["proc/meminfo"] = f"MemTotal: {total // 1024} kB\nMemAvailable: {available // 1024} kB\n"
        if cgroup:
            contents["proc/self/cgroup"] = cgroup
        for path, content in contents.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        return tmp_path / "proc", tmp_path / "sys"

    return write


def v1(limit, usage, inactive=0, directory="memory"):
    return {
        f"{directory}/memory.limit_in_bytes": limit,
        f"{directory}/memory.usage_in_bytes": usage,
        f"{directory}/memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {inactive}",
    }


def v2(limit, usage, inactive=0, directory="", high="max"):
    below = f"{directory}/" if directory else ""
    return {
        f"{below}memory.max": limit,
        f"{below}memory.high": high,
        f"{below}memory.current": usage,
        f"{below}memory.stat": f"anon 3\ninactive_file {inactive}\nactive_file 7",
    }


def test_without_a_container_the_machines_memory_counts(system):
    assert measure(*system()) == Memory(64 * GB // 1024 * 1024, 40 * GB // 1024 * 1024)


def test_nothing_is_known_where_nothing_says_so(system):
    assert available_memory(*system(total=0)) is None


@pytest.mark.parametrize(
    ("cgroup", "files", "available"),
    [
        # cgroup v2: a container's own namespace, then a Slurm step in the host's tree
        ("0::/\n", v2(8 * GB, 3 * GB), 5 * GB),
        ("0::/slurm/job/step\n", v2(8 * GB, 3 * GB, directory="slurm/job/step"), 5 * GB),
        # page cache that would be dropped is no use of memory
        ("0::/\n", v2(8 * GB, 7 * GB, inactive=2 * GB), 3 * GB),
        # any of the parents may be the narrowest
        ("0::/a/b\n", v2("max", 9 * GB, directory="a/b") | v2(8 * GB, 6 * GB, directory="a"), 2 * GB),
        ("0::/a/b\n", v2(2 * GB, 1 * GB, directory="a/b") | v2(30 * GB, 59 * GB // 2, directory="a"), GB // 2),
        # from memory.high on a process is slowed to a crawl
        ("0::/\n", v2(8 * GB, 3 * GB, high=6 * GB), 3 * GB),
        ("0::/\n", v2("max", 3 * GB, high=6 * GB), 3 * GB),
        # cgroup v1, whose unlimited is a huge number
        ("4:memory:/\n", v1(8 * GB, 3 * GB), 5 * GB),
        ("4:cpu,memory:/slurm/job\n", v1(8 * GB, 3 * GB, 1 * GB, "memory/slurm/job") | v1(NO_LIMIT_V1, 9 * GB), 6 * GB),
        ("4:memory:/a/b\n", v1(NO_LIMIT_V1, 1, directory="memory/a/b") | v1(4 * GB, 1 * GB, 0, "memory/a"), 3 * GB),
        # Docker without a cgroup namespace: the path is the host's, the container's files stand at the mount point
        ("4:memory:/docker/0123\n0::/docker/0123\n", v1(8 * GB, 3 * GB), 5 * GB),
        ("0::/../../other\n", v2(8 * GB, 3 * GB), 5 * GB),
        # version 1 for memory beside an empty version 2, as older systemd mounts them
        ("9:name=systemd:/\n4:memory:/job\n0::/\n", v1(8 * GB, 3 * GB, directory="memory/job"), 5 * GB),
        # /proc says nothing of cgroups
        ("", v2(8 * GB, 3 * GB), 5 * GB),
    ],
)
def test_a_container_leaves_what_its_narrowest_limit_says(system, cgroup, files, available):
    assert available_memory(*system(cgroup=cgroup, files=files)) == available


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/job\n", v2("max", 3 * GB, directory="job")),
        ("4:memory:/job\n", v1(NO_LIMIT_V1, 3 * GB, directory="memory/job")),
        ("0::/job\n", v2(500 * GB, 3 * GB, directory="job")),
        ("0::/gone\n", {}),
    ],
)
def test_a_container_without_a_limit_below_the_machines_changes_nothing(system, cgroup, files):
    assert available_memory(*system(cgroup=cgroup, files=files)) == 40 * GB // 1024 * 1024


def test_a_full_container_leaves_nothing_and_never_less(system):
    assert measure(*system(cgroup="0::/\n", files=v2(2 * GB, 3 * GB))) == Memory(2 * GB, 0)


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), min_size=1, max_size=4))
def test_no_level_of_nested_containers_is_exceeded(tmp_path_factory, levels):
    root = tmp_path_factory.mktemp("nested")
    (root / "proc/self").mkdir(parents=True)
    path = "/".join(f"level{k}" for k in range(len(levels)))
    (root / "proc/self/cgroup").write_text(f"0::/{path}\n")
    for k, (limit, usage) in enumerate(levels):
        directory = root.joinpath("sys", *path.split("/")[: k + 1])
        for name, value in v2(limit, usage).items():
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(f"{value}\n")
    found = available_memory(root / "proc", root / "sys")
    assert found == max(0, min(limit - usage for limit, usage in levels))


@pytest.fixture
def small_container(system, monkeypatch):
    """A container of 1.5 GB around this process, on a machine of 64 GB."""
    proc, cgroups = system(cgroup="4:memory:/job\n", files=v1(1_500_000_000, 500_000_000, directory="memory/job"))
    monkeypatch.setattr(memory.measure, "__defaults__", (proc, cgroups))
    monkeypatch.setattr(memory.available_memory, "__defaults__", (proc, cgroups))


def test_decoded_images_take_a_quarter_of_what_the_container_leaves(small_container, tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "MEMORY", tmp_path)
    assert node_cache.memory_bound() <= 0.25 * GB
    assert node_cache.memory_bound(0.3) == 300_000_000  # what is asked for is heeded


def test_the_doctor_reports_the_containers_memory(small_container):
    report = machine.report(machine.Ask(), ["memory", "shared memory"])
    assert report["memory"] == {"total": 1_500_000_000, "available": 1_000_000_000}
    if node_cache.MEMORY.is_dir():
        assert report["shared memory"]["wanted"] == 0.25 * GB
