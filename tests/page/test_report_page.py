"""The report of a run at any time: what is there is shown, what is not is said, and nothing private is in it."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from cxrlt_ray import ensemble, models, report
from cxrlt_ray.data.shards import encode, pack
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.page.costs import gflops_of
from cxrlt_ray.page.facts import Facts, public
from cxrlt_ray.page.records import Report
from cxrlt_ray.page.render import gathered, render
from cxrlt_ray.page.sections.ensemble import _about
from cxrlt_ray.page.sections.registry import sections
from cxrlt_ray.page.written import write_report
from cxrlt_ray.runs.contamination import Contamination
from cxrlt_ray.runs.cost import flops_of
from cxrlt_ray.runs.ensemble_record import ChosenMethod, EnsembleRecord
from cxrlt_ray.runs.predictions import read_predictions
from cxrlt_ray.runs.records import EpochRecord, ShardsRecord
from cxrlt_ray.runs.store import Run, best_first, load_run
from cxrlt_ray.storage import Store

sys.path.insert(0, str(Path(__file__).parent))
from browser_page import drawn_run

FINDINGS = ("Effusion", "Mass", "Nodule")


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A finished run of nine trials with an ensemble made by the command, which wrote the report."""
    folder = tmp_path_factory.mktemp("storage")
    drawn_run(folder, findings=FINDINGS)
    ensemble.main(select="mean", storage=str(folder), rounds=20)
    return folder


def gathered_of(run: Run) -> Report:
    """The report, and its page drawn once, so that a fault of either is one of the test."""
    report = gathered(Facts(run, rounds=20))
    page = render(report)
    assert report.faults == {}
    assert "please report it" not in page
    return report


def test_the_ensemble_leaves_the_report_and_prints_its_path_last(storage, capsys):
    ensemble.main(select="mean", storage=str(storage), rounds=20)
    assert capsys.readouterr().out.splitlines()[-1] == f"{storage}/drawn/report.html"
    for name in ("report.html", "report.json", "MODEL_CARD.md"):
        assert (storage / "drawn" / name).stat().st_size > 1000


def test_no_report_leaves_it_out_and_a_fault_in_it_does_not_fail_the_ensemble(tmp_path, capsys, monkeypatch):
    drawn_run(tmp_path, trials=3, findings=FINDINGS)
    ensemble.main(select="mean", storage=str(tmp_path), rounds=10, report=False)
    assert not (tmp_path / "drawn" / "report.html").exists()

    def broken(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr("cxrlt_ray.page.written.write_report", broken)
    ensemble.main(select="mean", storage=str(tmp_path), rounds=10)
    assert "The report could not be written (RuntimeError)" in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "drawn" / "ensembles" / "mean" / "ensemble.json").exists()


def test_damaged_tracking_does_not_fail_the_ensemble(tmp_path, capsys):
    run = drawn_run(tmp_path, trials=2, findings=FINDINGS)
    run.store.write("tracking.json", b"{")
    ensemble.main(select="mean", storage=str(tmp_path), rounds=20, report=False)
    printed = capsys.readouterr().out
    assert "trackers are not told of the ensemble" in printed
    assert "Left in" in printed


def test_the_scores_are_the_ensembles_own(storage):
    record = json.loads((storage / "drawn" / "ensembles" / "mean" / "ensemble.json").read_text())["scores"]
    summary = json.loads((storage / "drawn" / "report.json").read_text())["sections"]["summary"]
    own = record["systems"]["mean ensemble"]
    names = [of["name"] for of in summary["sets"]]
    assert names == ["test", "cross_fitted", "optimistic"]
    for name, score in zip(names, summary["systems"][0]["scores"], strict=True):
        assert score == {"value": own[name]["map"], "low": own[name]["low"], "high": own[name]["high"]}


