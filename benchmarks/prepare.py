"""Originals to shards: decoding against torchvision's way, what the cache costs, and what its quality costs in mAP.

Originals are phantom chest X-rays of 2544 x 3056 px, as sharp as makes their JPEGs MIMIC-CXR-JPG's mean size (1.4 MB),
and grainier ones; one core, all in turn, `--rounds` rounds. `--map` trains a small pretrained model on real chest
X-rays (SHARED) from caches of each quality, `--seeds` times: some 10 minutes.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from cache import BUILD, job
from report import options, publish, ratios, spread, turns

HEIGHT, WIDTH, COUNT = 3056, 2544, 6
SHARED = Path(__file__).parents[2] / "shared" / "data" / "nih384"
SIZES = (224, 512, 1024)


def originals(blur: float, grain: float) -> list[bytes]:
    """JPEGs (q95) of drawn chest X-rays."""
    from cxrlt_ray.phantom.pictures import Picture, draw_picture

    rng = np.random.default_rng(0)
    files = []
    for k in range(COUNT):
        image = draw_picture(Picture(k, k, str(k), False, False, {}), HEIGHT, 0)
        image = cv2.GaussianBlur(cv2.resize(image, (WIDTH, HEIGHT)), (0, 0), blur).astype(np.float32)
        image += rng.normal(0, grain, image.shape).astype(np.float32)
        files.append(
            cv2.imencode(".jpg", image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        )
    return files


def torchvision_way(files: list[bytes], size: int) -> Callable[[], float]:
    """Images/s of Pillow to RGB and torchvision's resize, as a Dataset's usual __getitem__ has it."""
    from PIL import Image
    from torchvision.transforms.v2 import functional

    def run() -> float:
        start = time.perf_counter()
        for content in files:
            functional.resize(Image.open(io.BytesIO(content)).convert("RGB"), [size, size])
        return len(files) / (time.perf_counter() - start)

    return run


def our_way(files: list[bytes], sizes: tuple[int, ...]) -> Callable[[], float]:
    """Images/s of our decoding and resizing to all `sizes`."""
    from cxrlt_ray.data.decode import decode, resize

    def run() -> float:
        start = time.perf_counter()
        for content in files:
            image = decode(content, max(sizes))[0]
            for size in sizes:
                resize(image, size)
        return len(files) / (time.perf_counter() - start)

    return run


def fidelity(files: list[bytes], size: int) -> float:
    """Mean PSNR in dB of our resized pixels against the whole image decoded and averaged down."""
    from cxrlt_ray.data.decode import decode, resize
    from cxrlt_ray.data.estimate import psnr

    pairs = [(resize(decode(c, size)[0], size), resize(decode(c)[0], size)) for c in files]
    return statistics.mean(psnr(float(np.square(a.astype(float) - b).mean())) for a, b in pairs)


def cache_costs(files: list[bytes], size: int) -> list[str]:
    """What each quality costs: bytes, encoding, decoding, dB."""
    from cxrlt_ray.data.decode import decode, resize
    from cxrlt_ray.data.estimate import psnr
    from cxrlt_ray.data.shards import LOSSLESS, encode, quality_name

    small = [resize(decode(content, size)[0], size) for content in files]
    lines = []
    for quality in (85, 90, 95, LOSSLESS):
        start = time.perf_counter()
        encoded = [encode(image, quality) for image in small for _ in range(5)]
        writing = len(encoded) / (time.perf_counter() - start)
        start = time.perf_counter()
        decoded = [decode(content)[0] for content in encoded]
        reading = len(encoded) / (time.perf_counter() - start)
        error = np.mean([np.square(a.astype(float) - b).mean() for a, b in zip(small, decoded[::5], strict=True)])
        kb = statistics.mean(map(len, encoded)) / 1e3
        lines.append(
            f"| {size} | {quality_name(quality)} | {kb:,.0f} | {kb * 377_110 / 1e6:,.1f} | {writing:,.0f} | "
            f"{reading:,.0f} | {psnr(float(error)):.1f} |"
        )
    return lines


def map_by_quality(seeds: int) -> list[str]:
    """Validation and test mAP of tf_efficientnet_lite0 at 128 px on nih384, from caches of each quality."""
    from cxrlt_ray import models
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.data.shards import LOSSLESS, quality_name
    from cxrlt_ray.evaluation.metrics import macro, per_finding
    from cxrlt_ray.runs.store import read_trial
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.training.job import images_of
    from cxrlt_ray.training.trial import train
    from cxrlt_ray.training.validation import predict_images

    manifest = read_cohort(str(SHARED), task="auto").manifest
    start_ray()
    images = images_of(manifest.of_split("test"), manifest.findings)
    config = TrialConfig(
        backbone="tf_efficientnet_lite0", resolution=128, epochs=5, lr=1e-3, ema_decay=0.99, augment=0.2
    )
    results: dict[int, list[tuple[float, float]]] = {90: [], 95: [], LOSSLESS: []}
    for seed in range(seeds):
        for quality in results:
            prepared = prepare(manifest, str(BUILD), [128], quality=quality, say=lambda _: None)
            run = BUILD / f"map-{quality_name(quality)}-{seed}"
            shared = job(run, manifest, prepared)
            train(shared, "T0000", config.model_copy(update={"seed": seed}), {}, lambda _: None)
            validation = read_trial(shared.run / "trials" / "T0000").score
            model = models.load(run / "trials" / "T0000" / "fold-0")[0]
            scores = predict_images(shared, config, model, images)
            test = macro(per_finding(images.targets, scores, ("ap",))["ap"])
            results[quality].append((validation, test))
            print(f"seed {seed} {quality_name(quality)}: val {validation:.4f} test {test:.4f}", flush=True)
    lines = [
        "| cache at 128 px | val mAP | test mAP | test mAP less lossless, same seed |",
        "|---|---|---|---|",
    ]
    for quality, pairs in results.items():
        differences = [a[1] - b[1] for a, b in zip(pairs, results[LOSSLESS], strict=True)]
        cells = [spread([pair[k] for pair in pairs], 3) for k in (0, 1)]
        lines.append(f"| {quality_name(quality)} | {' | '.join(cells)} | {spread(differences, 3)} |")
    return lines


def main() -> None:
    parser = options(__doc__, {"rounds": 5, "seeds": 3})
    parser.add_argument("--map", action="store_true", help="train on caches of each quality, and write that section")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.map:
        conditions = f": tf_efficientnet_lite0 (ImageNet), {args.seeds} seeds."
        lines = map_by_quality(args.seeds)
        publish("prepare-map", "What the cache's quality costs in mAP (nih384)", conditions, lines, args.write)
        return
    kinds = {"like MIMIC's": originals(1.3, 1.5), "grainy": originals(1.0, 3.0)}
    lines, rows = [], []
    for kind, files in kinds.items():
        mb = statistics.mean(map(len, files)) / 1e6
        work = {f"torchvision to {size}": torchvision_way(files, size) for size in SIZES}
        work |= {f"ours to {size}": our_way(files, (size,)) for size in SIZES}
        work["ours to 224, 384, 512, 1024"] = our_way(files, (224, 384, 512, 1024))
        rates = turns(work, args.rounds)
        lines += [
            "",
            f"| originals {kind}, {mb:.2f} MB | torchvision, images/s | ours, images/s | ratio | dB |",
            "|---|---|---|---|---|",
        ]
        for size in SIZES:
            peer, own = rates[f"torchvision to {size}"], rates[f"ours to {size}"]
            decibel = fidelity(files, size)
            cells = (f"to {size} px", spread(peer, 1), spread(own, 1), ratios(own, peer), f"{decibel:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
            if size == 512:
                goal = "3.0 at 50 dB" if kind != "grainy" else "-"
                rows.append(
                    (
                        f"decode {kind} 2544x3056 ({mb:.2f} MB) to 512 px, {decibel:.1f} dB",
                        "torchvision (Pillow RGB)",
                        ratios(own, peer),
                        goal,
                    )
                )
        every = rates["ours to 224, 384, 512, 1024"]
        peer = rates["torchvision to 1024"]
        cells = ("to 224, 384, 512 and 1024 at once", f"{spread(peer, 1)} (1024 only)", spread(every, 1))
        lines.append(f"| {' | '.join(cells)} | {ratios(every, peer)} | |")
    table = [
        "",
        "| px | quality | KB an image | GB of 377,110 | encoded/s | decoded/s | dB of the cache |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        table += cache_costs(kinds["like MIMIC's"], size)
    conditions = (
        f": {COUNT} images a turn, one core, {args.rounds} rounds in turn; dB against the whole image decoded and "
        "averaged down."
    )
    publish("prepare", "Preparing: originals to shards", conditions, lines[1:] + table, args.write, rows)


if __name__ == "__main__":
    main()
