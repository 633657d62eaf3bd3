"""predict --ask: an ensemble's own findings by their outputs, others by text, of the members that can be asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drawn_run import FINDINGS, make_run

from cxrlt_ray.data.asking import names_in
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.ensembling import score
from cxrlt_ray.ensembling.apply import Ensemble
from cxrlt_ray.ensembling.asked import Asked, answers, ask
from cxrlt_ray.ensembling.request import PredictRequest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models import ModelSpec, build, save
from cxrlt_ray.models.asking import asked as asked_model
from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.text import embeddings
from cxrlt_ray.text.descriptions import KEPT
from cxrlt_ray.training.inference import PixelBatch

torch.set_num_threads(1)
SPECS = [
    ModelSpec("test_convnext", 32, pretrained=False, head="pair", text="letters"),
    ModelSpec("test_convnext", 32, pretrained=False),
    ModelSpec("test_convnext", 32, pretrained=False, head="query_text", text="letters", prompts="keywords"),
]
WEIGHTS = np.array([[0.5, 0.2, 0.2], [0.5, 0.5, 0.5], [0.0, 0.3, 0.3]])


def embedded(texts, spec, folder):
    return np.array([[1 + text.lower().count(letter) for letter in "aeiou"] for text in texts], np.float32)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run's trials with models: two that read texts, and one that does not."""
    monkeypatch.setattr(embeddings, "embedded", embedded)
    run, manifest = make_run(tmp_path)
    trials = run.trials()
    for trial, spec in zip(trials, SPECS, strict=True):
        torch.manual_seed(0)
        save(build(spec, FINDINGS), spec, FINDINGS, Path(trial.store.uri) / "fold-0")
    return run, manifest, trials


def test_own_findings_answer_themselves_and_others_are_asked_of_members_that_read_texts(made):
    lines: list[str] = []
    asked = ask(made[2], FINDINGS, WEIGHTS, ("Bulla", "mass"), say=lines.append)
    assert asked is not None
    assert asked.findings == ("Bulla",)
    np.testing.assert_allclose(asked.weights, [0.6, 0, 0.4])
    assert [rows is None for rows in asked.embeddings] == [False, True, False]
    assert not np.allclose(asked.embeddings[0], asked.embeddings[2])  # each member's own prompts
    assert lines[0] == "mass: the members were trained on Mass, so that its own output answers, not its text"
    assert lines[1].startswith("Not asked: T0001: head 'linear' knows its findings by their place, not by text")
    assert "Bulla: asked by text of 2 of 3 members" in lines[2]
    assert ask(made[2], FINDINGS, WEIGHTS, ("EDEMA", "Mass"), say=lines.append) is None
    assert ask(made[2], ("Pneumoperitoneum",), WEIGHTS[:, :1], ("pneumoperitoneo",), say=lines.append) is None
    assert "trained on Pneumoperitoneum" in lines[-1]  # an alias of it
    with pytest.raises(UsageError, match="names Pneumoperitoneum and pneumoperitoneo, which is one"):
        ask(made[2], ("Pneumoperitoneum",), WEIGHTS[:, :1], ("Pneumoperitoneum", "pneumoperitoneo"))
    ask(made[2], FINDINGS, WEIGHTS, ("mass",), say=lines.append, track="scrubbed")  # of a run that asked for Mass
    assert lines[-1] == "mass: the members were chosen to answer for Mass by text (track scrubbed), as they do here"


def test_a_member_is_asked_by_the_descriptions_that_its_run_has_kept_and_by_the_users_before_those(made, tmp_path):
    run, _, trials = made
    content = "finding: Sail Sign\nnames: [{}]\nappearance: A {}.\nkeywords: [{}, spine, heart]\n"
    run.store.write(KEPT, content.format(*["sail"] * 3).encode())
    rows = {}
    for name in ("sail", "ooo"):
        (tmp_path / "own.yaml").write_text(content.format(*[name] * 3))
        given = str(tmp_path / "own.yaml")
        rows[name] = ask(trials, FINDINGS, WEIGHTS, ("Sail Sign",), given, say=lambda line: None).embeddings[2]
    kept = ask(trials, FINDINGS, WEIGHTS, ("Sail Sign",), say=lambda line: None)
    np.testing.assert_array_equal(kept.embeddings[2], rows["sail"])
    assert not np.allclose(rows["ooo"], rows["sail"])


