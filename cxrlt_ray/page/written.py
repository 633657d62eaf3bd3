"""A run's page, its numbers and its model card, written side by side: report.html, report.json, MODEL_CARD.md."""

from __future__ import annotations

from dataclasses import dataclass

from cxrlt_ray.page.comparison import COMPARISON, compare_runs
from cxrlt_ray.page.facts import Facts
from cxrlt_ray.page.model_card import CARD, model_card
from cxrlt_ray.page.records import Report
from cxrlt_ray.page.render import gathered, render
from cxrlt_ray.runs.store import Run
from cxrlt_ray.storage import Store

PAGE = "report.html"


@dataclass(frozen=True)
class Written:
    """What was written: the page's URI, and what its numbers are."""

    uri: str
    report: Report


def write_report(
    run: Run, out: str | None = None, ensemble: str | None = None, images: bool = False, refresh: float | None = None
) -> Written:
    """Write the page of a run as it is now to `out` (RUN/report.html without it), its numbers and model card beside.

    ensemble: the one to show, the newest without it. images: whether patients' images may be shown. refresh: seconds
    after which a browser loads the page anew. Raises CxrltError where nothing can be written there.
    """
    store, name = (run.store, PAGE) if out is None else Store.holding(out)
    numbers = f"{name.removesuffix('.html')}.json"
    facts = Facts(run, ensemble, images)
    report = gathered(facts)
    store.write(name, render(report, refresh=refresh).encode())
    report.write(store, numbers)
    store.write(CARD, model_card(facts, report).encode())
    return Written(f"{store.uri.rstrip('/')}/{name}", report)


def write_comparison(one: Run, other: Run, out: str) -> Written:
    """Write two runs side by side to `out`, with the numbers beside. Raises CxrltError where it cannot be written."""
    store, name = Store.holding(out)
    report = compare_runs(Facts(one), Facts(other))
    store.write(name, render(report, [COMPARISON]).encode())
    report.write(store, f"{name.removesuffix('.html')}.json")
    return Written(f"{store.uri.rstrip('/')}/{name}", report)
