"""Asks every machine of the cluster for its report, with a time limit, and Ray for its own records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from cxrlt_ray.cluster import ray_private
from cxrlt_ray.doctor.check import FAIL, OK, WARN, Check, reason
from cxrlt_ray.doctor.machine import Ask, Report, report

NODE_SECONDS = 30.0  # until a machine that does not answer has failed
LEFT = (1, 4)  # Ray's reasons for the intended end of a node: terminated, or drained as idle
LOCAL = ("127.0.0.1", "localhost", "[::1]")


def alone(ray: Any | None, address: str | None) -> bool:
    """Whether this machine is the only one, and we started its Ray: it then reports in this process, at once."""
    return ray is None or (address is None and sum(node["Alive"] for node in ray.nodes()) == 1)


def ask_all(ray: Any | None, address: str | None, ask: Ask) -> list[Report]:
    """The driver's report and, unless it is alone, one of each machine."""
    alive = [node for node in ray.nodes() if node["Alive"]] if ray is not None else []
    hosts = [node["NodeManagerHostname"] for node in alive]
    asks = {
        node["NodeID"]: replace(
            ask,
            name=host if hosts.count(host) == 1 else f"{host}-{node['NodeID'][:6]}",
            socket=node["RayletSocketName"],
            counted=node["Resources"].get("GPU", 0.0),
            object_store=node["Resources"].get("object_store_memory", 0.0),
        )
        for node, host in zip(alive, hosts, strict=True)
    }
    if alone(ray, address):
        own = next(iter(asks.values()), ask)
        return [report(replace(own, name="here", token=""))]
    return [report(ask, ["versions"]), *_reports(ray, asks)]


def _reports(ray: Any, asks: dict[str, Ask]) -> Iterator[Report]:
    """A report of each node, by its id in Ray, and how its clock differs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def on(node: str, function: Callable[..., Any]) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)

    tasks = {node: on(node, report).remote(ask) for node, ask in asks.items()}
    late = ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=NODE_SECONDS)[1]
    for node, task in tasks.items():
        silent: Report = {"node": asks[node].name, "errors": {}}
        if task in late:
            ray.cancel(task, force=True)
            yield silent | {"silent": f"did not answer within {NODE_SECONDS:.0f} s"}
            continue
        try:
            clock = partial(_ask_time, ray, on(node, _now))
            yield ray.get(task) | {"clock": skew(clock)}
        except Exception as error:
            yield silent | {"silent": f"gave no report: {reason(error)}"}


def _now() -> float:
    return time.time()


def _ask_time(ray: Any, task: Any) -> float:
    return ray.get(task.remote(), timeout=5)


def skew(ask: Callable[[], float]) -> tuple[float, float]:
    """How many seconds another clock is ahead, and the uncertainty: half the shortest of three round trips."""
    trips = []
    for _ in range(3):
        sent, theirs, received = time.time(), ask(), time.time()
        trips.append(((received - sent) / 2, theirs - (sent + received) / 2))
    doubt, ahead = min(trips)
    return ahead, doubt


def of_ray(ray: Any) -> Iterator[Check]:
    """Machines and CPUs that total are, jobs that hold or want them, machines lost, and who reaches the dashboard."""
    from ray.util import placement_group_table

    nodes, total, free = ray.nodes(), ray.cluster_resources(), ray.available_resources()
    cpus, alive = total.get("CPU", 0.0), sum(node["Alive"] for node in nodes)
    message = f"{alive} machine{'s' * (alive != 1)}, {cpus:g} CPU, {total.get('GPU', 0.0):g} GPU"
    if not cpus:
        mend = "start workers (`ray start --address=HEAD:6379`), or ask the autoscaler for some, as cluster.yaml shows"
        yield Check("ray", FAIL, f"{message}: no workers are up", mend)
    elif cpus < 2:
        yield Check("ray", WARN, f"{message}: a trial leaves no CPU to its images", "give Ray two CPUs or more")
    else:
        yield Check("ray", OK, message)
    held = {kind: total[kind] - free.get(kind, 0.0) for kind in ("CPU", "GPU") if kind in total}
    if any(held.values()):
        message = ", ".join(f"{count:g} of {total[kind]:g} {kind}" for kind, count in held.items() if count)
        yield Check(
            "jobs", WARN, f"others hold {message}", "trials wait for them; `ray status` and `ray list jobs` say whose"
        )
    waiting = sum(group["state"] in ("PENDING", "RESCHEDULING") for group in placement_group_table().values())
    if waiting:
        yield Check("jobs", WARN, f"{waiting} placement groups wait for resources", "end their job, or add machines")
    lost = [node["NodeManagerHostname"] for node in nodes if not node["Alive"] and node["DeathReason"] not in LEFT]
    if lost:
        mend = "`ray status` and that machine's logs say why"
        yield Check("machines", WARN, f"lost since Ray was started: {', '.join(lost)}", mend)
    url = ray_private.dashboard_url()
    if url and url.partition("//")[2].rpartition(":")[0] not in LOCAL and url.rpartition(":")[0] not in LOCAL:
        mend = "start Ray with --dashboard-host=127.0.0.1 and reach it by ssh -L"
        yield Check("dashboard", WARN, f"{url} listens to other machines", mend)
