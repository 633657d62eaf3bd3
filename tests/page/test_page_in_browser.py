"""The page in a real browser: its numbers are those of report.json, it asks no network, and anyone can use it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cxrlt_ray.page.written import write_report

sys.path.insert(0, str(Path(__file__).parent))
from browser_page import AXE, FINDINGS, at, axe_faults, browser, drawn_run, numbers, wrong_numbers


@pytest.fixture(scope="module")
def chromium():
    with browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A run's page and its numbers."""
    from page import write_ensemble

    folder = tmp_path_factory.mktemp("site")
    run = drawn_run(folder)
    write_ensemble(folder, members=4, rounds=20, calibrate=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cxrlt_ray.page.costs._flops", lambda *_: 1.234e9)  # counting them imports torch
        write_report(run, str(folder / "page.html"))
    return folder / "page.html", json.loads((folder / "page.json").read_text())


@pytest.fixture(scope="module")
def requests():
    return []


@pytest.fixture(scope="module")
def opened(chromium, site, requests):
    """The page at 1,200 px, with what it asked of the network and of the console in `requests`."""
    page = chromium.new_context(viewport={"width": 1200, "height": 900}).new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: requests.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: requests.append(f"error: {error}"))
    page.goto(site[0].as_uri())
    return page


def test_every_number_in_the_page_is_the_number_in_the_json(opened, site):
    shown = numbers(opened)
    assert len(shown) > 300
    sections = {path.split("/")[2] for path, _, _ in shown}
    assert {"calibration", "thresholds", "groups"} <= sections
    assert wrong_numbers(shown, site[1]) == []
    path, value, text = next(one for one in shown if one[2] != "0")
    assert wrong_numbers([(path, str(float(value) + 1), text)], site[1]) == [path]
    assert wrong_numbers([(path, value, "987654")], site[1]) == [path]


def test_every_word_that_the_run_brings_is_the_word_in_the_json(opened, site):
    shown = opened.eval_on_selector_all(
        "span[data-path], code[data-path]", "all => all.map(e => [e.dataset.path, e.textContent])"
    )
    assert len(shown) > 100
    for path, text in shown:
        value = at(site[1], path)
        assert text == ("yes" if value is True else "no" if value is False else str(value)), path


def test_no_number_stands_in_a_table_without_its_place_in_the_json(opened):
    bare = opened.eval_on_selector_all(
        "tbody td, tbody th",
        "all => all.filter(e => /\\d/.test(e.textContent) && !e.querySelector('[data-path]')).length",
    )
    assert bare == 0


def test_the_page_asks_no_network_and_its_policy_allows_none(opened, site, requests):
    opened.wait_for_timeout(50)
    assert requests == [site[0].as_uri()]
    policy = opened.get_attribute("meta[http-equiv='Content-Security-Policy']", "content")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    refused = opened.evaluate("fetch('data:text/plain,x').then(() => 'sent', () => 'refused')")
    requests.clear()
    assert refused == "refused"


def test_hostile_names_are_shown_as_they_are_and_do_nothing(opened):
    assert opened.evaluate("window.harmed") is None
    assert opened.locator("img").count() == 0
    names = opened.eval_on_selector_all(
        "#findings table[data-filter] tbody th span", "all => all.map(e => e.textContent)"
    )
    assert sorted(names) == sorted(FINDINGS)
    assert opened.locator("script").count() == 1


def test_the_page_is_as_wide_as_a_small_phone(chromium, site):
    page = chromium.new_context(viewport={"width": 320, "height": 640}).new_page()
    page.goto(site[0].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_columns_are_sorted_and_rows_filtered_by_keyboard(chromium, site):
    page = chromium.new_page()
    page.goto(site[0].as_uri())
    table = page.locator("#findings table[data-filter]")
    head = table.locator("thead th", has_text="positives")
    head.locator("button").focus()
    for order, sign in (("descending", -1), ("ascending", 1)):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        values = table.locator("tbody tr td:nth-child(3) data").evaluate_all("all => all.map(e => Number(e.value))")
        assert values == sorted(values, key=lambda value: sign * value)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.locator("#findings input[type=search]").focus()
    page.keyboard.type("effus")
    assert table.locator("tbody tr:visible").count() == 1
    assert page.locator("#findings [role=status]").inner_text() == f"1 of {len(FINDINGS)} rows"


def test_without_scripts_the_content_is_all_there(chromium, opened, site):
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(site[0].as_uri())
    count = "[data-path]"
    assert page.locator(count).count() == opened.locator(count).count()
    assert page.locator("#findings table[data-filter] tbody tr").first.is_visible()
    assert page.locator("input, button").count() == 0
    summary = page.locator("details summary").first
    summary.click()
    assert page.locator("details").first.get_attribute("open") is not None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(chromium, site, scheme):
    if not AXE.exists():
        pytest.skip("axe-core is not here: tests/page/browser.sh fetches it")
    found = axe_faults(chromium, site[0].as_uri(), scheme)
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in serious] == []
