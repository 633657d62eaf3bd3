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

Verdict = tuple[str, str, str]  # state, message, mend
FREE_MEMORY = 2e9  # bytes; the imports of a trial's process take 1e9
FREE_DISK, NO_DISK, FREE_SHARED = 2e9, 2e8, 5e8  # bytes
FULL_DISK = 0.95  # share of a disk in use, at which Ray stops spilling objects
OPEN_FILES = 4096  # below which Ray's core warns of connection errors
BUSY = 0.1  # share of a GPU's memory that other programs hold
SOME_BAD = 3  # of 20 images; where 5 % are bad (--max-bad), more come up in 1.6 % of samples
SKEW = 2.0  # seconds
PLACES = {
    STORED: "make room, or give another --storage",
    TEMP: "make room, or start Ray with --temp-dir on another disk (RAY_TMPDIR)",
    SPILL: "make room, or start Ray with --object-spilling-directory on another disk",
    FETCHED: "make room, or set TMPDIR to another disk: copies of shards are dropped and fetched again",
}


def judge(reports: list[Report]) -> list[Check]:
    """The checks that follow from the machines' reports; the first is the driver's.

    The report of a machine that gave none has a key `silent`, the reason.
    """
    mend = "see `ray status`; bring it to the same code and lock, then `ray stop` and `ray start` there"
    silent = [
        Check("machines", FAIL, f"{report['node']} {report['silent']}", mend)
        for report in reports
        if "silent" in report
    ]
    return [*silent, *_versions(reports), *(check for name in VERDICTS for check in _together(name, reports))]


def _together(name: str, reports: list[Report]) -> Iterator[Check]:
    """Machines with the same verdict in one check; of all that pass, only the one closest to a warning."""
    verdict_of, badness = VERDICTS[name]
    by_verdict: dict[Verdict, list[Report]] = {}
    for report in reports:
        if name in report["errors"]:
            by_verdict.setdefault((FAIL, f"cannot be measured: {report['errors'][name]}", ""), []).append(report)
        elif name in report:
            by_verdict.setdefault(verdict_of(report[name]), []).append(report)
    passed = [report for verdict, machines in by_verdict.items() if verdict[0] == OK for report in machines]
    if badness and passed:
        worst = max(passed, key=lambda report: badness(report[name]))
        by_verdict = {verdict: machines for verdict, machines in by_verdict.items() if verdict[0] != OK}
        by_verdict |= {verdict_of(worst[name]): [worst]}
    for (state, message, mend), machines in by_verdict.items():
        rank = f", the worst of {len(passed)}" if badness and state == OK and len(passed) > 1 else ""
        yield Check(name, state, f"{_named(machines)}{rank}: {message}" if len(reports) > 1 else message, mend)


def _named(reports: Sequence[Report]) -> str:
    names = [report["node"] for report in reports]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _versions(reports: list[Report]) -> Iterator[Check]:
    """What must be equal on all machines, compared with the driver."""
    for report in reports:
        if "versions" in report["errors"]:
            yield Check("versions", FAIL, f"{report['node']}: cannot be measured: {report['errors']['versions']}")
        elif unmet := report.get("versions", {}).get("unmet"):
            mend = "install the lock: make .venv/.ready"
            yield Check("versions", FAIL, f"{report['node']}: {', '.join(unmet)}", mend)
    differ = False
    own, *others = [report for report in reports if "versions" in report] or [{"versions": {"there": {}}}]
    installed: dict[str, str] = own["versions"]["there"]
    for package, version in installed.items():
        differing: dict[str, list[Report]] = {}
        for report in others:
            other = report["versions"]["there"].get(package, MISSING)
            if _comparable(package, other) != _comparable(package, version):
                differing.setdefault(other, []).append(report)
        if differing:
            message = ", ".join(f"{other} on {_named(machines)}" for other, machines in differing.items())
            mend = "bring every machine to the same code and the same lock"
            yield Check("versions", FAIL, f"{package} is {version} here, {message}", mend)
            differ = True
    if installed and not differ:
        yield Check("versions", OK, ", ".join(f"{package} {version}" for package, version in installed.items()))


def _comparable(package: str, version: str) -> str:
    return version.rpartition(".")[0] if package == "python" else version


def _gpu(gpu: Report) -> Verdict:
    counted, built, tried = gpu["counted"], gpu["built"], gpu["tried"]
    cards = tried if gpu["cards"] is None else gpu["cards"]
    if not (counted or cards or gpu["plugged"]):
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
        message = f"the driver is too old: it speaks CUDA {speaks}, torch is built for {built}{but}"
        return wrong, message, f"update the NVIDIA driver, or install a torch that is built for CUDA {speaks}"
    usable = cards if tried is None else tried
    if usable is not None and counted > len(usable):
        mend = "start Ray cards with as many --num-gpus; CUDA_VISIBLE_DEVICES may hide some"
        return FAIL, f"there are {len(usable)} GPU, but Ray counts {counted:g}", mend
    broken = [f"{k} ({card['name']}): {card['error']}" for k, card in enumerate(tried or ()) if card["error"]]
    if broken:
        mend = "for `no kernel image` take a torch that knows this GPU; else look at nvidia-smi, or leave the GPU out"
        return wrong, f"torch cannot work on GPU {'; '.join(broken)}{but}", mend
    busy = [
        f"{k} ({cli.size(card['used'])} of {cli.size(card['total'])})"
        for k, card in enumerate(cards or ())
        if card["used"] > BUSY * card["total"]
    ]
    if busy:
        return WARN, f"others hold memory of GPU {', '.join(busy)}", "nvidia-smi says who: wait, or end them"
    kinds = [f"{card['name']} {cli.size(card['total'])}" for card in cards or ()]
    message = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) or "not looked at"
    driver = f"driver {cards[0]['driver']} speaks" if gpu["cards"] else "the driver speaks"
    return OK, f"{message}; {driver} CUDA {speaks}, torch is built for {built}{', and works' if tried else ''}", ""


