"""From a run to its page: sections gather (`gathered`), and the page is drawn from what they gathered (`render`).

One file that asks no network: the style sheet, the script and the drawings are in it, and its Content Security Policy
allows nothing else (a hash each of the one style sheet and the one script; pictures as data URIs).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup
from pydantic import JsonValue

from cxrlt_ray import __version__
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.page.cells import cell, resolve
from cxrlt_ray.page.facts import Facts, public
from cxrlt_ray.page.parts import Part
from cxrlt_ray.page.records import Report
from cxrlt_ray.page.sections.registry import Section, sections
from cxrlt_ray.runs.records import now
from cxrlt_ray.storage.finite import finite

if TYPE_CHECKING:
    from jinja2 import Environment

PICTURES = "This page holds pictures of patients (--images): keep it where the images themselves may be."
DRAWN = "This page holds pictures (--images). They are drawn, of no patients."
TEMPLATES = Path(__file__).parent / "templates"


def gathered(facts: Facts) -> Report:
    """What every section gathers of the run. A section that fails leaves a sentence, and the others stand."""
    report = Report(title=facts.run.name, created=now(), software=f"cxrlt_ray {__version__}")
    found: dict[str, JsonValue] = {}
    known = sections()
    # the first screen last: by then all that cannot be read is known
    for section in sorted(known, key=lambda section: -section.order):
        try:
            content = section.gather(facts)
        except CxrltError as error:
            report.faults[section.name] = public(error)
        except Exception as error:  # a page of nine sections is worth more than none
            report.faults[section.name] = f"This section failed ({type(error).__name__}): please report it."
        else:
            if isinstance(content, str):
                report.absent[section.name] = content
            else:
                found[section.name] = finite(content.model_dump(mode="json"))
    report.sections = {section.name: found[section.name] for section in known if section.name in found}
    if facts.images_shown and "data:image/" in str(found):
        report.pictures = DRAWN if facts.phantom else PICTURES
    return report


@dataclass(frozen=True)
class Shown:
    """A section as the template takes it: its parts, the path of its JSON, or why there is nothing."""

    name: str
    title: str
    base: str
    parts: Sequence[Part] = ()
    absent: str = ""


def shown(report: Report, known: Sequence[Section]) -> list[Shown]:  # type: ignore[type-arg]
    """Each of the known sections, drawn from the report's content."""
    page = []
    for section in known:
        here = partial(Shown, section.name, section.title, f"/sections/{section.name}")
        if section.name in report.sections:
            try:
                facts = section.facts.model_validate(report.sections[section.name])
                page.append(here(parts=section.show(facts)))
            except Exception as error:
                page.append(here(absent=f"This section cannot be drawn ({type(error).__name__}): please report it."))
        elif why := report.faults.get(section.name) or report.absent.get(section.name):
            page.append(here(absent=why))
    return page


def render(
    report: Report,
    known: Sequence[Section] | None = None,  # type: ignore[type-arg]
    refresh: float | None = None,
) -> str:
    """The page of a report as HTML. known: the sections to draw; all that are registered without it.

    refresh: seconds after which a browser loads it anew; never without it.
    """
    document = finite(report.model_dump(mode="json"))
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            sections=shown(report, sections() if known is None else known),
            style=Markup(style),
            script=Markup(script),
            refresh=None if refresh is None else max(round(refresh), 1),
            policy=_policy(style, script),
            cell=partial(cell, document),
            resolve=partial(resolve, document),
        )
    )


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, sent or run but what is in the file."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
