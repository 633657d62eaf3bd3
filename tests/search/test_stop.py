"""A sweep that is asked to end: each trial saves the epoch that it is in, whether it reports it or not."""

from __future__ import annotations

import pytest

from cxrlt_ray.search import stop
from cxrlt_ray.search.stop import SETTLING, StopRequest, SweepStopper


@pytest.fixture
def clock(monkeypatch):
    """The time, which passes as the test says."""
    now = [1000.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    return now


def looks(stopper, clock, seconds):
    """Whether all are to stop, asked every half second."""
    answers = []
    for _ in range(int(2 * seconds)):
        clock[0] += 0.5
        answers.append(stopper.stop_all())
    return answers


def test_trials_that_report_nothing_are_ended_once_each_has_saved_an_epoch(clock):
    states = {1: ["resume-000003"], 2: []}
    request = StopRequest()
    stopper = SweepStopper(request, lambda: dict(states))
    assert not any(looks(stopper, clock, 100))  # nobody has asked
    request.now = True
    assert not any(looks(stopper, clock, 100))
    states[1] = ["resume-000004"]
    assert not any(looks(stopper, clock, 100))  # the other has not saved any
    states[2] = ["resume-000001"]
    answers = looks(stopper, clock, SETTLING + 5)
    assert not any(answers[: int(2 * SETTLING) - 2])  # its report may be on its way
    assert any(answers)


def test_a_sweep_whose_trials_have_reported_ends_at_once(clock):
    states = {1: ["resume-000003"]}
    request = StopRequest()
    request.now = True
    stopper = SweepStopper(request, lambda: dict(states))
    assert not any(looks(stopper, clock, 5))
    assert stopper("id", {})  # its epoch is reported
    states.clear()
    assert any(looks(stopper, clock, 2))
