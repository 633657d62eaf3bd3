"""The commands that the files for clusters give and name are ours, with options that they have."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", "cluster/kuberay.yaml", "cluster/slurm.sbatch"]
KUBERAY, SLURM = ((ROOT / name).read_text() for name in FILES[1:])


def command(name: str) -> typer.main.TyperCommand:
    app = typer.Typer()
    app.command()(importlib.import_module(f"cxrlt_ray.{name}").main)
    return typer.main.get_command(app)


def test_the_sweeps_have_the_options_they_are_given():
    (job,) = [item for item in yaml.safe_load(KUBERAY)["items"] if item["kind"] == "RayJob"]
    (slurm,) = re.findall(r"^#   sbatch cluster/slurm.sbatch (mimic .*)$", SLURM, re.MULTILINE)
    for words in (shlex.split(job["spec"]["entrypoint"])[2:], shlex.split(slurm)):
        name, storage, *rest = words
        # as cluster/sweep.sh puts it
        given = command("sweep").make_context("sweep", [*rest, "--resume", "--name", name, "--storage", storage]).params
        assert (given["name"], given["storage"], given["resume"]) == (name, storage, True)


@pytest.mark.parametrize("line", re.findall(r"^#\s+python -m cxrlt_ray\.(.*)$", KUBERAY, re.MULTILINE))
def test_other_commands_have_them_too(line):
    name, *words = shlex.split(line)
    command(name).make_context(name, words)


@pytest.mark.parametrize("name", FILES)
def test_the_options_that_comments_name_are_the_sweeps(name):
    text = (ROOT / name).read_text()
    there = {option for each in command("sweep").params for option in each.opts}
    named = {
        f"--{option}" for option in ("search-db", "keep-checkpoints", "retries", "dry-run") if f"--{option}" in text
    }
    assert {"--search-db", "--keep-checkpoints"} <= named <= there
