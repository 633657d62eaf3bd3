"""The whole line with everything on S3: images, shards, trials, predictions, ensemble, submission."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import s3 as server
from conftest import write_images

from cxrlt_ray.data import prepare
from cxrlt_ray.data.file_states import file_states
from cxrlt_ray.data.shards import QUALITY, Shards
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs import store
from cxrlt_ray.runs.damage import damage
from cxrlt_ray.runs.ensemble_record import weights_fingerprint
from cxrlt_ray.runs.records import FINISHED, RUNNING
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.training.job import Job
from cxrlt_ray.training.trial import train

COLUMNS = ["image_id", "path", "subject_id", "study_id", "view", "split", "Mass", "Nodule"]
SPACE = """
trials: 2
epochs: 2
parameters:
  backbone: test_convnext
  pretrained: false
  resolution: 32
  batch_size: 8
  lr: {low: 1e-3, high: 1e-2}
"""


@pytest.fixture(scope="module")
def s3():
    with server.served("bucket") as served:
        yield served


# --- one trial, in this process


class Cut(Exception):
    """The end of a process."""


@pytest.fixture(scope="module")
def job(s3, tmp_path_factory):
    """A run's manifest and shards in the bucket."""
    manifest = write_images(tmp_path_factory.mktemp("images"), 48)
    run, shards = Store("s3://bucket/runs/one"), Store("s3://bucket/runs/shards/some-32px")
    chunks = list(prepare._chunks(manifest, file_states(manifest.root, manifest.table["path"].tolist()), None))
    for chunk in chunks:
        prepare._write_shard(chunk, {32: shards}, manifest.root, QUALITY)
    summary = prepare._close(shards, chunks, 32, QUALITY, 0.0)
    with run.place("manifest.parquet") as path:
        manifest.write(path)
    sources = (Shards(shards, 32, summary),)
    return Job(run, sources, manifest.findings, manifest.fingerprint, folds=2, threads=1)


CONFIG = TrialConfig(backbone="test_convnext", pretrained=False, resolution=32, epochs=2, batch_size=8, refit=True)


def of(job, name):
    return store.read_trial(job.run / "trials" / name)


def test_a_trial_in_a_bucket_that_is_cut_off_goes_on_as_if_it_had_not_been(s3, job):
    train(job, "T0000", CONFIG, {}, lambda told: None)

    def cut(told):
        raise Cut

    with pytest.raises(Cut):
        train(job, "T0001", CONFIG, {}, cut)
    assert of(job, "T0001").state == RUNNING
    train(job, "T0001", CONFIG, {}, lambda told: None)
    whole, again = of(job, "T0000"), of(job, "T0001")
    assert whole.state == again.state == FINISHED
    assert whole.checkpoints == again.checkpoints == [store.REFIT]
    assert whole.store.list() == again.store.list() == ["fold-0", "fold-1", "predictions", "refit", "trial.json"]
    for name in ("fold-0", "fold-1", "refit"):
        assert weights_fingerprint(whole.store, name) == weights_fingerprint(again.store, name)
    assert whole.predictions().equals(again.predictions())
    assert damage(whole) == damage(again) == ""
    assert [trial.name for trial in store.read_trials(job.run / "trials")] == ["T0000", "T0001"]


def test_a_trial_whose_bucket_refuses_it_midway_ends_with_the_reason_and_goes_on_later(s3, job):
    def refused(told):
        s3.fault = lambda method, path: 403 if method in ("PUT", "POST") else None

    try:
        with pytest.raises(CxrltError, match=r"^s3://bucket/runs/one/.* cannot be written: access is denied"):
            train(job, "T0002", CONFIG, {}, refused)
    finally:
        s3.fault = lambda method, path: None
    train(job, "T0002", CONFIG, {}, lambda told: None)
    assert of(job, "T0002").state == FINISHED


# --- the line, in processes of its own, since Ray's processes have the environment in which it was started