def test_the_findings_scores_are_scikit_learns(storage):
    from sklearn.metrics import average_precision_score, roc_auc_score

    run = load_run(str(storage))
    folder = run.store / "ensembles" / "mean"
    stored = read_predictions(folder, "predictions.parquet", FINDINGS, "test", run.record.fingerprint)
    table = run.manifest().table.set_index("image_id").loc[stored.image_id]
    rows = {
        row["finding"]: row
        for row in json.loads((storage / "drawn" / "report.json").read_text())["sections"]["findings"]["rows"]
    }
    for c, finding in enumerate(FINDINGS):
        targets = table[finding].to_numpy(int)
        assert rows[finding]["positives"] == targets.sum()
        scores = stored.probabilities[:, c]
        assert rows[finding]["ap"]["value"] == pytest.approx(average_precision_score(targets, scores))
        assert rows[finding]["auroc"]["value"] == pytest.approx(roc_auc_score(targets, scores))
        curve = np.array(rows[finding]["curve"])
        assert curve[-1, 0] == 1
        assert curve[-1, 1] == pytest.approx(targets.mean(), abs=0.02) or curve[-1, 1] > targets.mean()


def test_cross_fitted_scores_are_kept_for_what_is_fitted_on_them(storage):
    run = load_run(str(storage))
    images = Facts(run).images("cross_fitted")
    assert images is not None
    assert set(images.table["split"]) == {"val"}
    assert len(images.targets) == (run.manifest().table["split"] == "val").sum()


@pytest.mark.parametrize("trials", [0, 1, 3])
def test_a_run_without_an_ensemble_has_a_page(tmp_path, trials):
    run = drawn_run(tmp_path, trials=trials, findings=FINDINGS)
    report = gathered_of(run)
    assert report.absent["ensemble"] == "No ensemble has been made yet."
    assert ("trials" in report.absent) == (trials == 0)
    assert report.sections["summary"]["next"][-1]["command"].startswith("python -m cxrlt_ray.ensemble --select")


def test_a_damaged_trial_has_a_row_that_says_so(tmp_path):
    run = drawn_run(tmp_path, trials=4, findings=FINDINGS)
    (tmp_path / "drawn" / "trials" / "T0000" / "trial.json").write_text("{")
    (tmp_path / "drawn" / "trials" / "T0001" / "predictions" / "val.parquet").unlink()
    report = gathered_of(run)
    rows = {row["trial"]: row for row in report.sections["trials"]["rows"]}
    assert (rows["T0000"]["state"], "JSON" in rows["T0000"]["note"]) == ("unreadable", True)
    assert rows["T0001"]["note"] == "its validation predictions are not there"
    titles = [notice["title"] for notice in report.sections["summary"]["notices"]]
    assert {"Damaged trials", "Missing files"} <= set(titles)


def test_damaged_predictions_of_a_member_are_named_and_the_page_comes(storage, tmp_path):
    shutil.copytree(storage, tmp_path / "s")
    (tmp_path / "s" / "drawn" / "trials" / "T0001" / "predictions" / "val.parquet").write_bytes(b"no")
    report = gathered_of(load_run(str(tmp_path / "s")))
    assert "Not readable" in [notice["title"] for notice in report.sections["summary"]["notices"]]
    assert str(tmp_path) not in render(report)


def test_of_trials_whose_predictions_are_damaged_the_next_best_is_scored(tmp_path):
    run = drawn_run(tmp_path, trials=3, findings=FINDINGS)
    best, second, _ = best_first(run.trials())
    best.store.write("predictions/val.parquet", b"damaged")
    report = gathered_of(run)
    assert report.sections["findings"]["about"].startswith(second.name)
    assert any(notice["title"] == "Not readable" for notice in report.sections["summary"]["notices"])


def test_an_ensemble_of_another_split_is_shown_on_its_images(storage, tmp_path):
    shutil.copytree(storage, tmp_path / "s")
    run = load_run(str(tmp_path / "s"))
    manifest, ensembled = run.manifest(), run.store / "ensembles" / "mean"
    manifest.table.loc[manifest.table["split"] == "test", "split"] = "holdout"
    with run.store.place("manifest.parquet") as path:
        manifest.write(path)
    stored = read_predictions(ensembled, "predictions.parquet", FINDINGS, "test", run.record.fingerprint)
    dataclasses.replace(stored, split="holdout").write(ensembled, "predictions.parquet")
    report = gathered_of(run)
    assert "holdout images" in report.sections["findings"]["about"]
    assert not any(notice["title"] == "Not readable" for notice in report.sections["summary"]["notices"])
    dataclasses.replace(stored, split="val").write(ensembled, "predictions.parquet")  # these chose the weights
    assert "cross-fitted" in gathered_of(run).sections["findings"]["about"]


