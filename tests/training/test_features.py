"""Stored features of a frozen backbone: a trial comes to the same with them, and never by wrong ones."""

from __future__ import annotations

import contextlib
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_images
from cut_training import train_with_cuts
from safetensors.torch import load_file, save_file
from two_workers import process_group, run_two

from cxrlt_ray import models, trials
from cxrlt_ray.data import features as stored_features
from cxrlt_ray.data.file_states import file_states
from cxrlt_ray.data.image_transform import AugmentedView, ImageCopy
from cxrlt_ray.data.prepare import _chunks, _close, _write_shard
from cxrlt_ray.data.shards import QUALITY, Shards, shards_store
from cxrlt_ray.data.soft_targets import SoftTargets
from cxrlt_ray.data.stream import Ingest, batches
from cxrlt_ray.models.weights import load_pretrained
from cxrlt_ray.runs.store import read_trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.storage import Store
from cxrlt_ray.training import features
from cxrlt_ray.training import trial as trial_module
from cxrlt_ray.training.features import FrozenFeatures
from cxrlt_ray.training.job import Job, images_of
from cxrlt_ray.training.stage import train_stage
from cxrlt_ray.training.trial import train
from cxrlt_ray.training.workers import Worker

ROOM = 10**8
SIZE = 64  # a map of 2 x 2


def shards_without_ray(manifest, folder, size=SIZE):
    """The shards that `prepare` makes, made in this process."""
    store = shards_store(manifest, str(folder), size, QUALITY)
    chunks = list(_chunks(manifest, file_states(manifest.root, manifest.table["path"].tolist(), False), None))
    for chunk in chunks:
        _write_shard(chunk, {size: store}, manifest.root, QUALITY)
    return Shards(store, size, _close(store, chunks, size, QUALITY, 1.0))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    manifest = write_images(folder, 60, size=80)
    study = manifest.table["study_id"].str[1:].astype(int) // 8 * 4 + manifest.table.index % 4  # of two images
    manifest.table["study_id"] = manifest.table["subject_id"] = [f"s{k}" for k in study]
    return manifest


@pytest.fixture
def cohort(images, tmp_path):
    """A storage of this test's own: its manifest, its shards."""
    return images, shards_without_ray(images, tmp_path / "storage")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A trained model's file for backbones: a network with batch norm whose statistics are its own."""
    spec = models.ModelSpec("test_resnet", SIZE, pretrained=False)
    torch.manual_seed(3)
    model = models.build(spec, ("Mass", "Nodule"))
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(8, SIZE, SIZE))
    folder = tmp_path_factory.mktemp("weights")
    models.save(model, spec, ("Mass", "Nodule"), folder)
    return f"{folder}/model.safetensors"


def job_in(folder, cohort, room=ROOM, **options):
    manifest, shards = cohort
    run = Store(str(folder / "run"))
    with run.place("manifest.parquet") as path:
        manifest.write(path)
    return Job(run, (shards,), manifest.findings, manifest.fingerprint, threads=1, features=room, **options)


def config(weights, **options):
    plain = {"backbone": "test_resnet", "checkpoint": weights, "resolution": SIZE, "epochs": 3, "batch_size": 8}
    return TrialConfig(**{**plain, "frozen_backbone": True, "lr": 1e-2, "drop_rate": 0.2, **options})


def count_images(monkeypatch):
    """The images that backbones see from now on, one number a forward pass."""
    seen, before = [], models.Classifier.features

    def counted(self, pixels):
        if pixels.device.type != "meta":  # where operations are counted
            seen.append(len(pixels))
        return before(self, pixels)

    monkeypatch.setattr(models.Classifier, "features", counted)
    return seen


def outcome(job, name="T0000"):
    """Validation predictions of a trial's best epoch."""
    return read_trial(job.run / "trials" / name).predictions().sort_index().to_numpy()


