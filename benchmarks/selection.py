"""Ensemble selection timed against its peers: `python benchmarks/selection.py --write` fills RESULTS.md.

The reference work is the challenge's size (50 members, 39,293 images, 40 findings, 50 rounds), drawn from a seed.
Every competitor (peers.py) runs in fresh processes, in turn, so that a busy machine slows all alike; a ratio is of
two runs of the same turn. A peer needs a quarter of an hour for all findings: without --whole it runs one of them,
that of median positives, with all members and rounds, and its time is multiplied by the number of findings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from report import Row, machine, options, publish, spread
from sklearn.metrics import average_precision_score

from cxrlt_ray.data.tasks import TASK1
from cxrlt_ray.phantom.labels import PREVALENCE

HERE = Path(__file__).parent
NAMES = {
    "autogluon": "AutoGluon",
    "auto_sklearn": "auto-sklearn (its algorithm)",
    "scikit_learn": "plain loop (scikit-learn)",
    "cxrlt_ray": "cxrlt_ray",
    "honest": "cxrlt_ray, all of it honest",
}
Run = dict[str, Any]  # the JSON that peers.py prints


def reference(
    members: int = 50, images: int = 39_293, findings: int = 40, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions float32 [M, N, C] in 0..1, targets int8 [N, C], groups int64 [N], as the challenge would give them.

    Findings: so many of task 1's, evenly by rarity (repeated beyond 40), each with exactly its share of positives in
    CXR-LT 2024's training images, at least 2. Subjects have 3 to 6 images and mostly the same findings in all. A
    member sees a positive's shift, the difficulty that all members see, and noise of its own; its output is the
    posterior of what it sees, over- or under-confident. Members are independent draws: fewer are the first of more.
    """
    targets, groups, member = drawn(images, findings, seed)
    predictions = np.empty((members, images, findings), np.float32)
    for m in range(members):
        predictions[m] = member(m)
    return predictions, targets, groups


def drawn(images: int, findings: int, seed: int) -> tuple[np.ndarray, np.ndarray, Callable[[int], np.ndarray]]:
    """Targets and groups as `reference` draws them, and what gives member m's predictions [N, C]."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(images), rng.integers(3, 7, images))[:images]
    shares = np.array([PREVALENCE[name] for name in TASK1])
    by_rarity = np.argsort(-shares, kind="stable")
    shares = shares[np.sort(by_rarity[np.linspace(0, len(shares) - 1, findings).round().astype(int)])]

    illness = _normal(rng, groups[-1] + 1, findings)[groups] + 0.5 * _normal(rng, images, findings)
    targets = np.zeros((images, findings), np.int8)
    for c, positives in enumerate(np.maximum(np.round(shares * images), 2).astype(int)):
        targets[np.argpartition(-illness[:, c], positives)[:positives], c] = 1

    shift = (1.0 - 0.65 * np.log10(shares) + rng.normal(0, 0.2, findings)).astype(np.float32)  # rare ones stand out
    difficulty = _normal(rng, images, findings)
    prior = np.log(shares / (1 - shares)).astype(np.float32)

    def member(m: int) -> np.ndarray:
        rng = np.random.default_rng([seed, m + 1])
        noise = rng.uniform(0.4, 1.1) * np.exp(rng.normal(0, 0.15, findings)).astype(np.float32)
        slope = rng.uniform(0.7, 1.3) * shift / (1 + noise**2)
        evidence = shift * (targets - np.float32(0.5)) + difficulty + noise * _normal(rng, images, findings)
        return (1 / (1 + np.exp(-prior - slope * evidence))).astype(np.float32)

    return targets, groups, member


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def environment_of_peers(directory: Path) -> Path:
    """The Python of a virtual environment with requirements-peers.txt installed; AutoGluon needs an older pandas."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        sys.exit("uv is not installed and makes AutoGluon's environment: `pip install uv`, or run with --no-autogluon.")
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, directory], check=True)
    requirements = HERE / "requirements-peers.txt"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "-r", requirements], check=True)
    return python


