"""On a GPU: training steps through the stream against the same steps on tensors that lie on the device.

ConvNeXt-S at 384 px and EfficientNetV2-S at 512 px (random weights: speed only), bf16, channels_last, from 512 px
JPEG shards (q95); images/s, GPU utilisation (nvidia-smi), and how the rate falls with the number of decoding threads,
which says how many CPU cores a GPU needs. Also what torch.compile costs and gains, and the largest batch that fits.
One command, on a machine with one GPU: python benchmarks/gpu.py --write
Without a GPU it says so and ends; --dry runs the same code on the CPU with tiny models, for a test of the benchmark.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cache import shards
from report import options, publish, ratios, spread, turns

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cxrlt_ray.data.shards import Shards

KINDS = {"convnext_small": (384, 128), "tf_efficientnetv2_s": (512, 96)}
DRY = {"test_convnext": (96, 16), "test_efficientnet": (96, 16)}


class Utilisation:
    """The GPU's mean utilisation while the block runs, by nvidia-smi, in percent; nan where there is none."""

    def __enter__(self) -> Utilisation:
        self.values: list[float] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self.stop.wait(0.5):
            try:
                output = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
                self.values.append(float(output.split()[0]))
            except (OSError, subprocess.SubprocessError, ValueError, IndexError):
                return

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values) if self.values else float("nan")


class Bench:
    """A model, its optimizer and one training step as a trial makes it."""

    def __init__(self, name: str, resolution: int, batch: int) -> None:
        import torch

        from cxrlt_ray import models
        from cxrlt_ray.training import device

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        spec = models.ModelSpec(name, resolution, pretrained=False)
        self.model = models.build(spec, 40).to(self.device).to(memory_format=torch.channels_last)
        self.forward: Callable = self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.amp = device.autocast("auto", self.device)
        self.resolution, self.batch = resolution, batch
        self.targets = torch.zeros(batch, 40, device=self.device)

    def step(self, images: torch.Tensor) -> None:
        """One step on uint8 images [B, H, W]."""
        import torch

        with self.amp():
            logits = self.forward(images)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), self.targets[: len(images)])
        float(loss.detach())  # a trial checks every loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, images: Iterator[torch.Tensor], seconds: float) -> float:
        """Images/s of steps on the iterator's batches."""
        import torch

        wait = torch.cuda.synchronize if self.device.type == "cuda" else (lambda: None)
        for _ in range(3):
            self.step(next(images))
        wait()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            batch = next(images)
            self.step(batch)
            count += len(batch)
        wait()
        return count / (time.perf_counter() - start)

    def resident(self) -> Iterator[torch.Tensor]:
        """Random batches that lie on the device."""
        import torch

        size = (self.batch, self.resolution, self.resolution)
        held = [torch.randint(0, 255, size, dtype=torch.uint8, device=self.device) for _ in range(4)]
        while True:
            yield from held

    def streamed(self, source: Shards, ids: np.ndarray, engine: str, threads: int) -> Iterator[torch.Tensor]:
        """Whole batches of the stream, epoch after epoch."""
        from cxrlt_ray.data.stream import Ingest, batches
        from cxrlt_ray.training import device

        for epoch in range(10**6):
            stream = batches(
                source, ids, self.resolution, self.batch, seed=0, epoch=epoch, flip=0.5, ingest=Ingest(engine, threads)
            )
            for batch, images in device.ahead(stream, self.device):
                if len(batch.rows) == self.batch:
                    yield images


def main() -> None:
    import os

    import torch

    parser = options(__doc__, {"images": 8192, "rounds": 5, "seconds": 10})
    parser.add_argument("--dry", action="store_true", help="on the CPU, with tiny models")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.dry:
        print("No GPU here: nothing was measured. On a machine with one: python benchmarks/gpu.py --write")
        sys.exit(0)
    source, ids = shards(args.images)
    cores = len(os.sched_getaffinity(0))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    counts = sorted({1, 2, 4, min(8, cores)} & set(range(1, cores + 1)))
    lines = [
        f"| model on {gpu} | resident, images/s | stream | images/s | share of resident | GPU utilisation, % |",
        "|---|---|---|---|---|---|",
    ]
    rows, more = [], []
    for name, (resolution, batch) in (DRY if args.dry else KINDS).items():
        bench = Bench(name, resolution, batch)
        work = {"resident": lambda bench=bench: bench.run(bench.resident(), args.seconds)}
        utilisation: dict[str, list[float]] = {}
        for engine, threads in [("threads", count) for count in counts] + [("ray", 0)]:
            key = f"{threads} threads" if engine == "threads" else "Ray Data"
            feed = bench.streamed(source, ids, engine, threads)

            def timed(key=key, feed=feed, bench=bench, utilisation=utilisation) -> float:
                with Utilisation() as measured:
                    rate = bench.run(feed, args.seconds)
                utilisation.setdefault(key, []).append(measured.mean)
                return rate

            work[key] = timed
        rates = turns(work, args.rounds)
        for key in list(work)[1:]:
            share = ratios(rates[key], rates["resident"])
            cells = (
                f"{name} {resolution} px, batch {batch}",
                spread(rates["resident"]),
                key,
                spread(rates[key]),
                share,
            )
            lines.append(f"| {' | '.join(cells)} | {spread(utilisation[key])} |")
        best = f"{counts[-1]} threads"
        work_name = f"train {name} at {resolution} px through the stream, {best}, {gpu}"
        rows.append((work_name, "resident tensors", ratios(rates[best], rates["resident"]), "0.95"))
        more += compiled(bench, args.seconds)
    conditions = f": {gpu}, {cores} cores, {args.rounds} rounds in turn of {args.seconds} s."
    publish("gpu", "On a GPU", conditions, [*lines, "", *more], args.write and not args.dry, rows)


def compiled(bench: Bench, seconds: float) -> list[str]:
    """What torch.compile costs and gains, and the largest batch that fits: lines of markdown."""
    import torch

    from cxrlt_ray.training import device

    plain = bench.run(bench.resident(), seconds)
    start = time.perf_counter()
    try:
        bench.forward = torch.compile(bench.model, dynamic=False)
        bench.run(bench.resident(), 0.0)
        cost = time.perf_counter() - start
        fast = bench.run(bench.resident(), seconds)
        sentence = f"torch.compile: {cost:.0f} s, then {fast:,.0f} images/s, {fast / plain:.2f} times eager"
    except Exception as error:
        sentence = f"torch.compile failed: {type(error).__name__}"
    finally:
        bench.forward = bench.model
        torch._dynamo.reset()
    if bench.device.type != "cuda":
        return [f"- {sentence}."]

    def attempt(size: int) -> None:
        images = torch.randint(0, 255, (size, bench.resolution, bench.resolution), dtype=torch.uint8, device="cuda")
        with bench.amp():
            bench.forward(images).float().sum().backward()
        bench.optimizer.zero_grad(set_to_none=True)

    return [f"- {sentence}; of 2,048 images a batch of {device.fitting(2048, attempt):,} fits."]


if __name__ == "__main__":
    main()