def test_nobody_to_ask_and_names_that_are_none_are_told(made):
    with pytest.raises(UsageError, match="no member of this ensemble can be asked for Bulla: T0001: head 'linear'"):
        ask(made[2][1:2], FINDINGS, WEIGHTS[1:2], ("Bulla",))
    with pytest.raises(UsageError, match="finding 'Sail Sign' has no description"):
        ask(made[2], FINDINGS, WEIGHTS, ("Sail Sign",), say=lambda line: None)
    for text, message in ((" ,", "it was given none"), ("Bulla,Mass,bulla", "names Bulla and bulla, which is one")):
        with pytest.raises(UsageError, match=message):
            names_in(text)
    with pytest.raises(UsageError, match="finding '=1\\+1': begins with"):
        ask(made[2], FINDINGS, WEIGHTS, ("=1+1",))
    with pytest.raises(UsageError, match="--ask-descriptions goes with --ask"):
        PredictRequest(ensemble="e", data="d", ask_descriptions="own.yaml")
    with pytest.raises(UsageError, match="--maps goes with --ask"):
        PredictRequest(ensemble="e", data="d", maps="pictures")


def test_an_encoder_that_is_no_longer_the_same_is_told(made, monkeypatch):
    lines: list[str] = []
    other = lambda *given: embedded(*given)[:, ::-1]  # noqa: E731
    monkeypatch.setattr(embeddings, "embedded", other)
    ask(made[2], FINDINGS, WEIGHTS, ("Bulla",), say=lines.append)
    assert any("T0000: the texts of" in line and "answers by text may be off" in line for line in lines)
    monkeypatch.setattr(embeddings, "embedded", lambda *given: embedded(*given)[:, :4])
    with pytest.raises(CxrltError, match="'letters' gives 4 numbers a text, T0000 was trained with 5"):
        ask(made[2], FINDINGS, WEIGHTS, ("Bulla",), say=lines.append)


@pytest.mark.parametrize("space", ["probability", "logit", "rank"])
def test_asking_leaves_the_ensembles_own_scores_and_weighs_those_that_are_asked(made, monkeypatch, space):
    run, manifest, trials = made
    images = manifest.table.iloc[:6]
    members = [
        {"trial": trial.name, "checkpoints": {}, "weights": dict(zip(FINDINGS, row, strict=True)), "tta": False}
        for trial, row in zip(trials, WEIGHTS.tolist(), strict=True)
    ]
    content = {"version": 2, "members": members, "space": space, "task": Task("mine", FINDINGS), "aggregation": "max"}
    drawn = np.random.default_rng(0).random((6, 3, 5)).astype(np.float32)

    def scored(work, shards, members, images):
        count = len(FINDINGS) + members[0].more
        return pd.DataFrame({"scores": list(drawn[:, :, :count])}, index=pd.Index(images["image_id"]))

    monkeypatch.setattr(score, "score", scored)
    ensemble = Ensemble(EnsembleRecord.parse(content, "ensemble.json"), trials)
    rows = np.ones((2, 5), np.float32)
    asked = Asked(("Bulla", "Hilum"), (rows, None, rows), np.array([0.6, 0.0, 0.4]))
    both = ensemble.score(run.store, (), images, asked)
    assert both.shape == (6, 5)
    np.testing.assert_array_equal(both[:, :3], ensemble.score(run.store, (), images))
    without = drawn.copy()
    without[:, 1, 3:] = 0.5  # a member that cannot be asked has no say
    drawn[:] = without
    np.testing.assert_array_equal(ensemble.score(run.store, (), images, asked), both)
    if space == "probability":
        by_member = drawn[:, :, 3:].reshape(3, 2, 3, 2).max(axis=1).repeat(2, axis=0)  # studies of two images
        np.testing.assert_allclose(both[:, 3:], 0.6 * by_member[:, 0] + 0.4 * by_member[:, 2], rtol=1e-5)
    table = answers(both, FINDINGS, asked, ("Hilum", "edema", "Bulla"))
    np.testing.assert_array_equal(table, both[:, [4, 2, 3]])


