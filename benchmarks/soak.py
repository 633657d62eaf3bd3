"""Does anything grow? A sweep of very short epochs and trials, one at a time in one process, sampled every few seconds.

What is sampled, from /proc and the disk: memory, threads and open files of the driver and of the process in which the
trials run, Ray's object store, the number of processes, Ray's and Tune's own files. A slope is that of a line through
the means of BLOCKS stretches of time after the warm-up, with its 95 % interval (Student's t): single samples are not
independent. The run's directory grows by the files of its trials.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from processes import Process, tree
from report import Row, options, publish

ROOT = Path(__file__).parent.parent
BUILD, FIGURE = ROOT / "build" / "soak", ROOT / "docs" / "soak.png"
EVERY, BLOCKS, WARM = 3.0, 12, 0.25  # seconds between samples; stretches; the share of the time left to warm up
SPACE = """
trials: 3000
epochs: 20
parameters:
  backbone: {choices: [test_convnext, test_resnet]}
  pretrained: false
  resolution: 32
  batch_size: 32
  lr: {low: 1.0e-3, high: 1.0e-2, log: true}
"""
MEBI = 2**20
# what is drawn: the title, the unit, and which of the series
PANELS = (
    ("Memory (RSS)", "MiB", ("driver memory", "trial memory")),
    ("Shared memory: Ray's object store", "MiB", ("object store",)),
    ("Open files", "number", ("driver files", "trial files")),
    ("Threads", "number", ("driver threads", "trial threads")),
    ("Ray's and Tune's files", "MiB", ("Ray's logs", "Tune's files")),
    ("The run's directory", "MiB", ("run's directory",)),
)


def size(folder: Path) -> float:
    """MiB that the files below a folder take on the disk, as far as they stay."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total / MEBI


def sample(processes: list[Process], run: Path, scratch: Path) -> dict[str, float] | None:
    """The series' values now; None before the first trial and after the last. scratch: the driver's TMPDIR."""
    trial = next((process for process in processes if process.title.startswith("ray::ImplicitFunc")), None)
    if trial is None:
        return None
    driver, ray = processes[0], size(scratch / f"cxrlt_ray-{os.getuid()}" / "ray")
    return {
        "driver memory": driver.rss / MEBI,
        "trial memory": trial.rss / MEBI,
        "object store": max(process.shared for process in processes if "raylet" in process.title) / MEBI,
        "driver files": driver.files,
        "trial files": trial.files,
        "driver threads": driver.threads,
        "trial threads": trial.threads,
        "processes": len(processes),
        "Ray's logs": ray,
        "Tune's files": size(scratch) - ray,
        "run's directory": size(run),
        "pid": trial.pid,
    }


def soak(minutes: float, run: Path) -> tuple[np.ndarray, dict[str, np.ndarray], str]:
    """Seconds [T] and each series [T] of a sweep of so many minutes, and the sweep's output."""
    from cxrlt_ray.phantom import write_phantom

    BUILD.mkdir(parents=True, exist_ok=True)
    write_phantom(BUILD / "phantom-200", images=200, size=64)
    (BUILD / "soak.yaml").write_text(SPACE)
    shutil.rmtree(run, ignore_errors=True)
    command = ["auto", "--data", BUILD / "phantom-200", "--space", BUILD / "soak.yaml", "--max-concurrent", 1]
    command += ["--time-budget", f"{round(60 * minutes)}s", "--storage", run.parent, "--name", run.name]
    times, samples = [], []
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, (BUILD / "sweep.log").open("w+") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "cxrlt_ray.sweep", *map(str, command)],
            env=os.environ | {"TMPDIR": scratch},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        began = time.monotonic()
        while driver.poll() is None:
            if values := sample(tree(driver.pid), run, Path(scratch)):
                times.append(time.monotonic() - began)
                samples.append(values)
            time.sleep(EVERY)
        log.seek(0)
        output = log.read()
    if driver.returncode or len(samples) < 4 * BLOCKS:
        sys.exit(f"the sweep ended with {driver.returncode} after {len(samples)} samples: {output[-2000:]}")
    series = {name: np.array([values[name] for values in samples]) for name in samples[0]}
    return np.array(times), series, output


