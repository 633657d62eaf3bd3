"""A drawn run, its page, and the browser that tests open it with."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cxrlt_ray.runs.store import Run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

AXE = Path(__file__).parents[2] / "build" / "axe" / "axe.min.js"
# names that would harm a page which took them for markup, for a template, or for a line of normal length
HOSTILE = ("<script>window.harmed = 1</script>", "{{ 7 * 7 }} {% raw %}", '"><img src=x onerror=harm()>', "long " * 60)
FINDINGS = ("Effusion", *HOSTILE, "Mass")


def drawn_run(folder: Path, trials: int = 9, images: int = 240, findings: tuple[str, ...] = FINDINGS) -> Run:
    """A run of the benchmark's drawn kind, without an ensemble."""
    from page import write_run

    return write_run(folder, trials, findings, images)


@contextmanager
def browser() -> Iterator[Any]:
    """Debian's chromium; skips where it is not installed."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed: tests/page/browser.sh installs it")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()
