"""A Ray of one's own machine: its workers are as nice as its user, and wait without spinning."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import os
from cxrlt_ray.cluster.start import start_ray
ray = start_ray()

@ray.remote(num_cpus=0)
def worker():
    return os.nice(0), os.environ.get("OMP_WAIT_POLICY")

print(*ray.get(worker.remote()))
ray.shutdown()
"""


def worker_of(**environment):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, **environment},
    )
    return done.stdout.split()


def test_workers_take_no_niceness_and_barriers_do_not_spin_on_a_machine_of_ones_own(ray):
    """In the session's own Ray: beside another program workers of niceness 15 nearly stood still."""

    @ray.remote(num_cpus=0)
    def worker():
        return os.nice(0), os.environ.get("OMP_WAIT_POLICY")

    assert ray.get(worker.remote()) == (os.nice(0), "PASSIVE")


def test_who_asks_for_another_niceness_gets_it():
    assert worker_of(RAY_worker_niceness="7", OMP_WAIT_POLICY="ACTIVE") == ["7", "ACTIVE"]