def _memory(measured: Report) -> Verdict:
    message = f"{cli.size(measured['available'])} of {cli.size(measured['total'])} available"
    if measured["available"] < FREE_MEMORY:
        return WARN, message, "end what else runs there: where memory runs out, Ray ends trials"
    return OK, message, ""


def _shared_memory(measured: Report) -> Verdict:
    message = f"{cli.size(measured['free'])} of {cli.size(measured['total'])} free in /dev/shm"
    if measured["object_store"]:
        message += f", Ray's object store of {cli.size(measured['object_store'])} in {measured['at']}"
    if measured["at"] != str(node_cache.MEMORY) or measured["total"] < FREE_SHARED:
        gib = max(1, math.ceil(measured["wanted"] / 2**30))
        mend = f"docker run --shm-size={gib}g, or mount -o remount,size={gib}g /dev/shm; then start Ray anew"
        return WARN, f"{message}: too small, objects go to disk and few decoded images are kept", mend
    if measured["free"] < FREE_SHARED:
        return WARN, message, "remove what ended programs left in /dev/shm"
    return OK, message, ""


def _open_files(limit: int) -> Verdict:
    if 0 <= limit < OPEN_FILES:
        return WARN, f"at most {limit:,}", "ulimit -n 65536, before Ray is started"
    return OK, f"at most {limit:,}" if limit >= 0 else "unlimited", ""


def _disk(disks: Report) -> Verdict:
    state, messages, mends = OK, [], []
    for name, disk in disks.items():
        messages.append(f"{name} {cli.size(disk['free'])} free")
        full = name in (TEMP, SPILL) and disk["free"] < (1 - FULL_DISK) * disk["total"]
        least = node_cache.KEEP_FREE if name == FETCHED else FREE_DISK
        if full or disk["free"] < least:
            messages[-1] += f" (below {'5 %: Ray stops spilling' if full else cli.size(least)})"
            mends.append(PLACES[name])
            state = FAIL if state == FAIL or (disk["free"] < NO_DISK and name != FETCHED) else WARN
    return state, ", ".join(messages), "; ".join(mends)


def _clock(offset: tuple[float, float]) -> Verdict:
    skew, doubt = offset
    if abs(skew) - doubt > SKEW:
        message = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the driver's"
        return WARN, message, "let NTP set the clock: timedatectl set-ntp true"
    return OK, f"within {max(0.01, abs(skew) + doubt):.2f} s of the driver's", ""


def _access(asks_for_token: bool) -> Verdict:
    if asks_for_token:
        return OK, "Ray asks for a token", ""
    message = "Ray asks for no token: whoever reaches its ports runs programs as you and reads the data"
    return (
        WARN,
        message,
        "`ray get-auth-token --generate`, the same token on every machine, RAY_AUTH_MODE=token, start Ray",
    )


def _shared(seen: bool) -> Verdict:
    if seen:
        return OK, "what one machine writes to the storage, the others read", ""
    mend = "give --storage as a URI (s3://...), or a directory that is mounted at the same path on every machine"
    return FAIL, "does not see the storage that the driver sees", mend


def _images(measured: Report) -> Verdict:
    looked, missing, bad = measured["looked"], measured["missing"], measured["bad"]
    if not (missing or bad):
        rate = looked / max(measured["seconds"], 1e-9)
        return OK, f"{looked} sampled, all there and decoded, {rate:,.0f} images/s on one core", ""
    messages = []
    if missing:
        rows = ", ".join(map(str, missing[:3])) + (" ..." if len(missing) > 3 else "")
        messages.append(f"{len(missing)} of {looked} sampled are not there (row {rows})")
    if bad:
        row, why = next(iter(bad.items()))
        messages.append(f"{len(bad)} of {looked} sampled cannot be decoded (row {row}: {why})")
    mend = "python -m cxrlt_ray.cohort DATA compares table and disk; --max-bad allows more than 5 %"
    if len(missing) == looked:
        mend = "the images must lie at the same path on every machine, or at a URI"
    return FAIL if len(missing) + len(bad) > SOME_BAD else WARN, "; ".join(messages), mend


def _weights(measured: Report) -> Verdict:
    missing = [(name, message, mend) for name, met, message, mend in measured["met"] if not met]
    if missing:
        message = "; ".join(f"{name} cannot be had: {reason}" for name, reason, _ in missing)
        return FAIL, message, "; ".join(dict.fromkeys(mend for _, _, mend in missing))
    message = "; ".join(f"{name}: {source}" for name, _, source, _ in measured["met"])
    if measured["cache"] and AT_FIRST in message:
        reason = f"{message}; the hub's cache cannot be written ({measured['cache']})"
        return FAIL, reason, "set HF_HOME to a folder of yours"
    return OK, message, ""


# the verdict on a part of a report, and how bad a part is that passes: only the worst of these is shown
VERDICTS: dict[str, tuple[Callable[[Any], Verdict], Callable[[Any], float] | None]] = {
    "gpu": (_gpu, None),
    "memory": (_memory, lambda measured: -measured["available"]),
    "shared memory": (_shared_memory, lambda measured: -measured["free"]),
    "open files": (_open_files, lambda limit: -limit if limit >= 0 else -math.inf),
    "disk": (_disk, lambda disks: -min((disk["free"] for disk in disks.values()), default=0)),
    "clock": (_clock, lambda offset: abs(offset[0]) + offset[1]),
    "access": (_access, None),
    "shared": (_shared, None),
    "images": (_images, lambda measured: measured["seconds"] / measured["looked"]),
    "weights": (_weights, None),
}
