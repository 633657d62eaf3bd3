"""A run's report as a browser has it: `python benchmarks/page_in_browser.py --write`.

The page of a synthetic run (benchmarks/page.py: 60 trials, 40 findings, a calibrated ensemble) is opened in chromium:
how many of its numbers differ from report.json, what it asks of the network, how wide it is on a phone of 320 px, and
what axe-core finds. `make browser` installs both.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from page import write_ensemble, write_run
from report import options, publish

from cxrlt_ray.page.written import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "page"))
from browser_page import AXE, axe_faults, browser, numbers, wrong_numbers

WIDTHS = (1200, 320)


def section(trials: int) -> list[str]:
    """The table, lines of markdown."""
    with tempfile.TemporaryDirectory() as folder, browser() as launched:
        run = write_run(Path(folder), trials, images=1000)
        write_ensemble(Path(folder), members=16, rounds=100, calibrate=True)
        page = Path(folder) / "page.html"
        write_report(run, str(page))
        document = json.loads(page.with_suffix(".json").read_text())
        rows, asked = [], []
        for width in WIDTHS:
            opened = launched.new_context(viewport={"width": width, "height": 800}).new_page()
            opened.on("request", lambda request: asked.append(request.url))
            started = time.perf_counter()
            opened.goto(page.as_uri())
            rows.append([f"seconds until loaded, {width} px", f"{time.perf_counter() - started:.2f}"])
            opened.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
            wide = opened.evaluate("document.documentElement.scrollWidth")
            rows.append([f"width of the content at {width} px, all folds open", f"{wide}"])
        shown = numbers(opened)
        rows.append(["numbers in the DOM", f"{len(shown):,}"])
        rows.append(["of these not the number in report.json", f"{len(wrong_numbers(shown, document))}"])
        rows.append(["requests besides the page", f"{sum(url != page.as_uri() for url in asked)}"])
        for scheme in ("light", "dark"):
            impacts = Counter(fault["impact"] for fault in axe_faults(launched, page.as_uri(), scheme))
            named = ", ".join(f"{count} {impact}" for impact, count in impacts.items()) or "none"
            rows.append([f"faults that axe-core finds, {scheme}", named])
        version = launched.version
    lines = [f"{trials} trials of 40 findings, 1,000 images of each split; chromium {version}.", ""]
    return lines + [f"| {' | '.join(row)} |" for row in (["what", "value"], ["---", "---"], *rows)]


def main() -> None:
    parser = options(__doc__, {"trials": 60})
    args = parser.parse_args()
    if not AXE.exists():
        parser.error("axe-core is not here: make browser")
    publish("page-browser", "A run's report page in a browser", ".", section(args.trials), args.write)


if __name__ == "__main__":
    main()
