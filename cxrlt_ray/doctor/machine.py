"""What a machine measures of itself: `report`, a plain dict. It runs on each of the cluster's, and needs no Ray."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import resource
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cxrlt_ray import __version__
from cxrlt_ray.cluster import memory, node_cache, ray_private
from cxrlt_ray.config import PACKAGE
from cxrlt_ray.data.decode import decode
from cxrlt_ray.doctor.check import reason
from cxrlt_ray.doctor.weights import Want, cache, met
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

Report = dict[str, Any]
PACKAGES = ("ray", "torch", "torchvision", "timm", "optuna", "pyarrow")
STORED, TEMP, SPILL, FETCHED = "storage", "Ray's temp dir", "spilled objects", "fetched shards"
GPU_SECONDS = 20.0
IMAGE_SECONDS = (1.0, 4.0)  # for all images of a sample; the second when thorough


@dataclass(frozen=True)
class Ask:
    """What the machine `name` is to look at.

    shared: a folder of the storage with a file `driver` that holds `token`, if not "". rows: (row, path below `root`,
    inverted) of images, decoded for `edge` pixels. stored: the storage where it is local, else "". socket: of this
    machine's raylet. counted: GPUs, and object_store: bytes, in Ray's books. thorough: also what takes seconds.
    """

    name: str = "here"
    shared: str = ""
    token: str = ""
    root: str = ""
    rows: tuple[tuple[int, str, bool], ...] = ()
    edge: int = 0
    wants: tuple[Want, ...] = ()
    stored: str = ""
    socket: str = ""
    counted: float = 0.0
    object_store: float = 0.0
    thorough: bool = True


def report(ask: Ask, parts: Sequence[str] = ()) -> Report:
    """Each of PARTS (or of `parts`) as this machine finds it; why one cannot be measured stands in `errors`."""
    found: Report = {"node": ask.name, "errors": {}}
    for part in parts or PARTS:
        try:
            measured = PARTS[part](ask)
        except Exception as error:
            found["errors"][part] = reason(error)
            continue
        if measured is not None:
            found[part] = measured
    return found


def _versions(ask: Ask) -> Report:
    """there: package -> version, with a hash of our own code; unmet: what we were installed for and is not there."""
    from packaging.requirements import Requirement

    code = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    there = {"cxrlt_ray": f"{__version__} (code {code.hexdigest()[:6]})", "python": platform.python_version()}
    wanted = [] if _version("cxrlt-ray") == MISSING else map(Requirement, metadata.requires("cxrlt-ray") or ())
    unmet = [
        f"{each.name} is {has}, not {each.specifier}"
        for each in wanted
        if each.marker is None
        and ((has := _version(each.name)) == MISSING or not each.specifier.contains(has, prereleases=True))
    ]
    return {"there": there | {name: _version(name) for name in PACKAGES}, "unmet": unmet}


MISSING = "missing"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING


def _gpu(ask: Ask) -> Report:
    """CUDA without importing torch, which takes seconds: what nvidia-smi, the driver and torch's build say.

    cards: of nvidia-smi, None where it does not answer; said: then why. tried: of torch, when thorough. plugged:
    whether a card of NVIDIA's stands in the machine. driver: the CUDA it speaks, 13020 for 13.2, 0 for none.
    """
    torch = find_spec("torch")
    built = runpy.run_path(str(Path(torch.origin or "").with_name("version.py")))["cuda"] if torch else None
    found: Report = {"counted": ask.counted, "cards": None, "said": "", "tried": None, "built": built}
    found |= {"plugged": any(map(_is_gpu, Path("/sys/bus/pci/devices").glob("*"))), "driver": _driver()}
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,memory.total,memory.used,driver_version"
        smi = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        told = subprocess.run(smi, capture_output=True, text=True, timeout=10, check=False)
        if told.returncode:
            found["said"] = " ".join((told.stdout or told.stderr).split())[:160]
        else:
            found["cards"] = [_card(line) for line in told.stdout.splitlines() if line.strip()]
    if ask.thorough and built and found["driver"]:
        found["tried"] = _tried()
    return found


def _is_gpu(device: Path) -> bool:
    return "0x10de" in (device / "vendor").read_text() and (device / "class").read_text().startswith("0x03")


def _driver() -> int:
    version = ctypes.c_int(0)
    try:
        return version.value if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0 else 0
    except OSError:
        return 0


def _card(line: str) -> Report:
    name, total, used, driver = (each.strip() for each in line.split(","))
    mib = [float(each) * 2**20 if each.isdigit() else 0.0 for each in (total, used)]  # [N/A] of a part of a GPU
    return {"name": name, "total": mib[0], "used": mib[1], "driver": driver}


_TRY = """
import json, torch
found = []
for k in range(torch.cuda.device_count()):
    each = {"name": torch.cuda.get_device_name(k), "error": "", "total": 0, "used": 0}
    try:
        free, each["total"] = torch.cuda.mem_get_info(k)
        each["used"] = each["total"] - free
        torch.ones(64, 64, device=k).mm(torch.ones(64, 64, device=k)).sum().item()
    except Exception as error:
        each["error"] = " ".join(str(error).split())[:160]
    found.append(each)
