"""Training beside other programs: a trial's process under Ray as it was, as it is, and plain torch, in images/s.

    python benchmarks/contention.py --write        # about 8 minutes on two cores

Ray gives its workers a niceness of 15, and OpenMP's threads spin at barriers for milliseconds: beside one busy process
a trial then nearly stands still. In a Ray that we start for one machine they have the user's niceness, and spin for 20
us (cxrlt_ray/cluster/start.py). Each way trains tf_efficientnet_lite0 at 112 px on synthetic batches of 16 with two
threads, beside none, one and two processes that are busy all the time; the ways take turns, each in new processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import report

BUSY = (0, 1, 2)
WAYS = {
    "plain torch, one process": {},
    "Ray's own worker": {"RAY_worker_niceness": "15", "OMP_WAIT_POLICY": "ACTIVE"},
    "ours without spinning": {"OMP_WAIT_POLICY": "PASSIVE"},
    "ours": {},
}
PLAIN = "plain torch, one process"


def trainer() -> Callable[[float], float]:
    """A model in training: called with seconds, it trains for so long and returns images/s."""
    import timm
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=40).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    images, targets = torch.randn(16, 3, 112, 112).to(memory_format=torch.channels_last), torch.rand(16, 40)

    def train(seconds: float) -> float:
        started, count = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(model(images), targets).backward()
            optimizer.step()
            count += len(images)
        return count / (time.monotonic() - started)

    train(2.0)
    return train


def beside_load(train: Callable[[float], float], seconds: float) -> dict[int, float]:
    """images/s beside each number of busy processes."""
    rates = {}
    for count in BUSY:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            time.sleep(1.0)
            rates[count] = train(seconds)
        finally:
            for process in busy:
                process.kill()
                process.wait()
    return rates


def measure(way: str, seconds: float) -> dict[int, float]:
    """images/s of one way in this process, or in a worker of a Ray that this process starts."""
    if way == PLAIN:
        return beside_load(trainer(), seconds)
    from cxrlt_ray.cluster.start import start_ray

    ray = start_ray()

    class Worker:
        def __init__(self) -> None:
            self.train = trainer()

        def run(self, seconds: float) -> float:
            return self.train(seconds)

    worker = ray.remote(num_cpus=1)(Worker).remote()
    rates = beside_load(lambda seconds: ray.get(worker.run.remote(seconds)), seconds)
    ray.shutdown()
    return rates


def main() -> None:
    """All ways in turn, and their ratio to plain torch beside the same load."""
    parser = report.options(__doc__, {"rounds": 3, "seconds": 8})
    parser.add_argument("--way", help="measure this way alone, as JSON")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.seconds)))
        return
    rates: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(args.rounds):
        for way, environment in WAYS.items():
            command = [sys.executable, __file__, "--way", way, "--seconds", str(args.seconds)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
            )
            rates[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}/{args.rounds}: {way} {rates[way][-1]}", flush=True)
    lines = ["| busy processes beside | way | images/s | of plain torch beside the same |", "|---|---|---|---|"]
    rows = []
    for count in map(str, BUSY):
        plain = [rate[count] for rate in rates[PLAIN]]
        for way in WAYS:
            own = [rate[count] for rate in rates[way]]
            ratio = report.ratios(own, plain)
            lines.append(f"| {count} | {way} | {report.spread(own)} | {ratio} |")
            if way != PLAIN:
                rows.append((f"training beside {count} busy processes, {way}", PLAIN, ratio, "1"))
    report.publish("contention", "Training beside other programs", "", lines, args.write, rows)


if __name__ == "__main__":
    main()