def test_a_run_without_test_labels_shows_cross_fitted_scores(tmp_path):
    from page import write_run

    run = write_run(tmp_path, 3, FINDINGS, 120)
    manifest = run.manifest()
    manifest.table.loc[manifest.table["split"] == "test", list(FINDINGS)] = None
    with run.store.place("manifest.parquet") as path:
        manifest.write(path)
    ensemble.main(select="mean", storage=str(tmp_path), rounds=10, report=False)
    report = gathered_of(load_run(str(tmp_path)))
    assert "cross-fitted" in report.sections["findings"]["about"]


@pytest.mark.parametrize("count", [1, 120])
def test_one_finding_or_many(tmp_path, count):
    run = drawn_run(tmp_path, trials=2, images=60, findings=tuple(f"Finding {k}" for k in range(count)))
    assert len(gathered_of(run).sections["findings"]["rows"]) == count


def test_a_leak_of_subjects_is_the_first_thing_to_know(tmp_path):
    run = drawn_run(tmp_path, trials=2, findings=FINDINGS)
    manifest = run.manifest()
    first = manifest.table.index[manifest.table["split"] == "train"][0]
    last = manifest.table.index[manifest.table["split"] == "test"][0]
    manifest.table.loc[last, "subject_id"] = manifest.table.loc[first, "subject_id"]
    with run.store.place("manifest.parquet") as path:
        manifest.write(path)
    report = gathered_of(load_run(str(tmp_path)))
    notice = report.sections["summary"]["notices"][0]
    assert (notice["level"], notice["title"]) == ("bad", "Leak of subjects")
    assert "1 in test and train" in notice["text"]


def test_no_id_and_no_path_is_in_the_page_the_numbers_or_the_card(storage):
    run = load_run(str(storage))
    table = run.manifest().table
    for name in ("report.html", "report.json", "MODEL_CARD.md"):
        content = (storage / "drawn" / name).read_text()
        assert str(storage) not in content
        assert "/data/drawn" not in content
        assert "drawn.jpg" not in content
        for column in ("image_id", "study_id", "subject_id"):
            assert not re.search(rf"\b{table[column].iloc[0].rpartition('-')[0]}-\d", content)


def test_a_failures_reason_is_shown_without_its_paths_and_numbers(tmp_path):
    run = drawn_run(tmp_path, trials=3, findings=FINDINGS)
    trial = run.trials()[0]
    reason = "s3://bucket/p10/p10000032/s50414267.jpg cannot be read (subject 10000032)"
    trial.write(trial.record.model_copy(update={"state": "failed", "reason": reason}))
    page = render(gathered_of(load_run(str(tmp_path))))
    assert "cannot be read (subject (number))" in page
    assert not re.search("10000032|50414267|bucket", page)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("there is no image of 10000032.", "there is no image of (number)."),
        ("patient00007/study1/view1.jpg is damaged", "(path) is damaged"),
        ("1.2.276.0.7230010.3.1.4.8323329 is damaged", "(number) is damaged"),
        ("50a418190bc3fb1ef1633bf9678929b3.png", "(number).png"),
        ("123e4567-e89b-12d3-a456-426614174000", "(number)"),
        ("loss 0.1234567 of torch 2.10.0", "loss 0.1234567 of torch 2.10.0"),
    ],
)
def test_texts_of_faults_are_shown_without_what_may_name_a_patient(text, shown):
    assert public(text) == shown


def test_what_a_run_was_asked_is_shown_without_paths_and_with_its_seed(tmp_path):
    run = drawn_run(tmp_path, trials=2, findings=FINDINGS)
    seen = Contamination(weights="/home/ann/mae", split="test", images=3, of_images=240, subjects=2, of_subjects=120)
    changes = {"task_argument": "/home/ann/mine.yaml", "seed": 1234567, "seen": (seen,)}
    run.write(run.record.model_copy(update=changes))
    report = gathered_of(load_run(str(tmp_path)))
    details = {row["what"]: row["value"] for row in report.sections["environment"]["details"]}
    assert details["seed of the run"] == "1234567"
    assert "sweep mine.yaml" in report.sections["environment"]["commands"][0]["command"]
    page = render(report)
    assert "/home/ann" not in page
    assert "(path) was pretrained on 2 of the 120 test subjects" in page


