"""Measurements of one machine: `report`, a plain dict. It runs on each machine of a cluster and needs no Ray itself."""

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
from cxrlt_ray.doctor.weights import Asset, cache, met
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

Report = dict[str, Any]
PACKAGES = ("ray", "torch", "torchvision", "timm", "optuna", "pyarrow")
STORED, TEMP, SPILL, FETCHED = "storage", "Ray's temp dir", "spilled objects", "fetched shards"
GPU_SECONDS = 20.0
IMAGE_SECONDS = (1.0, 4.0)  # for all images of a sample; the second when thorough


@dataclass(frozen=True)
class Ask:
    """What the machine `name` is to measure.

    shared: a folder of the storage with a file `driver` that holds `token`, if not "". rows: (row, path below `root`,
    inverted) of images, decoded for `edge` pixels. stored: the storage where it is local, else "". socket: of this
    machine's raylet. counted, object_store: GPUs and bytes by Ray's records. thorough: also what takes seconds.
    """

    name: str = "here"
    shared: str = ""
    token: str = ""
    root: str = ""
    rows: tuple[tuple[int, str, bool], ...] = ()
    edge: int = 0
    needed: tuple[Asset, ...] = ()
    stored: str = ""
    socket: str = ""
    counted: float = 0.0
    object_store: float = 0.0
    thorough: bool = True


def report(ask: Ask, parts: Sequence[str] = ()) -> Report:
    """PARTS (or `parts`) as measured here; the reasons of those that cannot be are in `errors`."""
    measurements: Report = {"node": ask.name, "errors": {}}
    for part in parts or PARTS:
        try:
            measured = PARTS[part](ask)
        except Exception as error:
            measurements["errors"][part] = reason(error)
            continue
        if measured is not None:
            measurements[part] = measured
    return measurements


def _versions(ask: Ask) -> Report:
    """there: package -> version, with a hash of our own code; unmet: requirements of our package that are not met."""
    from packaging.requirements import Requirement

    code = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    installed = {"cxrlt_ray": f"{__version__} (code {code.hexdigest()[:6]})", "python": platform.python_version()}
    required = [] if _version("cxrlt-ray") == MISSING else map(Requirement, metadata.requires("cxrlt-ray") or ())
    unmet = [
        f"{package.name} is {version}, not {package.specifier}"
        for package in required
        if package.marker is None
        and (
            (version := _version(package.name)) == MISSING or not package.specifier.contains(version, prereleases=True)
        )
    ]
    return {"there": installed | {name: _version(name) for name in PACKAGES}, "unmet": unmet}


MISSING = "missing"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING


def _gpu(ask: Ask) -> Report:
    """CUDA without importing torch, which takes seconds: what nvidia-smi, the driver and torch's build say.

    cards: from nvidia-smi, None where it does not answer; said: then why. tried: from torch, when thorough. plugged:
    whether the machine has an NVIDIA card. driver: the CUDA version it supports, 13020 for 13.2, 0 for none.
    """
    torch = find_spec("torch")
    built = runpy.run_path(str(Path(torch.origin or "").with_name("version.py")))["cuda"] if torch else None
    gpu: Report = {"counted": ask.counted, "cards": None, "said": "", "tried": None, "built": built}
    gpu |= {"plugged": any(map(_is_gpu, Path("/sys/bus/pci/devices").glob("*"))), "driver": _driver()}
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,memory.total,memory.used,driver_version"
        smi = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        answer = subprocess.run(smi, capture_output=True, text=True, timeout=10, check=False)
        if answer.returncode:
            gpu["said"] = " ".join((answer.stdout or answer.stderr).split())[:160]
        else:
            gpu["cards"] = [_card(line) for line in answer.stdout.splitlines() if line.strip()]
    if ask.thorough and built and gpu["driver"]:
        gpu["tried"] = _tried()
    return gpu


def _is_gpu(device: Path) -> bool:
    return "0x10de" in (device / "vendor").read_text() and (device / "class").read_text().startswith("0x03")


def _driver() -> int:
    version = ctypes.c_int(0)
    try:
        return version.value if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0 else 0
    except OSError:
        return 0


