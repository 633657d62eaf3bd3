"""Fitting a search to a time budget: fewer trials, pixels and epochs, decided before the first epoch is spent.

Searches are tried in a fixed order, each no larger than the one before in any of the three, until one's planned time
is within the budget: first the space as it is, then 15 % fewer trials down to MEMBERS, then in turn the next smaller
images, 15 % fewer epochs, 15 % fewer trials, down to two trials of one epoch. So a larger budget never gives a smaller
search, and a trial's epochs are the last to be cut: members that have not learnt make no ensemble (RESULTS.md, the demo
on a slow machine).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cxrlt_ray import cli

STEP = 0.85  # of the epochs, and of the trials, from one search to the next smaller one
MEMBERS = 3  # trials that are kept before their length is cut
FEWEST = 2  # trials of the smallest search: an ensemble's


@dataclass(frozen=True)
class SearchSize:
    """How large a search is: trials, epochs of the longest, and the largest edge of images in pixels.

    full: it is the space's own size.
    """

    trials: int
    epochs: int
    pixels: int
    full: bool = False


@dataclass(frozen=True)
class Fit:
    """The search that fits a budget, and its planned seconds. fits: False where even the smallest takes longer."""

    size: SearchSize
    seconds: float
    fits: bool

    def line(self, budget: float, images_per_second: float, measured: bool, open_ended: bool = False) -> str:
        """One line for the console. open_ended: the time that is left goes to more trials."""
        size, rate = self.size, f"{images_per_second:,.0f} images/s {'measured' if measured else 'estimated'}"
        if size.full and self.fits:
            more = "; the time left goes to more trials" if open_ended else ""
            return f"Fits in {cli.duration(budget)}: about {cli.duration(self.seconds)} planned ({rate}){more}"
        epochs = f"{size.epochs} epoch{'s' if size.epochs > 1 else ''}"
        line = f"Fitted to {cli.duration(budget)}: {size.trials} trials of up to {epochs} at {size.pixels} px ({rate})"
        if self.fits:
            return line
        return f"{line}; even that is planned to take {cli.duration(self.seconds)}: what is not done by then is cut off"


def fit_to_budget(
    budget: float, trials: int, epochs: int, sizes: Sequence[int], seconds: Callable[[SearchSize], float]
) -> Fit:
    """The first search in the order above whose planned time is within `budget` seconds; the smallest if none is.

    sizes: the space's resolutions in pixels, to which it can be capped. epochs: 1 for a space of stages, whose epochs
    are their own. seconds: the planned time of a search.
    """
    fit = None
    for size in search_sizes(trials, epochs, sizes):
        fit = Fit(size, planned := seconds(size), planned <= budget)
        if fit.fits:
            break
    assert fit is not None
    return fit


def search_sizes(trials: int, epochs: int, sizes: Sequence[int]) -> Iterator[SearchSize]:
    """Searches from the largest to the smallest, none larger in anything than the one before."""
    smaller = sorted(set(sizes), reverse=True)
    pixels, fewest = smaller.pop(0), min(FEWEST, trials)
    yield SearchSize(trials, epochs, pixels, full=True)
    while trials > MEMBERS:
        trials = max(MEMBERS, _fewer(trials))
        yield SearchSize(trials, epochs, pixels)
    while smaller or epochs > 1 or trials > fewest:
        if smaller:
            pixels = smaller.pop(0)
            yield SearchSize(trials, epochs, pixels)
        if epochs > 1:
            epochs = _fewer(epochs)
            yield SearchSize(trials, epochs, pixels)
        if trials > fewest:
            trials = max(fewest, _fewer(trials))
            yield SearchSize(trials, epochs, pixels)


def _fewer(count: int) -> int:
    return min(count - 1, int(count * STEP))
