"""A sweep's watch over its trials: what they do is told, one that hangs is ended, and a user may stop them.

Every process of a trial says each few seconds in Ray's key-value store which batch it is at. One whose trial has
stood still for too long is killed, as it may not listen any more; Tune then begins the trial anew.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Stopper
from sqlalchemy.exc import SQLAlchemyError

from cxrlt_ray import cli
from cxrlt_ray.cluster import ray_private
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.records import FAILED, RUNNING, VAL_MAP
from cxrlt_ray.runs.store import Run, best_first, read_trial
from cxrlt_ray.search.optuna_study import note_retry, retries, trial_name
from cxrlt_ray.storage import Store
from cxrlt_ray.training import heartbeat

SPACE = b"cxrlt_ray"  # of the key-value store
EVERY = 2.0  # seconds between two words of a process
SILENCE = 60.0  # seconds after which an epoch is told, or that trials wait
STARTING = 120.0  # seconds at least that a process may take to its first batch: it imports, builds, loads weights
PATIENCE = 300.0  # seconds that storage may fail
MARGIN = 3  # trials for which a disk must have room that is left free


@contextmanager
def announced(run: str, trial: str, rank: int = 0, group: str = "") -> Iterator[None]:
    """While a process trains: its beats are told.

    rank: of a worker; -1: the process that has workers. group: the placement group of a worker, to be given back.
    """
    import ray

    key = f"{run}/{trial}/{rank}".encode()
    node = ray.get_runtime_context().get_node_id()
    told: dict[str, Any] = {"pid": os.getpid(), "node": node, "beats": 0, "group": group}
    last = 0.0

    def heard() -> None:
        nonlocal last
        told["beats"] += 1
        if (now := time.monotonic()) - last >= EVERY:
            last = now
            ray_private.put_value(key, json.dumps(told).encode(), SPACE)

    heard()
    heartbeat.listen(heard)
    try:
        yield
    finally:
        heartbeat.listen(None)


class Halt:
    """Whether a sweep is to end: by Ctrl-C (once: after the epochs that run; twice: now), SIGTERM, or a full disk.

    reason: why, or nothing. now: trials that run are to end after their epoch; else they are trained to their end.
    """

    def __init__(self) -> None:
        self.reason, self.now = "", False

    def no_more(self, reason: str) -> None:
        """Begin no more trials."""
        if not self.reason:
            self.reason = reason
            print(f"No more trials are begun: {reason}", flush=True)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed Ctrl-C and SIGTERM; raises KeyboardInterrupt at the second."""

        def heed(number: int, frame: Any) -> None:
            if self.now:
                raise KeyboardInterrupt
            self.now = True
            self.reason = "by Ctrl-C" if number == signal.SIGINT else "by SIGTERM"
            print(
                "\nStopping: each trial ends its epoch and saves it. Once more (Ctrl-C) stops at once; nothing that is "
                "saved is lost.",
                flush=True,
            )

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, heed) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Ending(Stopper):
    """Tune's question whether a trial, or all, are to stop."""

    def __init__(self, halt: Halt, guard: Guard) -> None:
        self.halt, self.guard = halt, guard

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """After an epoch: whether the sweep is to end."""
        return self.halt.now

    def stop_all(self) -> bool:
        """Whether nothing runs any more of a sweep that is to end."""
        return self.halt.now and not self.guard.running


