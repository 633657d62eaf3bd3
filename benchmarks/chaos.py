"""Faults on purpose: a sweep and its ensemble under seeded faults, compared with the same without any.

    python benchmarks/chaos.py --faults 30 --seed 0
    python benchmarks/chaos.py --faults 30 --seed 0 --s3

The same small sweep on the phantom runs twice with the same seed: without faults, and under faults, where every
command that ended is started again (`--resume`) until it succeeds. The result: trials expected, lost (missing, or
failed by no fault of their own), doubled; whether all predictions, the weights and the submission are the same to the
bit; how much longer it took. Faults come from outside, as they would: signals, limits, mounts, files; nothing in the
package knows of them. Faults that need a mount are left out, with a line that says so, where this user may not mount.
With --s3 everything lies in a bucket of a server in this process (moto), which now and then refuses, breaks off or is
slow.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from processes import alive, tree
from report import options, publish

from cxrlt_ray.runs.records import FAILED, RUNNING
from cxrlt_ray.runs.store import read_trials
from cxrlt_ray.storage import Store
from cxrlt_ray.training import resume

HERE = Path(__file__).parent
IMAGES, TRIALS, EPOCHS, HUNG, FAILING = 240, 14, 8, 8, 6.0
PAUSE = (2.0, 10.0)  # seconds between two faults: starting again takes about 12
LINGER = 90.0  # seconds after which no process may be left: Ray's agents end a minute after their machine's Ray
SPACE = f"""
trials: {TRIALS}
epochs: {EPOCHS}
parameters:
  backbone: {{choices: [test_convnext, test_resnet]}}
  pretrained: false
  resolution: 48
  batch_size: 16
  ema_decay: {{choices: [0.0, 0.9]}}
  drop_rate: 0.1
  lr: {{choices: [1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3, 1e30]}}
start:
  - {{backbone: test_resnet, lr: 4e-3}}
"""
# a trial whose loss is never finite is part of both: it fails with its reason and nothing else suffers
NAN = "  - {backbone: test_convnext, lr: 1e30, ema_decay: 0.9}\n"
# the clock of every process, moved by what a file says
CLOCK = """
import time as _time
_real = _time.time
def _moved():
    try:
        with open({file!r}) as file:
            return _real() + float(file.read() or 0)
    except (OSError, ValueError):
        return _real()
_time.time = _moved
"""


@dataclass
class ChaosRun:
    """A run under faults: its storage (a directory, or a URI with the server behind it), and the faults so far.

    seen: the processes of killed drivers, with their titles.
    """

    storage: Any
    env: dict[str, str]
    random: random.Random
    clock: Path
    log: Any
    s3: Any = None
    driver: Any = None
    happened: Counter[str] = field(default_factory=Counter)
    seen: dict[tuple[int, str], str] = field(default_factory=dict)

    def note(self) -> None:
        """Note the present processes, to see later whether they have ended."""
        self.seen |= {(process.pid, process.began): process.title for process in tree(self.driver.pid)}

    def left_behind(self) -> list[str]:
        """The titles of the noted processes that are alive after LINGER seconds."""
        until = time.monotonic() + LINGER
        while (titles := alive(self.seen)) and time.monotonic() < until:
            time.sleep(0.5)
        return titles

    def named(self, *parts: str) -> list[int]:
        """Processes of the tree whose command line begins with one of `parts` or has it as a path's end."""
        return [
            process.pid
            for process in tree(self.driver.pid)[1:]
            if any(process.title.startswith(part) or process.title.split(" ")[0].endswith(part) for part in parts)
        ]

    def trial(self) -> int | None:
        """The process of a trial that trains: the one that burns time."""
        pids = self.named("ray::ImplicitFunc", "ray::_Inner", "ray::_trial")
        return self.random.choice(pids) if pids else None


def kill(run: ChaosRun, pids: list[int]) -> bool:
    """Kill -9 one of them."""
    if not pids:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(run.random.choice(pids), signal.SIGKILL)
    return True


def kill_driver(run: ChaosRun) -> bool:
    """Kill -9 the command itself; the processes that it started should end by themselves."""
    run.note()
    os.kill(run.driver.pid, signal.SIGKILL)
    run.driver.wait()
    return True


def hang(run: ChaosRun) -> bool:
    """Stop a trial's process."""
    if (pid := run.trial()) is None:
        return False
    os.kill(pid, signal.SIGSTOP)
    return True


