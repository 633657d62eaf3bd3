"""The documentation's site: every page is in its navigation, its build names no fault, and it fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
FETCHED = {"link": "href", "use": "href", "image": "href", "object": "data"}  # of others: src, srcset, poster
NOT_FETCHED = {"canonical", "prev", "next", "alternate", "edit"}  # kinds of <link>


def entries(nav):
    """The pages of a navigation, its sections opened."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else entries(value)


@pytest.fixture
def hooks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import hooks

    return hooks


def test_every_page_is_in_the_navigation_once(hooks):
    docs = ROOT / "docs"
    written = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    listed = list(entries(SETTINGS["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == written | set(hooks.DOCUMENTS)


def test_documents_that_become_pages_exist_and_hide_none_of_docs(hooks):
    for document, page in hooks.PAGES.items():
        assert (ROOT / document).is_file()
        assert not (ROOT / "docs" / page).exists()


@pytest.mark.parametrize(
    ("page", "link", "leads"),
    [
        ("index.md", "docs/data.md", "data.md"),
        ("data.md", "../CONTRIBUTING.md", "contributing.md"),
        ("results.md", "../docs/soak.png", "soak.png"),
        ("systems/team_c.md", "../text.md", "text.md"),
        ("contributing.md", "benchmarks/RESULTS.md", "results.md"),
        ("calibration.md", "../cxrlt_ray/evaluation/critical.yaml", None),
    ],
)
def test_links_of_the_repository_lead_to_the_sites_pages(hooks, page, link, leads):
    assert hooks.site_path(hooks.repository_path(page, link)) == leads


def test_settings_ask_for_nothing_from_outside():
    assert SETTINGS["theme"]["font"] is False
    assert SETTINGS["strict"] is True
    used = {next(iter(plugin)) if isinstance(plugin, dict) else plugin for plugin in SETTINGS["plugins"]}
    assert used == {"search", "offline", "mkdocstrings"}
    # without one of its own the plugin `offline` would fetch iframe-worker
    assert [(ROOT / "docs" / script).is_file() for script in SETTINGS["extra"]["polyfills"]] == [True]
    assert "iframe-worker" in SETTINGS["extra"]["polyfills"][0]
    assert "analytics" not in SETTINGS["extra"]
    # the theme asks a known host for a repository's stars
    assert not {"repo_url", "extra_javascript"} & set(SETTINGS)
    assert all((ROOT / "docs" / style).is_file() for style in SETTINGS["extra_css"])
    addresses = re.findall(r"\w+://\S+", (ROOT / "mkdocs.yml").read_text())
    assert addresses == []


class Requests(HTMLParser):
    """What a browser would fetch from another host to show a page."""

    def __init__(self):
        super().__init__()
        self.outside = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "link" and NOT_FETCHED & set((values.get("rel") or "").split()):
            return
        names = {"src", "srcset", "poster", FETCHED.get(tag, "src")}
        self.outside += [values[name] for name in names if re.match(r"(?:\w+:)?//", values.get(name) or "")]


def outside_requests(text):
    parser = Requests()
    parser.feed(text)
    return parser.outside


def test_a_request_to_another_host_would_be_seen():
    page = '<link rel="stylesheet" href="https://x/a.css"><script src="//x/b.js"></script><a href="https://x">x</a>'
    assert outside_requests(page) == ["https://x/a.css", "//x/b.js"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_the_pages_of_the_strict_build_fetch_nothing(site):
    pages = {str(page.relative_to(site)): page.read_text() for page in site.rglob("*.html")}
    assert len(pages) > 40
    assert {path: outside for path, text in pages.items() if (outside := outside_requests(text))} == {}
    # a list or a table without an empty line before it is one in the web view of the repository, and text here
    run_in = re.compile(r"<p>[^<]*(?:<(?!/p>)[^<]*)*\n(?:- |\d+\. |\|)")
    assert [path for path, text in pages.items() if run_in.search(text)] == []
    styles = [style.read_text() for style in site.rglob("*.css")]
    assert not any(re.search(r"url\(['\"]?(?:\w+:)?//|@import", style) for style in styles)
    assert "compare_groups" in pages["api/evaluation.html"]
    assert (site / "files/cxrlt_ray/evaluation/critical.yaml.txt").is_file()
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt-get install chromium")
def test_pages_and_search_work_from_the_disk_without_a_request(site):
    from playwright.sync_api import sync_playwright

    requests, faults = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.on("request", lambda request: requests.append(request.url))
        page.on("requestfailed", lambda request: faults.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        for name in ("index.html", "systems/index.html", "api/evaluation.html"):
            page.goto((site / name).as_uri())
            page.click("input.md-search__input")
            page.keyboard.type("effective rank")
            page.wait_for_selector(".md-search-result__link", state="attached", timeout=60_000)
            links = page.eval_on_selector_all(".md-search-result__link", "found => found.map(link => link.href)")
            assert any("glossary.html" in link or "pretraining.html" in link for link in links)
        browser.close()
    assert faults == []
    assert {request.split(":")[0] for request in requests} <= {"file", "data", "about", "blob"}