def test_pictures_are_drawn_by_the_heaviest_member_that_has_maps(tmp_path, monkeypatch):
    from cxrlt_ray.ensembling import maps

    monkeypatch.setattr(embeddings, "embedded", embedded)
    run, manifest = make_run(tmp_path)
    film = dataclasses.replace(SPECS[0], head="film", backbone="test_resnet", resolution=64)
    trials = run.trials()
    for trial, spec in zip(trials, (SPECS[1], film, film), strict=True):
        save(build(spec, FINDINGS), spec, FINDINGS, Path(trial.store.uri) / "fold-0")
    assert maps.mapping_member(trials, WEIGHTS) == 1
    with pytest.raises(UsageError, match="--maps needs a member with head film and without fusion"):
        maps.mapping_member(trials[:1], WEIGHTS)
    pixels = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8)

    def streamed(shards, images, view, size, device):
        yield PixelBatch(np.array([1, 0]), {view: pixels})

    monkeypatch.setattr(maps, "plain_batches", streamed)
    monkeypatch.setattr(maps, "nearest", lambda shards, resolution: None)
    asked = ask(trials, FINDINGS, WEIGHTS, ("Bulla", "edema"), say=lambda line: None)
    rows, images = dict(zip(asked.findings, asked.embeddings[1], strict=True)), manifest.table.iloc[:2]
    drawn = list(maps.attention_maps(trials[1], rows, ("Bulla", "edema"), (), images))
    assert [row for row, _, _ in drawn] == [1, 0]
    assert drawn[0][2].shape == (2, 2, 2)
    from cxrlt_ray.models import load

    model, _, _ = load(Path(trials[1].store.uri) / "fold-0")
    with torch.inference_mode():
        edema = model.with_maps(pixels)[1][:, FINDINGS.index("Edema")]
    np.testing.assert_allclose(np.stack([of_image[1] for _, _, of_image in drawn]), edema, atol=1e-5)
    # Mass was trained on, but is not among the ensemble's findings: it is asked by text, and so keeps its own row
    of_task = tuple(name for name in FINDINGS if name != "Mass")
    names = ("Mass", "Bulla")
    asked = ask(trials, of_task, WEIGHTS[:, :2], names, say=lambda line: None)
    rows = dict(zip(asked.findings, asked.embeddings[1], strict=True))
    both = np.stack([maps_ for _, _, maps_ in maps.attention_maps(trials[1], rows, names, (), images)])
    np.testing.assert_allclose(both[:, 1], np.stack([of_image[0] for _, _, of_image in drawn]), atol=1e-5)


def test_the_scorer_answers_for_both_in_one_pass(made, monkeypatch):
    from cxrlt_ray.models import load

    _, _, trials = made
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (4, 32, 32), dtype=torch.uint8)
    rows = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    members = [
        dataclasses.replace(score.member(trial), asked=None if k == 1 else rows, more=2, precision="fp32")
        for k, trial in enumerate(trials)
    ]

    def streamed(shards, images, views, device, grouped):
        yield PixelBatch(np.arange(4), {views[0]: pixels})

    monkeypatch.setattr(score, "augmented_batches", streamed)
    item = {"file": ["x"], "image_id": [list("abcd")], "study": [[0, 1, 2, 3]], "view": [[0, 0, 0, 0]]}
    scores = score.Scorer(None, members)(item)["scores"]
    assert scores.shape == (4, 3, 5)
    for k, trial in enumerate(trials):
        model, _, _ = load(Path(trial.store.uri) / "fold-0")
        with torch.inference_mode():
            np.testing.assert_allclose(scores[:, k, :3], model(pixels).sigmoid(), atol=1e-5)
            if k != 1:
                other = asked_model(model, torch.from_numpy(rows))(pixels).sigmoid()
                np.testing.assert_allclose(scores[:, k, 3:], other, atol=1e-5)


def test_a_finding_whose_labels_the_members_learned_is_told_from_one_that_they_never_saw(made):
    lines: list[str] = []
    of_task = FINDINGS[:1]  # as in an ensemble that is of some of its members' findings
    ask(made[2], of_task, WEIGHTS[:, :1], (FINDINGS[1], "Bulla"), say=lines.append)
    assert any(line.startswith(f"{FINDINGS[1]}: asked by text") and "learned labels of that" in line for line in lines)
    assert any(line.startswith("Bulla: asked by text") and "not trained on that" in line for line in lines)