def _card(line: str) -> Report:
    name, total, used, driver = (cell.strip() for cell in line.split(","))
    mib = [float(cell) * 2**20 if cell.isdigit() else 0.0 for cell in (total, used)]  # [N/A] for a part of a GPU
    return {"name": name, "total": mib[0], "used": mib[1], "driver": driver}


_TRY = """
import json, torch
gpus = []
for k in range(torch.cuda.device_count()):
    gpu = {"name": torch.cuda.get_device_name(k), "error": "", "total": 0, "used": 0}
    try:
        free, gpu["total"] = torch.cuda.mem_get_info(k)
        gpu["used"] = gpu["total"] - free
        torch.ones(64, 64, device=k).mm(torch.ones(64, 64, device=k)).sum().item()
    except Exception as error:
        gpu["error"] = " ".join(str(error).split())[:160]
    gpus.append(gpu)
print(json.dumps(gpus))
"""


def _tried() -> list[Report]:
    """Each GPU after a little work by torch, in a process of its own, whose CUDA context ends with it."""
    environment = dict(os.environ)
    if environment.get("CUDA_VISIBLE_DEVICES") == "":
        del environment["CUDA_VISIBLE_DEVICES"]  # hidden by Ray from a task that asks for no GPU
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-c", _TRY],  # -P: a torch.py of the working folder is not torch
            capture_output=True,
            text=True,
            timeout=GPU_SECONDS,
            env=environment,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise CxrltError(f"torch does not answer within {GPU_SECONDS:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise CxrltError(error.stderr) from None
    return json.loads(answer.stdout.splitlines()[-1])


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
    """Bytes free, and in all, of the disk that holds each folder."""
    folders = {STORED: ask.stored, FETCHED: "" if ask.stored else tempfile.gettempdir()}
    if ask.socket:
        raylet = _raylet(ask.socket)
        temp = raylet.get("temp_dir", str(Path(ask.socket).parents[2]))
        spill = raylet.get("fallback_directory", temp)
        folders |= {TEMP: temp, SPILL: "" if spill.startswith(temp) else spill}
    disks = {}
    for name, folder in folders.items():
        if folder:
            existing = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
            disk = shutil.disk_usage(existing)
            disks[name] = {"free": disk.free, "total": disk.total}
    return disks


def _raylet(socket: str) -> dict[str, str]:
    """The flags of the raylet behind `socket`, which say where its objects lie and where they are spilled to."""
    for path in Path("/proc").glob("[0-9]*/cmdline") if socket else ():
        with suppress(OSError):
            words = path.read_text(errors="replace").split("\0")
            if words[0].endswith("/raylet") and f"--raylet_socket_name={socket}" in words:
                return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    return {}


def _seen(ask: Ask) -> bool | None:
    """Whether the driver's file can be read here; then this machine writes one beside it."""
    if not ask.token:
        return None
    folder = Store(ask.shared)
    if not folder.exists("driver") or folder.read("driver").decode() != ask.token:
        return False
    folder.write(ask.name, ask.token.encode())
    return True


def _images(ask: Ask) -> Report | None:
    """Rows whose image is missing or cannot be decoded, and the seconds that it took on one core."""
    if not ask.rows:
        return None
    import cv2

    from cxrlt_ray.data.originals import read_original

    images: Report = {"looked": 0, "missing": [], "bad": {}}
    start, threads = time.perf_counter(), cv2.getNumThreads()
    cv2.setNumThreads(1)
    for row, path, inverted in ask.rows:
        if images["looked"] and time.perf_counter() - start > IMAGE_SECONDS[ask.thorough]:
            break
        images["looked"] += 1
        try:
            decode(read_original(ask.root, path), ask.edge, inverted)
        except CxrltError:
            images["missing"].append(row)
        except (ValueError, cv2.error) as error:
            images["bad"][row] = str(error).partition(" (")[0][
                :60
            ]  # the rest of a library's message may name a patient
    cv2.setNumThreads(threads)
    return images | {"seconds": time.perf_counter() - start}


def _weights(ask: Ask) -> Report | None:
    return {"met": met(ask.needed), "cache": cache()} if ask.needed else None


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