def exhaust(run: ChaosRun) -> bool:
    """Limit the memory of a trial's process to what it has."""
    if (pid := run.trial()) is None:
        return False
    with contextlib.suppress(ProcessLookupError, OSError):
        used = int(Path("/proc", str(pid), "statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (used, used))
    return True


def fill_disk(run: ChaosRun) -> bool:
    """Fill the disk, for a while."""
    filler = run.storage / "filler"
    with contextlib.suppress(OSError), open(filler, "wb") as file:
        while True:
            file.write(b"\1" * (1 << 20))
            file.flush()
    time.sleep(FAILING)
    filler.unlink()
    return True


def read_only(run: ChaosRun) -> bool:
    """Put an empty storage that cannot be written to in the place of ours, for a while."""
    mount("-t", "tmpfs", "-o", "ro", "none", str(run.storage))
    time.sleep(FAILING)
    subprocess.run(["umount", "-l", str(run.storage)], check=True)
    return True


def failing(run: ChaosRun, fault: Callable[[str, str], int | float | None]) -> bool:
    """Let requests to the server fail for a while: an HTTP status, or seconds to wait."""
    with run.s3.failing(fault):
        time.sleep(FAILING)
    return True


def move_clock(run: ChaosRun) -> bool:
    """Let the clock of all processes jump by up to a day, forward or back."""
    run.clock.write_text(str(run.random.uniform(-86400, 86400)))
    return True


def damage(run: ChaosRun, pattern: str, how: Callable[[Path], None]) -> bool:
    """Kill the driver, and damage one of the files of that pattern before it is started again."""
    paths = sorted(run.storage.glob(pattern))
    if not paths:
        return False
    kill_driver(run)
    paths = [path for path in paths if path.exists()]
    if paths:
        how(run.random.choice(paths))
    return True


def truncate(path: Path) -> None:
    """Remove the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


TRIAL = "chaos/trials/*"
FAULTS: dict[str, Callable[[ChaosRun], bool]] = {
    "driver killed": kill_driver,
    "trial killed": lambda s: kill(s, [pid for pid in [s.trial()] if pid]),
    "raylet killed": lambda s: kill(s, s.named("/raylet")),
    "GCS killed": lambda s: kill(s, s.named("/gcs_server")),
    "data task or other worker killed": lambda s: kill(s, [p for p in s.named("ray::") if p != s.trial()]),
    "trial hung": hang,
    "trial out of memory": exhaust,
    "disk full": fill_disk,
    "storage read-only": read_only,
    "clock jumps": move_clock,
    "checkpoint truncated": lambda s: damage(s, f"{TRIAL}/fold-0/model.safetensors", truncate),
    "state truncated": lambda s: damage(s, f"{TRIAL}/{resume.PREFIX}*{resume.SUFFIX}", truncate),
    "predictions corrupt": lambda s: damage(s, f"{TRIAL}/predictions/val.parquet", flip),
    "shard deleted": lambda s: damage(s, "shards/*/*-*.parquet", Path.unlink),
    "search's database lost": lambda s: damage(s, "chaos/optuna.db", truncate),
}
# in a bucket: no mounts, and no file that could be cut in two
KILLS = [name for name in FAULTS if "killed" in name]
FAULTS |= {
    "S3 refuses": lambda s: failing(s, lambda method, path: 503),
    "S3 breaks off": lambda s: failing(s, lambda method, path: s.random.choice([None, None, 500, 503])),
    "S3 slow": lambda s: failing(s, lambda method, path: s.random.uniform(0.1, 2.0)),
}
STORES = [*KILLS, "trial hung", "trial out of memory", "clock jumps", "S3 refuses", "S3 breaks off", "S3 slow"]
DISKS = [name for name in FAULTS if not name.startswith("S3")]
MOUNTED = ("disk full", "storage read-only")


def mount(*arguments: str) -> bool:
    """Whether that could be mounted."""
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


def command(run: ChaosRun, module: str, *arguments: str) -> list[str]:
    """One of our commands, in this storage."""
    return [sys.executable, "-m", f"cxrlt_ray.{module}", *arguments, "--storage", str(run.storage)]


def sweep_command(run: ChaosRun, data: Path, space: Path) -> list[str]:
    """The command that begins the sweep, or continues it."""
    settings = ["--hung-after", f"{HUNG}s", "--retries", "9", "--max-concurrent", "1", "--cache-gb", "0.1"]
    if Store(str(run.storage)).exists("chaos/run.json"):
        return command(run, "sweep", "task1", "--resume", "--name", "chaos", *settings)
    return command(run, "sweep", "task1", "--data", str(data), "--space", str(space), "--name", "chaos", *settings)


def start(run: ChaosRun, arguments: list[str]) -> None:
    """Start a command below this process."""
    run.log.write(f"\n$ {' '.join(arguments[2:])}\n")
    run.log.flush()
    # its own group, and it ends with us
    death = lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # noqa: E731
    run.driver = subprocess.Popen(arguments, env=run.env, stdout=run.log, stderr=run.log, preexec_fn=death)


def run_under_faults(
    run: ChaosRun, arguments: Callable[[], list[str]], plan: list[str], pause: tuple[float, float]
) -> None:
    """Run a command until it succeeds; a fault of `plan` after each `pause`, of so many seconds at random."""
    start(run, arguments())
    due = time.monotonic() + run.random.uniform(*pause)
    tries = 0
    while True:
        if run.driver.poll() is not None:
            if run.driver.returncode == 0:
                return
            tries += 1
            if tries > 8 + 2 * sum(run.happened.values()):
                raise SystemExit("chaos: the command does not succeed any more; see the log")
            start(run, arguments())
            due = time.monotonic() + run.random.uniform(*pause)
        if plan and time.monotonic() > due:
            fault = plan[0]
            if FAULTS[fault](run):
                run.happened[plan.pop(0)] += 1
                run.log.write(f"### {fault}\n")
                run.log.flush()
            else:  # not now: another first
                plan.append(plan.pop(0))
            due = time.monotonic() + run.random.uniform(*pause)
        time.sleep(0.1)


def run_to_end(
    name: str, root: Path, data: Path, space: Path, plan: list[str], seed: int, mounted: bool = False, s3: Any = None
) -> tuple[ChaosRun, float]:
    """Sweep and ensemble in a storage of their own, under the faults of `plan`: the run, and its seconds."""
    storage = root / name
    storage.mkdir()
    if mounted:
        mount("-t", "tmpfs", "-o", "size=300m", "none", str(storage))
    clock = root / f"{name}-clock"
    clock.write_text("0")
    site = root / f"{name}-site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOCK.format(file=str(clock)))
    env = {**os.environ, "PYTHONPATH": str(site), "RAY_worker_niceness": "0", "CUDA_VISIBLE_DEVICES": ""}
    with open(root / f"{name}.log", "w") as log:
        run = ChaosRun(f"s3://bucket/{name}" if s3 else storage, env, random.Random(seed), clock, log, s3)
        began = time.monotonic()
        late = plan[-2:]
        early = plan[: len(plan) - len(late)]
        run_under_faults(run, lambda: sweep_command(run, data, space), early, PAUSE)
        ensemble = command(run, "ensemble", "--run", "chaos", "--score-all", "--rounds", "50")
        run_under_faults(run, lambda: ensemble, late, (9.0, 14.0))
        seconds = time.monotonic() - began
    if s3:  # to be read as a directory
        from pyarrow import fs

        fs.copy_files(f"bucket/{name}", str(storage), fs.S3FileSystem(endpoint_override=s3.url), fs.LocalFileSystem())
    return run, seconds


def read(storage: Path) -> dict[str, Any]:
    """What a run left that must be the same with and without faults."""
    import pandas as pd

    trials = {}
    for trial in read_trials(Store(str(storage)) / "chaos" / "trials"):
        record = trial.record
        trials[trial.name] = {
            "state": record.state,
            "outcome": (
                (record.state, record.params, record.score, record.reason, record.own_fault),
                [(epoch.epoch, epoch.score, epoch.loss) for epoch in record.epochs],
            ),
            "scores": {split: trial.predictions(split) for split in ("val", "test") if trial.has_predictions(split)},
            "retries": len(record.retries),
        }
    ensemble = storage / "chaos" / "ensembles" / "greedy"
    return {
        "trials": trials,
        "weights": pd.read_csv(ensemble / "weights.csv") if (ensemble / "weights.csv").exists() else None,
        "submission": (ensemble / "submission.csv").read_bytes(),
    }


def compared(reference: dict[str, Any], faulty: dict[str, Any]) -> dict[str, Any]:
    """Counts of trials, and what is the same."""
    expected, trials = reference["trials"], faulty["trials"]
    lost = [name for name in expected if name not in trials or trials[name]["state"] == RUNNING]
    others = [name for name in expected if name not in lost]
    lost += [name for name in others if trials[name]["state"] == FAILED and expected[name]["state"] != FAILED]
    doubled = [name for name in trials if name not in expected]
    same = [
        name
        for name in others
        if trials[name]["outcome"] == expected[name]["outcome"]
        and all(
            split in trials[name]["scores"]
            and np.array_equal(frame.to_numpy(), trials[name]["scores"][split].loc[frame.index].to_numpy())
            for split, frame in expected[name]["scores"].items()
        )
    ]
    return {
        "expected": len(expected),
        "lost": lost,
        "doubled": doubled,
        "same": len(same),
        "differ": sorted(set(others) - set(same)),
        "retries": sum(trial["retries"] for trial in trials.values()),
        "submission": reference["submission"] == faulty["submission"],
    }


def planned(faults: int, seed: int, kinds: list[str]) -> list[str]:
    """So many faults, every kind about as often, in a random order; the ensemble's two come last."""
    rng = random.Random(seed)
    plan: list[str] = []
    while len(plan) < faults - 2:
        plan += rng.sample(kinds, len(kinds))
    return [*plan[: faults - 2], "driver killed", "data task or other worker killed"]


def main() -> None:
    parser = options(__doc__, {"faults": 30, "seed": 0})
    parser.add_argument("--keep", help="a folder that keeps both runs and their logs")
    parser.add_argument("--kinds", nargs="*", help=f"of {', '.join(FAULTS)}; all that can be unless given")
    parser.add_argument("--s3", action="store_true", help="everything in a bucket, which fails now and then")
    args = parser.parse_args()
    root = Path(args.keep or tempfile.mkdtemp(prefix="chaos-"))
    root.mkdir(parents=True, exist_ok=True)
    probe = root / "probe"
    probe.mkdir()
    able = not args.s3 and mount("-t", "tmpfs", "-o", "size=1m", "none", str(probe))
    if able:
        subprocess.run(["umount", str(probe)], check=True)
    data, space = root / "data", root / "space.yaml"
    from cxrlt_ray.phantom import write_phantom

    write_phantom(str(data), images=IMAGES, size=64, seed=0, say=lambda _: None)
    space.write_text(SPACE + NAN)
    kinds = args.kinds or (STORES if args.s3 else [kind for kind in DISKS if able or kind not in MOUNTED])
    plan = planned(args.faults, args.seed, kinds)
    with contextlib.ExitStack() as stack:
        s3 = None
        if args.s3:
            sys.path.insert(0, str(HERE.parent / "tests"))
            from s3 import served

            s3 = stack.enter_context(served("bucket"))
        print(f"In {root}: first without faults", flush=True)
        _, reference_seconds = run_to_end("reference", root, data, space, [], args.seed, s3=s3)
        print(f"  {reference_seconds:.0f} s; now with {len(plan)} faults", flush=True)
        if able:
            unmount = ["umount", "-l", str(root / "faulty")]
            stack.callback(subprocess.run, unmount, check=False, stderr=subprocess.DEVNULL)
        faulty, faulty_seconds = run_to_end("faulty", root, data, space, plan, args.seed, mounted=able, s3=s3)
        left = faulty.left_behind()
        result = compared(read(root / "reference"), read(root / "faulty"))
    slower = faulty_seconds / reference_seconds
    happened = sum(faulty.happened.values())
    diverged = sum(trial["state"] == FAILED for trial in read(root / "reference")["trials"].values())
    counts = ", ".join(f"{count} x {name}" for name, count in sorted(faulty.happened.items()))
    lines = [
        "| faults | trials | lost | doubled | the same to the bit | retries | submission | time | processes left |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| {happened} | {result['expected']} | {len(result['lost'])} | {len(result['doubled'])} | {result['same']} | "
        f"{result['retries']} | {'identical' if result['submission'] else 'differs'} | "
        f"{faulty_seconds:.0f} s, {slower:.1f} times {reference_seconds:.0f} s | {len(left)} |",
        "",
        f"{diverged} trial(s) diverge by their own fault, with and without the others.",
        f"Seed {args.seed}, a fault every {PAUSE[0]:.0f} to {PAUSE[1]:.0f} s: {counts}.",
    ]
    if not able and not args.s3:
        lines += ["Without a full disk and read-only storage: this user may not mount."]
    if left:
        lines += [f"Left behind: {', '.join(title[:60] for title in left)}."]
    if result["differ"]:
        lines += [f"Not the same: {', '.join(result['differ'])}."]
    name, title = ("chaos-s3", "Faults on purpose, in a bucket") if args.s3 else ("chaos", "Faults on purpose")
    publish(name, title, "", lines, args.write)
    if not args.keep:
        shutil.rmtree(root, ignore_errors=True)
    good = not result["lost"] and not result["doubled"] and result["submission"] and not result["differ"]
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
