"""The Dockerfile and what goes into its image; it is never built here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from cxrlt_ray.cluster import start

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
HOME = "/opt/cxrlt_ray"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what they are given, continued lines joined, comments left out."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line]


def given(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def copies() -> dict[str, str]:
    """What is copied, and where it lies then."""
    found = {}
    for rest in given("COPY"):
        *sources, target = rest.split()
        found |= {each: f"{target}{each}" if target.endswith("/") else target for each in sources}
    return found


def sent(path: str) -> bool:
    """Whether .dockerignore lets a file go to the builder: its last line that fits decides."""
    answer = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        parts = path.split("/")
        fits = (
            any(fnmatch(part, pattern[3:]) for part in parts)
            if pattern.startswith("**/")
            else fnmatch(parts[0], pattern)
        )
        if fits and line and not line.startswith("#"):
            answer = line.startswith("!")
    return answer


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", each)[0].lower().replace("_", "-") for each in requirements}


def test_it_is_made_of_known_instructions():
    known = {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} == known
    assert instructions()[0] == ("FROM", "python:3.11-slim-bookworm")


def test_everything_it_copies_is_there_and_is_sent_to_the_builder():
    for source, target in copies().items():
        assert (ROOT / source).exists(), source
        assert sent(source), source
        assert target == f"{HOME}/{source}"


def test_everything_that_building_the_package_reads_is_copied():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    read = [*wheel["packages"], *wheel["force-include"], *PROJECT["project"]["license-files"], "pyproject.toml"]
    assert {*read, PROJECT["project"]["readme"], "requirements.lock", "cluster"} == set(copies())


@pytest.mark.parametrize(
    "path",
    [
        *(".venv/bin/python", "runs/first/run.json", "data/labels.csv", "shared/data/x.jpg", "build/HELPERS.md"),
        *(".git/config", ".env", ".aws/credentials", ".ray/auth_token", "tests/conftest.py", "id_rsa", "a.pem"),
        "cxrlt_ray/__pycache__/cli.cpython-311.pyc",
    ],
)
def test_neither_data_nor_runs_nor_keys_nor_what_was_built_is_sent_to_the_builder(path):
    assert not sent(path)


def test_its_command_is_the_packages():
    (entry,) = map(json.loads, given("ENTRYPOINT"))
    (module, _, function) = PROJECT["project"]["scripts"][entry[0]].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert given("CMD") == ['["--help"]']


def test_its_user_is_the_one_whom_kuberay_runs_it_as():
    user = given("USER")[-1]
    assert int(user) > 0
    job = next(
        i for i in yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text())["items"] if i["kind"] == "RayJob"
    )
    assert job["spec"]["submitterPodTemplate"]["spec"]["securityContext"]["runAsUser"] == int(user)
    assert any(f"useradd --uid {user}" in run for run in given("RUN"))


def test_it_installs_the_lock_by_its_hashes_and_names_no_registry_and_no_key():
    (locked,) = [run for run in given("RUN") if "requirements.lock" in run]
    assert "--require-hashes" in locked
    (own,) = [run for run in given("RUN") if run.endswith(HOME)]
    assert "--no-deps" in own
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"https?://|index-url|TOKEN|PASSWORD|SECRET|AKIA", text)


def test_the_lock_has_what_kuberay_needs_of_ray_and_all_that_the_extras_want():
    locked = names(re.findall(r"^\S+==\S+", LOCK, re.MULTILINE))
    default = [each for each in importlib.metadata.requires("ray") if re.search(r"extra == .default.", each)]
    assert {"aiohttp", "opencensus"} <= names(default) <= locked
    for extra, wanted in PROJECT["project"]["optional-dependencies"].items():
        assert names(wanted) <= locked, extra
    # the probes of its pods call it
    assert any("wget" in run for run in given("RUN"))


def test_ray_in_it_is_given_what_a_ray_of_our_own_is_given():
    found = dict(re.findall(r"(\w+)=(\S+)", " ".join(given("ENV"))))
    assert found.pop("PATH") == "/opt/venv/bin:$PATH"
    assert found == {name: start.ENVIRONMENT[name] for name in found}
    assert len(found) == 2