def both(tmp_path, cohort, trial, monkeypatch, **options):
    """The predictions after every epoch [E, N, C] of a trial with stored features, and without any."""
    epochs, predict = [], trial_module.predict_images

    def recorded(*arguments):
        epochs[-1].append(predict(*arguments))
        return epochs[-1][-1]

    monkeypatch.setattr(trial_module, "predict_images", recorded)
    for name, room in (("stored", ROOM), ("computed", 0)):
        epochs.append([])
        job = job_in(tmp_path / name, cohort, room, **options)
        if options.get("soft_targets"):
            soft_targets_of(cohort[0]).write(job.run)
        train(job, "T0000", trial, {}, lambda report: None)
    return [np.concatenate(predictions) for predictions in epochs]


def soft_targets_of(manifest):
    import pandas as pd

    random = np.random.default_rng(0).random((len(manifest.table), 2)).astype(np.float32)
    return SoftTargets(pd.DataFrame(random, pd.Index(manifest.table["image_id"]), ["Mass", "Nodule"]), "a teacher")


CASES = {
    "probe": {},
    "copies": {"feature_copies": 2, "augment": 0.5, "crop": 0.9},
    "cropped": {"crop": 0.8, "augment": 0.5},
    "average of tokens": {"pool": "avg"},
    "largest of tokens": {"pool": "max"},
    "map": {"head": "ml_decoder"},
    "gem": {"pool": "gem"},
    "attention over views": {"fusion": "attention", "batch_size": 4},
    "transformer over views": {"fusion": "transformer", "head": "ml_decoder", "batch_size": 4},
    "balanced": {"sampler": "class_aware"},
    "average of weights": {"ema_decay": 0.5},
    "swa": {"swa_start": 0.4},
    "accumulated": {"accumulation": 2, "patience": 1},
    "stages": {
        "frozen_backbone": False,
        "stages": ({"epochs": 1}, {"epochs": 2, "frozen_backbone": True, "fusion": "attention", "lr": 1e-3}),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_trial_comes_to_the_same_with_stored_features(case, cohort, tmp_path, weights, monkeypatch):
    stored, computed = both(tmp_path, cohort, config(weights, **CASES[case]), monkeypatch)
    np.testing.assert_allclose(stored, computed, atol=5e-3)
    assert not np.array_equal(stored, computed)  # they are in half precision


def test_folds_refit_test_time_augmentation_and_soft_targets_come_to_the_same(cohort, tmp_path, weights, monkeypatch):
    trial = config(weights, epochs=2, lr=1e-3, tta="flip+zooms", refit=True, objective="distill")
    stored, computed = both(tmp_path, cohort, trial, monkeypatch, folds=2, soft_targets=True)
    np.testing.assert_allclose(stored, computed, atol=5e-3)
    one, two = (read_trial(Store(str(tmp_path / n / "run")) / "trials" / "T0000") for n in ("stored", "computed"))
    augmented = [trial.predictions("val-tta").sort_index().to_numpy() for trial in (one, two)]
    np.testing.assert_allclose(*augmented, atol=5e-3)
    assert np.abs(augmented[0] - outcome(job_in(tmp_path / "stored", cohort))).max() > 1e-4
    assert one.record.tta.price == one.record.tta.augmentations == 6
    last = [load_file(f"{trial.store.uri}/refit/model.safetensors") for trial in (one, two)]
    for name, tensor in last[0].items():
        np.testing.assert_allclose(tensor, last[1][name], atol=2e-2, err_msg=name)


def test_each_image_is_seen_once_by_the_backbone_in_all_trials_epochs_and_folds(cohort, tmp_path, weights, monkeypatch):
    seen, job = count_images(monkeypatch), job_in(tmp_path, cohort)
    train(job, "T0000", config(weights, epochs=4), {}, lambda report: None)
    manifest = cohort[0].table
    prepared = (manifest["split"] != "test").sum()
    assert sum(seen) == prepared + 1  # one to know their shape
    train(job, "T0001", config(weights, epochs=2, seed=7, lr=1e-3, loss="asl"), {}, lambda report: None)
    assert sum(seen) == prepared + 2
    train(replace(job, folds=3), "T0002", config(weights, epochs=2), {}, lambda report: None)
    assert sum(seen) == prepared + 5


def test_a_copy_is_augmented_and_the_same_in_whatever_batch_and_epoch_it_comes(cohort):
    shards = cohort[1]
    ids = shards.index().index.to_numpy()

    def copy(batch_size, epoch, **options):
        stream = batches(shards, ids, SIZE, batch_size, epoch=epoch, augment=0.7, flip=0.5, crop=0.8, **options)
        parts = [(batch.image_id, batch.images) for batch in stream]
        names, pixels = (np.concatenate(values) for values in zip(*parts, strict=True))
        return pixels[np.argsort(names.astype(str))]

    first = copy(7, 0, copies=3)
    assert np.array_equal(first, copy(16, 3, copies=3, seed=5))
    assert np.array_equal(first, copy(5, 6, copies=2, seed=1))
    plain = copy(8, 2, copies=0, seed=9)
    assert np.array_equal(plain, copy(8, 0))
    others = [copy(9, epoch, copies=3, seed=2) for epoch in (1, 2)]
    for one, two in ((first, plain), (first, others[0]), (others[0], others[1])):
        assert (one != two).any(axis=(1, 2)).mean() > 0.9


def test_a_batch_of_stored_features_has_the_images_that_a_batch_of_pixels_has(cohort, tmp_path, weights):
    job, trial = job_in(tmp_path, cohort), config(weights)
    ids = cohort[0].table["image_id"].to_numpy()
    owner = frozen(job, trial)
    stored = owner.stored(ids, AugmentedView(SIZE))
    for rank in range(2):
        options = {"seed": 4, "epoch": 3, "rank": rank, "world": 2, "copies": 0}
        pixels, halves = (list(batches(cohort[1], ids, SIZE, 7, features=f, **options)) for f in (None, stored))
        for one, two in zip(pixels, halves, strict=True):
            assert list(one.image_id) == list(two.image_id)
            assert two.images.dtype == np.float16
            wanted = owner._features(torch.from_numpy(one.images))
            np.testing.assert_allclose(two.images, wanted.numpy(), rtol=1e-3, atol=1e-3)


def frozen(job, trial, worker=None):
    """The features of the frozen backbone of a trial's model."""
    model = models.build(trial.spec(), job.findings)
    return FrozenFeatures(job, trial, model, job.shards[0], worker or Worker(0, 1, torch.device("cpu")))


def store_of(owner, look=None):
    """The directory of the features of all images, stored now."""
    features = owner.stored(owner.shards.index().index.to_numpy(), look or AugmentedView(SIZE))
    assert features is not None
    (folder,) = [path for path in owner.storage.folder.iterdir() if path.is_dir()]
    return folder, features


def content(features):
    return {name: np.array(part) for name, part in features.parts.items()}


DAMAGES = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "one bit changed": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\x55" + path.read_bytes()[-8:]),
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_text("features"),
    "no metadata": lambda path: save_file(load_file(path), path),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_computed_again_and_never_read(damage, cohort, tmp_path, weights, capsys):
    job, trial = job_in(tmp_path, cohort), config(weights)
    folder, before = store_of(frozen(job, trial))
    wanted = content(before)
    path = sorted(folder.glob("*.safetensors"))[1]
    DAMAGES[damage](path)
    folder, after = store_of(frozen(job, trial))
    for name, part in content(after).items():
        np.testing.assert_array_equal(part, wanted[name])
    output = capsys.readouterr().out
    assert output.count("it is computed again") == (damage != "missing")
    assert "i0" not in output.replace(str(tmp_path), "")
    frozen(job, trial).stored(cohort[0].table["image_id"].to_numpy(), AugmentedView(SIZE))
    assert not capsys.readouterr().out


def test_features_of_other_weights_another_size_or_other_images_are_not_taken(
    cohort, tmp_path, weights, capsys, images
):
    job, trial = job_in(tmp_path, cohort), config(weights)
    folder, own = store_of(frozen(job, trial))
    other = frozen(job, trial)
    with torch.no_grad():
        next(other.model.backbone.parameters()).view(-1)[0] += 1
    larger = frozen(job, trial.model_copy(update={"resolution": 96}))
    pooled = frozen(job, trial.model_copy(update={"pool": "max"}))
    cropped = frozen(job, trial)
    ids = cohort[0].table["image_id"].to_numpy()
    for stranger, look in (
        (other, AugmentedView(SIZE)),
        (larger, AugmentedView(96)),
        (pooled, AugmentedView(SIZE)),
        (cropped, AugmentedView(SIZE, 0.8)),
        (cropped, ImageCopy(SIZE, 1.0, 0.5, 0.5, 0)),
    ):
        key = stored_features.FeatureKey(cohort[1].name(), stranger.weights, trial.backbone, "fp32", look)
        place = stranger.storage.store(key).local
        assert place != folder
        place.mkdir(parents=True)
        for path in folder.glob("*.safetensors"):
            (place / path.name).write_bytes(path.read_bytes())
        found = stranger.stored(ids, look)
        assert "other weights, another size or another view: it is computed again" in capsys.readouterr().out
        for name, part in found.parts.items():
            assert not np.array_equal(part, own.parts[name])


def test_a_store_half_written_is_completed(cohort, tmp_path, weights, monkeypatch):
    job, trial = job_in(tmp_path, cohort), config(weights)
    write, written = features.write_part, []

    def killed(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(arguments)
        write(*arguments)

    monkeypatch.setattr(features, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        store_of(frozen(job, trial))
    monkeypatch.setattr(features, "write_part", write)
    seen = count_images(monkeypatch)
    folder, found = store_of(frozen(job, trial))
    assert sum(seen) == len(cohort[1].index()) - len(written[0][-1]) + 1
    assert len(found.parts) == len(list(folder.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("why", ["bound", "disk", "full", "large"])
def test_features_that_cannot_be_stored_are_computed_anew(why, cohort, tmp_path, weights, monkeypatch, capsys):
    job, trial = job_in(tmp_path, cohort, 100 if why == "bound" else ROOM), config(weights)
    if why == "disk":
        monkeypatch.setattr(stored_features, "KEEP_FREE", 1e18)
    if why == "full":

        def full(*arguments):
            raise features.CxrltError("it cannot be written: No space left on device.")

        monkeypatch.setattr(features, "write_part", full)
    if why == "large":
        before = models.Classifier.features
        monkeypatch.setattr(models.Classifier, "features", lambda self, pixels: 1e6 * before(self, pixels))
    train(job, "T0000", trial, {}, lambda report: None)
    output = capsys.readouterr().out
    assert output.count("are computed anew in every epoch") == 2  # of training and validation images
    reason = {
        "bound": "--features-gb) and the free disk",
        "disk": "--features-gb) and the free disk",
        "full": "No space left on device",
        "large": "too large for half precision",
    }
    assert reason[why] in output
    monkeypatch.undo()
    computed = job_in(tmp_path / "computed", cohort, 0)
    if why != "large":
        train(computed, "T0000", trial, {}, lambda report: None)
        np.testing.assert_array_equal(outcome(job), outcome(computed))
    assert not list((tmp_path / "storage" / "features").glob("*/*.safetensors"))


def test_the_store_used_longest_ago_makes_room_and_one_in_use_does_not(cohort, tmp_path, weights):
    trial, ids = config(weights), cohort[0].table["image_id"].to_numpy()
    size = store_of(frozen(job_in(tmp_path, cohort), trial))[0]
    one_size = sum(path.stat().st_size for path in size.iterdir())
    job = job_in(tmp_path, cohort, int(2.5 * one_size))
    looks = [AugmentedView(SIZE), AugmentedView(SIZE, 0.9), AugmentedView(SIZE, 0.8)]

    def stores():
        return {path.name for path in size.parent.iterdir() if path.is_dir()}

    second = frozen(job, trial).stored(ids, looks[1])
    assert len(stores()) == 2
    held = frozen(job, trial).stored(ids, looks[0])  # used last, and in use
    assert second is not None
    assert held is not None
    second.use.close()
    before = stores()
    assert frozen(job, trial).stored(ids, looks[2]) is not None
    assert size.name in stores()
    assert len(stores()) == len(before) == 2
    assert stores() != before
    assert np.isfinite(held.at(np.array([next(iter(held.parts))], object), np.array([0]))).all()


def test_a_waiting_trial_reads_what_the_first_one_stores(cohort, tmp_path, weights, monkeypatch, capsys):
    job, trial = job_in(tmp_path, cohort), config(weights)
    first, second = frozen(job, trial), frozen(job, trial)
    ids, look = cohort[0].table["image_id"].to_numpy(), AugmentedView(SIZE)
    key = stored_features.FeatureKey(cohort[1].name(), first.weights, trial.backbone, "fp32", look)
    place = first.storage.store(key)
    holder = contextlib.ExitStack()
    holder.enter_context(features.claim(place))
    seen = count_images(monkeypatch)

    def other_process_ends(seconds):
        for file in pd_unique(cohort[1]):
            shape = (len(cohort[1].images_in(file)), *second.shape)
            stored_features.write_part(place, key, cohort[1], file, np.zeros(shape, np.float16))
        holder.close()

    monkeypatch.setattr(features.time, "sleep", other_process_ends)
    found = second.stored(ids, look)
    assert all((part == 0).all() for part in found.parts.values())
    assert sum(seen) == 1  # for the shape
    assert "computes the features of test_resnet: waiting for them" in capsys.readouterr().out


def pd_unique(shards):
    return list(dict.fromkeys(shards.index()["file"]))


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5}, {"swa_start": 0.4}, {"fusion": "attention"}])
def test_a_trial_that_is_cut_goes_on_with_stored_features_as_if_it_had_not_been(options, cohort, tmp_path, weights):
    trial = config(weights, epochs=4, **options)
    whole, cut = job_in(tmp_path / "whole", cohort), job_in(tmp_path / "cut", cohort)
    train(whole, "T0000", trial, {}, lambda report: None)
    train_with_cuts(cut, trial)
    one, two = (load_file(f"{job.run.uri}/trials/T0000/fold-0/model.safetensors") for job in (whole, cut))
    for name, tensor in one.items():
        np.testing.assert_array_equal(two[name], tensor, err_msg=name)
    np.testing.assert_array_equal(*(outcome(job) for job in (whole, cut)))


def test_a_frozen_backbone_stays_in_every_bit(cohort, tmp_path, weights):
    """Its batch norm's statistics too, by averages over epochs that take those of trained layers anew."""
    spec = config(weights).spec()
    own = models.build(spec, ("Mass", "Nodule")).backbone
    load_pretrained(own, spec, models.build(spec, ("Mass", "Nodule")).recipe)
    for room in (ROOM, 0):
        job = job_in(tmp_path / str(room), cohort, room)
        for k, options in enumerate(({"swa_start": 0.2}, {"ema_decay": 0.9}, {})):
            train(job, f"T000{k}", config(weights, **options), {}, lambda report: None)
            after = load_file(f"{job.run.uri}/trials/T000{k}/fold-0/model.safetensors")
            for name, tensor in own.state_dict().items():
                assert torch.equal(after[f"backbone.{name}"], tensor), name


def test_what_cannot_be_stored_is_augmented_anew_in_every_epoch(cohort, tmp_path, weights, monkeypatch):
    for k, options in enumerate(({"feature_copies": None}, {"mix": "mixup"}, {"augment": 0.2, "tail_augment": 0.5})):
        job = job_in(tmp_path, cohort)
        seen = count_images(monkeypatch)
        train(job, f"T000{k}", config(weights, epochs=3, **options), {}, lambda report: None)
        training = (cohort[0].table["split"] == "train").sum()
        assert sum(seen) >= 3 * training
        monkeypatch.undo()


def test_a_trained_backbone_is_not_taken_for_a_frozen_one(cohort, tmp_path, weights):
    job = job_in(tmp_path, cohort)
    train(job, "T0000", config(weights, frozen_backbone=False), {}, lambda report: None)
    assert not (tmp_path / "storage" / "features").exists()


def one_of_two(rank, job, trial, seen):
    """A process of a gloo group, as a Train worker is one."""
    import ray.train.torch

    ray.train.torch.get_device = lambda: torch.device("cpu")
    before = models.Classifier.features

    def counted(self, pixels):
        with seen.get_lock():
            seen.value += len(pixels) * (pixels.device.type != "meta")  # where operations are counted
        return before(self, pixels)

    models.Classifier.features = counted
    with process_group(rank, f"{job.run.uri}/meeting"):
        train(job, "T0000", trial, {}, lambda report: None)


@pytest.mark.parametrize("options", [{}, {"fusion": "attention", "tta": "flip"}])
def test_two_workers_share_the_work_and_come_to_the_same(options, cohort, tmp_path, weights):
    context = multiprocessing.get_context("spawn")
    outcomes, counts = [], []
    for room in (ROOM, 0):
        job = job_in(tmp_path / str(room), cohort, room, workers=2)
        seen = context.Value("i", 0)
        run_two(one_of_two, job, config(weights, batch_size=4, lr=1e-3, patience=3, **options), seen)
        outcomes.append(outcome(job))
        counts.append(seen.value)
    np.testing.assert_allclose(*outcomes, atol=5e-3)
    scored = (cohort[0].table["split"] != "test").sum()
    more = (cohort[0].table["split"] == "val").sum() if "tta" in options else 0
    assert counts[0] <= scored + more + 4  # a look or two of each worker's at the shape
    assert counts[1] > 2 * counts[0]


def test_a_stage_of_a_whole_epoch_reads_no_pixels(cohort, tmp_path, weights, monkeypatch):
    job, trial = job_in(tmp_path, cohort, ingest=Ingest(threads=1)), config(weights, epochs=2)
    training = images_of(cohort[0].of_split("train"), job.findings)
    model = models.build(trial.spec(), job.findings)
    stage = train_stage(job, trial, model, training, 0, features_clock())
    next(stage)
    monkeypatch.setattr("cxrlt_ray.data.stream.decoded", lambda content: pytest.fail("an image was decoded"))
    epoch = next(stage)
    assert epoch.number == 1
    assert epoch.images_per_second > 0


def features_clock():
    from cxrlt_ray.training.clock import Clock

    return Clock()


def test_one_command_removes_stored_features_but_those_in_use(cohort, tmp_path, weights, capsys):
    job, trial = job_in(tmp_path, cohort), config(weights)
    folder, held = store_of(frozen(job, trial))
    arguments = {"storage": str(tmp_path / "storage"), "forget_features": True}
    trials.main(**arguments)
    assert "0 stores of features removed" in capsys.readouterr().out
    assert folder.exists()
    held.use.close()
    trials.main(**arguments)
    assert "1 stores of features removed" in capsys.readouterr().out
    assert not folder.exists()
    assert (tmp_path / "storage" / "shards").exists()


@pytest.mark.parametrize("name", ["team_a", "team_e", "team_g"])
def test_the_published_systems_frozen_stages_store_features_by_default(name):
    stages = [stage for kind in load_space(name).kinds() for stage in kind.staged()]
    assert any(stage.frozen_backbone for stage in stages)
    assert all((stage.frozen_copies is not None) == stage.frozen_backbone for stage in stages)
