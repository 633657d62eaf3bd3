"""A sweep's watch over its trials: one that hangs is ended, and what a trial's processes held is given back.

Every process of a trial writes a heartbeat each few seconds to Ray's key-value store: how many batches it has done. One
whose trial has stood still for too long is killed, as it may not listen any more; Tune then begins the trial anew.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune

from cxrlt_ray import cli
from cxrlt_ray.cluster import ray_private
from cxrlt_ray.runs.store import Run
from cxrlt_ray.search.trial_states import note_retry, trial_name
from cxrlt_ray.storage.patience import patiently
from cxrlt_ray.training import heartbeat

NAMESPACE = b"cxrlt_ray"  # of the key-value store
EVERY = 2.0  # seconds between two heartbeats that a process writes
SILENCE = 60.0  # seconds after which it is printed that trials wait
STARTING = 120.0  # seconds at least that a process may take to its first batch: it imports, builds, loads weights


@contextmanager
def heartbeats_written(run: str, trial: str, rank: int = 0, group: str = "") -> Iterator[None]:
    """While a process trains: its heartbeats are written.

    run: its URI, as `keys_of` takes it: a cluster may sweep runs of one name in several storages. rank: of a worker;
    -1: the process that has workers. group: the placement group of a worker, to be given back.
    """
    import ray

    key = f"{keys_of(run, trial)}{rank}".encode()
    node = ray.get_runtime_context().get_node_id()
    state: dict[str, Any] = {"pid": os.getpid(), "node": node, "beats": 0, "group": group}
    last = 0.0

    def on_beat() -> None:
        nonlocal last
        state["beats"] += 1
        if (now := time.monotonic()) - last >= EVERY:
            last = now
            ray_private.put_value(key, json.dumps(state).encode(), NAMESPACE)

    on_beat()
    heartbeat.listen(on_beat)
    try:
        yield
    finally:
        heartbeat.listen(None)


def keys_of(run: str, trial: str) -> str:
    """What the keys of a trial's heartbeats begin with. run: the absolute URI of its run."""
    return f"{run}/{trial}/"


