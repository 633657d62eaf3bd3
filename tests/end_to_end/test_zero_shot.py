"""Findings asked for by text, the whole line: sweep, ensemble, what is left, and what may not have been read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import text_models
from conftest import write_images

from cxrlt_ray import ensemble, models, sweep
from cxrlt_ray.data.asking import ALWAYS
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.store import load_run
from cxrlt_ray.text.descriptions import kept_descriptions
from cxrlt_ray.text.label_embeddings import LabelEmbeddings

SEEN = ("Mass", "Nodule", "Edema", "Fibrosis")
ASKED = ("Bulla", "Scoliosis")
SPACE = """
trials: 2
epochs: 2
prune: false
parameters:
  backbone: test_convnext
  pretrained: false
  resolution: 32
  batch_size: 8
  lr: {{low: 1e-3, high: 1e-2}}
  head: {head}
  {queries}
  objective: {objective}
"""


def write_cohort(folder, flipped=False):
    """48 images with four seen and two asked findings; `flipped`: other labels of the asked ones but in test."""
    manifest = write_images(folder, 48)
    rng = np.random.default_rng(5)
    table = manifest.table[["image_id", "path", "subject_id", "study_id", "view", "split", "Mass", "Nodule"]].copy()
    for name in (*SEEN[2:], *ASKED):
        table[name] = (rng.random(len(table)) < 0.4).astype(int)
    if flipped:
        table.loc[table["split"] != "test", list(ASKED)] ^= 1
    table.to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """A file of label embeddings."""
    values = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    path = tmp_path_factory.mktemp("embeddings") / "embeddings.parquet"
    pd.DataFrame(values, columns=[f"e{k}" for k in range(8)]).assign(finding=[*SEEN, *ASKED]).to_parquet(path)
    return path


def asked(data, tmp_path, embeddings, head="query_text", objective="zero_shot", **options):
    queries = f"queries: {embeddings}" if head == "query_text" else ""
    (tmp_path / "text.yaml").write_text(SPACE.format(head=head, queries=queries, objective=objective))
    given = {"task": "auto", "data": str(data), "space": str(tmp_path / "text.yaml"), "name": "mine"}
    given |= {"ask": ",".join(ASKED), "finding_folds": 2, "storage": str(tmp_path / "runs")}
    return sweep.SweepRequest(**{**given, **options})


def test_asked_findings_are_predicted_and_no_label_of_theirs_is_read(ray, tmp_path, embeddings, capsys):
    submissions = []
    for name, flipped in (("as they are", False), ("flipped", True)):
        folder = tmp_path / name
        folder.mkdir()
        run = sweep.run(asked(write_cohort(folder / "data", flipped), folder, embeddings))
        told = capsys.readouterr().out
        assert "Asked for by text: Bulla, Scoliosis; track scrubbed" in told
        assert "Their labels in training and validation are not read: Bulla, Scoliosis" in told
        assert "2 trials of up to 2 epochs x 2 folds of findings" in told
        stacked = ensemble.run(ensemble.EnsembleRequest(select="greedy", storage=str(folder / "runs"), rounds=50))
        submissions.append(stacked.store.read("submission.csv"))
    assert submissions[0] == submissions[1]
    told = capsys.readouterr().out
    assert "Lift of the asked findings on test (track scrubbed):" in told
    assert "Findings without labels share one choice" in told
    columns = pd.read_csv(folder / "runs/mine/ensembles/greedy/submission.csv", nrows=2).columns.tolist()
    assert columns == ["dicom_id", *ASKED]
    weights = pd.read_csv(folder / "runs/mine/ensembles/greedy/weights.csv")
    assert np.allclose(weights["Bulla"], weights["Scoliosis"])
    record = load_run(str(folder / "runs")).record
    assert (record.ask, record.finding_folds, record.task.findings) == ("Bulla,Scoliosis", 2, ASKED)
    assert record.asking.asked == ASKED
    assert set(record.asking.fold) <= {0, 1, ALWAYS}
    for trial in run.trials():
        assert trial.record.metric.name == "val_log_lift"
        assert len(trial.record.epochs) == 4  # two epochs of each fold
        assert trial.predictions().columns.tolist() == list(record.predicted)
        scored = ("val", "test") if trial.name in set(weights["trial"]) else ("val",)  # on test where chosen
        assert {trial.stored_predictions(split).track for split in scored} == {"scrubbed"}


def test_a_seen_finding_is_predicted_by_the_model_that_was_trained_without_it(ray, tmp_path, embeddings):
    """Other labels of a fold's findings in training leave that fold's model as it was, and change the other."""
    scores = []
    data = write_cohort(tmp_path / "data")
    table = pd.read_csv(data / "labels.csv")
    for name in ("before", "after"):
        folder = tmp_path / name
        folder.mkdir()
        run = sweep.run(asked(data, folder, embeddings, trials=1, epochs=1))
        scores.append(run.trials()[0].predictions())
        asking = run.record.asking
        first = [finding for finding, fold in zip(asking.seen, asking.fold, strict=True) if fold == 0]
        # each class keeps its count, so that the folds stay as they are
        for finding in first:
            rows = table.index[table["split"] == "train"]
            table.loc[rows, finding] = np.roll(table.loc[rows, finding].to_numpy(), 1)
        table.to_csv(data / "labels.csv", index=False)
    own, other = first[0], next(f for f, k in zip(asking.seen, asking.fold, strict=True) if k == 1)
    assert np.array_equal(scores[0][own], scores[1][own])
    assert not np.array_equal(scores[0][other], scores[1][other])


def test_mined_labels_train_a_space_that_reads_no_report(ray, tmp_path, embeddings, capsys):
    """As `sweep task3 --track mined` without a space does: reports are read for labels, no trial has texts."""
    data = write_cohort(tmp_path / "data")
    table = pd.read_csv(data / "labels.csv", dtype={"study_id": str}).drop_duplicates("study_id")
    said = {name: np.where(table[name] == 1, f"There is {name.lower()}.", f"No {name.lower()}.") for name in ASKED}
    texts = [" ".join(sentences) for sentences in zip(*said.values(), strict=True)]
    reports = tmp_path / "reports.csv"
    pd.DataFrame({"study_id": table["study_id"], "text": texts}).to_csv(reports, index=False)
    request = asked(data, tmp_path, embeddings, trials=1, epochs=1, track="mined", reports=str(reports))
    sweep.run(request)
    again = {"task": "auto", "name": "mine", "storage": request.storage, "resume": True, "trials": 2}
    run = sweep.run(sweep.SweepRequest(**again))
    assert [trial.state for trial in run.trials()] == ["finished", "finished"]
    ensemble.run(ensemble.EnsembleRequest(select="greedy", storage=request.storage, rounds=50))
    assert "labels mined from reports were read in training, and no label that the data has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"head": "linear"}, "head linear.*--space laptop_text"),
        ({"objective": "multilabel"}, "objective multilabel"),
        ({"ask": None, "finding_folds": None}, "sweep task3, or say what to ask for by --ask"),
        ({"finding_folds": 9}, "4 findings have labels to train on: 9 folds"),
        ({"folds": 3}, "--folds are of images"),
        ({"holdout": 0.3}, "--holdout keeps labels to score by"),
        ({"ask": "Bulla,Bulla"}, "each once"),
        ({"ask": None}, "--finding-folds is for"),
        ({"task": "task3"}, "task3 asks for its own findings"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path, embeddings, options, told):
    with pytest.raises(UsageError, match=told):
        sweep.run(asked(write_cohort(tmp_path / "data"), tmp_path, embeddings, **options))
    assert not (tmp_path / "runs/mine/run.json").exists()


def test_a_run_that_asks_goes_on_as_it_was_made(ray, tmp_path, embeddings):
    data = write_cohort(tmp_path / "data")
    request = asked(data, tmp_path, embeddings, trials=1, epochs=1)
    sweep.run(request)
    again = {"task": "auto", "name": "mine", "storage": request.storage, "resume": True, "trials": 2}
    with pytest.raises(UsageError, match="was made with --ask Bulla,Scoliosis, not Mass"):
        sweep.run(sweep.SweepRequest(**again, ask="Mass"))
    run = sweep.run(sweep.SweepRequest(**again))
    assert [trial.state for trial in run.trials()] == ["finished", "finished"]
    assert dataclasses.astuple(run.record.asking)[0] == ASKED


def test_a_run_keeps_its_texts_and_goes_on_without_the_encoder(ray, tmp_path, embeddings, monkeypatch, capsys):
    """The user's descriptions and the label embeddings lie in the run; its trials load no text encoder."""
    monkeypatch.setattr(text_models, "POSITIONS", 256)
    encoder = text_models.bert_folder(tmp_path / "bert")
    queries = f"text: {encoder}\n  prompts: description"
    (tmp_path / "text.yaml").write_text(SPACE.format(head="pair", queries=queries, objective="zero_shot"))
    own = tmp_path / "own.yaml"
    own.write_text(
        "finding: Sail Sign\nnames: [sail sign]\nappearance: A lung with a large heart.\nkeywords: [sail, spine, heart]"
    )
    data = write_cohort(tmp_path / "data")
    table = pd.read_csv(data / "labels.csv").rename(columns={"Bulla": "Sail Sign"})
    table.to_csv(data / "labels.csv", index=False)
    given = {"task": "auto", "name": "mine", "storage": str(tmp_path / "runs")}
    options = {
        "data": str(data),
        "space": str(tmp_path / "text.yaml"),
        "ask": "Sail Sign,Scoliosis",
        "finding_folds": 2,
    }
    with pytest.raises(UsageError, match="finding 'Sail Sign' has no description in the package; nearest: "):
        sweep.run(sweep.SweepRequest(**given, **options))
    assert not (tmp_path / "runs/mine").exists()
    run = sweep.run(sweep.SweepRequest(**given, **options, descriptions=str(own), trials=1))
    assert "(16 numbers a text, stored)" in capsys.readouterr().out
    assert [each.finding for each in kept_descriptions(run.store)] == ["Sail Sign"]
    assert run.record.descriptions.startswith(f"1 of {own}")
    own.write_text(own.read_text().replace("heart.", "hilum."))
    with pytest.raises(UsageError, match="was made with --descriptions 1 of"):
        sweep.run(sweep.SweepRequest(**given, resume=True, descriptions=str(own)))
    (encoder / "model.safetensors").unlink()
    run = sweep.run(sweep.SweepRequest(**given, resume=True, trials=2))
    assert [(trial.state, trial.record.reason) for trial in run.trials()] == [("finished", None)] * 2
    rows = LabelEmbeddings.read(run.store)
    for trial in run.trials():
        model, _, findings = models.load(trial.store.local / "fold-0")
        expected = rows.of((str(encoder), "description"), findings)
        np.testing.assert_array_equal(model.head.embeddings.numpy(), expected)
