"""What the benchmarks share: options that are whole numbers, `--write`, and the sections of RESULTS.md."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def options(description: str | None, numbers: dict[str, int]) -> argparse.ArgumentParser:
    """A parser of `--NAME N` for each of the numbers, given with its default, and of --write."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{value:,} unless given")
    parser.add_argument("--write", action="store_true", help=f"put the section into {RESULTS.name}")
    return parser


def write(name: str, section: str) -> None:
    """Put the section between its markers in RESULTS.md, at the end where there are none yet."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Measured\n"
    block = f"<!-- {name} -->\n{section}\n<!-- /{name} -->"
    there = re.search(f"<!-- {name} -->.*?<!-- /{name} -->", text, re.DOTALL)
    RESULTS.write_text(text.replace(there[0], block) if there else f"{text.rstrip()}\n\n{block}\n")
