"""A search's first trials: near what is known to be good, reaching everything, the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cxrlt_ray.search.optuna_study import STARTUP, SeededTPE, nearby

START = {"backbone": "b", "lr": 1e-3, "depth": 4}
DISTRIBUTIONS = [FloatDistribution(0.0, 1.0), FloatDistribution(1e-5, 1e-1, log=True), IntDistribution(1, 40)]


def ask(study):
    trial = study.ask()
    point = {
        "backbone": trial.suggest_categorical("backbone", list("abcdefgh")),
        "lr": trial.suggest_float("lr", 1e-6, 1.0, log=True),
        "depth": trial.suggest_int("depth", 1, 100),
    }
    return trial, point


def first(seed, start=(START,), count=STARTUP, score=lambda point: 0.0, direction="maximize"):
    """The first points of a search with such scores."""
    study = optuna.create_study(sampler=SeededTPE(seed, start), direction=direction)
    for point in start:
        study.enqueue_trial(point)
    points = []
    for _ in range(count):
        trial, point = ask(study)
        study.tell(trial, score(point))
        points.append(point)
    return points


@given(st.sampled_from(DISTRIBUTIONS), st.floats(0, 1), st.integers(0, 1000))
def test_a_number_nearby_is_within_its_range_and_of_its_kind(distribution, where, seed):
    value = distribution.low + where * (distribution.high - distribution.low)
    value = int(value) if isinstance(distribution, IntDistribution) else value
    moved = nearby(value, distribution, np.random.default_rng(seed))
    assert distribution.low <= moved <= distribution.high
    assert type(moved) is type(value)


def test_numbers_are_moved_by_a_share_of_their_range_in_logs_where_it_is_one():
    rng, wide = np.random.default_rng(0), FloatDistribution(1e-6, 1.0, log=True)
    moved = [math.log10(nearby(1e-3, wide, rng)) for _ in range(4000)]
    assert np.mean(moved) == pytest.approx(-3, abs=0.05)
    assert np.std(moved) == pytest.approx(0.15 * 6, rel=0.05)


def test_a_choice_stays_as_it_is():
    assert nearby("b", CategoricalDistribution(("a", "b")), np.random.default_rng(0)) == "b"


def test_most_of_the_first_trials_are_near_the_start_point_and_some_are_not():
    points = [point for seed in range(25) for point in first(seed)]
    kept = np.mean([point["backbone"] == "b" for point in points])
    assert 0.7 < kept < 0.85  # the start point itself, then seven in ten, and one in eight of the others
    assert {point["backbone"] for point in points} == set("abcdefgh")
    assert np.mean([abs(math.log10(point["lr"]) + 3) < 1.5 for point in points]) > 0.75


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_they_follow_the_best_trial_so_far(direction):
    sign = 1 if direction == "maximize" else -1
    score = lambda point: sign * float(point["backbone"] == "h")  # noqa: E731
    after = []
    for seed in range(40):
        points = first(seed, score=score, direction=direction)
        if (reached := [k for k, point in enumerate(points) if point["backbone"] == "h"]) and reached[0] < STARTUP - 1:
            after += [point["backbone"] == "h" for point in points[reached[0] + 1 :]]
    assert np.mean(after) > 0.5


def test_without_a_start_point_they_are_anywhere():
    points = [point for seed in range(25) for point in first(seed, start=())]
    assert np.mean([point["backbone"] == "b" for point in points]) < 0.3


def test_the_same_seed_gives_the_same_search_and_another_one_another():
    assert first(3, count=STARTUP + 2) == first(3, count=STARTUP + 2)
    assert first(3) != first(4)
