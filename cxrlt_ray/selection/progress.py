"""How far a fit is, for whoever wants to print it: of many members and findings it takes minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from cxrlt_ray.selection.method import AUTO, Method

Listener = Callable[[float], None]  # takes the share of the work that is done, 0 to 1
_present: ContextVar[Listener | None] = ContextVar("present", default=None)


class Progress:
    """Counts a fit's selections, `total` in all, and gives `listener` the share done as each goes on and ends."""

    def __init__(self, total: int, listener: Listener | None) -> None:
        self.total, self.listener, self.done = total, listener, 0

    @contextmanager
    def selection(self) -> Iterator[None]:
        """One selection, whose parts `step` counts."""
        token = _present.set(self._within)
        try:
            yield
        finally:
            _present.reset(token)
        self.done += 1
        self._within(0.0)

    def _within(self, share: float) -> None:
        if self.listener is not None:
            self.listener(min(1.0, (self.done + share) / self.total))


def step(share: float) -> None:
    """Called by a selector: so much of the present selection is done, 0 to 1."""
    if (listener := _present.get()) is not None:
        listener(share)


@contextmanager
def uncounted() -> Iterator[None]:
    """A selection that is a part of another one."""
    token = _present.set(None)
    try:
        yield
    finally:
        _present.reset(token)


def count_selections(options: Sequence[Method], folds: int, repeats: int, rules: int, pairs: int) -> int:
    """About how many selections a fit makes. pairs: of folds that a choice within folds leaves out."""
    kinds = {(name, together) for method in options for name, together in _kinds(method)}
    chosen = len(options) > 1 or rules > 1
    fits = repeats * rules * (folds + pairs * chosen) + 1 if folds >= 2 else 1
    return max(1, len(kinds) * fits)


def _kinds(method: Method) -> Iterator[tuple[str, bool]]:
    settings = repr(sorted(method.settings.items()))
    yield method.selector + settings, False
    yield from ((name, False) for name in method.blend)
    if method.lean == "global" and (method.guard == AUTO or method.guard > 0):
        yield method.selector + settings, True
