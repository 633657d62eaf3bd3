"""Shared by the benchmarks: options that are whole numbers, `--write`, fair turns, and the parts of RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
Row = tuple[str, str, str, str]  # work, peer, ratio, goal
COLUMNS = ("work", "peer", "ratio, median (least-most)", "goal", "machine", "command")


def options(description: str | None, numbers: dict[str, int]) -> argparse.ArgumentParser:
    """A parser of `--NAME N` for each of `numbers`, names with their defaults, and of --write."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{value:,} unless given")
    parser.add_argument("--write", action="store_true", help=f"put the section into {RESULTS.name}")
    return parser


def publish(
    name: str, title: str, conditions: str, lines: Sequence[str], write_it: bool, rows: Sequence[Row] = ()
) -> None:
    """Print the section `title`, its command followed by `conditions`; with `write_it` put it into RESULTS.md."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    section = "\n".join([f"## {title}", "", f"`{command}`{conditions}", "", *lines])
    print(section)
    if write_it:
        write(name, section)
        if rows:
            summarise(rows, command)


def write(name: str, section: str) -> None:
    """Put the section between its markers in RESULTS.md, at the end where there are none yet."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Measured\n"
    block = f"<!-- {name} -->\n{section}\n<!-- /{name} -->"
    existing = re.search(f"<!-- {name} -->.*?<!-- /{name} -->", text, re.DOTALL)
    RESULTS.write_text(text.replace(existing[0], block) if existing else f"{text.rstrip()}\n\n{block}\n")


def summarise(rows: Sequence[Row], command: str) -> None:
    """Put rows into the table at the head of RESULTS.md, in place of earlier rows of the same script."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Measured\n"
    existing = re.search("<!-- summary -->.*?<!-- /summary -->\n*", text, re.DOTALL)
    lines = [line for line in (existing[0] if existing else "").splitlines() if line.startswith("| ") and "`" in line]
    lines = [line for line in lines if f"`python {command.split()[1]}" not in line]
    lines += [f"| {' | '.join((*row, machine(), f'`{command}`'))} |" for row in rows]
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    block = "\n".join(["<!-- summary -->", *head, *sorted(lines), "<!-- /summary -->", "", ""])
    text = text.replace(existing[0], "") if existing else text
    title, _, rest = text.partition("\n")
    RESULTS.write_text(f"{title}\n\n{block}{rest.lstrip()}")


def machine() -> str:
    """The processor, cores and memory of this machine, in words."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{models[0].split(' @')[0] if models else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def turns(work: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The figures of each piece of work by round; all pieces take turns, so that a busy machine slows all alike."""
    figures: dict[str, list[float]] = {name: [] for name in work}
    for k in range(rounds):
        for name, run in work.items():
            figures[name].append(run())
            print(f"round {k + 1}/{rounds}: {name} {figures[name][-1]:,.4g}", flush=True)
    return figures


def ratios(fast: Sequence[float], slow: Sequence[float]) -> str:
    """Ratio within each round: median (least-most)."""
    return spread([a / b for a, b in zip(fast, slow, strict=True)], 2)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median (least-most)."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"
