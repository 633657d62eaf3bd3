"""A search fits itself to its time budget, as it is planned on a machine of any speed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlt_ray.search.budget import ENOUGH, Fit, SearchSize, fit_to_budget, search_sizes

rates = st.floats(0.01, 1e4)  # pixels a second, in units of a small image
budgets = st.floats(0.0, 1e6)
trials, epochs = st.integers(1, 200), st.integers(1, 60)
sizes = st.lists(st.sampled_from([32, 64, 96, 112, 128, 224, 384, 512, 1024]), min_size=1, max_size=5)


def cost_at(rate):
    """The planned time of a search on a machine of some speed; some start time, and every trial to its end."""
    return lambda size: 10 + size.trials * size.epochs * size.pixels**2 / 1e3 / rate


@given(budgets, trials, epochs, sizes, rates)
def test_what_is_planned_is_within_the_budget_or_the_smallest_search_is_not(budget, trials, epochs, sizes, rate):
    seconds = cost_at(rate)
    fit = fit_to_budget(budget, trials, epochs, sizes, seconds)
    assert fit.seconds == seconds(fit.size)
    smallest = seconds(SearchSize(1, 1, min(sizes)))
    assert fit.fits == (fit.seconds <= budget) == (smallest <= budget)


@given(budgets, st.integers(2, 200), epochs, sizes, rates, st.integers(1, 2))
def test_no_fewer_trials_are_planned_than_are_asked_for(budget, trials, epochs, sizes, rate, fewest):
    fit = fit_to_budget(budget, trials, epochs, sizes, cost_at(rate), fewest)
    assert fit.size.trials >= fewest
    assert 1 <= fit.size.epochs <= epochs
    assert fit.size.pixels in sizes


@given(budgets, budgets, trials, epochs, sizes, rates)
def test_a_larger_budget_never_gives_a_smaller_search(one, other, trials, epochs, sizes, rate):
    few, many = (fit_to_budget(budget, trials, epochs, sizes, cost_at(rate)).size for budget in sorted((one, other)))
    assert few.trials <= many.trials
    assert few.epochs <= many.epochs
    assert few.pixels <= many.pixels


@given(budgets, trials, epochs, sizes, rates)
def test_trials_are_given_up_before_epochs_and_pixels(budget, trials, epochs, sizes, rate):
    size = fit_to_budget(budget, trials, epochs, sizes, cost_at(rate)).size
    assert size.trials == 1 or (size.epochs, size.pixels) == (epochs, max(sizes))


@given(budgets, trials, epochs, sizes, rates)
def test_images_stay_large_while_epochs_are_many(budget, trials, epochs, sizes, rate):
    size = fit_to_budget(budget, trials, epochs, sizes, cost_at(rate)).size
    assert size.pixels == max(sizes) or size.epochs <= ENOUGH


@given(trials, epochs, sizes, rates)
def test_an_ample_budget_changes_nothing(trials, epochs, sizes, rate):
    seconds = cost_at(rate)
    full = SearchSize(trials, epochs, max(sizes), full=True)
    assert fit_to_budget(seconds(full), trials, epochs, sizes, seconds).size == full


@given(trials, epochs, sizes)
def test_searches_only_shrink(trials, epochs, sizes):
    tried = list(search_sizes(trials, epochs, sizes))
    for before, after in itertools.pairwise(tried):
        assert after != before
        assert (after.trials, after.epochs, after.pixels) <= (before.trials, before.epochs, before.pixels)
        assert after.epochs <= before.epochs
        assert after.pixels <= before.pixels


@pytest.mark.parametrize(
    ("fit", "line"),
    [
        (
            Fit(SearchSize(3, 4, 96), 280.0, True),
            "Fitted to 5 min: 3 trials of up to 4 epochs at 96 px (18 images/s measured)",
        ),
        (
            Fit(SearchSize(6, 6, 128, full=True), 200.0, True),
            "Fits in 5 min: about 3 min planned (18 images/s measured)",
        ),
        (
            Fit(SearchSize(2, 1, 96), 400.0, False),
            "Fitted to 5 min: 2 trials of up to 1 epoch at 96 px (18 images/s measured); even that is planned to take "
            "7 min: what is not done by then is cut off",
        ),
    ],
)
def test_one_line_says_what_was_fitted(fit, line):
    assert fit.line(300.0, 18.0, True) == line