LINE = """
import sys
from cxrlt_ray import ensemble, evaluate, predict, prepare, sweep, trials
data, space, storage, out = sys.argv[1:]
prepare.main(data, sizes="32", storage=storage)
sweep.main("auto", data=data, space=space, trials=1, name="line", storage=storage)
sweep.main("auto", resume=True, trials=2, storage=storage)
trials.main(storage=storage)
trials.main("line", storage=storage)
ensemble.main(select="mean", storage=storage, rounds=10, zip=True)
predict.main(ensemble=f"{storage}/line/ensembles/mean/ensemble.json", data=data, out=out, storage=storage)
evaluate.main(f"{storage}/line/ensembles/mean/submission.csv", data=data, task="auto", out=f"{out}/scores.json")
"""


@pytest.fixture(scope="module")
def lines(s3, tmp_path_factory):
    """What the line says and leaves, on S3 and on the disk: (text, directory) of each."""
    folder = tmp_path_factory.mktemp("line")
    manifest = write_images(folder / "images", 80)
    manifest.table[COLUMNS].to_csv(folder / "images" / "labels.csv", index=False)
    (folder / "tiny.yaml").write_text(SPACE)
    for path in (folder / "images").iterdir():
        Store("s3://bucket/line/images").write(path.name, path.read_bytes())
    found = {}
    for kind, at in (("s3", "s3://bucket/line"), ("local", str(folder))):
        empty = folder / f"{kind}-here"
        empty.mkdir()
        command = [sys.executable, "-c", LINE, f"{at}/images", str(folder / "tiny.yaml"), f"{at}/runs", f"{at}/out"]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found[kind] = (done.stdout + done.stderr, Store(at), empty)
    return found


@pytest.mark.slow
def test_the_line_on_s3_leaves_what_it_leaves_on_a_disk_and_nothing_else_here(lines):
    (_, far, empty), (_, near, _) = lines["s3"], lines["local"]
    made = "runs/line/ensembles/mean"
    assert far.list(made) == near.list(made)
    for name in ("submission.csv", "submission.zip", "weights.csv"):
        assert far.read(f"{made}/{name}") == near.read(f"{made}/{name}")
    assert far.read("out/submission.csv") == near.read("out/submission.csv")
    assert far.read("out/scores.json") == near.read("out/scores.json")
    assert list(empty.iterdir()) == []


@pytest.mark.slow
def test_trials_on_s3_are_those_on_a_disk(lines):
    runs = [store.load_run(f"{line.uri}/runs", "line") for _, line, _ in lines.values()]
    far, near = ([trial.record for trial in run.trials()] for run in runs)
    assert [record.name for record in far] == ["T0000", "T0001"]
    for one, two in zip(far, near, strict=True):
        assert one.state == two.state == FINISHED
        assert one.params == two.params
        assert one.score == two.score
    assert "T0001" in lines["s3"][0]


@pytest.mark.slow
def test_the_line_on_s3_tells_no_credential_and_leaves_none_and_no_half_file(lines):
    text, far, _ = lines["s3"]
    secrets = (server.KEY, server.SECRET, server.TOKEN)
    assert not any(secret in text for secret in secrets)
    filesystem, root = far.opened()
    from pyarrow import fs

    for info in filesystem.get_file_info(fs.FileSelector(root, recursive=True)):
        assert not info.path.endswith((".part", ".whole"))
        if info.type == fs.FileType.File:
            content = far.read(info.path.removeprefix(f"{root}/"))
            assert not any(secret.encode() in content for secret in secrets), info.path


@pytest.mark.parametrize("command", ["trials", "ensemble", "sweep", "resume"])
def test_commands_name_a_bucket_that_is_not_there(s3, command):
    from cxrlt_ray import ensemble, sweep, trials

    storage = "s3://nobucket/runs"
    commands = {
        "trials": lambda: trials.main(storage=storage),
        "ensemble": lambda: ensemble.main(storage=storage),
        "sweep": lambda: sweep.main("auto", storage=storage, data=str(Path(__file__).parent)),
        "resume": lambda: sweep.main("auto", storage=storage, resume=True),
    }
    with pytest.raises(CxrltError, match=r"s3://nobucket/runs.*: there is no such bucket; make it, or name another"):
        commands[command]()