def slope(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The growth of a series in an hour after the warm-up, and half the width of the 95 % interval."""
    from scipy import stats

    warm = times >= times[0] + WARM * (times[-1] - times[0])
    parts = np.array_split(np.flatnonzero(warm), BLOCKS)
    x, y = (np.array([series[part].mean() for part in parts]) for series in (times / 3600, values))
    line = stats.linregress(x, y)
    error = 0.0 if np.ptp(y) == 0 else line.stderr  # of what never changes scipy gives nan
    return line.slope, float(stats.t.ppf(0.975, BLOCKS - 2) * error)


def draw(times: np.ndarray, series: dict[str, np.ndarray], title: str) -> None:
    """The figure: every series over the minutes, the warm-up shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), layout="constrained")
    minutes = times / 60
    warm = minutes[0] + WARM * (minutes[-1] - minutes[0])
    for axis, (name, unit, names) in zip(axes.flat, PANELS, strict=True):
        for label in names:
            axis.plot(minutes, series[label], label=label, linewidth=1.2)
        axis.axvspan(minutes[0], warm, color="0.92", label="warm-up")
        axis.set(title=name, xlabel="time, min", ylabel=unit, ylim=(0, None))
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = options(__doc__, {"minutes": 10})
    args = parser.parse_args()
    run = BUILD / "runs" / "soak"
    times, series, _ = soak(args.minutes, run)
    from cxrlt_ray.runs.store import load_run

    trials = load_run(str(run.parent), run.name).trials()
    epochs = sum(len(trial.record.epochs) for trial in trials)
    processes = len(set(series.pop("pid")))
    lines = ["| what | at the start | at the end | an hour | 95 % interval | |", "|---|---|---|---|---|---|"]
    slopes = {}
    for name, values in series.items():
        grown, error = slope(times, values)
        flat = "flat" if abs(grown) <= error else "falls" if grown < 0 else "grows"
        slopes[name] = f"{grown:+,.1f} ± {error:,.1f}"
        warm = times >= times[0] + WARM * (times[-1] - times[0])
        ends = values[warm][[0, -1]]
        lines.append(
            f"| {name}, {_unit(name)} | {ends[0]:,.1f} | {ends[1]:,.1f} | {grown:+,.1f} | "
            f"{grown - error:+,.1f} to {grown + error:+,.1f} | {flat} |"
        )
    hours = (times[-1] - times[0]) / 3600
    amount = f"{len(trials)} trials, {epochs:,} epochs in {60 * hours:.0f} min"
    by_trial, error = (1024 * value * hours / len(trials) for value in slope(times, series["driver memory"]))
    lines += [
        "",
        f"The driver's memory grows by {by_trial:.0f} ± {error:.0f} KiB a trial: the records of ended trials, which",
        f"the search and Optuna keep; of 10,000 trials {by_trial * 10_000 / 1024:,.0f} MiB.",
    ]
    lines += ["", f"![Memory, files and threads over {args.minutes} minutes](../docs/{FIGURE.name})"]
    draw(times, series, f"{amount}, trials in {processes} process(es)") if args.write else None
    rows: list[Row] = []
    for name in ("driver memory", "trial memory"):
        rows.append((f"{name} of a sweep, MiB an hour: {amount}", "flat", slopes[name], "0 within noise"))
    conditions = f": {amount}, one at a time, {processes} process(es); the first {WARM:.0%} of the time are warm-up."
    publish("soak", "Soak", conditions, lines, args.write, rows)


def _unit(name: str) -> str:
    return next((unit for _, unit, names in PANELS if name in names), "number")


if __name__ == "__main__":
    main()
