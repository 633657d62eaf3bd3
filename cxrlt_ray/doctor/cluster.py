"""Asking every machine of the cluster for its report, each with a time limit, and what Ray's own books say."""

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
LEFT = (1, 4)  # Ray's reasons of a death that was wanted: ended, or drained as idle
LOCAL = ("127.0.0.1", "localhost", "[::1]")


def alone(ray: Any | None, address: str | None) -> bool:
    """Whether this machine is all there is, started by us: it then reports in this process, at once."""
    return ray is None or (address is None and sum(each["Alive"] for each in ray.nodes()) == 1)


def ask_all(ray: Any | None, address: str | None, ask: Ask) -> list[Report]:
    """The driver's report and, unless it is alone, one of each machine."""
    alive = [each for each in ray.nodes() if each["Alive"]] if ray is not None else []
    hosts = [each["NodeManagerHostname"] for each in alive]
    asks = {
        each["NodeID"]: replace(
            ask,
            name=host if hosts.count(host) == 1 else f"{host}-{each['NodeID'][:6]}",
            socket=each["RayletSocketName"],
            counted=each["Resources"].get("GPU", 0.0),
            object_store=each["Resources"].get("object_store_memory", 0.0),
        )
        for each, host in zip(alive, hosts, strict=True)
    }
    if alone(ray, address):
        own = next(iter(asks.values()), ask)
        return [report(replace(own, name="here", token=""))]
    return [report(ask, ["versions"]), *_reports(ray, asks)]


def _reports(ray: Any, asks: dict[str, Ask]) -> Iterator[Report]:
    """A report of each node, by its id in Ray, and how its clock differs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def on(where: str, function: Callable[..., Any]) -> Any:
        at = NodeAffinitySchedulingStrategy(where, soft=False)
        return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=at)

    tasks = {where: on(where, report).remote(ask) for where, ask in asks.items()}
    late = ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=NODE_SECONDS)[1]
    for where, task in tasks.items():
        silent: Report = {"node": asks[where].name, "errors": {}}
        if task in late:
            ray.cancel(task, force=True)
            yield silent | {"silent": f"did not answer within {NODE_SECONDS:.0f} s"}
            continue
        try:
            clock = partial(_ask_time, ray, on(where, _now))
            yield ray.get(task) | {"clock": skew(clock)}
        except Exception as error:
            yield silent | {"silent": f"gave no report: {reason(error)}"}


def _now() -> float:
    return time.time()


def _ask_time(ray: Any, task: Any) -> float:
    return ray.get(task.remote(), timeout=5)


def skew(ask: Callable[[], float]) -> tuple[float, float]:
    """By how many seconds another clock is ahead, and how far off that may be: half the quickest of three trips."""
    trips = []
    for _ in range(3):
        sent, there, back = time.time(), ask(), time.time()
        trips.append(((back - sent) / 2, there - (sent + back) / 2))
    doubt, ahead = min(trips)
    return ahead, doubt


def of_ray(ray: Any) -> Iterator[Check]:
    """Machines and CPUs that there are, jobs that hold or want them, machines lost, and who reaches the dashboard."""
    from ray.util import placement_group_table

    nodes, there, free = ray.nodes(), ray.cluster_resources(), ray.available_resources()
    cpus, alive = there.get("CPU", 0.0), sum(each["Alive"] for each in nodes)
    told = f"{alive} machine{'s' * (alive != 1)}, {cpus:g} CPU, {there.get('GPU', 0.0):g} GPU"
    if not cpus:
        mend = "start workers (`ray start --address=HEAD:6379`), or ask the autoscaler for some, as cluster.yaml shows"
        yield Check("ray", FAIL, f"{told}: no workers are up", mend)
    elif cpus < 2:
        yield Check("ray", WARN, f"{told}: a trial leaves no CPU to its images", "give Ray two CPUs or more")
    else:
        yield Check("ray", OK, told)
    held = {kind: there[kind] - free.get(kind, 0.0) for kind in ("CPU", "GPU") if kind in there}
    if any(held.values()):
        told = ", ".join(f"{count:g} of {there[kind]:g} {kind}" for kind, count in held.items() if count)
        yield Check(
            "jobs", WARN, f"others hold {told}", "trials wait for them; `ray status` and `ray list jobs` say whose"
        )
    waiting = sum(each["state"] in ("PENDING", "RESCHEDULING") for each in placement_group_table().values())
    if waiting:
        yield Check("jobs", WARN, f"{waiting} placement groups wait for resources", "end their job, or add machines")
    lost = [each["NodeManagerHostname"] for each in nodes if not each["Alive"] and each["DeathReason"] not in LEFT]
    if lost:
        mend = "`ray status` and that machine's logs say why"
        yield Check("machines", WARN, f"lost since Ray was started: {', '.join(lost)}", mend)
    url = ray_private.dashboard_url()
    if url and url.partition("//")[2].rpartition(":")[0] not in LOCAL and url.rpartition(":")[0] not in LOCAL:
        mend = "start Ray with --dashboard-host=127.0.0.1 and reach it by ssh -L"
        yield Check("dashboard", WARN, f"{url} listens to other machines", mend)
