"""The session's Ray workers are there at once, and are workers like any other."""

from __future__ import annotations

import os


def test_a_worker_has_imported_all_and_has_its_own_process_environment_and_end(ray):
    import sys

    assert "warm" not in sys.executable  # processes that tests start have the interpreter itself

    @ray.remote(num_cpus=0)
    class Worker:
        def modules(self):
            import sys

            return {"torch", "timm", "ray.train.torch"} - set(sys.modules)

        def process(self):
            return os.getpid(), os.getpgid(0), os.environ["OWN"]

        def end(self):
            os.kill(os.getpid(), 9)

    # as Ray Tune starts its trials: with environment variables of their own
    workers = [Worker.options(runtime_env={"env_vars": {"OWN": str(k)}}).remote() for k in range(2)]
    assert ray.get([worker.modules.remote() for worker in workers], timeout=600) == [set(), set()]
    (one, group, own), (other, *_) = ray.get([worker.process.remote() for worker in workers])
    assert one != other != os.getpid()
    assert group == one  # Ray may end it with what it has started
    assert own == "0"
    try:
        ray.get(workers[0].end.remote(), timeout=60)
        raise AssertionError("it lives")
    except ray.exceptions.RayActorError:
        pass
    assert ray.get(workers[1].process.remote())[0] == other
