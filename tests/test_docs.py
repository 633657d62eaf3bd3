"""What the documents and docstrings refer to is in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "RESULTS.md"]
SOURCES = [path for folder in ("cxrlt_ray", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_lead_to_files(document):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["docs/glossary.md", "CONTRIBUTING.md"])
def test_modules_that_the_documents_name_exist(name):
    """Paths in backticks, from the package or from the repository."""
    named = re.findall(r"`([a-z_]+/[\w/.]*)`", (ROOT / name).read_text())
    paths = [path for path in named if "NAME" not in path]
    assert len(paths) > 10
    assert [path for path in paths if not ((ROOT / "cxrlt_ray" / path).exists() or (ROOT / path).exists())] == []


def test_the_readme_shows_what_make_demo_runs():
    lines = re.findall(r"^\t\$\(PY\) (-m cxrlt_ray\.\S+ .*)$", (ROOT / "Makefile").read_text(), re.M)
    assert len(lines) == 2
    shown = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in lines if f"    python {line}" not in shown] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_name_no_document_outside_the_repository(path):
    text, names = path.read_text(), {document.name for document in DOCUMENTS} | {"MODEL_CARD.md"}  # a file of a run
    assert [name for name in re.findall(r"\b[\w-]+\.md\b", text) if name not in names] == []
    assert not re.search(r"\.\./shared|\((?:FORMATS|DESIGN|PERFORMANCE)\b", text)


def test_requests_that_the_documents_build_from_python_are_valid():
    from cxrlt_ray import ensemble, sweep

    text = (ROOT / "docs" / "python.md").read_text()
    calls = re.findall(r"\.run\(((?:sweep|ensemble)\.\w+Request\(.*\))\)$", text, re.M)
    assert len(calls) >= 3
    for call in calls:
        eval(call, {"sweep": sweep, "ensemble": ensemble})
