"""The watch over trials: how long one may stand still before it is ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cxrlt_ray.search import trainable, watchdog
from cxrlt_ray.storage import Store


@pytest.fixture
def clock(monkeypatch):
    """What time.monotonic() says, for the test to move."""
    now = SimpleNamespace(at=1000.0)
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now.at)
    return now


@pytest.mark.parametrize(
    ("beats", "after", "still", "ended"),
    [
        (7, 10.0, 9.0, False),
        (7, 10.0, 11.0, True),
        (1, 10.0, 11.0, False),  # it imports and loads weights
        (1, 10.0, watchdog.STARTING + 1, True),
        (None, 10.0, 11.0, False),  # its process has said nothing yet
        (None, 10.0, watchdog.STARTING + 1, True),
        (1, 600.0, watchdog.STARTING + 1, False),
    ],
)
def test_a_trial_is_hung_when_it_does_no_batch_and_has_longer_to_its_first(
    monkeypatch, clock, capsys, beats, after, still, ended
):
    guard = watchdog.Watchdog(SimpleNamespace(name="run"), after)
    told = {} if beats is None else {"run/T0003/0": {"beats": beats, "pid": 1, "node": "here"}}
    killed = []
    monkeypatch.setattr(guard, "_processes", lambda number: told)
    monkeypatch.setattr(guard, "_forget", lambda number: None)
    monkeypatch.setattr(watchdog, "_kill", lambda trial, processes: killed.append(processes))
    trial = SimpleNamespace(config={"number": 3}, status="RUNNING")
    guard.on_trial_start(0, [trial], trial)
    clock.at += 5
    guard.on_step_begin(0, [trial])
    clock.at += still
    guard.on_step_begin(1, [trial])
    assert killed == ([list(told.values())] if ended else [])
    assert ("T0003 hung: no batch was done in" in capsys.readouterr().out) is ended


def test_a_trial_that_does_batches_is_never_hung(monkeypatch, clock):
    guard = watchdog.Watchdog(SimpleNamespace(name="run"), 10.0)
    beats = iter(range(100))
    monkeypatch.setattr(guard, "_processes", lambda number: {"0": {"beats": next(beats)}})
    monkeypatch.setattr(watchdog, "_kill", lambda trial, processes: pytest.fail("ended"))
    trial = SimpleNamespace(config={"number": 0}, status="RUNNING")
    guard.on_trial_start(0, [trial], trial)
    for step in range(20):
        clock.at += 9
        guard.on_step_begin(step, [trial])


@pytest.mark.parametrize(
    ("needs", "free", "told"), [(0.5, 0.25, True), (0.5, 0.0, True), (0.5, 0.5, False), (0.0, 0.0, False)]
)
def test_a_trial_whose_images_wait_for_a_cpu_says_so_once_before_it_is_hung(
    monkeypatch, clock, capsys, needs, free, told
):
    import ray

    guard = watchdog.Watchdog(SimpleNamespace(name="run"), 600.0, needs)
    monkeypatch.setattr(guard, "_processes", lambda number: {"0": {"beats": 1}})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": free})
    trial = SimpleNamespace(config={"number": 3}, status="RUNNING")
    guard.on_trial_start(0, [trial], trial)
    for step in range(5):
        clock.at += watchdog.SILENCE / 2
        guard.on_step_begin(step, [trial])
    said = capsys.readouterr().out
    assert said.count("T0003 stands still: Ray Data needs 0.5 CPU") == told


RAISED = """ray::ImplicitFunc.train() (pid=1, ip=127.0.0.1, repr=trial)
  File "fit.py", line 1, in fit
ValueError: the retries died young"""
KILLED = """The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died."""
GROUP = """ray::ImplicitFunc.train() (pid=1, ip=127.0.0.1, repr=trial)
ray.train.ControllerError: Training failed due to controller error:
The actor died unexpectedly before finishing this task."""
MEMORY = "Task was killed due to the node running low on memory."


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ([RAISED], ""),  # its process has noted that itself
        ([KILLED], "its process ended (killed, or out of memory)"),
        ([GROUP], "its process ended (killed, or out of memory)"),
        ([MEMORY], "out of memory: Ray ended its process, as the machine had next to none left"),
        ([KILLED, RAISED], ""),
        ([RAISED, KILLED], "its process ended (killed, or out of memory)"),
    ],
)
def test_only_a_trial_whose_process_could_not_say_why_it_failed_has_a_reason_given(tmp_path, failures, reason):
    path = tmp_path / "error.txt"  # as Tune writes it
    path.write_text("".join(f"Failure # {k + 1} (occurred at noon)\n{text}\n" for k, text in enumerate(failures)))
    guard = watchdog.Watchdog(SimpleNamespace(name="run"), 600.0)
    assert guard.reason_of_end(0, SimpleNamespace(error_file=str(path))) == reason


def run_at(uri):
    return SimpleNamespace(name=uri.rpartition("/")[2], store=Store(uri))


def test_the_cpus_of_a_trials_workers_are_given_back_when_it_is_gone(ray):
    import time

    from ray.util import placement_group

    group = placement_group([{"CPU": 0.25}, {"CPU": 0.25}])
    ray.get(group.ready(), timeout=30)
    run = run_at("/storage/given-back")
    guard = watchdog.Watchdog(run, 600.0)

    @ray.remote(num_cpus=0)
    def worker(hexadecimal):
        with watchdog.heartbeats_written("/storage/given-back", "T0000", 0, hexadecimal):
            pass

    ray.get(worker.remote(group.id.hex()))
    guard.on_trial_start(0, [], SimpleNamespace(config={"number": 0}))
    namesake = watchdog.Watchdog(run_at("/elsewhere/given-back"), 600.0)
    namesake.on_trial_start(0, [], SimpleNamespace(config={"number": 0}))
    namesake.release()  # of another storage, swept on the same cluster
    assert len(guard._processes(0)) == 1
    assert ray.util.placement_group_table(group)["state"] == "CREATED"
    for _ in range(2):  # what is gone already is as good
        guard.release()
    until = time.monotonic() + 30
    while ray.util.placement_group_table(group)["state"] != "REMOVED" and time.monotonic() < until:
        time.sleep(0.1)
    assert ray.util.placement_group_table(group)["state"] == "REMOVED"


@pytest.mark.parametrize(
    ("rooms", "least", "expected", "seconds"),
    [
        ([4], 2, 4, 0),  # all there: at once
        ([1, 1, 4], 2, 4, 2),  # they come
        ([3], 2, 3, trainable.ELASTIC),  # some do not come
        ([1] * 200 + [2], 2, 2, 200),  # too few: waits for the least
        ([0], 4, 4, 0),  # all or none is Ray's own to wait for
    ],
)
def test_a_group_begins_with_all_workers_or_after_a_while_with_those_there_is_room_for(
    clock, monkeypatch, rooms, least, expected, seconds
):
    left = list(rooms)

    def sleep(duration):
        clock.at += duration

    monkeypatch.setattr(trainable.time, "sleep", sleep)
    began = clock.at
    assert trainable.workers_at_hand(lambda: left.pop(0) if len(left) > 1 else left[0], least, 4) == expected
    assert clock.at - began == pytest.approx(seconds, abs=2)