class Watchdog(tune.Callback):
    """Ends trials that stand still for `after` seconds, notes why trials were begun anew, gives back what they held.

    data_cpus: of a Ray Data task, where trials need Ray Data.
    """

    def __init__(self, run: Run, after: float, data_cpus: float = 0.0) -> None:
        self.run, self.after, self.data_cpus = run, after, data_cpus
        self.running: dict[int, Any] = {}  # Tune's trials by number
        self.seen: dict[int, tuple[Any, float]] = {}  # a trial's last heartbeats, and when they were new
        self.ended: dict[int, str] = {}  # why a trial was ended here
        self.starved: set[int] = set()  # trials of which it was printed that their images wait for a CPU
        self.checked = self.waited = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look after trials from time to time."""
        now = time.monotonic()
        if self.running:
            self.waited = now
        elif now - self.waited > SILENCE and any(trial.status == "PENDING" for trial in trials):
            self.waited = now
            _print_waiting(next(trial for trial in trials if trial.status == "PENDING"))
        if now - self.checked >= min(EVERY, self.after / 4):
            self.checked = now
            for number, trial in list(self.running.items()):
                self._check(number, trial, now)

    def _check(self, number: int, trial: Any, now: float) -> None:
        """End a trial whose heartbeats have stood still for too long."""
        processes = self._processes(number)
        beats = {rank: process["beats"] for rank, process in processes.items()}
        if number not in self.seen or self.seen[number][0] != beats:
            self.seen[number] = (beats, now)
            return
        begun = any(count > 1 for count in beats.values())  # the first says that the process is there
        after = self.after if begun else max(self.after, STARTING)
        still = now - self.seen[number][1]
        if still > SILENCE and number not in self.starved and (shortage := self._cpu_shortage()):
            self.starved.add(number)
            print(f"  {trial_name(number)} stands still: {shortage}", flush=True)
        if still > after:
            self.ended[number] = f"hung: no batch was done in {cli.duration(after)}, its process was ended"
            print(f"  {trial_name(number)} {self.ended[number]}", flush=True)
            _kill(trial, list(processes.values()))
            del self.running[number]  # until it is started anew

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial runs."""
        number = trial.config["number"]
        self.running[number] = trial
        self.seen.pop(number, None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended."""
        self._forget(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for the last time."""
        self._forget(trial.config["number"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that failed is begun anew: note why."""
        number = trial.config["number"]
        if reason := self.reason_of_end(number, trial):
            store = self.run.store / "trials" / trial_name(number)
            patiently(lambda: note_retry(store, reason, time.time()))
        self._forget(number)

    def reason_of_end(self, number: int, trial: Any = None) -> str:
        """Why a trial's process ended, where it could not say so itself; nothing where it did."""
        trial = trial or self.running.get(number)
        if number in self.ended:
            return self.ended.pop(number)
        failure = _last_failure(trial)
        if "ray::" in failure[:400] and "The actor died" not in failure:  # an error that its process met, and noted
            return ""
        if "OutOfMemoryError" in failure or "running low on memory" in failure:
            return "out of memory: Ray ended its process, as the machine had next to none left"
        return "its process ended (killed, or out of memory)"

    def release(self) -> None:
        """Forget all trials: Tune has ended, and makes no call for those that it stopped with itself."""
        for number in list(self.running):
            self._forget(number)

    def _cpu_shortage(self) -> str:
        """Why the images of trials may not come, or nothing."""
        import ray

        if not self.data_cpus:
            return ""
        free = ray.available_resources().get("CPU", 0.0)
        if free >= self.data_cpus:
            return ""
        return (
            f"Ray Data needs {self.data_cpus:g} CPU to stream images and {free:g} is free. `ray status` says who holds "
            "them; --ingest threads or fewer --cpus-per-trial need none"
        )

    def _forget(self, number: int) -> None:
        """Forget a trial, and give back what its workers had: Ray Train does not where Tune stops a trial."""
        self.running.pop(number, None)
        self.seen.pop(number, None)
        self.starved.discard(number)
        _remove_groups({process["group"] for process in self._processes(number).values() if process["group"]})
        ray_private.delete_keys(self._prefix(number), NAMESPACE)

    def _processes(self, number: int) -> dict[str, Any]:
        """What the processes of a trial wrote last, by key."""
        keys = ray_private.list_keys(self._prefix(number), NAMESPACE)
        values = {key.decode(): ray_private.get_value(key, NAMESPACE) for key in keys}
        return {key: json.loads(value) for key, value in values.items() if value}

    def _prefix(self, number: int) -> bytes:
        return keys_of(self.run.store.absolute().uri, trial_name(number)).encode()


def _last_failure(trial: Any) -> str:
    """What Tune wrote of a trial's last failure; its get_error reads a copy, perhaps old or not there yet."""
    path = ray_private.trial_error_file(trial)
    try:
        return Path(path).read_text().rpartition("Failure #")[2] if path else ""
    except OSError:
        return ""


def own_placement_group() -> str:
    """The placement group that this process is in, or nothing."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    return group.id.hex() if group else ""


def _remove_groups(groups: set[str]) -> None:
    """Remove placement groups; one that is gone already is as good."""
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for group in groups:
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


def _kill(trial: Any, processes: list[dict[str, Any]]) -> None:
    """End the processes of a trial, on whatever machine; one without a heartbeat yet by Ray's own means."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own_node = ray.get_runtime_context().get_node_id()
    for process in processes:
        if process["node"] == own_node:
            end_process(process["pid"])
            continue
        strategy = NodeAffinitySchedulingStrategy(process["node"], soft=False)
        ray.remote(end_process).options(num_cpus=0, scheduling_strategy=strategy).remote(process["pid"])
    if not processes and (actor := ray_private.trial_actor(trial)) is not None:
        ray.kill(actor)


def end_process(pid: int) -> None:
    """End a process of this machine that may not listen."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _print_waiting(trial: Any) -> None:
    import ray

    required = trial.placement_group_factory.required_resources
    free = ray.available_resources()
    needs = [f"{required[kind]:g} {kind} of which {free.get(kind, 0):g} is free" for kind in required if required[kind]]
    print(
        f"  {trial_name(trial.config['number'])} waits for room: it needs {', '.join(needs)}. Is another program on "
        "the cluster, or has a machine left it?",
        flush=True,
    )
