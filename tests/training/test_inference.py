"""Scoring: one loop for validation, test and new images; heartbeats; workers share the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import write_images
from small_job import job_in

from cxrlt_ray import models
from cxrlt_ray.data.manifest import codes
from cxrlt_ray.data.prepare import prepare
from cxrlt_ray.data.stream import Ingest
from cxrlt_ray.ensembling.score import Scorer, member, score
from cxrlt_ray.errors import Diverged, UsageError
from cxrlt_ray.runs.predictions import read_predictions
from cxrlt_ray.runs.store import read_trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.training import heartbeat, stage, validation, workers
from cxrlt_ray.training import trial as trial_module
from cxrlt_ray.training.clock import Clock
from cxrlt_ray.training.inference import Member, augmented_batches, augmented_views, infer, plain_batches
from cxrlt_ray.training.job import images_of
from cxrlt_ray.training.workers import Worker

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cohort(ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    manifest = write_images(folder / "images", 30)
    manifest.table["study_id"] = [f"s{k // 3}" for k in range(30)]
    return manifest, prepare(manifest, str(folder), [32], say=lambda text: None)


@pytest.fixture
def images(cohort):
    return images_of(cohort[0], cohort[0].findings)


def classifier(fusion="none"):
    torch.manual_seed(0)
    return models.build(
        models.ModelSpec("test_convnext", 32, pretrained=False, fusion=fusion), ("Mass", "Nodule")
    ).eval()


@pytest.fixture
def beats():
    counted = []
    heartbeat.listen(lambda: counted.append(1))
    yield counted
    heartbeat.listen(None)


def test_every_forward_pass_under_augmentation_is_a_sign_of_life(cohort, images, beats):
    views = augmented_views(32, 1.0, "crops+flip")
    stream = augmented_batches(cohort[1][0], images, views, CPU)
    infer([Member([classifier()] * 2, views)], stream, (30, 2), CPU)
    assert len(views) == 12
    assert len(beats) == 12 * 2


def test_a_trial_that_scores_under_augmentation_sends_heartbeats_while_it_does(cohort, tmp_path, beats, monkeypatch):
    """A long one was taken for hung and killed."""
    at = []
    scored = trial_module.score_augmented

    def watched(trial):
        before = len(beats)
        scored(trial)
        at.append(len(beats) - before)

    monkeypatch.setattr(trial_module, "score_augmented", watched)
    config = TrialConfig(backbone="test_convnext", pretrained=False, resolution=32, epochs=1, tta="flip+zooms")
    trial_module.train(job_in(tmp_path, cohort), "T0000", config, {}, lambda report: None)
    assert at[0] >= 1 + 6


def test_a_model_scores_validation_test_and_new_images_at_the_trials_own_precision(cohort, images, tmp_path):
    config = TrialConfig(
        backbone="test_convnext", pretrained=False, resolution=32, epochs=1, precision="bf16", tta="flip", batch_size=32
    )
    job = job_in(tmp_path, cohort)
    trial_module.train(job, "T0000", config, {}, lambda report: None)
    trial = read_trial(job.run / "trials" / "T0000")
    assert trial.record.precision == "bf16"
    for split in ("val", "val-tta"):
        stored = read_predictions(
            trial.store, f"predictions/{split}.parquet", trial.record.findings, split, trial.record.fingerprint
        )
        assert stored.precision == "bf16"
    scorer = Scorer(cohort[1][0], [member(trial)])
    assert scorer.precision == "bf16"
    study, view = codes(cohort[0].table)
    item = {"file": ["x"], "image_id": [images.image_id.tolist()], "study": [study.tolist()], "view": [view.tolist()]}
    scores = dict(zip(images.image_id, scorer(item)["scores"][:, 0], strict=True))
    kept = trial.predictions()
    found = np.stack([scores[i] for i in kept.index])
    model = models.load(tmp_path / "trials" / "T0000" / "fold-0")[0].eval()
    pixels = plain_batches(cohort[1][0], images, augmented_views(32, 1.0)[0], 64, CPU)
    exact = infer([Member([model], augmented_views(32, 1.0), "fp32")], pixels, (30, 2), CPU)[:, 0]
    exact = np.stack([dict(zip(images.image_id, exact, strict=True))[i] for i in kept.index])
    np.testing.assert_allclose(found, kept.to_numpy(), atol=1e-6)  # the same loop, the same precision
    assert np.abs(exact - kept.to_numpy()).max() > 1e-6  # in fp32 they would be others


@pytest.mark.parametrize("fusion", ["none", "attention"])
@pytest.mark.parametrize("tta", ["none", "flip"])
def test_workers_share_the_images_and_together_score_what_one_would(cohort, images, fusion, tta):
    model, views, shards = classifier(fusion), augmented_views(32, 1.0, tta), cohort[1][0]

    def scored(rank, world):
        if tta == "none":
            stream = plain_batches(shards, images, views[0], 8, CPU, None, fusion != "none", rank, world)
        else:
            stream = augmented_batches(shards, images, views, CPU, rank=rank, world=world)
        return infer([Member([model], views)], stream, (30, 2), CPU)[:, 0]

    whole, parts = scored(0, 1), [scored(rank, 3) for rank in range(3)]
    done = np.stack([~np.isnan(part).any(axis=1) for part in parts])
    assert (done.sum(axis=0) == 1).all()  # each image by one worker
    assert done.sum(axis=1).max() <= 14
    for study in np.unique(images.study):
        assert fusion == "none" or len({done[:, row].argmax() for row in np.flatnonzero(images.study == study)}) == 1
    np.testing.assert_allclose(np.nansum(np.stack(parts), axis=0), whole, atol=1e-5)


def test_workers_put_their_scores_together_and_images_that_nobody_scored_stay_unknown(monkeypatch):
    mine = np.array([[0.25, 0.5], [np.nan, np.nan], [np.nan, np.nan]], np.float32)
    other = np.array([[np.nan, np.nan], [1.0, 0.0], [np.nan, np.nan]], np.float32)
    turns = iter([np.nan_to_num(other), ~np.isnan(other)])
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda tensor: tensor.add_(torch.from_numpy(next(turns) * 1.0))
    )
    both = workers.joined(mine, Worker(0, 2, CPU))
    np.testing.assert_array_equal(both, [[0.25, 0.5], [1.0, 0.0], [np.nan, np.nan]])


def test_predictions_that_are_not_finite_end_the_scoring(cohort, images):
    model = classifier()
    with torch.no_grad():
        next(model.head.parameters()).fill_(float("nan"))
    view = augmented_views(32, 1.0)[0]
    with pytest.raises(Diverged, match="the model's predictions are not finite"):
        infer([Member([model], (view,))], plain_batches(cohort[1][0], images, view, 8, CPU), (30, 2), CPU)


def test_folds_and_views_are_averaged_alike(cohort, images):
    one, two = classifier(), classifier("attention")
    views = augmented_views(32, 0.9, "flip")
    scored = lambda models, views: infer(  # noqa: E731
        [Member(models, views)], augmented_batches(cohort[1][0], images, views, CPU), (30, 2), CPU
    )[:, 0]
    alone = [scored([model], (view,)) for model in (one, two) for view in views]
    np.testing.assert_allclose(scored([one, two], views), np.mean(alone, axis=0), atol=1e-6)


def test_a_shard_that_ray_data_cuts_into_blocks_loses_no_image(ray, cohort, tmp_path, monkeypatch):
    """Its first blocks were written over by its last."""
    job = job_in(tmp_path, cohort)
    config = TrialConfig(backbone="test_convnext", pretrained=False, resolution=32, epochs=1)
    trial_module.train(job, "T0000", config, {}, lambda report: None)
    trial = read_trial(job.run / "trials" / "T0000")
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "target_max_block_size", 64)
    frame = score(Store(str(tmp_path / "work")), cohort[1], [member(trial)], cohort[0].table)
    assert sorted(frame.index) == sorted(cohort[0].table["image_id"])
    kept = trial.predictions()
    np.testing.assert_allclose(np.stack(frame.loc[kept.index, "scores"].to_list())[:, 0], kept.to_numpy(), atol=1e-6)


def test_streaming_through_ray_data_leaves_the_processs_own_settings(ray, cohort, images):
    context = ray.data.DataContext.get_current()
    before = (context.target_max_block_size, context.execution_options.preserve_order)
    view = augmented_views(32, 1.0)[0]
    list(plain_batches(cohort[1][0], images, view, 8, CPU, Ingest("ray")))
    assert (context.target_max_block_size, context.execution_options.preserve_order) == before


def test_a_model_that_diverges_on_one_worker_ends_all(cohort, images, tmp_path, monkeypatch):
    """The others would wait for its scores for ever, and the trial would be taken for hung."""
    config = TrialConfig(backbone="test_convnext", pretrained=False, resolution=32, epochs=1)
    monkeypatch.setattr(validation, "worker_of", lambda job: Worker(0, 2, CPU))
    monkeypatch.setattr(validation, "agree", lambda value, worker: False)  # as where the other one diverged
    with pytest.raises(Diverged, match="on another worker"):
        validation.predict_images(job_in(tmp_path, cohort), config, classifier(), images)


def test_fewer_images_than_workers_are_scored_and_not_trained_on(cohort, images, tmp_path, monkeypatch):
    few, view = images.at(np.arange(2)), augmented_views(32, 1.0)[0]
    shares = [plain_batches(cohort[1][0], few, view, 8, CPU, rank=rank, world=4) for rank in range(4)]
    assert sorted(row for share in shares for batch in share for row in batch.rows) == [0, 1]
    config = TrialConfig(backbone="test_convnext", pretrained=False, resolution=32, epochs=1)
    monkeypatch.setattr(stage, "worker_of", lambda job: Worker(0, 4, CPU))
    with pytest.raises(UsageError, match="2 training images are too few for 4 workers: give a trial fewer workers"):
        next(stage.train_stage(job_in(tmp_path, cohort), config, classifier(), few, 0, Clock()))
