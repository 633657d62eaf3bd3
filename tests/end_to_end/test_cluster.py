"""Sweeps on a cluster of several nodes, all of them on this machine; nodes come and go while trials run."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_images

from cxrlt_ray.runs import store

SPACE = """
trials: {trials}
epochs: {epochs}
prune: false
parameters:
  backbone: test_convnext
  pretrained: false
  resolution: 32
  batch_size: {batch_size}
  lr: {{low: 1e-3, high: 1e-2}}
  augment: 0
  flip: 0
"""

# A head without CPUs and nodes that have them, real or not; then a sweep that joins them by address. `nodes` is asked
# again and again what to do, with the trials there are, until it has nothing more to do.
CLUSTER = """
import subprocess, sys, time
import ray
from ray.cluster_utils import Cluster
from cxrlt_ray.runs import store as trials

ROOM = 80 * 2**20
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": ROOM})
ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")


def add(cpus):
    return cluster.add_node(num_cpus=cpus, object_store_memory=ROOM)


def busy():
    "The ids of the nodes on which trials are: Tune calls the actor of a function so."
    actors = ray._private.state.actors().values()
    return {a["Address"]["NodeID"] for a in actors if a["State"] == "ALIVE" and a["ActorClassName"] == "ImplicitFunc"}


def there():
    try:
        return trials.load_run(storage, "c").trials()
    except Exception:
        return []


def nodes():
    yield


storage, *words = sys.argv[1:]
# NODES #
sweep = subprocess.Popen([sys.executable, "-m", "cxrlt_ray.sweep", *words, "--name", "c", "--storage", storage,
                          "--address", cluster.address])
steps = nodes()
while sweep.poll() is None:
    next(steps, None)
    time.sleep(0.2)
left = next(steps, "done")
ray.shutdown()
cluster.shutdown()
sys.exit(sweep.returncode or left != "done")
"""


@pytest.fixture
def swept(tmp_path):
    """Runs a sweep of the tiny kind among nodes that do as a piece of Python says; its trials and what was printed."""
    manifest = write_images(tmp_path / "images", 48)
    columns = ["image_id", "path", "subject_id", "study_id", "view", "split", "Mass", "Nodule"]
    manifest.table[columns].to_csv(tmp_path / "images" / "labels.csv", index=False)

    def run(nodes: str, *words: str, storage="runs", count=2, epochs=3, batch_size=8) -> tuple[list, str]:
        space = tmp_path / f"{storage}.yaml"
        space.write_text(SPACE.format(trials=count, epochs=epochs, batch_size=batch_size))
        place = str(tmp_path / storage)
        command = [sys.executable, "-c", CLUSTER.replace("# NODES #", nodes), place, "auto"]
        command += ["--data", str(tmp_path / "images"), "--space", str(space), *words]
        # who lacks the token cannot join: as the files for clusters have it
        env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=550, check=False)
        told = done.stdout + done.stderr
        assert done.returncode == 0, told
        return store.load_run(place, "c").trials(), told

    return run


COME_AND_GO = """
first = [add(2), add(2)]

def nodes():
    while not any(len(trial.record.epochs) > 1 for trial in there()):
        yield
    first.append(add(2))
    while not any(node.node_id in busy() for node in first[:2]):
        yield
    lost = next(node for node in first[:2] if node.node_id in busy())
    cluster.remove_node(lost, allow_graceful=False)
    print("lost a node that trained", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["threads", "ray"])
def test_a_node_joins_and_one_is_lost_with_its_trials_and_the_sweep_ends_with_all(swept, engine):
    found, told = swept(COME_AND_GO, "--ingest", engine, "--max-concurrent", "2", count=3, epochs=30)
    assert "lost a node that trained" in told
    assert [trial.state for trial in found] == ["finished"] * 3
    for trial in found:
        assert [epoch.epoch for epoch in trial.record.epochs] == list(range(30))  # none twice, none lost
        assert len(trial.predictions()) == 12
    assert any(trial.record.retries for trial in found)


TWO = "for _ in range(2): add(2)"


@pytest.mark.slow
def test_two_workers_on_two_nodes_train_the_model_that_one_trains(swept):
    """A step of two workers is of as many images as they have together. This model has no batch norm."""
    words = ["--ingest", "threads", "--max-concurrent", "1", "--cpus-per-trial"]
    alone, _ = swept(TWO, *words, "1.5", storage="one", batch_size=8)
    # 1.5 of 2 CPUs: no node holds both
    both, _ = swept(TWO, *words, "1.5", "--workers-per-trial", "2", storage="two", batch_size=4)
    assert [trial.state for trial in alone + both] == ["finished"] * 4
    for one, two in zip(alone, both, strict=True):
        assert one.record.params == two.record.params
        pd.testing.assert_frame_equal(one.predictions(), two.predictions().loc[one.predictions().index], atol=1e-5)
        losses = [[epoch.loss for epoch in trial.record.epochs] for trial in (one, two)]
        assert len(losses[0]) == len(losses[1]) == 3
        # the model did learn: the predictions are not merely those it began with
        assert losses[0][-1] < losses[0][0]


LOSE_A_WORKER = """
there_are = [add(2), add(2)]

def nodes():
    while not any(len(trial.record.epochs) > 1 for trial in there()):
        yield
    # the one that has a worker and not Tune's own actor, if there is such a one
    lost = next((node for node in there_are if node.node_id not in busy()), there_are[0])
    cluster.remove_node(lost, allow_graceful=False)
    print("lost a node that trained", flush=True)
"""


@pytest.mark.slow
def test_a_trial_that_loses_a_worker_goes_on_with_the_other_and_ends_with_the_same_model(swept):
    words = ["--ingest", "threads", "--max-concurrent", "1", "--cpus-per-trial", "1.5", "--workers-per-trial", "2"]
    calm, _ = swept(TWO, *words, storage="calm", count=1, epochs=30, batch_size=4)
    lost, told = swept(LOSE_A_WORKER, *words, "--min-workers", "1", storage="lost", count=1, epochs=30, batch_size=4)
    assert "lost a node that trained" in told
    assert [trial.state for trial in calm + lost] == ["finished"] * 2
    assert [epoch.epoch for epoch in lost[0].record.epochs] == list(range(30))
    assert lost[0].record.retries
    pd.testing.assert_frame_equal(
        calm[0].predictions(), lost[0].predictions().loc[calm[0].predictions().index], atol=1e-4
    )


def test_the_cluster_of_these_tests_is_python():
    for nodes in (COME_AND_GO, TWO):
        compile(CLUSTER.replace("# NODES #", nodes), str(Path(__file__)), "exec")
