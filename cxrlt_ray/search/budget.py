"""Fitting a search to a time budget: fewer trials, pixels and epochs, decided before the first epoch is spent.

Searches are tried in a fixed order, each no larger than the one before in any of the three, until one's planned time
is within the budget: first the space as it is, then 15 % fewer trials down to one at a time, then 15 % fewer epochs
down to ENOUGH, then in turn the next smaller images and 15 % fewer epochs, down to one epoch. So a larger budget never
gives a smaller search. While a model still learns, its next epochs are worth more than a second model (RESULTS.md, what
epochs are best spent on), and of more than ENOUGH larger images are worth more than further epochs. Time that a trial
leaves, as it gets no better, goes to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cxrlt_ray import cli
from cxrlt_ray.data.readers.columns import counted

ENOUGH = 8  # epochs, for which images stay as large as they are
STEP = 0.85  # of the epochs, and of the trials, from one search to the next smaller one


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

    def line(
        self, budget: float, images_per_second: float, measured: bool, open_ended: bool = False, pixels: int = 0
    ) -> str:
        """One line for the console. open_ended: the time that is left goes to more trials. pixels: of the first one."""
        size, rate = self.size, f"{images_per_second:,.0f} images/s {'measured' if measured else 'estimated'}"
        if size.full and self.fits:
            more = "; the time left goes to more trials" if open_ended else ""
            return f"Fits in {cli.duration(budget)}: about {cli.duration(self.seconds)} planned ({rate}){more}"
        trials, epochs = counted(size.trials, "trial"), counted(size.epochs, "epoch")
        line = f"Fitted to {cli.duration(budget)}: {trials} of up to {epochs} at {pixels or size.pixels} px ({rate})"
        if self.fits:
            return line
        return f"{line}; even that is planned to take {cli.duration(self.seconds)}: what is not done by then is cut off"


def fit_to_budget(
    budget: float,
    trials: int,
    epochs: int,
    sizes: Sequence[int],
    seconds: Callable[[SearchSize], float],
    fewest: int = 1,
) -> Fit:
    """The first search in the order above whose planned time is within `budget` seconds; the smallest if none is.

    sizes: the space's resolutions in pixels, to which it can be capped. epochs: 1 for a space of stages, whose epochs
    are their own. seconds: the planned time of a search. fewest: trials of the smallest search.
    """
    fit = None
    for size in search_sizes(trials, epochs, sizes, fewest):
        fit = Fit(size, planned := seconds(size), planned <= budget)
        if fit.fits:
            break
    assert fit is not None
    return fit


def search_sizes(trials: int, epochs: int, sizes: Sequence[int], fewest: int = 1) -> Iterator[SearchSize]:
    """Searches from the largest to the smallest, none larger in anything than the one before."""
    smaller = sorted(set(sizes), reverse=True)
    pixels = smaller.pop(0)
    yield SearchSize(trials, epochs, pixels, full=True)
    while trials > fewest:
        trials = max(fewest, _fewer(trials))
        yield SearchSize(trials, epochs, pixels)
    while epochs > ENOUGH:
        epochs = max(ENOUGH, _fewer(epochs))
        yield SearchSize(trials, epochs, pixels)
    while smaller or epochs > 1:
        if smaller:
            pixels = smaller.pop(0)
            yield SearchSize(trials, epochs, pixels)
        if epochs > 1:
            epochs = _fewer(epochs)
            yield SearchSize(trials, epochs, pixels)


def _fewer(count: int) -> int:
    return min(count - 1, int(count * STEP))
