"""Stages of objectives location and grounding: they learn, predict, go on after a cut, and show boxed images as is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_images
from cut_training import train_with_cuts
from safetensors.numpy import load_file
from text_models import VOCABULARY, bert_folder

from cxrlt_ray import models
from cxrlt_ray.data.image_boxes import ImageBoxes
from cxrlt_ray.data.prepare import prepare
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.runs.damage import damage
from cxrlt_ray.runs.store import read_trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.text.build import build_corpus
from cxrlt_ray.text.descriptions import place_names
from cxrlt_ray.training.clock import Clock
from cxrlt_ray.training.evidence import boxes_of, evidence_of
from cxrlt_ray.training.job import Job, manifest_of, training_images
from cxrlt_ray.training.stage import train_stage
from cxrlt_ray.training.streams import Streams, drawn
from cxrlt_ray.training.trial import train
from cxrlt_ray.training.workers import Worker

HEADS = {"location": "query_decoder", "grounding": "film", "stated_grounding": "film", "stated": "bilinear"}


@pytest.fixture(scope="module")
def cohort(ray, tmp_path_factory):
    """48 images of 64 px whose Mass is bright in the upper left quarter, in its box, and a text encoder."""
    folder = tmp_path_factory.mktemp("grounded")
    manifest = write_images(folder / "images", 48, size=64)
    table = manifest.table
    says = {0: "There is a mass in the left upper lobe.", 1: "There is no mass."}
    lines = [f"{row.study_id},{says[0 if row.Mass else 1]}" for row in table.itertuples()]
    (folder / "reports.csv").write_text("\n".join(["study_id,text", *lines]) + "\n")
    words = list(
        dict.fromkeys([*VOCABULARY, *" ".join(place_names()).lower().split(), "it", "located", "at", "mass", "nodule"])
    )
    bert = bert_folder(folder / "bert", words=words, embeddings=len(words), positions=256)
    return manifest, prepare(manifest, str(folder), [64], say=lambda text: None), str(folder / "reports.csv"), str(bert)


def job_in(folder, cohort):
    manifest, shards, reports, _ = cohort
    run = Store(str(folder))
    with run.place("manifest.parquet") as path:
        manifest.write(path)
    build_corpus(reports, manifest, run)
    ids = manifest.table.loc[manifest.table["Mass"] == 1, "image_id"]
    edges = dict.fromkeys(("left", "top"), 0.0) | dict.fromkeys(("right", "bottom"), 0.5)
    ImageBoxes(pd.DataFrame({"image_id": ids, "finding": "Mass", **edges}), "drawn").write(run)
    return Job(run, shards, manifest.findings, manifest.fingerprint, threads=1, corpus=True, boxes=True)


def config(cohort, objective, **options):
    plain = {"backbone": "test_convnext", "pretrained": False, "resolution": 64, "epochs": 2, "batch_size": 8}
    plain |= {"objective": objective, "head": HEADS[objective], "text": cohort[3], "lr": 3e-3, "flip": 0.0}
    if objective == "location":
        plain |= {"query_layers": 1, "query_width": 64, "query_outputs": 2}
    return TrialConfig(**{**plain, **options})


@pytest.mark.parametrize("objective", HEADS)
def test_a_trial_learns_predicts_and_leaves_a_classifier(objective, cohort, tmp_path):
    job = job_in(tmp_path, cohort)
    train(job, "T0000", config(cohort, objective, epochs=6), {}, lambda report: None)
    stored = read_trial(job.run / "trials" / "T0000")
    assert (stored.state, stored.record.metric.name) == ("finished", "val_map")
    losses = [epoch.loss for epoch in stored.record.epochs]
    assert losses[-1] < losses[0]
    assert damage(stored) == ""
    predictions = stored.predictions()
    assert predictions.columns.tolist() == ["Mass", "Nodule"]
    names = load_file(f"{job.run.uri}/trials/T0000/fold-0/model.safetensors")
    assert not any("project" in name or name.startswith("places") for name in names)


@pytest.mark.parametrize("objective", HEADS)
def test_a_trial_that_is_cut_goes_on_as_if_it_had_not_been(objective, cohort, tmp_path):
    trial = config(cohort, objective, epochs=3)
    train(job_in(tmp_path / "whole", cohort), "T0000", trial, {}, lambda report: None)
    train_with_cuts(job_in(tmp_path / "cut", cohort), trial)
    one, two = (load_file(tmp_path / at / "trials/T0000/fold-0/model.safetensors") for at in ("whole", "cut"))
    for name, tensor in one.items():
        np.testing.assert_array_equal(two[name], tensor, err_msg=name)


def test_boxes_bring_the_attention_into_themselves_though_the_sign_is_elsewhere(cohort, tmp_path):
    job, inside = job_in(tmp_path, cohort), {}
    table = boxes_of(job.run).table.assign(left=0.0, top=0.5, right=0.5, bottom=1.0)
    training = training_images(manifest_of(job.run), job, 0)
    for weight in (0.0, 5.0):
        again = replace(job, run=Store(str(tmp_path / f"{weight:g}")))
        again.run.write("corpus.parquet", job.run.read("corpus.parquet"))
        ImageBoxes(table, "drawn").write(again.run)
        trial = config(cohort, "grounding", epochs=8, lr=1e-2, objective_settings={"grounding_boxes": weight})
        torch.manual_seed(0)
        model = models.build(trial.spec(), job.trained)
        *_, last = train_stage(again, trial, model, training, 0, Clock())
        image = torch.full((1, 64, 64), 80, dtype=torch.uint8)
        image[:, :32, :32] += 100
        with torch.no_grad():
            maps = last.model.eval().with_maps(image)[1][0, 0]
        half = len(maps) // 2
        inside[weight] = float(maps[half:, :half].mean() - maps[:half].mean())
    assert inside[5.0] > inside[0.0] + 0.2, inside


def test_images_with_boxes_are_shown_as_they_are_and_the_others_augmented(cohort, tmp_path):
    job = job_in(tmp_path, cohort)
    trial = config(cohort, "grounding", flip=1.0, augment=0.5, crop=0.8)
    training = training_images(manifest_of(job.run), job, 0)
    needs = find_objective("grounding").needs
    made = find_objective("grounding")(
        trial.objective_spec(), training.targets, None, evidence_of(job, training, needs, 0)
    )
    unchanged = training.image_id[made.unchanged()]
    assert set(unchanged) == set(training.image_id[training.targets[:, 0] == 1])
    alone = Worker(0, 1, torch.device("cpu"))
    streams = Streams(job, trial, training, made.table(), 0, alone, needs, unchanged=unchanged)
    plain = replace(streams, config=trial.model_copy(update={"flip": 0.0, "augment": 0.0}), unchanged=training.image_id)
    shown = drawn(trial, training, 0, 0)
    for (inputs, targets), (same, _) in zip(streams.epoch(shown, 0), plain.epoch(shown, 0), strict=True):
        boxed = targets[0][1][:, 0] == 1
        equal = (inputs[0] == same[0]).flatten(1).all(dim=1)
        assert torch.equal(equal, boxed)


def test_places_come_from_reports_where_a_run_has_any(cohort, tmp_path):
    job = job_in(tmp_path, cohort)
    training = training_images(manifest_of(job.run), job, 0)
    trial, needs = config(cohort, "location"), find_objective("location").needs
    for corpus in (True, False):
        known = replace(job, corpus=corpus)
        images = training_images(manifest_of(job.run), known, 0)
        made = find_objective("location")(
            trial.objective_spec(), images.targets, None, evidence_of(known, images, needs, 0)
        )
        numbers = made.table()[:, 2]
        assert len(set(numbers[images.targets[:, 0] == 1]) ^ set(numbers[images.targets[:, 0] == 0])) == 2 * corpus
    assert len(training) == 24
