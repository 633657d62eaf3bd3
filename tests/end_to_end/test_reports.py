"""`sweep --reports`: a space whose first stage reads, on a small phantom with its reports."""

from __future__ import annotations

import pandas as pd
import pytest
from text_models import bert_folder

from cxrlt_ray import sweep
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.reports import read_reports
from cxrlt_ray.phantom import write_phantom
from cxrlt_ray.runs.store import load_run, runs
from cxrlt_ray.text.corpus import CORPUS, Corpus

SPACE = """
trials: 1
parameters:
  backbone: test_convnext
  pretrained: false
  resolution: 32
  batch_size: 16
  lr: 3e-3
  flip: 0
  text: {bert}
  text_draw: statement
  max_tokens: 32
stages:
  - {{epochs: 2, objective: {first}}}
  - {{epochs: 1, objective: multilabel}}
"""


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    write_phantom(str(folder), images=200, size=48, seed=0)
    return folder


def asked(phantom, tmp_path, first="clip", **options):
    bert = tmp_path / "bert"
    if not bert.exists():
        bert_folder(bert)
    settings = ", clip_width: 16, text_tuning: tuned" if first == "clip" else ""
    lines = SPACE.format(bert=bert, first=first + settings).splitlines(True)
    of_texts = ("  text", "  max_tokens") if first == "multilabel" else ("no such line",)
    (tmp_path / "tiny.yaml").write_text("".join(line for line in lines if not line.startswith(of_texts)))
    given = {"task": "auto", "data": str(phantom), "space": str(tmp_path / "tiny.yaml"), "name": "mine"}
    return sweep.SweepRequest(**{**given, "storage": str(tmp_path / "runs"), **options})


def test_a_run_keeps_its_texts_and_a_stage_that_reads_them_hands_its_backbone_on(ray, phantom, tmp_path, capsys):
    studies = sorted({report.study_id for report in read_reports(str(phantom))})[:50]
    pd.DataFrame({"study_id": studies, "text": "Cardiomegaly, in other words."}).to_csv(tmp_path / "other.csv")
    run = sweep.run(asked(phantom, tmp_path, reports=str(phantom), reworded=str(tmp_path / "other.csv")))
    assert "50 with a second wording" in capsys.readouterr().out
    record = load_run(str(tmp_path / "runs"), "mine").record
    assert record.reports == str(phantom)
    assert record.reworded == str(tmp_path / "other.csv")
    assert len(Corpus.read(run.store, CORPUS).studies) == run.manifest().table["study_id"].nunique()
    (trial,) = run.trials()
    assert trial.state == "finished"
    assert trial.record.metric.name == "val_map"
    first, second, _ = trial.record.epochs
    assert second.loss < first.loss
    assert 0 < first.score <= 1
    assert trial.has_predictions()
    with pytest.raises(UsageError, match="was made with --reports"):
        sweep.run(asked(phantom, tmp_path, reports="elsewhere", resume=True))
    with pytest.raises(UsageError, match="was made with --reworded"):
        sweep.run(asked(phantom, tmp_path, reworded="elsewhere.csv", resume=True))
    # a run that goes on needs no --reports
    again = sweep.run(asked(phantom, tmp_path, resume=True, trials=2))
    assert [trial.state for trial in again.trials()] == ["finished", "finished"]


def test_reports_that_are_missing_or_of_no_use_are_refused_before_anything_starts(phantom, tmp_path):
    with pytest.raises(UsageError, match="has objective clip, which needs reports: give `--reports PATH`"):
        sweep.run(asked(phantom, tmp_path))
    with pytest.raises(UsageError, match="--reports: search space tiny has no objective that reads texts"):
        sweep.run(asked(phantom, tmp_path, first="multilabel", reports=str(phantom)))
    with pytest.raises(UsageError, match="--reworded: search space tiny has no objective that draws texts"):
        sweep.run(asked(phantom, tmp_path, first="multilabel", reworded=str(phantom)))
    assert runs(str(tmp_path / "runs")) == []
    assert not (tmp_path / "runs" / "shards").exists()


def test_a_plan_and_a_dry_run_need_no_reports(phantom, tmp_path, capsys):
    assert sweep.run(asked(phantom, tmp_path, plan=True)) is None
    assert sweep.run(asked(phantom, tmp_path, dry_run=True)) is None
    assert "Plan only: nothing was started" in capsys.readouterr().out
