"""cluster/kuberay.yaml is what KubeRay takes, closed to the outside and not root's; it is never applied here."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster" / "kuberay.yaml").read_text()
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay.schema.yaml").read_text())
# whose keys are anyone's
OPEN = {"annotations", "labels", "limits", "nodeSelector", "rayStartParams", "requests"}


def items() -> dict[str, dict]:
    return {item["kind"]: item for item in yaml.safe_load(TEXT)["items"]}


def check(item: dict) -> None:
    schema = {"definitions": SCHEMA["definitions"], "$ref": f"#/definitions/{item['kind']}"}
    jsonschema.Draft7Validator(schema).validate(item)


def clusters() -> list[dict]:
    return [items()["RayJob"]["spec"]["rayClusterSpec"], items()["RayCluster"]["spec"]]


def pods() -> list[dict]:
    """The pod specs of heads, workers and the job's submitter."""
    found = [items()["RayJob"]["spec"]["submitterPodTemplate"]]
    for cluster in clusters():
        found += [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [template["spec"] for template in found]


def paths(there: object, at: tuple = ()) -> Iterator[tuple]:
    """The paths of all keys that the schema knows by name."""
    if isinstance(there, list):
        for number, each in enumerate(there):
            yield from paths(each, (*at, number))
    elif isinstance(there, dict) and not (at and at[-1] in OPEN):
        for key, value in there.items():
            yield (*at, key)
            yield from paths(value, (*at, key))


def test_it_is_valid_by_kuberays_schema():
    assert jsonschema.Draft7Validator.check_schema(SCHEMA) is None
    assert set(items()) == {"ServiceAccount", "RayJob", "RayCluster"}
    for item in items().values():
        check(item)


def test_no_key_can_be_misspelt():
    tried = 0
    for item in items().values():
        for *folder, key in paths(item):
            broken = copy.deepcopy(item)
            inside = broken
            for step in folder:
                inside = inside[step]
            inside[f"{key}s"] = inside.pop(key)
            with pytest.raises((jsonschema.ValidationError, KeyError)):
                check(broken)
            tried += 1
    assert tried > 200


GPU = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        (("spec", "backoffLimit"), "5"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ((*GPU, "maxReplicas"), -1),
        ((*GPU, "template", "spec", "containers", 0, "resources", "limits", "memory"), "56 GB"),
    ],
)
def test_no_value_can_be_of_another_kind(at, wrong):
    job = copy.deepcopy(items()["RayJob"])
    inside = job
    for step in at[:-1]:
        inside = inside[step]
    inside[at[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError):
        check(job)


def test_one_of_the_two_is_applied_by_its_label():
    assert items()["RayJob"]["metadata"]["labels"] == {"use": "sweep"}
    assert items()["RayCluster"]["metadata"]["labels"] == {"use": "work"}
    assert re.findall(r"kubectl apply -f cluster/kuberay.yaml -l (\S+)", TEXT) == ["use!=work", "use!=sweep"]


def test_the_head_only_steers_and_gpu_workers_come_and_go():
    job, work = clusters()
    for cluster in (job, work):
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["enableInTreeAutoscaling"]
        (gpu,) = cluster["workerGroupSpecs"]
        assert gpu["minReplicas"] == 0 < gpu["maxReplicas"]
        (container,) = gpu["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpu["template"]["spec"][
            "tolerations"
        ]
    # a sweep plans by what is there, so its workers are up before it begins
    assert job["workerGroupSpecs"][0]["replicas"] > 0 == work["workerGroupSpecs"][0]["replicas"]


def test_every_ray_pod_has_shared_memory_that_fits_into_its_own():
    for pod in pods()[1:]:
        (container,) = pod["containers"]
        (volume,) = pod["volumes"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
        shared, whole = (
            int(text.removesuffix("Gi"))
            for text in (volume["emptyDir"]["sizeLimit"], container["resources"]["limits"]["memory"])
        )
        assert 0 < shared <= whole / 2


def test_no_container_is_roots_or_can_become_it():
    bounds = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(container["securityContext"] == bounds for container in pod["containers"])
    assert all(cluster["autoscalerOptions"]["securityContext"] == bounds for cluster in clusters())


def test_nothing_listens_outside_and_who_has_no_token_is_refused():
    for cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert not cluster["headGroupSpec"]["enableIngress"]
    assert not re.search(r"hostPort|hostNetwork|LoadBalancer|NodePort", TEXT)


def test_the_bucket_is_reached_by_role_and_no_key_is_named():
    account = items()["ServiceAccount"]["metadata"]
    assert "role-arn" in " ".join(account["annotations"])
    for pod in pods()[1:]:
        assert pod["serviceAccountName"] == account["name"]
        assert not any("env" in container for container in pod["containers"])
    assert not re.search(r"https?://|AKIA|secret_access", TEXT, re.IGNORECASE)


def test_it_says_the_version_of_ray_that_the_image_has():
    (locked,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert {cluster["rayVersion"] for cluster in clusters()} == {locked}


@pytest.mark.parametrize(("missing", "resumes"), [(0, True), (2, False)])
def test_a_job_that_is_tried_again_goes_on_with_its_run(tmp_path, missing, resumes):
    """Through all that reads the entrypoint: bash where it is submitted, `ray job submit`, the shell on the head."""
    job = items()["RayJob"]["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]
    for name, text in {
        "ray": f"#!{sys.executable}\nimport shlex, sys\nprint(shlex.join(sys.argv[sys.argv.index('--') + 1 :]))\n",
        "python": '#!/bin/bash\necho "$@" >>calls\n[ "$2" != cxrlt_ray.trials ] || exit ' + f"{missing}\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    submitted = f"ray job submit --submission-id one -- {job['entrypoint']} ; exit $?"
    told = subprocess.run(["bash", "-c", submitted], env=env, check=True, capture_output=True, text=True, cwd=tmp_path)
    entry = told.stdout.strip().replace("/opt/cxrlt_ray", str(ROOT))
    assert "\n" not in entry  # all of it came to the head
    subprocess.run(entry, shell=True, env=env, check=True, cwd=tmp_path)
    looked, swept = (tmp_path / "calls").read_text().splitlines()
    assert looked == "-m cxrlt_ray.trials mimic --storage s3://BUCKET/runs"
    words = shlex.split(swept)
    assert words[:3] == ["-m", "cxrlt_ray.sweep", "task1"]
    assert words[-4:] == ["--name", "mimic", "--storage", "s3://BUCKET/runs"]
    assert "--address auto" in swept
    assert ("--resume" in words) is resumes