print(json.dumps(found))
"""


def _tried() -> list[Report]:
    """Each GPU as torch finds it after a little work; in a process of its own, with which its CUDA context goes."""
    there = dict(os.environ)
    if there.get("CUDA_VISIBLE_DEVICES") == "":
        del there["CUDA_VISIBLE_DEVICES"]  # hidden by Ray from a task that asks for no GPU
    try:
        told = subprocess.run(
            [sys.executable, "-c", _TRY], capture_output=True, text=True, timeout=GPU_SECONDS, env=there, check=True
        )
    except subprocess.TimeoutExpired:
        raise CxrltError(f"torch does not answer within {GPU_SECONDS:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise CxrltError(error.stderr) from None
    return json.loads(told.stdout.splitlines()[-1])


def _memory(ask: Ask) -> Report | None:
    """Bytes in all and available, of the machine or of the container that this is."""
    measured = memory.measure()
    return None if measured is None else {"total": measured.total, "available": measured.available}


def _shared_memory(ask: Ask) -> Report | None:
    """Bytes of /dev/shm; at: where Ray's object store lies; wanted: bytes for the store and our decoded images."""
    if not node_cache.MEMORY.is_dir():
        return None
    disk, at = shutil.disk_usage(node_cache.MEMORY), _raylet(ask.socket).get("plasma_directory", str(node_cache.MEMORY))
    wanted = ask.object_store + node_cache.SHARE_OF_MEMORY * (memory.available_memory() or 0)
    return {"total": disk.total, "free": disk.free, "object_store": ask.object_store, "at": at, "wanted": wanted}


def _disks(ask: Ask) -> Report:
    """Bytes free, and in all, of the disk below each place."""
    places = {STORED: ask.stored, FETCHED: "" if ask.stored else tempfile.gettempdir()}
    if ask.socket:
        raylet = _raylet(ask.socket)
        temp = raylet.get("temp_dir", str(Path(ask.socket).parents[2]))
        spill = raylet.get("fallback_directory", temp)
        places |= {TEMP: temp, SPILL: "" if spill.startswith(temp) else spill}
    found = {}
    for name, place in places.items():
        if place:
            there = next(each for each in (Path(place), *Path(place).absolute().parents) if each.exists())
            disk = shutil.disk_usage(there)
            found[name] = {"free": disk.free, "total": disk.total}
    return found


def _raylet(socket: str) -> dict[str, str]:
    """The flags of the raylet behind `socket`, which say where its objects lie and where they are spilled to."""
    for path in Path("/proc").glob("[0-9]*/cmdline") if socket else ():
        with suppress(OSError):
            words = path.read_text(errors="replace").split("\0")
            if words[0].endswith("/raylet") and f"--raylet_socket_name={socket}" in words:
                return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    return {}


def _seen(ask: Ask) -> bool | None:
    """Whether the driver's file is seen from here; one of this machine's is then left beside it."""
    if not ask.token:
        return None
    folder = Store(ask.shared)
    if not folder.exists("driver") or folder.read("driver").decode() != ask.token:
        return False
    folder.write(ask.name, ask.token.encode())
    return True


def _images(ask: Ask) -> Report | None:
    """Which of the rows are not there or cannot be decoded, and the seconds that it took on one core."""
    if not ask.rows:
        return None
    import cv2

    from cxrlt_ray.data.originals import read_original

    found: Report = {"looked": 0, "missing": [], "bad": {}}
    start, threads = time.perf_counter(), cv2.getNumThreads()
    cv2.setNumThreads(1)
    for row, path, inverted in ask.rows:
        if found["looked"] and time.perf_counter() - start > IMAGE_SECONDS[ask.thorough]:
            break
        found["looked"] += 1
        try:
            decode(read_original(ask.root, path), ask.edge, inverted)
        except CxrltError:
            found["missing"].append(row)
        except (ValueError, cv2.error) as error:
            found["bad"][row] = str(error).partition(" (")[0][:60]  # what a library says beyond may name a patient
    cv2.setNumThreads(threads)
    return found | {"seconds": time.perf_counter() - start}


def _weights(ask: Ask) -> Report | None:
    return {"met": met(ask.wants), "cache": cache()} if ask.wants else None


def _access(ask: Ask) -> bool | None:
    """Whether Ray asks for a token, as this process was started."""
    if not ask.socket:
        return None
    return ray_private.requires_token()


PARTS: dict[str, Callable[[Ask], Any]] = {
    "versions": _versions,
    "gpu": _gpu,
    "memory": _memory,
    "shared memory": _shared_memory,
    "open files": lambda ask: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "disk": _disks,
    "shared": _seen,
    "images": _images,
    "weights": _weights,
    "access": _access,
}
