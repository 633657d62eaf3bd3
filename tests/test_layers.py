"""The house's order: which room may import which, which may import Ray, how long files and functions are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cxrlt_ray"
# lowest first: a room imports from those before it, and from itself without a circle
ROOMS = (
    "errors",
    "output",
    "cli",
    "config",
    "privacy",
    "storage",
    "cluster",
    "data",
    "evaluation",
    "phantom",
    "labelling",
    "text",
    "models",
    "objectives",
    "runs",
    "tracking",
    "training",
    "selection",
    "search",
    "pretraining",
    "ensembling",
    "generation",
    "reporting",
    "page",
    "doctor",
)
COMMANDS = (
    "sweep",
    "ensemble",
    "report",
    "predict",
    "evaluate",
    "cohort",
    "prepare",
    "trials",
    "label",
    "agree",
    "gold",
    "split",
    "describe",
    "pretrain_text",
    "pretrain",
    "generate",
    "pseudo",
)
WITH_RAY = {
    "cluster",
    "data",
    "labelling",
    "text",
    "training",
    "search",
    "pretraining",
    "ensembling",
    "generation",
    "doctor",
    *COMMANDS,
}
LINES, FUNCTION_LINES = 400, 80


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below it, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and name != "__main__":
            found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imports(tree: ast.Module) -> Iterator[str]:
    """What a module imports anywhere in it: of ours by dotted name below the package, of others as they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("cxrlt_ray.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            prefix = node.module.removeprefix("cxrlt_ray").removeprefix(".")
            if not node.module.startswith("cxrlt_ray"):
                yield node.module
                continue
            for alias in node.names:
                full = f"{prefix}.{alias.name}".removeprefix(".")
                yield full if full in MODULES else prefix


def room_of(name: str) -> str:
    return name.split(".")[0]


def test_a_file_at_the_top_is_a_command_or_what_all_stand_on_and_no_file_and_folder_share_a_name():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert files == {*COMMANDS, "errors", "cli", "config", "privacy"}
    assert folders == set(ROOMS) - files
    assert not files & folders


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_downwards_only(name):
    order = {room: k for k, room in enumerate((*ROOMS, *COMMANDS))}
    own = room_of(name)
    for imported in imports(MODULES[name]):
        room = room_of(imported)
        if imported not in MODULES or room == own:
            continue
        if own in COMMANDS:
            assert room not in COMMANDS, f"{name} imports the command {imported}"
        assert order[room] < order[own] or own in COMMANDS, f"{name} imports {imported}, which is above it"


def test_no_circle_of_imports():
    """Imports inside of functions and for types alone count too: they say what depends on what."""
    graph = {name: {i for i in imports(tree) if i in MODULES and i != name} for name, tree in MODULES.items()}
    # a package's __init__ that only gathers its modules is imported with any of them: that is no circle of theirs
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise AssertionError(f"a circle: {' -> '.join((*path[path.index(name) :], name))}")
        if name in done:
            return
        for imported in sorted(graph[name]):
            visit(imported, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_only_these_rooms_import_ray(name):
    uses = any(imported.split(".")[0] == "ray" for imported in imports(MODULES[name]))
    assert not uses or room_of(name) in WITH_RAY


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_and_a_function_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
