"""What the benchmarks share: options that are whole numbers, `--write`, fair turns, and the parts of RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
Row = tuple[str, str, str, str]  # work, peer, ratio, goal
COLUMNS = ("work", "peer", "ratio, median (least-most)", "goal", "machine", "command")


def options(description: str | None, numbers: dict[str, int]) -> argparse.ArgumentParser:
    """A parser of `--NAME N` for each of the numbers, given with its default, and of --write."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{value:,} unless given")
    parser.add_argument("--write", action="store_true", help=f"put the section into {RESULTS.name}")
    return parser


def publish(name: str, title: str, told: str, lines: Sequence[str], write_it: bool, rows: Sequence[Row] = ()) -> None:
    """Print the section `title`, its command followed by `told`; where asked, put it and its rows into RESULTS.md."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    section = "\n".join([f"## {title}", "", f"`{command}`{told}", "", *lines])
    print(section)
    if write_it:
        write(name, section)
        if rows:
            summarise(rows, command)


def write(name: str, section: str) -> None:
    """Put the section between its markers in RESULTS.md, at the end where there are none yet."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Measured\n"
    block = f"<!-- {name} -->\n{section}\n<!-- /{name} -->"
    there = re.search(f"<!-- {name} -->.*?<!-- /{name} -->", text, re.DOTALL)
    RESULTS.write_text(text.replace(there[0], block) if there else f"{text.rstrip()}\n\n{block}\n")


def summarise(rows: Sequence[Row], command: str) -> None:
    """Put rows into the table at the head of RESULTS.md, in place of what the same script left there."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Measured\n"
    there = re.search("<!-- summary -->.*?<!-- /summary -->\n*", text, re.DOTALL)
    kept = [line for line in (there[0] if there else "").splitlines() if line.startswith("| ") and "`" in line]
    kept = [line for line in kept if f"`python {command.split()[1]}" not in line]
    kept += [f"| {' | '.join((*row, machine(), f'`{command}`'))} |" for row in rows]
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    block = "\n".join(["<!-- summary -->", *head, *sorted(kept), "<!-- /summary -->", "", ""])
    text = text.replace(there[0], "") if there else text
    title, _, rest = text.partition("\n")
    RESULTS.write_text(f"{title}\n\n{block}{rest.lstrip()}")


def machine() -> str:
    """The processor, cores and memory of this machine, in words."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{models[0].split(' @')[0] if models else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def turns(work: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each piece of work measures in every round, all of them in turn."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for k in range(rounds):
        for name, run in work.items():
            found[name].append(run())
            print(f"round {k + 1}/{rounds}: {name} {found[name][-1]:,.4g}", flush=True)
    return found


def ratios(fast: Sequence[float], slow: Sequence[float]) -> str:
    """Ratio within each round: median (least-most)."""
    return spread([a / b for a, b in zip(fast, slow, strict=True)], 2)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median (least-most)."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"
