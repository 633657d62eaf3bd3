"""`make picture`: the top of a run's report as docs/report.png, for the README.

    python docs/picture.py [REPORT.html]

Without a path the newest report in runs/ is taken, such as the one that `make demo` leaves. It is opened in Debian's
chromium (`apt-get install chromium`), 1,200 px wide, without network.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "report.png"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WIDTH, HEIGHT = 1200, 900  # px


def newest_report(runs: Path) -> Path:
    """The report.html written last among the runs. Exits with a sentence where there is none."""
    reports = sorted(runs.glob("*/report.html"), key=lambda path: path.stat().st_mtime)
    if not reports:
        sys.exit(f"error: no run in {runs} has a report.html: `make demo` makes one, or give the path of another.")
    return reports[-1]


def render(report: Path, picture: Path) -> None:
    """Write the top of the page as a PNG. Exits with a sentence where a browser or the page is missing."""
    if not report.is_file():
        sys.exit(f"error: there is no file {report}.")
    if not Path(CHROMIUM).exists():
        sys.exit(f"error: no chromium at {CHROMIUM}: `apt-get install chromium`, or set CHROMIUM to its path.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("error: playwright is missing: it is in the extra `dev`, which `make demo` installs.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", offline=True)
        page = context.new_page()
        page.goto(report.resolve().as_uri())
        page.screenshot(path=str(picture), animations="disabled")
        browser.close()


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else newest_report(ROOT / "runs")
    render(source, PICTURE)
    print(f"{PICTURE.relative_to(ROOT)}: the top of {source}, {PICTURE.stat().st_size / 1e3:.0f} KB")
