"""What makes the documentation's site of the repository's documents; mkdocs.yml names this file.

The pages are written to be read in the repository, so links lead from file to file there. In the site, documents from
outside docs/ are pages as well (PAGES), and any other file that a page links to is copied beside the pages as text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {  # of the site, by documents of the repository
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
}
DOCUMENTS = {page: document for document, page in PAGES.items()}
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
ESCAPED = re.compile(r"`[^`\n]*\\\|[^`\n]*`")  # a pipe in code in a table: escaped in the repository, not here


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings have the anchors that they have in the repository's web view."""
    from pymdownx.slugs import slugify

    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents from outside docs/, and copies of the files that pages link to."""
    from mkdocs.structure.files import File

    for document, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / document)))
    linked = {
        target
        for file in list(files.documentation_pages())
        for _, link, _ in LINK.findall(file.content_string)
        if not site_path(target := repository_path(file.src_uri, link)) and (ROOT / target).is_file()
    }
    for target in sorted(linked):
        files.append(File.generated(config, copy_path(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links as the site has them. What leads nowhere is left for the strict build to name."""
    here = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        target = repository_path(here, match[2])
        inside = site_path(target) or (copy_path(target) if (ROOT / target).is_file() else None)
        return match[0] if inside is None else f"{match[1]}{_relative(inside, here)}{match[3]}"

    return ESCAPED.sub(lambda code: code[0].replace("\\|", "|"), LINK.sub(link, markdown))


def repository_path(page: str, link: str) -> str:
    """Where `link`, on a page of the site, leads in the repository."""
    document = DOCUMENTS.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), link))


def site_path(path: str) -> str | None:
    """The page or picture of the site that a file of the repository is; None for a file that is none."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def copy_path(path: str) -> str:
    """Where the site has its copy of a file of the repository: as text, so that a browser shows it."""
    return f"files/{path}.txt"


def _relative(target: str, page: str) -> str:
    return os.path.relpath(target, posixpath.dirname(page) or ".").replace(os.sep, "/")