def test_how_long_finished_trials_were_trained_is_shown_whatever_was_asked(tmp_path):
    run = drawn_run(tmp_path, trials=2, findings=FINDINGS)
    for trial, count in zip(run.trials(), (2, 4), strict=True):
        epochs = [EpochRecord(fold=0, stage=0, epoch=k, score=0.1) for k in range(count)]
        trial.write(trial.record.model_copy(update={"state": "finished", "epochs": epochs}))
    page = render(gathered_of(load_run(str(tmp_path))))
    assert "Trials: 2 finished. Finished ones have 2 to 4 epochs." in page


def test_images_are_shown_only_on_request(tmp_path):
    run = drawn_run(tmp_path, trials=2, images=20, findings=FINDINGS)
    ids = run.manifest().table["image_id"].tolist()
    content = pack(
        pd.DataFrame(
            {"image": [encode(np.full((32, 32), n % 256, np.uint8)) for n in range(len(ids))], "image_id": ids}
        )
    )
    shards = Store(str(tmp_path / "shards" / "drawn-32px"))
    shards.write("train-00000.parquet", content)
    packed = pd.read_parquet(tmp_path / "shards" / "drawn-32px" / "train-00000.parquet")
    index = packed[["image_id", "offset", "length"]].assign(file="train-00000.parquet")
    with shards.place("index.parquet") as path:
        index.to_parquet(path, index=False)
    run.write(run.record.model_copy(update={"shards": (ShardsRecord(name="drawn-32px", size=32),)}))
    run = load_run(str(tmp_path))
    assert "data:image" not in render(gathered(Facts(run, rounds=20)))
    shown = re.findall(r"data:image/jpeg;base64,([^\"]+)", render(gathered(Facts(run, images_shown=True, rounds=20))))
    assert 1 <= len(shown) <= len(FINDINGS)
    assert cv2.imdecode(np.frombuffer(base64.b64decode(shown[0]), np.uint8), cv2.IMREAD_GRAYSCALE).shape == (32, 32)


def test_a_report_is_drawn_from_its_json_alone(storage, tmp_path):
    stored = Report.read(Store(str(storage / "drawn")), "report.json")
    assert render(stored) == (storage / "drawn" / "report.html").read_text()


def test_costs_are_of_the_records_and_counted_where_these_have_none(storage):
    run = load_run(str(storage))
    facts = Facts(run)
    cost = gflops_of(facts)
    trial = facts.trials[0]
    assert cost[trial.name] == trial.record.flops / 1e9
    older = dataclasses.replace(trial, record=trial.record.model_copy(update={"flops": None}))
    assert flops_of(older) == models.flops(trial.config.spec(), len(trial.record.findings))


def test_the_model_card_is_one_of_hugging_face(storage):
    from huggingface_hub import ModelCard

    card = ModelCard.load(storage / "drawn" / "MODEL_CARD.md")
    results = {result.dataset_split: result.metric_value for result in card.data.eval_results}
    assert set(results) == {"cross_fitted", "test"}
    assert card.data.pipeline_tag == "image-classification"
    assert yaml.safe_load(card.content.split("---")[1])["license"] == "other"
    for heading in ("Intended use", "Data", "Scores", "Limits", "Weights and licences"):
        assert f"\n## {heading}\n" in card.text


