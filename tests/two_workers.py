"""Two processes that run one function, as the two workers of a process group."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def process_group(rank: int, meeting: str) -> Iterator[None]:
    """Be worker `rank` of two, which meet in the file `meeting`, by gloo and with one thread each."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    yield
    gc.collect()  # a group that a DDP module still holds is not ended, and aborts its process as that exits
    torch.distributed.barrier()  # else the first to leave breaks what the other still waits for
    torch.distributed.destroy_process_group()


def run_two(work: Callable[..., None], *arguments: object, seconds: float = 600) -> None:
    """Run work(rank, *arguments) for ranks 0 and 1 side by side; both must end well.

    seconds: after which they are taken to wait for each other. To start takes a busy machine minutes.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    exits = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert exits == [0, 0], f"exit codes {exits}; None: the workers wait for each other"
