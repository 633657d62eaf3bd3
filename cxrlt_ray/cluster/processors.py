"""The processors that this process may use."""

import os


def available_processors() -> int:
    """How many: of `taskset` and Slurm the share, on macOS, which keeps none, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
