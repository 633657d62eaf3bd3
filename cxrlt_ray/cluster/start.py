"""Starting Ray on this machine or joining a cluster, and Ray Data's settings."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cxrlt_ray.cluster import node_cache, ray_private
from cxrlt_ray.errors import UsageError
from cxrlt_ray.privacy import own_dir

ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",  # its lines for every epoch of every trial would flood ours
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # warnings of Ray's own core, on every actor pool
    # Ray ends idle processes after a second; a data task's costs 5 to 15 s of imports to start again
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_num_workers_soft_limit": "8",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it would look for a newer version on the internet
}
# of a Ray of one machine: it listens on the loopback alone; Ray's own switch, named after where it is on by itself
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# of a Ray of one machine, which serves its user alone, unless the environment says otherwise: beside any other program
# workers of Ray's own niceness (15) get next to no time, and threads that spin at barriers take it from each other
OWN_MACHINE = {"RAY_worker_niceness": "0", "OMP_WAIT_POLICY": "PASSIVE"}
LONGEST = 43  # letters of Ray's directory: with its session's sockets a path may have 107
DATA_CPUS = 0.5  # of one Ray Data task: two decode on the core that a trial leaves free
FORGET_SECONDS = 60.0  # that the machines of a cluster have to remove decoded images


def start_ray(address: str | None = None) -> Any:
    """Start Ray for this process alone, or join the cluster at `address` ('auto' from its head).

    Returns the module `ray`. Raises UsageError for ray:// and where no cluster answers. `_one_machine_options` says
    what protects a Ray that is started.
    """
    if address is not None and address.startswith("ray://"):
        raise UsageError(
            "--address ray://... is not supported: run the command on the cluster's head with --address auto "
            "(`ray attach cluster.yaml`, or `ray exec cluster.yaml 'python -m cxrlt_ray.sweep ... --address auto'`)."
        )
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= _one_machine_options()
    try:
        with _stderr_silenced():
            ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError) as error:
        raise UsageError(f"no Ray cluster answers at --address {address}: {error}") from None
    return ray


def _one_machine_options() -> dict[str, Any]:
    """Options of `ray.init` for a Ray of this machine alone, whose objects are images and ids; sets its environment.

    It listens on the loopback, answers to a token that only its processes have (in their environment, on no disk), and
    keeps its sockets, logs and spilled objects in a directory that no one else can enter: Ray opens its own to all.
    """
    os.environ.update(LOOPBACK)
    for key, value in OWN_MACHINE.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray_private.listen_on_loopback()  # as LOOPBACK says, should Ray have been imported before
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    parent = next(path for path in (base, Path("/tmp")) if len(f"{path}/cxrlt_ray-{os.getuid()}/ray") <= LONGEST)
    directory = own_dir(parent / f"cxrlt_ray-{os.getuid()}") / "ray"
    return {"include_dashboard": False, **ray_private.directory_option(str(directory))}


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Drop what Ray's core writes to file descriptor 2 while it starts: that it heeds RAY_BACKEND_LOG_LEVEL."""
    sys.stderr.flush()
    original = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(silence)
        os.close(original)


def data_context() -> Any:
    """Ray Data's settings in this process, its progress bars and lines off: the program prints its own."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger(ray_private.PROGRESS_LOGGER).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    return context


def forget_decoded() -> None:
    """Remove the decoded images that trials left in the memory of the cluster's machines."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        node_cache.forget()
        return
    forget = ray.remote(node_cache.forget)
    strategies = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    tasks = [forget.options(num_cpus=0, scheduling_strategy=strategy).remote() for strategy in strategies]
    ray.wait(tasks, timeout=FORGET_SECONDS)
