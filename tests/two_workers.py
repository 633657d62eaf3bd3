"""Two processes that run one function, as the two workers of a process group."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable


def run_two(work: Callable[..., None], *arguments: object, seconds: float = 240) -> None:
    """Run work(rank, *arguments) for ranks 0 and 1 side by side; both must end well within `seconds`."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    assert [process.exitcode for process in processes] == [0, 0]
