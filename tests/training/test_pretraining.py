"""Contrastive stages: what a batch holds, what they leave to the next stage, and how they go on after a cut."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_images
from cut_training import train_with_cuts
from safetensors.numpy import load_file
from text_models import bert_folder

from cxrlt_ray import models
from cxrlt_ray.data.prepare import prepare
from cxrlt_ray.data.sampling import study_partners
from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.runs.damage import damage
from cxrlt_ray.runs.store import read_trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.text.build import build_corpus
from cxrlt_ray.text.corpus import KINDS, Corpus
from cxrlt_ray.text.encoder_spec import POOLINGS, TUNINGS, TextSpec
from cxrlt_ray.text.encoders import TextEncoder
from cxrlt_ray.training.job import Job, corpus_of, manifest_of, training_images, validation_images
from cxrlt_ray.training.streams import Streams, drawn, validation_batches
from cxrlt_ray.training.texts import text_draws, text_numbers, with_reports
from cxrlt_ray.training.trial import train
from cxrlt_ray.training.workers import Worker

ALONE = Worker(0, 1, torch.device("cpu"))
OBJECTIVES = ("clip", "siglip", "simclr", "moco", "mama")
SMALL = {
    "clip": {"clip_width": 16},
    "siglip": {"siglip_width": 16},
    "simclr": {"simclr_width": 16},
    "moco": {"moco_width": 16, "moco_queue": 32, "moco_momentum": 0.9},
    "mama": {"mama_width": 16, "mama_start": 3, "mama_queue": 32, "mama_momentum": 0.9},
}


@pytest.fixture(scope="module")
def cohort(ray, tmp_path_factory):
    """Images of studies of one to three, with reports that say what they show; one study in eight has none."""
    folder = tmp_path_factory.mktemp("pretraining")
    manifest = write_images(folder / "images", 96)
    table = manifest.table
    study = np.array([k // 8 * 4 + k % 4 if k % 3 else k // 8 * 4 + 4 * 96 + k % 4 for k in range(96)])
    table["study_id"] = [f"s{k}" for k in study]
    table["subject_id"] = table["study_id"]
    says = {}
    for row in table.itertuples():
        parts = [f"{'large' if row.Mass else 'no'} bulla.", f"{'scoliosis of spine' if row.Nodule else 'lung clear'}."]
        says[row.study_id] = " ".join(parts)
    lines = [f"{study},{text}" for k, (study, text) in enumerate(says.items()) if k % 8]
    (folder / "reports.csv").write_text("\n".join(["study_id,text", *lines]) + "\n")
    shards = prepare(manifest, str(folder), [32], say=lambda text: None)
    return manifest, shards, str(folder / "reports.csv"), str(bert_folder(folder / "bert"))


def job_in(folder, cohort, **options):
    manifest, shards, reports, _ = cohort
    run = Store(str(folder))
    with run.place("manifest.parquet") as path:
        manifest.write(path)
    build_corpus(reports, manifest, run)
    return Job(run, shards, manifest.findings, manifest.fingerprint, threads=1, corpus=True, **options)


def config(cohort, objective, **options):
    plain = {"backbone": "test_convnext", "pretrained": False, "resolution": 32, "epochs": 2, "batch_size": 16}
    plain |= {"objective": objective, "objective_settings": SMALL.get(objective, {}), "text": cohort[3], "flip": 0.0}
    return TrialConfig(**{**plain, "pool": "avg", "max_tokens": 32, "lr": 3e-3, "text_tuning": "tuned", **options})


def streams_of(job, trial, rank=0, world=1):
    """The streams of a stage as train_stage makes them, and its images."""
    objective = find_objective(trial.objective)(trial.objective_spec(), np.empty((0, 2)))
    training = with_reports(training_images(manifest_of(job.run), job, 0), objective.needs, trial.objective)
    objective.network(models.build(trial.spec(), job.trained))
    texts = text_draws(job, trial, objective, 0, trial.seed)
    table = np.empty((len(training), 0), np.float32)
    worker = Worker(rank, world, torch.device("cpu"))
    return Streams(job, trial, training, table, 0, worker, objective.needs, texts), training


def test_a_study_partner_is_another_image_of_the_study_and_a_lone_image_its_own():
    study = np.array([5, 2, 5, 9, 2, 5, 7])
    seen = {row: set() for row in range(7)}
    for seed in range(60):
        rows = np.arange(7)[::-1].copy()
        for row, partner in zip(rows, study_partners(study, rows, np.random.default_rng(seed)), strict=True):
            seen[int(row)].add(int(partner))
    assert seen == {0: {2, 5}, 2: {0, 5}, 5: {0, 2}, 1: {4}, 4: {1}, 3: {3}, 6: {6}}


def test_equal_texts_have_equal_numbers_and_an_empty_one_has_none():
    numbers = text_numbers(["no bulla", "", "large bulla", "no bulla"])
    assert numbers[0] == numbers[3] != numbers[2]
    assert numbers[1] == 0
    assert (numbers[[0, 2]] > 0).all()


def test_a_batch_holds_another_image_of_each_study_and_its_text(cohort, tmp_path):
    job, trial = job_in(tmp_path, cohort), config(cohort, "mama", augment=0.0)
    streams, training = streams_of(job, trial)
    assert 0 < len(training) < len(training_images(manifest_of(job.run), job, 0))  # those without report do not come
    assert (training.report >= 0).all()
    shown = drawn(trial, training, 0, 0)
    corpus, seen = corpus_of(job, 0), 0
    for inputs, targets in streams.epoch(shown, 0):
        first, second, study, _, mask, number = inputs
        assert first.shape == second.shape
        assert len({len(tensor) for tensor in inputs}) == 1
        assert targets[0][1].shape == (len(first), 0)
        for k, code in enumerate(study.tolist()):
            rows = np.flatnonzero(training.study == code)
            assert torch.equal(first[k], second[k]) == (len(rows) == 1)  # without augmentation
            text = corpus.draw(training.report[rows[:1]], "report", trial.seed, 0)
            assert int(number[k]) == int(text_numbers(text)[0])
            assert int(mask[k].sum()) >= len(text[0].split())
        seen += len(first)
    assert seen == len(training)


def test_two_workers_share_an_epochs_pairs_and_texts(cohort, tmp_path):
    job, trial = job_in(tmp_path, cohort), config(cohort, "mama", text_draw="sentence")
    whole, training = streams_of(job, trial)
    shown = drawn(trial, training, 1, 0)
    joined = [inputs for inputs, _ in whole.epoch(shown, 1)]
    parts = [list(streams_of(job, trial, rank, 2)[0].epoch(shown, 1)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(joined)
    for whole_batch, one, other in zip(joined, *parts, strict=True):
        for place in (2, 5):  # studies and texts; pixels are augmented by worker
            assert torch.equal(whole_batch[place], torch.cat([one[0][place], other[0][place]]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_contrastive_trial_learns_is_judged_by_its_own_metric_and_leaves_weights(objective, cohort, tmp_path):
    job, reports = job_in(tmp_path, cohort), []
    trial = config(cohort, objective, epochs=6, augment=0.1)
    train(job, "T0000", trial, {}, reports.append)
    stored = read_trial(job.run / "trials" / "T0000")
    name = "val_view_mrr" if objective in ("simclr", "moco") else "val_mrr"
    assert (stored.state, stored.record.metric.name, stored.record.metric.mode) == ("finished", name, "max")
    assert [set(report) for report in reports] == [{name, "epoch", "images_per_second"}] * 6
    assert all(0 < epoch.score <= 1 for epoch in stored.record.epochs)
    assert not stored.has_predictions()
    assert damage(stored) == ""
    if objective not in ("moco", "mama"):  # whose losses begin smaller: a queue that fills, terms that wait
        losses = [epoch.loss for epoch in stored.record.epochs]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("objective", ["clip", "moco", "mama"])
def test_a_trial_that_is_cut_in_pretraining_goes_on_as_if_it_had_not_been(objective, cohort, tmp_path):
    stages = ({"epochs": 3, "objective": objective, **SMALL[objective]}, {"epochs": 1, "objective": "multilabel"})
    trial = config(
        cohort, "multilabel", stages=stages, text_draw="sentence", text_tuning="frozen", objective_settings={}
    )
    train(job_in(tmp_path / "whole", cohort), "T0000", trial, {}, lambda report: None)
    train_with_cuts(job_in(tmp_path / "cut", cohort), trial)
    one, two = (load_file(tmp_path / at / "trials/T0000/fold-0/model.safetensors") for at in ("whole", "cut"))
    for name, tensor in one.items():
        np.testing.assert_array_equal(two[name], tensor, err_msg=name)
    one, two = (read_trial(Store(str(tmp_path / at / "trials/T0000"))).record for at in ("whole", "cut"))
    assert [epoch.score for epoch in one.epochs] == [epoch.score for epoch in two.epochs]
    assert one.metric.name == "val_map"
    assert one.score is not None


@pytest.mark.parametrize("objective", ["siglip", "mama"])
def test_a_head_that_compares_goes_on_from_the_space_of_the_contrast(objective, cohort, tmp_path):
    width = {**SMALL[objective], f"{objective}_width": 512}
    given = {"head": "similarity", "text_tuning": "frozen", "objective_settings": {}}
    stages = ({"epochs": 1, "objective": objective, **width}, {"epochs": 1, "objective": "multilabel", "lr": 1e-9})
    trial = config(cohort, "multilabel", stages=stages, **given)
    train(job_in(tmp_path / "whole", cohort), "T0000", trial, {}, lambda report: None)
    train_with_cuts(job_in(tmp_path / "cut", cohort), trial)
    trial = config(cohort, objective, epochs=1, **{**given, "objective_settings": width})
    train(job_in(tmp_path / "contrast", cohort), "T0000", trial, {}, lambda report: None)
    weights = {
        at: load_file(tmp_path / at / "trials/T0000/fold-0/model.safetensors") for at in ("whole", "cut", "contrast")
    }
    for name in ("head.embed.weight", "head.ask.weight", "head.log_scale"):
        np.testing.assert_array_equal(weights["cut"][name], weights["whole"][name])
        np.testing.assert_allclose(weights["contrast"][name], weights["whole"][name], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_encoder_reads_each_text_once_for_all_epochs_and_trials(kind, cohort, tmp_path, monkeypatch):
    job = job_in(tmp_path, cohort)
    trial = config(cohort, "clip", text_tuning="frozen", text_draw=kind)
    read = []
    forward = TextEncoder.forward
    monkeypatch.setattr(TextEncoder, "forward", lambda self, tokens: read.append(tokens.ids) or forward(self, tokens))
    train(job, "T0000", trial, {}, lambda report: None)
    first = len(read)
    train(job, "T0001", trial, {}, lambda report: None)
    assert len(read) == first
    rows = [tuple(row.tolist()) for ids in read for row in ids]
    assert len(rows) == len(set(rows))  # none of these texts differ in words that the vocabulary lacks
    one, two = (read_trial(job.run / "trials" / name).record for name in ("T0000", "T0001"))
    assert [epoch.score for epoch in one.epochs] == [epoch.score for epoch in two.epochs]


def test_stored_vectors_are_what_the_encoder_gives(cohort, tmp_path):
    job, trial = job_in(tmp_path, cohort), config(cohort, "clip", text_tuning="frozen", text_draw="sentence")
    training = with_reports(training_images(manifest_of(job.run), job, 0), find_objective("clip").needs, "clip")
    objective = find_objective("clip")(trial.objective_spec(), np.empty((0, 2)))
    network = objective.network(models.build(trial.spec(), job.trained))
    plain = objective.tokenize
    draws, texts = {}, corpus_of(job, 0).draw(training.report, "sentence", 0, 1)
    draws["tokens"] = network.text(*plain(texts))
    text_draws(job, trial, objective, 0, 0)
    vectors, mask = objective.tokenize(texts)
    assert vectors.dtype == torch.float32
    assert len(vectors) == len(mask) == len(texts)
    torch.testing.assert_close(network.text(vectors, mask), draws["tokens"], rtol=1e-2, atol=2e-3)  # half precision


def test_second_wordings_are_drawn_as_often_as_asked_in_training_and_never_where_trials_are_judged(
    cohort, tmp_path, monkeypatch
):
    job = job_in(tmp_path, cohort)
    others = pd.read_csv(cohort[2]).assign(text="In other words.")
    others.to_csv(tmp_path / "other.csv", index=False)
    build_corpus(cohort[2], cohort[0], job.run, second=str(tmp_path / "other.csv"))
    drawn_texts = []
    draw = Corpus.draw
    monkeypatch.setattr(
        Corpus, "draw", lambda *given, **named: drawn_texts.extend(texts := draw(*given, **named)) or texts
    )
    for share in (0.5, 0.0):
        trial = config(cohort, "clip", text_tuning="frozen", text_reworded=share)
        streams, training = streams_of(job, trial)
        for epoch in range(4):
            list(streams.epoch(drawn(trial, training, epoch, 0), epoch))
        assert np.mean([text == "In other words." for text in drawn_texts]) == pytest.approx(share, abs=0.15)
        drawn_texts.clear()
        objective = find_objective("clip")(trial.objective_spec(), np.empty((0, 2)))
        objective.network(models.build(trial.spec(), job.trained))
        judged = validation_images(manifest_of(job.run), job, 0)
        list(validation_batches(job, trial, judged, objective, 0))
        assert drawn_texts
        assert "In other words." not in drawn_texts
        drawn_texts.clear()


def test_what_does_not_fit_an_objective_is_refused_in_a_sentence(cohort):
    for options, words in (
        ({"fusion": "attention"}, "takes a study's text beside an image: leave fusion and mix at none"),
        ({"mix": "mixup"}, "takes a study's text beside an image: leave fusion and mix at none"),
        ({"text": None}, "reads texts: give it a text encoder, such as `text: minilm`"),
        ({"compile": "on"}, "leave compile at auto"),
        ({"lora_targets": "query"}, "has text_tuning: tuned, which has no use for lora_targets"),
        ({"head": "similarity"}, "gives head similarity its space.* leave text_tuning at frozen, not tuned"),
        (
            {"head": "similarity", "text_tuning": "frozen", "text_pooling": "cls"},
            "leave text_pooling at auto, not cls",
        ),
        (
            {"head": "similarity", "text_tuning": "frozen", "queries": "labels.npz"},
            "give `text` and `prompts`, not queries",
        ),
        ({"head": "similarity", "text_tuning": "frozen", "pool": "gem"}, "take `pool: avg`, not gem"),
    ):
        with pytest.raises(ValueError, match=words):
            config(cohort, "clip", **options)
    with pytest.raises(ValueError, match="mama compares patches: take `pool: avg`"):
        config(cohort, "mama", pool="own")
    with pytest.raises(ValueError, match="mama compares patches: take `pool: avg`"):
        config(cohort, "mama", pool="own", head="similarity", text_tuning="frozen")
    stages = ({"epochs": 1}, {"epochs": 1, "objective": "zero_shot", "pool": "own"})
    with pytest.raises(ValueError, match="has the space of the stage before: leave pool at avg, not own"):
        config(cohort, "clip", head="similarity", text_tuning="frozen", stages=stages)
    with pytest.raises(ValueError, match="simclr takes another image of a study beside an image"):
        config(cohort, "simclr", mix="mixup")


def test_a_configuration_takes_what_encoders_and_corpora_know():
    for field, known in (("text_draw", KINDS), ("text_pooling", POOLINGS), ("text_tuning", TUNINGS)):
        assert set(get_args(TrialConfig.model_fields[field].annotation)) == set(known)
    given = TrialConfig(
        backbone="test_convnext", resolution=32, epochs=1, objective="clip", text="minilm", text_tuning="lora",
        lora_rank=4, lora_targets="query+value", max_tokens=64,
    )  # fmt: skip
    expected = TextSpec("minilm", tuning="lora", lora_rank=4, lora_targets=("query", "value"), max_tokens=64)
    assert given.objective_spec().text_spec() == expected


def test_a_run_without_reports_is_told_where_to_give_them(cohort, tmp_path):
    job = job_in(tmp_path, cohort)
    silent = Job(job.run, job.shards, job.findings, job.fingerprint, threads=1)
    with pytest.raises(UsageError, match=r"objective clip reads texts, but none of 48 images.*--reports PATH"):
        train(silent, "T0000", config(cohort, "clip"), {}, lambda report: None)
    assert validation_images(manifest_of(job.run), silent, 0).report is None
