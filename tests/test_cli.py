"""The commands as a user types them: the README's lines parse, --help answers, errors are one sentence."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click.testing import CliRunner

from cxrlt_ray import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXTS = [README, ROOT / "cluster.yaml", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def lines_of(path):
    """The command lines that a text shows, joined where a backslash continues them."""
    return re.findall(r"python -m (cxrlt_ray\.[^#'\n`&|]*)", path.read_text().replace("\\\n", " "))


LINES = sorted({line.strip() for path in TEXTS for line in lines_of(path)})


def command(name):
    return typer.main.get_command(cli.app(name))


def run(*words, cwd=None):
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, cwd=cwd)


def test_the_readme_shows_every_command():
    shown = {line.split()[0].removeprefix("cxrlt_ray.") for line in lines_of(README)}
    assert set(cli.COMMANDS) - {"phantom", "prepare"} <= shown


@pytest.mark.parametrize("line", LINES)
def test_a_documented_command_line_has_the_options_it_names(line):
    name, *words = shlex.split(line)
    module = importlib.import_module(name)
    command(name.removeprefix("cxrlt_ray.")).make_context(name, cli.spread(words, getattr(module.main, "many", ())))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_names_what_it_does_and_shows_an_example(name):
    shown = CliRunner().invoke(command(name), ["--help"])
    assert shown.exit_code == 0
    assert f"python -m cxrlt_ray.{name}" in shown.stdout
    assert len(shown.stdout.splitlines()) < 140


def test_the_console_script_lists_and_dispatches():
    listed = run("cxrlt_ray.cli")
    assert listed.returncode == 0
    lines = [line.split()[0] for line in listed.stdout.splitlines()[2:] if line.startswith("  ")]
    assert lines == list(cli.COMMANDS)
    assert run("cxrlt_ray").stdout == listed.stdout
    assert run("cxrlt_ray.cli", "trials", "--help").returncode == 0
    unknown = run("cxrlt_ray.cli", "train")
    assert (unknown.returncode, "no command 'train'" in unknown.stderr) == (2, True)


def test_exit_codes_are_1_for_a_failure_and_2_for_wrong_usage(tmp_path):
    wrong = run("cxrlt_ray.ensemble", "--select", "nope", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: no ensembles file 'nope'")
    assert "Traceback" not in wrong.stderr
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "labels.csv").write_text("image_id,path,subject_id\na,a.jpg,1\n")
    failed = run("cxrlt_ray.cohort", str(tmp_path / "images"), cwd=tmp_path)
    assert failed.returncode == 1
    assert len(failed.stderr.strip().splitlines()) <= 1
    assert run("cxrlt_ray.sweep", "task1", "--no-such-option").returncode == 2


def test_importing_the_package_and_its_commands_is_quick_and_brings_no_ray_or_torch():
    names = ", ".join(f"cxrlt_ray.{name}" for name in cli.COMMANDS)
    code = f"import sys, {names}; print({{'ray', 'torch', 'timm', 'numba'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_the_middle_knows_nothing_of_ray():
    names = [
        "evaluation.metrics",
        "objectives.losses",
        "models",
        "selection",
        "selection.honest",
        "data.splits",
        "search.space",
    ]
    code = f"""import importlib, sys
for name in {names}:
    importlib.import_module(f"cxrlt_ray.{{name}}")
    if "ray" in sys.modules:
        sys.exit(f"{{name}} imports Ray")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


STOPPED = """
import sys, time, types
from cxrlt_ray import cli

def main():
    print("at work", flush=True)
    time.sleep(60)

sys.modules["cxrlt_ray.cohort"] = types.SimpleNamespace(main=main)
cli.run("cohort", [])
"""


@pytest.mark.parametrize(("number", "by"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_who_stops_a_command_is_given_the_one_that_goes_on(number, by):
    command = [sys.executable, "-c", STOPPED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert (
        said == f"stopped by {by}; what is done is kept, and the same command goes on: `python -m cxrlt_ray.cohort`\n"
    )


def test_a_name_that_the_output_cannot_hold_is_printed_with_escapes_and_ends_nothing(tmp_path):
    code = "import sys; from cxrlt_ray import cli; import types\n"
    code += "sys.modules['cxrlt_ray.cohort'] = types.SimpleNamespace(main=main)\ncli.run('cohort', [])"
    main = "def main():\n    print('Épanchement \\udcff'); cli.console().print('Größe')\n"
    for encoding in ("ascii", "latin-1", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", main + code], capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        words = "Épanchement \udcff\nGröße\n"
        assert done.stdout == words.encode(encoding, errors="backslashreplace")
