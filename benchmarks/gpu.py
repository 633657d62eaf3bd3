"""On a GPU: training steps through the stream against the same steps on tensors that lie on the device.

ConvNeXt-S at 384 px and EfficientNetV2-S at 512 px (random weights: speed only), bf16, channels_last, from 512 px
JPEG shards (q95); images/s, GPU utilisation (nvidia-smi), and how the rate falls with the number of decoding threads,
which says how many CPU cores a GPU needs. Also what torch.compile costs and gains, and the largest batch that fits.
One command, on a machine with one GPU: python benchmarks/gpu.py --write
Without a GPU it says so and ends; --dry runs the same code on the CPU with tiny models, for a test of the benchmark.
--short is a check of at most ten minutes in one process: ConvNeXt-S resident against streamed, and a frozen ViT-B/14
with ML-Decoder and with attention over views, with stored features and without.
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
    from pathlib import Path

    import numpy as np
    import torch

    from cxrlt_ray.data.shards import Shards

KINDS = {"convnext_small": (384, 128), "tf_efficientnetv2_s": (512, 96)}
DRY = {"test_convnext": (96, 16), "test_efficientnet": (96, 16)}
FROZEN, FROZEN_DRY = ("vit_base_patch14_reg4_dinov2", 224, 2048), ("test_vit", 96, 64)  # backbone, px, images
FROZEN_STAGES = {"ML-Decoder": {"head": "ml_decoder"}, "attention over views": {"fusion": "attention"}}


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
    parser.add_argument("--short", action="store_true", help="at most ten minutes: streamed training, frozen stages")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.dry:
        print("No GPU here: nothing was measured. On a machine with one: python benchmarks/gpu.py --write")
        sys.exit(0)
    source, ids = shards(args.images)
    if args.short:
        short(source, ids, args.dry, args.seconds, args.write)
        return
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


def short(source: Shards, ids: np.ndarray, dry: bool, seconds: float, write_it: bool) -> None:
    """Publish images/s of training, resident and streamed, and of frozen stages on pixels and on stored features."""
    import os
    import tempfile
    from pathlib import Path

    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU (dry: tiny models)"
    name, (resolution, batch) = next(iter((DRY if dry else KINDS).items()))
    bench, threads = Bench(name, resolution, batch), min(8, len(os.sched_getaffinity(0)))
    resident = bench.run(bench.resident(), seconds)
    streamed = bench.run(bench.streamed(source, ids, "threads", threads), seconds)
    lines = [
        "| on this GPU | images/s | images/s | ratio |",
        "|---|---|---|---|",
        f"| train {name} at {resolution} px | resident {resident:,.0f} | streamed {streamed:,.0f} "
        f"| {streamed / resident:.2f} |",
    ]
    rows = []
    for stage, changes in FROZEN_STAGES.items():
        backbone, pixels, count = FROZEN_DRY if dry else FROZEN
        rates = []
        for room in (0, 10**11):
            with tempfile.TemporaryDirectory() as folder:
                rates.append(frozen(source, ids[:count], Path(folder), backbone, pixels, changes, room, threads))
        work = f"{backbone} at {pixels} px, frozen, {stage}"
        lines.append(f"| {work} | pixels {rates[0]:,.0f} | stored {rates[1]:,.0f} | {rates[1] / rates[0]:.1f} |")
        rows.append((f"{work}, {gpu}", "pixels in every epoch", f"{rates[1] / rates[0]:.1f}", "20"))
    publish("gpu-short", "On a GPU, in short", f": {gpu}, {threads} threads.", lines, write_it and not dry, rows)


def frozen(
    source: Shards,
    ids: np.ndarray,
    folder: Path,
    backbone: str,
    resolution: int,
    changes: dict[str, str],
    room: int,
    threads: int,
) -> float:
    """Images/s of the second epoch of a frozen stage. room: bytes that stored features may take; 0: pixels."""
    import numpy as np
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.data.features import FeatureStorage, features_folder, storage_of
    from cxrlt_ray.data.stream import Ingest
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.storage import Store
    from cxrlt_ray.training.clock import Clock
    from cxrlt_ray.training.job import Images, Job
    from cxrlt_ray.training.stage import train_stage

    findings = tuple(f"finding {k}" for k in range(40))
    random = np.random.default_rng(0)
    targets = (random.random((len(ids), len(findings))) < 0.1).astype(np.int8)
    training = Images(ids, targets, np.arange(len(ids)) // 2, np.zeros(len(ids), np.int64))
    config = TrialConfig(
        backbone=backbone,
        resolution=resolution,
        epochs=2,
        pretrained=False,
        frozen_backbone=True,
        compile="off",
        **changes,
    )
    job = Job(Store(str(folder)), (source,), findings, "", ingest=Ingest(threads=threads), features=room)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = models.build(config.spec(), findings).to(device).to(memory_format=torch.channels_last)
    epochs = list(train_stage(job, config, model, training, 0, Clock()))
    FeatureStorage(features_folder(storage_of(source)), 0).forget()
    return epochs[-1].images_per_second


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