def test_two_runs_are_paired_on_their_common_images(storage, tmp_path, capsys):
    shutil.copytree(storage, tmp_path / "s")
    shutil.copytree(storage / "drawn", tmp_path / "s" / "other")
    record = json.loads((tmp_path / "s" / "other" / "run.json").read_text())
    (tmp_path / "s" / "other" / "run.json").write_text(json.dumps({**record, "name": "other", "seed": 7}))
    out = tmp_path / "two.html"
    request = report.ReportRequest(compare=["drawn", "other"], storage=str(tmp_path / "s"), out=str(out))
    assert report.run(request) == str(out)
    facts = json.loads((tmp_path / "two.json").read_text())["sections"]["comparison"]
    assert facts["where"] == "test"
    assert facts["macro"]["value"] == 0
    assert {row["finding"] for row in facts["paired"]} == set(FINDINGS)
    assert facts["asked"] == [{"setting": "seed", "one": "0", "other": "7"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "page.pdf"}, "must end in .html"),
        ({"compare": ["a"]}, "takes two runs, not 1"),
        ({"compare": ["a", "b"], "run": "c"}, "--run does not go with --compare"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        report.ReportRequest(**options)


def test_a_section_that_fails_leaves_a_sentence_and_the_others(tmp_path, monkeypatch):
    run = drawn_run(tmp_path, trials=2, findings=FINDINGS)
    data = next(section for section in sections() if section.name == "data")
    monkeypatch.setitem(data.__dict__, "gather", lambda _: 1 / 0)
    report = gathered(Facts(run, rounds=20))
    assert "ZeroDivisionError" in report.faults["data"]
    assert {"summary", "trials", "findings"} <= set(report.sections)
    assert "ZeroDivisionError" in render(report)


def test_one_subject_and_equal_scores_have_a_page_without_intervals(tmp_path):
    run = drawn_run(tmp_path, trials=2, images=60, findings=FINDINGS)
    manifest = run.manifest()
    manifest.table["subject_id"] = "one"
    with run.store.place("manifest.parquet") as path:
        manifest.write(path)
    for trial in run.trials():
        stored = trial.stored_predictions()
        equal = dataclasses.replace(stored, probabilities=np.full_like(stored.probabilities, 0.5))
        equal.write(trial.store, "predictions/val.parquet")
    row = gathered_of(load_run(str(tmp_path))).sections["findings"]["rows"][0]
    assert row["auroc"] == {"value": 0.5, "low": None, "high": None}
    assert row["ap"]["value"] == pytest.approx(row["prevalence"])


def test_weights_that_saw_the_scored_images_are_flagged(tmp_path):
    run = drawn_run(tmp_path, trials=3, findings=FINDINGS)
    manifest = run.manifest()
    with run.store.place("manifest.parquet") as path:
        dataclasses.replace(manifest, source="cxrlt2024").write(path)
    trial = run.trials()[1]
    trial.write(trial.record.model_copy(update={"weights": "torchxrayvision densenet121-res224-all"}))
    notices = gathered_of(load_run(str(tmp_path))).sections["summary"]["notices"]
    (flag,) = (notice for notice in notices if notice["title"] == "Contaminated weights")
    assert "T0001" in flag["text"]
    assert "T0000" not in flag["text"]


def test_a_run_in_an_object_store_has_its_page_beside_it(storage):
    from s3 import served

    with served("bucket"):
        bucket = Store("s3://bucket/runs/drawn")
        for path in (storage / "drawn").rglob("*"):
            if path.is_file() and path.name not in ("report.html", "report.json"):
                bucket.write(path.relative_to(storage / "drawn").as_posix(), path.read_bytes())
        written = write_report(load_run("s3://bucket/runs", "drawn"))
        assert written.uri == "s3://bucket/runs/drawn/report.html"
        assert written.report.faults == {}
        page = bucket.read("report.html").decode()
    assert "bucket" not in page
    own = json.loads((storage / "drawn" / "report.json").read_text())["sections"]["findings"]
    assert written.report.sections["findings"] == own


class Outline(HTMLParser):
    """Checks that elements are closed in order, and collects ids."""

    VOID = ("meta", "img", "input", "br", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_its_ids_are_unique(storage):
    outline = Outline()
    outline.feed((storage / "drawn" / "report.html").read_text())
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert {section.name for section in sections()} <= set(outline.ids)


def test_the_templates_are_in_the_package():
    folder = Path(render.__code__.co_filename).parent / "templates"
    assert {path.name for path in folder.iterdir()} == {"page.html.j2", "page.css", "page.js", "model_card.j2"}


@pytest.mark.parametrize(
    ("guard", "track", "said"), [(100.0, None, True), (0.0, None, True), (None, None, False), (100.0, "reports", False)]
)
def test_a_blend_is_named_where_findings_have_weights_of_their_own(guard, track, said):
    record = EnsembleRecord(
        name="greedy", task=Task("auto", ("Mass",)), members=[], selector="greedy", blend=["simplex", "nnls"],
        lean="sound", track=track, chosen=ChosenMethod(selector="greedy_bagged", guard=guard), aggregation="none",
    )  # fmt: skip
    text = _about(SimpleNamespace(ensemble=SimpleNamespace(record=record)))
    assert ("the weights of simplex and nnls count as much" in text) == said
    assert ("against the mean of the sound trials with a guard of 100 positive subjects" in text) == (guard == 100.0)