class Guard(tune.Callback):
    """Ends trials that stand still for `after` seconds, keeps why trials were begun anew, gives back what they had.

    data_cpus: of a Ray Data task, where trials need Ray Data.
    """

    def __init__(self, run: Run, after: float, data_cpus: float = 0.0) -> None:
        self.run, self.after, self.data_cpus = run, after, data_cpus
        self.running: dict[int, Any] = {}  # Tune's trials by number
        self.seen: dict[int, tuple[Any, float]] = {}  # what a trial last told, and when it was new
        self.ended: dict[int, str] = {}
        self.starved: set[int] = set()  # trials of which it was told that their images wait for a CPU
        self.looked = self.waited = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look after trials from time to time."""
        now = time.monotonic()
        if self.running:
            self.waited = now
        elif now - self.waited > SILENCE and any(trial.status == "PENDING" for trial in trials):
            self.waited = now
            _tell_waiting(next(trial for trial in trials if trial.status == "PENDING"))
        if now - self.looked < min(EVERY, self.after / 4):
            return
        self.looked = now
        for number, trial in list(self.running.items()):
            told = self._told(number)
            signs = {rank: each["beats"] for rank, each in told.items()}
            if number not in self.seen or self.seen[number][0] != signs:
                self.seen[number] = (signs, now)
                continue
            begun = any(beats > 1 for beats in signs.values())  # the first tells that the process is there
            after = self.after if begun else max(self.after, STARTING)
            still = now - self.seen[number][1]
            if still > SILENCE and number not in self.starved and (lacking := self._lacking()):
                self.starved.add(number)
                print(f"  {trial_name(number)} stands still: {lacking}", flush=True)
            if still > after:
                self.ended[number] = f"hung: no batch was done in {cli.duration(after)}, its process was ended"
                print(f"  {trial_name(number)} {self.ended[number]}", flush=True)
                _kill(trial, list(told.values()))
                del self.running[number]  # until it is started anew

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial runs."""
        number = trial.config["number"]
        self.running[number] = trial
        self.seen.pop(number, None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended."""
        self._gone(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for the last time."""
        self._gone(trial.config["number"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that failed is begun anew: keep why."""
        number = trial.config["number"]
        if reason := self.why(number, trial):
            store = self.run.store / "trials" / trial_name(number)
            patiently(lambda: note_retry(store, reason, time.time()))
        self._gone(number)

    def why(self, number: int, trial: Any = None) -> str:
        """Why a trial's process ended, where it could not say so itself; nothing where it did."""
        trial = trial or self.running.get(number)
        if number in self.ended:
            return self.ended.pop(number)
        last = _failure(trial)
        if "ray::" in last[:400] and "The actor died" not in last:  # an error that its process met, and has noted
            return ""
        if "OutOfMemoryError" in last or "running low on memory" in last:
            return "out of memory: Ray ended its process, as the machine had next to none left"
        return "its process ended (killed, or out of memory)"

    def release(self) -> None:
        """Tune has ended: of trials that it stopped with itself it tells nobody."""
        for number in list(self.running):
            self._gone(number)

    def _lacking(self) -> str:
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

    def _gone(self, number: int) -> None:
        """Forget a trial, and give back what its workers had: Ray Train does not where Tune stops a trial."""
        self.running.pop(number, None)
        self.seen.pop(number, None)
        self.starved.discard(number)
        _give_back({told["group"] for told in self._told(number).values() if told["group"]})
        ray_private.delete_keys(self._prefix(number), SPACE)

    def _told(self, number: int) -> dict[str, Any]:
        keys = ray_private.list_keys(self._prefix(number), SPACE)
        values = {key.decode(): ray_private.get_value(key, SPACE) for key in keys}
        return {key: json.loads(value) for key, value in values.items() if value}

    def _prefix(self, number: int) -> bytes:
        return f"{self.run.name}/{trial_name(number)}/".encode()


def _failure(trial: Any) -> str:
    """What Tune wrote of a trial's last failure; its get_error reads a copy, perhaps old or not there yet."""
    path = ray_private.trial_error_file(trial)
    try:
        return Path(path).read_text().rpartition("Failure #")[2] if path else ""
    except OSError:
        return ""


def own_group() -> str:
    """The placement group that this process is in, or nothing."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    return group.id.hex() if group else ""


def _give_back(groups: set[str]) -> None:
    """Remove placement groups; one that is gone already is as good."""
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for each in groups:
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(each)))


def _kill(trial: Any, told: list[dict[str, Any]]) -> None:
    """End the processes of a trial, on whatever machine; one that has said nothing yet by Ray's own means."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    for each in told:
        if each["node"] == here:
            end_process(each["pid"])
            continue
        there = NodeAffinitySchedulingStrategy(each["node"], soft=False)
        ray.remote(end_process).options(num_cpus=0, scheduling_strategy=there).remote(each["pid"])
    if not told and (actor := ray_private.trial_actor(trial)) is not None:
        ray.kill(actor)


def end_process(pid: int) -> None:
    """End a process of this machine that may not listen."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tell_waiting(trial: Any) -> None:
    import ray

    wanted = trial.placement_group_factory.required_resources
    free = ray.available_resources()
    told = [f"{wanted[kind]:g} {kind} of which {free.get(kind, 0):g} is free" for kind in wanted if wanted[kind]]
    print(
        f"  {trial_name(trial.config['number'])} waits for room: it needs {', '.join(told)}. Is another program on the "
        "cluster, or has a machine left it?",
        flush=True,
    )


@dataclass(frozen=True)
class Room:
    """Whether the disk will hold more trials. need: bytes that a trial may take; each: trials at a time."""

    store: Store
    need: float
    each: int

    def lacking(self) -> str:
        """What a user is to know where there is no room for another trial, or nothing."""
        free = self.store.free()
        if free is None or free > self.need * (self.each + MARGIN):
            return ""
        return (
            f"{self.store.uri} has {cli.size(free)} free, and a trial may take {cli.size(self.need)}: make room, or "
            "keep fewer checkpoints by --keep-checkpoints N"
        )


def patiently(act: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `act` returns; storage that fails is tried again for so many seconds, before its CxrltError is raised."""
    wait, until, said = 0.5, time.monotonic() + patience, False
    while True:
        try:
            return act()
        except (CxrltError, SQLAlchemyError) as error:
            told = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            if time.monotonic() > until:
                raise CxrltError(told) from None
            if not said:
                print(f"  waiting up to {cli.duration(patience)}: {told}", file=sys.stderr, flush=True)
            said = True
            time.sleep(wait)
            wait = min(2 * wait, 15.0)


@dataclass
class Progress(tune.Callback):
    """One line a finished trial: how it did, the best so far, images/s, time left; and of long trials, of epochs."""

    run: Run
    trials: int
    missing: int

    def __post_init__(self) -> None:
        self.started, self.said, self.done = time.monotonic(), time.monotonic(), 0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tell of an epoch where nothing was told for SILENCE seconds."""
        if time.monotonic() - self.said > SILENCE:
            self.said = time.monotonic()
            told = f"epoch {result['epoch']}, best val mAP {result[VAL_MAP.name]:.4f}"
            name = trial_name(trial.config["number"])
            print(f"  {name} {told}, {result['images_per_second']:.0f} images/s", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell of a trial that finished or was pruned."""
        self._tell(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell of a trial that is begun anew."""
        name = trial_name(trial.config["number"])
        told = retries(read_trial(self.run.store / "trials" / name))
        print(f"  {name} is begun anew: {told[-1].reason if told else 'it failed'}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell of a trial that failed."""
        self._tell(trial)

    def _tell(self, trial: Any) -> None:
        name = trial_name(trial.config["number"])
        everyone = {each.name: each for each in self.run.trials()}
        this = everyone.get(name)
        if this is None or this.state == RUNNING:
            return  # the sweep is stopped
        self.done += 1
        self.said = time.monotonic()
        left = (time.monotonic() - self.started) / self.done * (self.missing - self.done)
        judged = best_first(each for each in everyone.values() if each.score == each.score)
        record = this.record
        if record.config is None or this.state == FAILED:
            line = f"{name} failed: {record.reason}"
        else:
            config = record.config
            line = (
                f"{name} {this.state:8} {record.metric.title} {this.score:.4f}  {len(record.epochs)} epochs  "
                f"{record.images_per_second or 0:.0f} images/s  "
                f"{config.backbone} {config.resolution} px {config.loss}"
            )
        told = f"best {judged[0].score:.4f} ({judged[0].name})" if judged else "none yet"
        total = self.trials - self.missing + self.done
        print(f"[{total}/{self.trials}] {line} | {told} | {left / 60:.1f} min left", flush=True)
