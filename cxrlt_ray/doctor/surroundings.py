"""What a command finds around it on the driver's machine: terminal, home, temporary files, proxies, other Rays."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from cxrlt_ray.cluster.start import ray_directory
from cxrlt_ray.doctor.check import OK, WARN, Check, guarded

PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def examine_surroundings(address: str | None) -> Iterator[Check]:
    """Checks of the driver's surroundings. address: of a cluster that is joined."""
    parts: dict[str, Callable[[], Iterator[Check]]] = {
        "terminal": partial(_terminal, sys.stdout.encoding),
        "home": partial(_home, os.environ),
        "temporary files": partial(_temporary, tempfile.gettempdir()),
        "proxy": partial(_proxy, os.environ),
        "other Rays": partial(_other_rays, Path("/proc"), address),
        "compiled code": _compiled,
    }
    for name, check in parts.items():
        yield from guarded(name, check)


def _terminal(encoding: str | None) -> Iterator[Check]:
    name = encoding or "unknown"
    if name.lower().replace("-", "") == "utf8":
        yield Check("terminal", OK, "output in UTF-8")
    else:
        message = f"output in {name}: other letters of a name are printed as \\xc9"
        yield Check("terminal", WARN, message, "set PYTHONIOENCODING=utf-8, or a locale of UTF-8")


def _home(environment: Mapping[str, str]) -> Iterator[Check]:
    home = environment.get("HOME", "")
    if home and os.access(home, os.W_OK | os.X_OK) and _makes_files(home):
        yield Check("home", OK, f"{home} can be written")
        return
    problem = f"HOME {home} cannot be written" if home else "HOME is not set"
    mend = "set HOME to a directory of yours, or HF_HOME for weights and NUMBA_CACHE_DIR for compiled code"
    yield Check("home", WARN, f"{problem}: weights from a hub cannot be kept there", mend)


def _makes_files(folder: str) -> bool:
    with suppress(OSError), tempfile.TemporaryFile(dir=folder):
        return True
    return False


def _temporary(temporary: str) -> Iterator[Check]:
    directory = ray_directory()
    if Path(temporary) in Path(directory).parents or os.environ.get("RAY_TMPDIR"):
        yield Check("temporary files", OK, f"{temporary}, Ray's in {directory}")
    else:
        message = f"the path of {temporary} is too long for Ray's sockets, which go to {directory}"
        yield Check("temporary files", WARN, message, "set TMPDIR, or RAY_TMPDIR, to a short path")


def _proxy(environment: Mapping[str, str]) -> Iterator[Check]:
    names = [name for name in PROXIES if environment.get(name)]
    if names:  # their values may hold a password
        yield Check("proxy", OK, f"{', '.join(names)}: for the internet, not for Ray on this machine")


def _other_rays(proc: Path, address: str | None) -> Iterator[Check]:
    """Raylets of this machine that this process has not started; of a cluster that is joined they are its own."""
    others = 0
    for process in proc.glob("[0-9]*") if address is None else ():
        with suppress(OSError, IndexError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            program = (process / "cmdline").read_bytes().partition(b"\0")[0]
            others += program.endswith(b"/raylet") and parent != str(os.getpid())
    if others:
        message = f"{others} run{'s' * (others == 1)} on this machine: its CPUs, GPUs and memory are counted twice"
        mend = "wait for it, join it by --address auto, or end one that is forgotten by `ray stop`"
        yield Check("other Rays", WARN, message, mend)


def _compiled() -> Iterator[Check]:
    from cxrlt_ray.evaluation.compiled import VARIABLE, temporary_cache

    given = os.environ.get(VARIABLE, "")
    place = temporary_cache() or (Path(given) if given and Path(tempfile.gettempdir()) in Path(given).parents else None)
    if place is None:
        yield Check("compiled code", OK, "can be kept")
    else:
        message = f"neither the package's folder nor the user's cache can be written: it is kept in {place}"
        yield Check("compiled code", WARN, message, f"set {VARIABLE} to a directory of yours that stays")
