"""cluster.yaml is what Ray's launcher takes, with a head that steers only; it is never launched here."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
MARK = "/home/ubuntu/cxrlt_ray"


@pytest.fixture
def config() -> dict:
    return yaml.safe_load(TEXT)


def schema() -> dict:
    """Ray's own, found without importing Ray."""
    folder = Path(importlib.util.find_spec("ray").submodule_search_locations[0])
    return json.loads((folder / "autoscaler" / "ray-schema.json").read_text())


def workers(config: dict) -> dict[str, dict]:
    return {name: node for name, node in config["available_node_types"].items() if name != config["head_node_type"]}


def test_it_is_valid_by_rays_schema(config):
    jsonschema.Draft7Validator(schema()).validate(config)


def test_the_schema_would_notice_a_mistake(config):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema()).validate({**config, "head_nod_type": "head"})


def test_rays_own_preparation_accepts_it_without_credentials_or_network(config, monkeypatch):
    import socket

    from ray.autoscaler._private.util import prepare_config, validate_config

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    assert not any("anaconda" in command or "pip install -U" in command for command in prepared["setup_commands"])
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == config["setup_commands"]


@pytest.mark.parametrize("type", ["gcp", "local"])
def test_what_is_told_for_another_place_is_valid_too(config, type):
    (told,) = re.findall(rf"provider: (\{{type: {type}.*\}})", TEXT)
    changed = {**config, "provider": yaml.safe_load(told)}
    if type == "local":
        del changed["available_node_types"], changed["head_node_type"]
    jsonschema.Draft7Validator(schema()).validate(changed)


def test_nothing_runs_on_the_head_which_stays(config):
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert not re.match(r"(g|p)\d", head["node_config"]["InstanceType"])


def test_gpu_workers_come_and_go_with_the_trials_on_demand_and_on_the_spot_market(config):
    gpus = {name: node for name, node in workers(config).items() if node["resources"].get("GPU")}
    assert all(node["min_workers"] == 0 < node["max_workers"] <= config["max_workers"] for node in gpus.values())
    spot = {n for n, node in gpus.items() if node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}}
    assert len(spot) == 1
    assert len(gpus) == 2


def test_workers_can_reach_the_shared_storage(config):
    assert all("IamInstanceProfile" in node["node_config"] for node in workers(config).values())
    assert "--storage s3://" in TEXT


def test_ray_makes_no_security_group_which_would_be_open_to_the_world(config, monkeypatch):
    from ray.autoscaler._private.aws import config as aws

    (ssh,) = aws._create_default_ssh_inbound_rules()
    assert ssh["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]  # what it would let in, and cannot be told to leave out

    def made(*args: object) -> None:
        raise AssertionError("Ray makes a security group")

    monkeypatch.setattr(aws, "_upsert_security_groups", made)
    aws._configure_security_group(config)
    del config["available_node_types"]["gpu_spot_worker"]["node_config"]["SecurityGroupIds"]
    with pytest.raises(AssertionError, match="makes a security group"):
        aws._configure_security_group(config)


def test_only_the_head_itself_reaches_the_dashboard_and_only_who_has_the_token_joins(config):
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert all("RAY_AUTH_MODE=token" in command for command in (head, worker))
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    (profile,) = [command for command in config["setup_commands"] if "export RAY_AUTH_MODE=token" in command]
    assert profile.endswith(">> ~/.bashrc")


def test_every_node_is_set_up_from_the_lock_by_uv(config):
    commands = config["setup_commands"]
    assert any(command.endswith("pip install --quiet uv") for command in commands)
    (locked,) = [command for command in commands if "requirements.lock" in command]
    assert "--require-hashes" in locked
    for command in commands:
        shlex.split(command)  # quotes are closed


def test_no_registry_and_no_key_is_named():
    assert not re.search(r"https?://|index-url|pypi|AKIA|secret", TEXT, re.IGNORECASE)


def test_everything_it_sends_is_there_and_everything_it_uses_is_sent(config):
    mounts = {there: here for there, here in config["file_mounts"].items() if there.startswith(MARK)}
    for local in mounts.values():
        assert (ROOT / local).exists(), local
    for name in re.findall(r"~/cxrlt_ray/(\S+)", " ".join(config["setup_commands"])):
        assert f"{MARK}/{name}" in mounts
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in ("pyproject.toml", "README.md", "LICENSE", *wheel["packages"], *wheel["force-include"]):
        assert mounts[f"{MARK}/{name}"] == f"./{name}"


def test_the_shown_commands_exist():
    from cxrlt_ray.cli import COMMANDS

    shown = set(re.findall(r"python -m cxrlt_ray\.(\w+)", TEXT))
    assert {"doctor", "sweep", "ensemble"} <= shown <= set(COMMANDS)
    assert "--resume" in TEXT
    assert "--address auto" in TEXT
