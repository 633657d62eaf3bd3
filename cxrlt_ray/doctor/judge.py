"""What the machines' reports mean: `judge`, pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cxrlt_ray import cli
from cxrlt_ray.cluster import node_cache
from cxrlt_ray.doctor.check import FAIL, OK, WARN, Check
from cxrlt_ray.doctor.machine import FETCHED, MISSING, SPILL, STORED, TEMP, Report
from cxrlt_ray.doctor.weights import AT_FIRST

Verdict = tuple[str, str, str]  # state, told, mend
FREE_MEMORY = 2e9  # bytes; what a trial's process imports alone takes 1
FREE_DISK, NO_DISK, FREE_SHARED = 2e9, 2e8, 5e8  # bytes
FULL_DISK = 0.95  # share of a disk in use, at which Ray stops spilling objects
OPEN_FILES = 4096  # below which Ray's core warns of connection errors
BUSY = 0.1  # share of a GPU's memory, in the hands of others
SOME_BAD = 3  # of 20 images; where 5 % are bad (--max-bad), more come up in 1.6 % of samples
SKEW = 2.0  # seconds
PLACES = {
    STORED: "make room, or give another --storage",
    TEMP: "make room, or start Ray with --temp-dir on another disk (RAY_TMPDIR)",
    SPILL: "make room, or start Ray with --object-spilling-directory on another disk",
    FETCHED: "make room, or set TMPDIR to another disk: copies of shards are dropped and fetched again",
}


def judge(reports: list[Report]) -> list[Check]:
    """The checks that follow from the machines' reports; the first is the driver's. A machine that gave none has a
    key `silent`, which says why.
    """
    mend = "see `ray status`; bring it to the same code and lock, then `ray stop` and `ray start` there"
    silent = [Check("machines", FAIL, f"{each['node']} {each['silent']}", mend) for each in reports if "silent" in each]
    return [*silent, *_versions(reports), *(check for name in LOOKS for check in _together(name, reports))]


def _together(name: str, reports: list[Report]) -> Iterator[Check]:
    """Machines with the same verdict in one check; of all that are well, only that which is nearest not to be."""
    look, worst = LOOKS[name]
    found: dict[Verdict, list[Report]] = {}
    for each in reports:
        if name in each["errors"]:
            found.setdefault((FAIL, f"cannot be measured: {each['errors'][name]}", ""), []).append(each)
        elif name in each:
            found.setdefault(look(each[name]), []).append(each)
    well = [each for verdict, those in found.items() if verdict[0] == OK for each in those]
    if worst and well:
        last = max(well, key=lambda each: worst(each[name]))
        found = {verdict: each for verdict, each in found.items() if verdict[0] != OK} | {look(last[name]): [last]}
    for (state, told, mend), those in found.items():
        least = f", the worst of {len(well)}" if worst and state == OK and len(well) > 1 else ""
        yield Check(name, state, f"{_named(those)}{least}: {told}" if len(reports) > 1 else told, mend)


def _named(reports: Sequence[Report]) -> str:
    names = [each["node"] for each in reports]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _versions(reports: list[Report]) -> Iterator[Check]:
    """What every machine must have alike, compared with the driver."""
    for each in reports:
        if "versions" in each["errors"]:
            yield Check("versions", FAIL, f"{each['node']}: cannot be measured: {each['errors']['versions']}")
        elif unmet := each.get("versions", {}).get("unmet"):
            yield Check("versions", FAIL, f"{each['node']}: {', '.join(unmet)}", "install the lock: make .venv/.ready")
    differ = False
    own, *others = [each for each in reports if "versions" in each] or [{"versions": {"there": {}}}]
    for package, version in own["versions"]["there"].items():
        differing: dict[str, list[Report]] = {}
        for each in others:
            there = each["versions"]["there"].get(package, MISSING)
            if _comparable(package, there) != _comparable(package, version):
                differing.setdefault(there, []).append(each)
        if differing:
            told = ", ".join(f"{there} on {_named(those)}" for there, those in differing.items())
            mend = "bring every machine to the same code and the same lock"
            yield Check("versions", FAIL, f"{package} is {version} here, {told}", mend)
            differ = True
    if own["versions"]["there"] and not differ:
        yield Check("versions", OK, ", ".join(f"{name} {there}" for name, there in own["versions"]["there"].items()))


def _comparable(package: str, version: str) -> str:
    return version.rpartition(".")[0] if package == "python" else version


def _gpu(gpu: Report) -> Verdict:
    counted, built, tried = gpu["counted"], gpu["built"], gpu["tried"]
    there = tried if gpu["cards"] is None else gpu["cards"]
    if not (counted or there or gpu["plugged"]):
        return OK, "none: trials run on the CPU", ""
    # where Ray counts none, trials run on the CPU
    wrong, but = (FAIL, f", but Ray counts {counted:g} GPU") if counted else (WARN, ": trials would run on the CPU")
    if not gpu["driver"]:
        said = f" ({gpu['said']})" if gpu["said"] else ""
        mend = "install the NVIDIA driver, so that nvidia-smi lists the cards; in docker, give --gpus all"
        return wrong, f"no NVIDIA driver answers{said}{but}", mend
    speaks = f"{gpu['driver'] // 1000}.{gpu['driver'] % 1000 // 10}"
    if not built:
        return wrong, f"torch is built without CUDA{but}", f"install a torch that is built for CUDA {speaks} or older"
    if gpu["driver"] // 1000 < int(built.partition(".")[0]):
        told = f"the driver is too old: it speaks CUDA {speaks}, torch is built for {built}{but}"
        return wrong, told, f"update the NVIDIA driver, or install a torch that is built for CUDA {speaks}"
    found = there if tried is None else tried
    if found is not None and counted > len(found):
        mend = "start Ray there with as many --num-gpus; CUDA_VISIBLE_DEVICES may hide some"
        return FAIL, f"there are {len(found)} GPU, but Ray counts {counted:g}", mend
    broken = [f"{k} ({each['name']}): {each['error']}" for k, each in enumerate(tried or ()) if each["error"]]
    if broken:
        mend = "for `no kernel image` take a torch that knows this GPU; else look at nvidia-smi, or leave the GPU out"
        return wrong, f"torch cannot work on GPU {'; '.join(broken)}{but}", mend
    busy = [
        f"{k} ({cli.size(each['used'])} of {cli.size(each['total'])})"
        for k, each in enumerate(there or ())
        if each["used"] > BUSY * each["total"]
    ]
    if busy:
        return WARN, f"others hold memory of GPU {', '.join(busy)}", "nvidia-smi says who: wait, or end them"
    kinds = [f"{each['name']} {cli.size(each['total'])}" for each in there or ()]
    told = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) or "not looked at"
    driver = f"driver {there[0]['driver']} speaks" if gpu["cards"] else "the driver speaks"
    return OK, f"{told}; {driver} CUDA {speaks}, torch is built for {built}{', and works' if tried else ''}", ""


def _memory(found: Report) -> Verdict:
    told = f"{cli.size(found['available'])} of {cli.size(found['total'])} available"
    if found["available"] < FREE_MEMORY:
        return WARN, told, "end what else runs there: where memory runs out, Ray ends trials"
    return OK, told, ""


def _shared_memory(found: Report) -> Verdict:
    told = f"{cli.size(found['free'])} of {cli.size(found['total'])} free in /dev/shm"
    if found["object_store"]:
        told += f", Ray's object store of {cli.size(found['object_store'])} in {found['at']}"
    if found["at"] != str(node_cache.MEMORY) or found["total"] < FREE_SHARED:
        gib = max(1, math.ceil(found["wanted"] / 2**30))
        mend = f"docker run --shm-size={gib}g, or mount -o remount,size={gib}g /dev/shm; then start Ray anew"
        return WARN, f"{told}: too small, objects go to disk and few decoded images are kept", mend
    if found["free"] < FREE_SHARED:
        return WARN, told, "remove what ended programs left in /dev/shm"
    return OK, told, ""


def _open_files(limit: int) -> Verdict:
    if 0 <= limit < OPEN_FILES:
        return WARN, f"at most {limit:,}", "ulimit -n 65536, before Ray is started"
    return OK, f"at most {limit:,}" if limit >= 0 else "unlimited", ""


def _disk(found: Report) -> Verdict:
    state, told, mends = OK, [], []
    for name, disk in found.items():
        told.append(f"{name} {cli.size(disk['free'])} free")
        full = name in (TEMP, SPILL) and disk["free"] < (1 - FULL_DISK) * disk["total"]
        least = node_cache.KEEP_FREE if name == FETCHED else FREE_DISK
        if full or disk["free"] < least:
            told[-1] += f" (below {'5 %: Ray stops spilling' if full else cli.size(least)})"
            mends.append(PLACES[name])
            state = FAIL if state == FAIL or (disk["free"] < NO_DISK and name != FETCHED) else WARN
    return state, ", ".join(told), "; ".join(mends)


def _clock(found: tuple[float, float]) -> Verdict:
    skew, doubt = found
    if abs(skew) - doubt > SKEW:
        told = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the driver's"
        return WARN, told, "let NTP set the clock: timedatectl set-ntp true"
    return OK, f"within {max(0.01, abs(skew) + doubt):.2f} s of the driver's", ""


def _access(asks_for_token: bool) -> Verdict:
    if asks_for_token:
        return OK, "Ray asks for a token", ""
    told = "Ray asks for no token: whoever reaches its ports runs programs as you and reads the data"
    return (
        WARN,
        told,
        "`ray get-auth-token --generate`, the same token on every machine, RAY_AUTH_MODE=token, start Ray",
    )


def _shared(seen: bool) -> Verdict:
    if seen:
        return OK, "what one machine writes to the storage, the others read", ""
    mend = "give --storage as a URI (s3://...), or a directory that is mounted at the same path on every machine"
    return FAIL, "does not see the storage that the driver sees", mend


def _images(found: Report) -> Verdict:
    looked, missing, bad = found["looked"], found["missing"], found["bad"]
    if not (missing or bad):
        rate = looked / max(found["seconds"], 1e-9)
        return OK, f"{looked} sampled, all there and decoded, {rate:,.0f} images/s on one core", ""
    told = []
    if missing:
        rows = ", ".join(map(str, missing[:3])) + (" ..." if len(missing) > 3 else "")
        told.append(f"{len(missing)} of {looked} sampled are not there (row {rows})")
    if bad:
        row, why = next(iter(bad.items()))
        told.append(f"{len(bad)} of {looked} sampled cannot be decoded (row {row}: {why})")
    mend = "python -m cxrlt_ray.cohort DATA compares table and disk; --max-bad allows more than 5 %"
    if len(missing) == looked:
        mend = "the images must lie at the same path on every machine, or at a URI"
    return FAIL if len(missing) + len(bad) > SOME_BAD else WARN, "; ".join(told), mend


def _weights(found: Report) -> Verdict:
    lacking = [(name, told, mend) for name, met, told, mend in found["met"] if not met]
    if lacking:
        told = "; ".join(f"{name} cannot be had: {told}" for name, told, _ in lacking)
        return FAIL, told, "; ".join(dict.fromkeys(mend for _, _, mend in lacking))
    told = "; ".join(f"{name}: {told}" for name, _, told, _ in found["met"])
    if found["cache"] and AT_FIRST in told:
        return FAIL, f"{told}; the hub's cache cannot be written ({found['cache']})", "set HF_HOME to a folder of yours"
    return OK, told, ""


# verdict of a part of the reports, and how bad a report is that is well: then only the worst is told
LOOKS: dict[str, tuple[Callable[[Any], Verdict], Callable[[Any], float] | None]] = {
    "gpu": (_gpu, None),
    "memory": (_memory, lambda found: -found["available"]),
    "shared memory": (_shared_memory, lambda found: -found["free"]),
    "open files": (_open_files, lambda limit: -limit if limit >= 0 else -math.inf),
    "disk": (_disk, lambda found: -min((disk["free"] for disk in found.values()), default=0)),
    "clock": (_clock, lambda found: abs(found[0]) + found[1]),
    "access": (_access, None),
    "shared": (_shared, None),
    "images": (_images, lambda found: found["seconds"] / found["looked"]),
    "weights": (_weights, None),
}