def save(path: Path, predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> Path:
    np.savez(path, predictions=predictions, targets=targets, groups=groups)
    return path


def run(name: str, data: Path, rounds: int, threads: int = 1, python: Path | str = sys.executable) -> Run:
    """One competitor on the data in a fresh process with so many threads."""
    limits = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    done = subprocess.run(
        [python, HERE / "peers.py", name, data, str(rounds)],
        env=os.environ | dict.fromkeys(limits, str(threads)),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{NAMES[name]} failed; its output stands above.")
    result: Run = json.loads(done.stdout.splitlines()[-1])
    print(f"  {NAMES[name]}, {threads} thread(s): {result['seconds']:.2f} s", file=sys.stderr)
    return result


def compare(args: argparse.Namespace, folder: Path) -> tuple[list[str], list[Row]]:
    """The peers and ours on one and two threads, in turn: the table and the checks, lines of markdown."""
    predictions, targets, groups = reference(args.members, args.images, args.findings, args.seed)
    everything = save(folder / "everything.npz", predictions, targets, groups)
    by_positives = np.argsort(targets.sum(axis=0), kind="stable")
    measured = np.arange(args.findings) if args.whole else by_positives[[args.findings // 2]]
    predictions, targets = predictions[:, :, measured], targets[:, measured]
    part = save(folder / "part.npz", predictions, targets, groups)
    times = args.findings / len(measured)

    python = {} if args.no_autogluon else {"autogluon": environment_of_peers(args.peers_venv)}
    peers = [*python, "auto_sklearn", "scikit_learn"]
    runs: dict[tuple[str, int], list[Run]] = {(name, 1): [] for name in peers}
    runs |= {("cxrlt_ray", 1): [], ("cxrlt_ray", 2): []}
    run("cxrlt_ray", part, args.rounds)  # compiles, if this code has not run here before
    for _ in range(args.repeats):
        for (name, threads), own in runs.items():
            if name == "cxrlt_ray":
                own.append(run(name, everything, args.rounds, threads))
            else:
                own.append(run(name, part, args.rounds, threads, python.get(name, sys.executable)))
                own[-1]["seconds"] *= times

    ours = runs["cxrlt_ray", 1] + runs["cxrlt_ray", 2]
    weights = {name: np.array(runs[name, 1][0]["weights"]) for name in peers}
    if any((np.array(one_run["weights"])[:, measured] != weights["scikit_learn"]).any() for one_run in ours):
        sys.exit("cxrlt_ray's weights are not the plain loop's: it is not exact, and its time counts for nothing.")
    reached = (f"{NAMES[name]} {mean_precision(predictions, targets, weights[name]):.7f}" for name in peers)

    run("honest", part, args.rounds)  # compiles
    honest = [run("honest", everything, args.rounds, threads=2)["seconds"] for _ in range(args.repeats)]
    base = runs[peers[0], 1]
    evaluations = args.members * args.rounds * args.findings
    lines = [
        f"| implementation | threads | whole job, s | ms an evaluation | times {NAMES[peers[0]]} |",
        "|---|---|---|---|---|",
    ]
    rows = []
    work = f"greedy selection, {args.members} members, {args.images:,} images, {args.findings} findings, "
    work += f"{args.rounds} rounds"
    for (name, threads), own in runs.items():
        seconds = [one_run["seconds"] for one_run in own]
        ratios = spread([slow["seconds"] / fast["seconds"] for slow, fast in zip(base, own, strict=True)], 1)
        milliseconds = f"{median(seconds) / evaluations * 1e3:.3f}"
        lines.append(f"| {NAMES[name]} | {threads} | {spread(seconds, 2)} | {milliseconds} | {ratios} |")
        if name == "cxrlt_ray":
            rows.append((f"{work}, {threads} thread(s)", f"{NAMES[peers[0]]}, 1 thread", ratios, "-"))
    rows.append(("selection with all of its honesty", "goal in s", f"{spread(honest, 1)} s", "60 s"))
    part_work = (
        f"one finding (the median, {targets.sum()} positives), all members and rounds, multiplied by {times:.0f}"
    )
    environment = ", ".join(f"{package} {version}" for package, version in base[0]["versions"].items())
    importing, loading = (spread([one_run[key] for one_run in ours], 2) for key in ("import", "warm_up"))
    memory, before = (max(one_run[key] for one_run in ours) / 2**20 for key in ("memory", "memory_before"))
    return [
        *lines,
        "",
        f"- Median (least-most) of {args.repeats} turns, each of all in fresh processes; a ratio is within a turn.",
        f"- Peers ran {'all findings' if args.whole else part_work}. {NAMES[peers[0]]} ran on {environment}.",
        f"- cxrlt_ray's weights equal the plain loop's exactly, in every run. AP reached: {', '.join(reached)}. "
        "AutoGluon rounds to 6 decimals after its first round and draws among equals; auto-sklearn keeps all rounds.",
        f"- Before that, cxrlt_ray takes {importing} s to import (after numpy) and {loading} s for a first call on "
        "tiny arrays, which loads its compiled code.",
        f"- Honest: best, mean and greedy cross-fitted in 5 folds, the guard's strength chosen by cross-fitting inside "
        "them, 1,000 draws of subjects of six systems: "
        f"{spread(honest, 1)} s on two threads.",
        f"- Its process peaks at {memory:,.0f} MiB beyond the predictions; {before:,.0f} MiB of it are there before.",
    ], rows


def mean_precision(predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """Mean over the findings of the AP of the weighted members."""
    combined = np.einsum("mnc,mc->nc", predictions, weights)
    return float(np.mean([average_precision_score(*columns) for columns in zip(targets.T, combined.T, strict=True)]))


def growth(args: argparse.Namespace, folder: Path) -> list[str]:
    """Ours on two threads with each measure of the work halved and doubled, in turn: lines of markdown."""
    base = {"members": args.members, "images": args.images, "findings": min(8, args.findings), "rounds": args.rounds}
    sizes = {("", 1.0): base}
    sizes |= {(name, factor): base | {name: max(int(base[name] * factor), 1)} for name in base for factor in (0.5, 2)}
    jobs = {}
    for k, (key, size) in enumerate(sizes.items()):
        inputs = reference(size["members"], size["images"], size["findings"], args.seed)
        jobs[key] = save(folder / f"growth-{k}.npz", *inputs), size["rounds"]
    seconds = [
        {key: run("cxrlt_ray", *job, threads=2)["seconds"] for key, job in jobs.items()} for _ in range(args.repeats)
    ]
    lines = ["| cxrlt_ray, 2 threads | halved | as it is, s | doubled |", "|---|---|---|---|"]
    for name, value in base.items():
        half, twice = (spread([turn[name, factor] / turn["", 1] for turn in seconds], 2) for factor in (0.5, 2))
        lines.append(f"| {name} ({value:,}) | x {half} | {spread([turn['', 1] for turn in seconds], 2)} | x {twice} |")
    return lines


def software() -> str:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "numba", "scikit-learn"))
    return f"{platform.system()}, Python {platform.python_version()}, {packages}; {datetime.now(UTC):%Y-%m-%d}"


def main() -> None:
    parser = options(__doc__, {"members": 50, "images": 39_293, "findings": 40, "rounds": 50, "repeats": 3, "seed": 0})
    parser.add_argument("--whole", action="store_true", help="peers run all findings, not one")
    parser.add_argument("--no-autogluon", action="store_true", help="leave AutoGluon out")
    parser.add_argument("--no-growth", action="store_true", help="leave out the table of growth")
    parser.add_argument(
        "--peers-venv",
        type=Path,
        default=HERE.parent / "build" / "peers-venv",
        metavar="DIR",
        help="AutoGluon's environment, made where it does not exist; build/peers-venv unless given",
    )
    parser.add_argument("--trials", type=int, default=0, metavar="N", help="only: among N trials, as many.py says")
    parser.add_argument("--most", type=int, default=40, metavar="N", help="with --trials: of a shortlist, 40")
    parser.add_argument("--loss", type=int, default=0, metavar="N", help="with --trials: its loss among N trials")
    parser.add_argument("--loss-images", type=int, default=8000, metavar="N", help="of that, chosen on N images")
    args = parser.parse_args()
    if args.trials:
        from many import many

        with tempfile.TemporaryDirectory() as folder:
            lines, rows = many(args, Path(folder))
        conditions = f" on {machine()}; {software()}; {args.rounds} rounds, data from seed {args.seed}."
        publish("many", f"Selection among {args.trials:,} trials", conditions, lines, args.write, rows)
        return
    if min(args.members // 2, args.images // 10, args.findings, args.rounds, args.repeats, args.seed + 1) < 1:
        parser.error("need at least 2 members, 10 images, 1 finding, 1 round, 1 repeat, and a seed from 0")
    with tempfile.TemporaryDirectory() as folder:
        lines, rows = compare(args, Path(folder))
        lines += [] if args.no_growth else ["", *growth(args, Path(folder))]
    work = f"{args.members} members, {args.images:,} images, {args.findings} findings, {args.rounds} rounds"
    evaluations = f"{args.members * args.findings * args.rounds:,} evaluations of average precision"
    conditions = f" on {machine()}; {software()}.\n{work} = {evaluations}; data from seed {args.seed}."
    publish("selection", "Ensemble selection", conditions, lines, args.write, rows)


if __name__ == "__main__":
    main()
