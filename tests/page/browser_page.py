"""A drawn run, its page, and the browser that tests open it with."""

from __future__ import annotations

import re
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
UNITS = {"%": 0.01, "s": 1, "min": 60, "h": 3600, "days": 86400, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


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


def at(document: Any, path: str) -> Any:
    """What stands at a JSON pointer, by the RFC's own rules."""
    for part in path.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def numbers(opened: Any) -> list[tuple[str, str, str]]:
    """The page's numbers as its DOM has them: place in report.json, value, text."""
    found = opened.eval_on_selector_all(
        "data[data-path]", "all => all.map(e => [e.dataset.path, e.value, e.textContent])"
    )
    return [tuple(one) for one in found]


def wrong_numbers(shown: list[tuple[str, str, str]], document: Any) -> list[str]:
    """The places of numbers whose value is not that of the JSON, or whose text is not the value, rounded."""
    return [path for path, value, text in shown if not _is(text, float(value), at(document, path))]


def _is(text: str, value: float, number: float) -> bool:
    match = re.fullmatch(r"([-+]?[\d,]*\.?\d*(?:e-?\d+)?)(?: (\S+))?", text)
    if value != number or match is None:
        return False
    digits, unit = match.groups()
    scale = UNITS[unit] if unit else 1
    decimals = len(digits.partition(".")[2]) if "e" not in digits else 0
    rounding = 0.5 * 10**-decimals * scale
    if not unit and "." not in digits and abs(number) >= 1000:
        rounding = max(rounding, abs(number) * 0.005)  # three digits of a large number
    exponent = abs(number) * 0.005 if "e" in digits else 0  # of three digits, too
    return abs(float(digits.replace(",", "")) * scale - number) <= rounding * 1.001 + exponent


def axe_faults(launched: Any, address: str, scheme: str) -> list[dict[str, Any]]:
    """What axe-core finds in the page, all folds open; in the dark, contrast alone is another than in the light."""
    page = launched.new_context(color_scheme=scheme, bypass_csp=True).new_page()
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    page.evaluate(AXE.read_text())
    rules = "{}" if scheme == "light" else "{runOnly: ['color-contrast']}"
    faults: list[dict[str, Any]] = page.evaluate(f"axe.run(document, {rules}).then(result => result.violations)")
    return faults
